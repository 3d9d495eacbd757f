"""Fixtures: a tiny run of the real command line, and short training for runs in this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import custom_irl as irl
from benchmark import launch, runs

ROOT = Path(__file__).resolve().parent.parent
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def command(*words: str, cwd: Path = ROOT, timeout: float = 300) -> subprocess.CompletedProcess:
    """Runs `python WORDS` as a user would type it, in the project's root."""
    line = [sys.executable, *map(str, words)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> tuple[Path, dict, str]:
    """A finished two-rollout run on Hopper: its folder, its result, its standard output."""
    folder = tmp_path_factory.mktemp("runs") / "custom" / "Hopper-v4" / "seed1"
    flags = ("--env", "Hopper-v4", "--seed", "1", "--total-timesteps", "4096")
    flags += ("--demo-episodes", "4", "--demo-subsample", "20")
    done = command("custom_irl.py", *flags, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "result.json").read_text()), done.stdout


@pytest.fixture
def launcher(monkeypatch, tmp_path):
    """The launcher's command line in this process, on `tmp_path`; returns what it exits with."""

    def run(*words: str) -> str | int | None:
        monkeypatch.setattr(sys, "argv", ["launch", "--results", str(tmp_path), *words])
        try:
            runs.command_line(launch.main)
        except SystemExit as stopped:
            return stopped.code
        return 0

    return run


@pytest.fixture(scope="session", autouse=True)
def own_key(tmp_path_factory):
    """The key that signs checkpoints is not the user's."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session", autouse=True)
def heard_hangup():
    """Commands that the tests start hear a closed terminal, even if the tests run under nohup."""
    old = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, old)


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    """Runs in this process take few gradient steps, those of the command line a user's."""
    short = replace(irl.Hyperparameters(), bc_steps=20, target_refreshes=2)
    monkeypatch.setattr(irl.IRLAlgorithm, "hyperparameters", short)
