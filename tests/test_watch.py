"""benchmark/watch.py: what a film shows, on any environment, and why one cannot be made."""

import json
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

import custom_irl as irl
from benchmark import runs, watch


class Corridor(gym.Env):
    """Four steps of reward 2, then the end; drawn in its own size, five steps a second."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Box(-1, 1, (1,))
    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, seed=None, options=None):
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), 2.0, self.t == 4, False, {}

    def render(self):
        return np.full((50, 100, 3), 40 * self.t, np.uint8)


class Broken(Corridor):
    def render(self):
        raise RuntimeError("the texture is missing\nsecond line")


class Blank(Corridor):
    def render(self):
        return None


for env_cls in (Corridor, Broken, Blank):
    gym.register(f"{env_cls.__name__}-v0", env_cls, max_episode_steps=9)


@pytest.fixture
def own_run(tmp_path):
    """A function that writes a finished run of an environment that is none of the project's."""

    def write(env_id="Corridor-v0", method="bc", name="run"):
        folder = tmp_path / name
        folder.mkdir()
        args = irl.Args(env_id, demos=tmp_path / "mine.npz")
        result = {"schema": 2, "method": method, "env": env_id, "dims": [2, 1], "seed": 1}
        result["config"] = irl.config_of(args)
        (folder / "result.json").write_text(json.dumps(result))
        torch.save(irl.Policy(2, 1).state_dict(), folder / "policy.pt")
        return folder

    return write


def test_a_camera_takes_shots_at_the_pace_of_the_environment_until_the_film_ends():
    camera = watch.Camera(watch.make_stage("Corridor-v0", None), seconds=1.5)
    watch.play(camera, lambda obs: np.zeros(1), seed=1)
    assert len(camera.shots) == 30  # 4 shots a step, the last one repeated
    assert [shot.total for shot in camera.shots[::4]] == [0, 2, 4, 6, 8, 8, 8, 8]
    assert [shot.ended for shot in camera.shots[12:18:4]] == [False, True]
    camera = watch.Camera(watch.make_stage("Corridor-v0", None), seconds=0.3)
    watch.play(camera, lambda obs: np.zeros(1), seed=1)
    assert [shot.total for shot in camera.shots] == [0, 2, 2, 2, 2, 4]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4"])
def test_a_run_of_another_environment_is_filmed(own_run, tmp_path, suffix, monkeypatch, capsys):
    out = tmp_path / f"film{suffix}"
    words = [str(own_run()), "--out", str(out), "--seconds", "0.5"]
    monkeypatch.setattr(sys, "argv", ["watch", *words])
    watch.main()
    assert capsys.readouterr().out.strip() == str(out)
    if suffix != ".mp4":
        with Image.open(out) as film:  # formats merge frames that equal the one before
            assert film.size == (watch.WIDTH, watch.HEAD + watch.CAPTION + watch.HEIGHT)
            assert film.n_frames == 4
    else:
        assert out.read_bytes()[4:8] == b"ftyp"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_several_runs_make_a_grid_of_environments_and_methods(own_run, tmp_path):
    config = watch.Config((own_run(name="a"), own_run(method="airl", name="b")), seconds=0.2)
    grid = watch.shoot_runs(config)
    assert list(grid) == ["Corridor-v0"]
    assert list(grid["Corridor-v0"]) == ["bc-demos-mine", "airl-demos-mine"]
    assert list(watch.heads_of(grid, ("BC", "AIRL")).values()) == ["BC", "AIRL"]
    grid["Other-v0"] = {"expert": grid["Corridor-v0"]["bc-demos-mine"]}
    heads = watch.heads_of(grid, ())
    assert list(heads) == ["bc-demos-mine", "airl-demos-mine", "expert"]
    page = watch.draw_page(grid, heads, 0)
    assert page.size == (3 * watch.WIDTH, watch.HEAD + 2 * (watch.CAPTION + watch.HEIGHT))
    with pytest.raises(irl.UserError, match=r"--names: 1 names; expected 2 \(bc-demos-mine, airl"):
        watch.heads_of(grid, ("BC",))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--out", "film.avi"], r"--out film\.avi: expected a name ending in \.mp4"),
        (["run", "run2"], "--out: expected the film's name, as there are several runs"),
        (["run", "run2", "--out", "film.gif"], "a second run of bc-demos-mine on Corridor-v0"),
        (["nowhere"], "no such file; expected the folder of a finished run"),
        (["run", "--seed", "-1"], "--seed -1: expected 0 or more"),
    ],
)
def test_bad_input_is_named(own_run, tmp_path, words, message, monkeypatch):
    own_run(name="run")
    own_run(name="run2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["watch", *words])
    with pytest.raises(irl.UserError, match=message):
        watch.main()
    assert not (tmp_path / "film.gif").exists()


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Broken-v0", r"^Broken-v0: cannot be drawn \(the texture is missing\)$"),
        ("Blank-v0", r"\(render\(\) returned None; expected an array"),
    ],
)
def test_the_environments_own_reason_is_given(env_id, message):
    with pytest.raises(irl.UserError, match=message):
        watch.make_stage(env_id, None)


def test_mujocos_backend_is_named_where_it_is_the_cause(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(irl.UserError, match="MUJOCO_GL is nonsense: egl needs libegl1"):
        watch.make_stage("Hopper-v4", None)


def test_the_expert_is_filmed_beside_the_policy_where_there_is_one(tiny_run):
    try:
        grid = watch.shoot_runs(watch.Config((tiny_run[0],), seconds=0.2))
    except irl.UserError as error:
        pytest.skip(f"MuJoCo cannot draw here: {error}")
    assert list(grid["Hopper-v4"]) == ["custom-4096-steps-tiny", "expert"]
    picture = np.asarray(grid["Hopper-v4"]["expert"][-1].image)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


def test_the_expert_stands_beside_the_demonstrations(tmp_path):
    own = irl.config_of(irl.Args("Hopper-v4", demos=tmp_path / "mine.npz"))
    assert watch.expert_of({"env": "Hopper-v4", "config": own}) == tmp_path / "mine.expert.npz"
    config = irl.config_of(irl.Args("Hopper-v4"))
    assert watch.expert_of({"env": "Hopper-v4", "config": config}).is_file()


def test_readmes_film_fits_its_page():
    path = runs.PUBLISHED / "hero.webp"
    assert path.stat().st_size < 4_000_000
    with Image.open(path) as film:
        assert film.width == 3 * watch.WIDTH
        film.load()
        assert film.n_frames * film.info["duration"] == pytest.approx(8000, abs=500)
        assert film.info["loop"] == 0
