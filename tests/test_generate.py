"""The generator of the demonstrations: training that resumes, the expert, recording, bad input."""

import json
import shutil
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

import custom_irl as irl
from conftest import ROOT, command
from demos import generate
from demos.formats import DemoError, read, to_transitions


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Hopper's recipe cut down to two rollouts, in a folder of its own."""
    monkeypatch.setattr(generate, "HERE", tmp_path)
    recipe = replace(generate.RECIPES["Hopper-v4"], total_timesteps=4096)
    monkeypatch.setitem(generate.RECIPES, "Hopper-v4", recipe)
    return generate.Config(
        env="Hopper-v4", episodes=2, eval_every=1024, eval_episodes=1, out=tmp_path / "out"
    )


def test_training_resumes_where_it_stopped(small, monkeypatch):
    generate.train(small)
    folder = generate.HERE / ".training" / "Hopper-v4-seed0"
    first = generate.read_evaluations(folder)
    longer = replace(generate.RECIPES["Hopper-v4"], total_timesteps=8192)
    monkeypatch.setitem(generate.RECIPES, "Hopper-v4", longer)
    generate.train(small)
    steps = [score["steps"] for score in generate.read_evaluations(folder)]
    assert steps[: len(first)] == [score["steps"] for score in first] and steps == sorted(
        set(steps)
    )
    assert max(steps) > 4096 - 2048 and all((folder / f"{step}.npz").exists() for step in steps)


def test_the_folded_expert_acts_like_the_normalised_policy():
    envs = generate.VecNormalize(generate.make_vec_env("Hopper-v4", 2, seed=0), clip_obs=1e6)
    model = generate.PPO("MlpPolicy", envs, device="cpu", **generate.RECIPES["Hopper-v4"].ppo)
    envs.obs_rms.mean, envs.obs_rms.var = np.linspace(-1, 1, 11), np.linspace(0.1, 3, 11)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(50)
    obs = np.random.default_rng(0).normal(size=(20, 11))
    expected, _ = model.predict(envs.normalize_obs(obs), deterministic=True)
    actions = generate.expert_from_sb3(model, envs)(obs)
    np.testing.assert_allclose(actions, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(actions).max() == 1  # clipped to the action space, as SB3 does


def test_recordings_load_and_their_card_is_true(tmp_path):
    expert = generate.Expert.load(ROOT / "demos" / "Hopper-v4.expert.npz")
    config = generate.Config(env="Hopper-v4", episodes=2, noise=0.1, out=tmp_path)
    card = generate.record(config, expert, generate.training_of(config))
    assert (
        card == json.loads((tmp_path / "Hopper-v4.json").read_text())
        and card["expert"]["noise"] == 0.1
    )
    assert irl.load_card(tmp_path / "Hopper-v4.npz", "Hopper-v4") == (card, "")
    data = to_transitions(read(tmp_path / "Hopper-v4.npz"))
    assert len(data["obs"]) == round(2 * card["expert"]["demos"]["length_mean"])
    errors = np.abs(data["acts"] - expert(data["obs"]))
    assert 0.02 < errors.mean() < 0.2  # the noise asked for, less what clipping takes away
    again = generate.play(gym.make("Hopper-v4"), expert, generate.SEEDS["fresh"])
    assert len(again.obs) == len(again.acts) + 1 == len(again.rewards) + 1


def test_a_recording_of_stored_weights_keeps_what_is_known_of_their_training(tmp_path, small):
    """Its own seed is that of the noise."""
    weights = tmp_path / "Hopper-v4.expert.npz"
    shutil.copy(ROOT / "demos" / "Hopper-v4.expert.npz", weights)
    again = replace(small, record_only=True, seed=7, noise=0.1, episodes=1)
    generate.main(again)
    written = again.out / "Hopper-v4.json"
    card = json.loads(written.read_text())
    assert (card["expert"]["noise_seed"], list(card["training"])) == (7, ["unknown"])
    shutil.copy(ROOT / "demos" / "Hopper-v4.json", tmp_path)
    generate.main(again)
    committed = json.loads((ROOT / "demos" / "Hopper-v4.json").read_text())
    assert json.loads(written.read_text())["training"] == committed["training"]


def test_the_bank_is_what_its_card_says(tmp_path, small, monkeypatch):
    """Of a tiny training: 18 episodes of checkpoints, 9 noisy ones of the expert, 3 random."""
    generate.train(small)
    generate.Expert.load(ROOT / "demos" / "Hopper-v4.expert.npz").save(
        tmp_path / "Hopper-v4.expert.npz"
    )
    small.out.mkdir()
    card = generate.record_bank(small)
    path = small.out / "Hopper-v4.bank.npz"
    assert card["sha256"] == {path.name: irl.sha256(path)} and card == json.loads(
        path.with_suffix(".json").read_text()
    )
    kinds = [row["policy"].split()[0] for row in card["episodes"]]
    assert [kinds.count(kind) for kind in ("checkpoint", "noise", "random")] == [18, 9, 3]
    with np.load(path, allow_pickle=False) as f:
        lengths, rewards = f["lengths"], f["rewards"]
        assert f["obs"].shape == (lengths.sum() + 30, 11) and f["acts"].shape == (lengths.sum(), 3)
    returns = [x.sum(dtype=np.float64) for x in np.split(rewards, np.cumsum(lengths)[:-1])]
    np.testing.assert_allclose(returns, [row["return"] for row in card["episodes"]], rtol=1e-5)
    assert list(lengths) == [row["length"] for row in card["episodes"]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"env": "Pong"}, "--env Pong: no recipe; expected one of HalfCheetah-v4"),
        ({"bank": True, "seed": 9}, "seed9: holds no checkpoints; train the expert first"),
        ({"record_only": True}, "Hopper-v4.expert.npz: no such file; train the expert first"),
        ({"seed": 2**63}, r"--seed 9223372036854775808: expected 0 to 4294967195"),
        ({"seed": -1}, r"--seed -1: expected 0 to"),
        ({"noise": -1.0}, r"--noise -1.0: expected a standard deviation"),
        ({"episodes": 0}, r"--episodes 0: expected 1 or more"),
        ({"eval_every": 0}, r"--eval-every 0: expected 1 or more"),
    ],
)
def test_bad_input_gets_a_clear_line(small, tmp_path, changed, message):
    with pytest.raises(DemoError, match=message):
        generate.main(replace(small, **changed))
    assert list(tmp_path.iterdir()) == []


def test_a_broken_expert_and_a_folder_that_cannot_be_written_get_a_clear_line(small, tmp_path):
    weights = tmp_path / "Hopper-v4.expert.npz"
    weights.write_bytes(b"no")
    with pytest.raises(DemoError, match="not a readable expert"):
        generate.main(replace(small, record_only=True))
    generate.Expert.load(ROOT / "demos" / "Hopper-v4.expert.npz").save(weights)
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoError, match=r"file.* cannot be written"):
        generate.main(replace(small, record_only=True, out=tmp_path / "file"))


@pytest.mark.parametrize("words", [["demos/generate.py"], ["-m", "demos.generate"]])
def test_generate_as_a_user_types_it(words):
    done = command(*words, "--env", "Pong")
    assert done.returncode == 1 and done.stderr.startswith("error: --env Pong")
    assert "Traceback" not in done.stderr
