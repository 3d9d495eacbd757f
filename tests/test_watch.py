"""benchmark/watch.py: a film where MuJoCo can draw, one clear line where it cannot."""

import os
import subprocess
import sys

import imageio.v2 as imageio
import numpy as np
import pytest

from conftest import ROOT, command


def can_draw() -> bool:
    """Whether MuJoCo draws here, asked in a process of its own: a failed attempt leaves a broken one behind."""
    probe = "import gymnasium; e = gymnasium.make('Hopper-v4', render_mode='rgb_array'); e.reset(); e.render()"
    environment = {**os.environ, "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
    return subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True).returncode == 0


@pytest.mark.parametrize("name", ["film.mp4", "film.gif"])
def test_the_command_films_the_policy_beside_the_expert_or_says_what_is_missing(tiny_run, tmp_path, name):
    out = tmp_path / name
    done = command("-m", "benchmark.watch", tiny_run[0], "--seconds", "0.4", "--out", out)
    if can_draw():
        assert done.returncode == 0, done.stderr
        frames = imageio.mimread(out)
        assert len(frames) > 1 and frames[0].shape[:2] == (240, 640)  # GIF merges frames that equal the one before
        assert len(np.unique(frames[0].reshape(-1, frames[0].shape[-1]), axis=0)) > 100
    else:
        assert done.returncode == 1 and "expected egl with" in done.stderr and "Traceback" not in done.stderr
        assert not out.exists()


@pytest.mark.parametrize(
    ("backend", "folder", "message"),
    [("nonsense", None, "MUJOCO_GL is nonsense: cannot draw ("), ("egl", "nowhere", "expected nowhere to be the")],
)
def test_what_is_missing_is_named_in_one_line(tiny_run, tmp_path, backend, folder, message):
    words = [sys.executable, "-m", "benchmark.watch", str(folder or tiny_run[0]), "--out", str(tmp_path / "film.gif")]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "MUJOCO_GL": backend}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
