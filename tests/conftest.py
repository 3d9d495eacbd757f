"""Fixtures: tiny runs of the real command line, in folders of their own, with one thread each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import custom_irl as irl

ROOT = Path(__file__).resolve().parent.parent
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def command(*words: str, cwd: Path = ROOT, timeout: float = 300) -> subprocess.CompletedProcess:
    """Runs `python WORDS` as a user would type it, in the project's root."""
    return subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> tuple[Path, dict, str]:
    """A finished two-rollout run on Hopper: its folder, its result, its standard output."""
    folder = tmp_path_factory.mktemp("runs") / "custom" / "Hopper-v4" / "seed1"
    flags = ("--env", "Hopper-v4", "--seed", "1", "--total-timesteps", "4096")
    done = command("custom_irl.py", *flags, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "result.json").read_text()), done.stdout


@pytest.fixture(autouse=True)
def short_guidance(monkeypatch):
    """Runs within this process clone and fit Q for a moment only; those of the command line as long as a user's."""
    monkeypatch.setattr(irl.IRLAlgorithm, "clone_steps", 20)
    monkeypatch.setattr(irl.IRLAlgorithm, "q_rounds", 2)
