"""benchmark/watch.py: a film where MuJoCo can draw, one clear line where it cannot."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from conftest import ROOT, command


def can_draw() -> bool:
    """Whether MuJoCo draws here, asked in a process of its own: a failed attempt leaves a broken one behind."""
    probe = "import gymnasium; e = gymnasium.make('Hopper-v4', render_mode='rgb_array'); e.reset(); e.render()"
    environment = {**os.environ, "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
    return subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True).returncode == 0


def test_the_command_films_the_policy_beside_the_expert_or_says_what_is_missing(tiny_run, tmp_path):
    out = tmp_path / "film.gif"
    done = command("-m", "benchmark.watch", tiny_run[0], "--seconds", "0.4", "--out", out)
    if can_draw():
        assert done.returncode == 0, done.stderr
        with Image.open(out) as gif:
            assert gif.size == (640, 240) and gif.n_frames > 1  # frames that equal the one before are merged
            assert len(gif.convert("RGB").getcolors(2**20)) > 100
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
