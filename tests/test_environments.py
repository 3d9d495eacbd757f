"""Environments and demonstrations: exact restoring, time limits, the files that ship, the loader's errors."""

import hashlib
import json
import pickle

import gymnasium as gym
import numpy as np
import pytest

import custom_irl as irl

ENVS = ("HalfCheetah-v4", "Hopper-v4", "Walker2d-v4")
DEMOS = irl.ROOT / "demos"


# -------------------------------------------------------------------------------------------------------- environments


@pytest.mark.parametrize("env_id", [*ENVS, "Ant-v4", "Pendulum-v1"])
def test_restoring_replays_the_exact_state(env_id):
    """After some steps, and across the resets that follow, a restored copy gives the same numbers bit for bit."""
    rng = np.random.default_rng(0)
    envs = irl.VectorEnv(env_id, 3, seed=5)
    actions = rng.normal(size=(1300, 3, envs.action_space.shape[0])).astype(np.float32)
    for action in actions[:150]:
        envs.step(action)
    copy = irl.VectorEnv(env_id, 3, seed=99)
    copy.restore(pickle.loads(pickle.dumps(envs.history)))
    np.testing.assert_array_equal(envs.obs, copy.obs)
    limits = 0
    for action in actions[150:]:
        for ours, theirs in zip(envs.step(action), copy.step(action)):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(envs.obs, copy.obs)
    limits += sum(len(history[1]) for history in envs.history)
    assert limits == sum(len(history[1]) for history in copy.history)


def test_time_limits_end_episodes_without_terminating_them():
    envs = irl.VectorEnv("HalfCheetah-v4", 1, seed=0)
    for t in range(1000):
        next_obs, _, terminated, ended = envs.step(np.zeros((1, 6), np.float32))
        assert not terminated[0] and ended[0] == (t == 999)
    assert not np.array_equal(next_obs, envs.obs)  # next_obs is the last observation, obs the first of a new episode


def test_actions_are_clipped_to_the_action_space():
    one, large = irl.VectorEnv("Hopper-v4", 1, seed=0), irl.VectorEnv("Hopper-v4", 1, seed=0)
    for _ in range(5):
        np.testing.assert_array_equal(one.step(np.ones((1, 3)))[0], large.step(np.full((1, 3), 50.0))[0])


@pytest.mark.parametrize(("env_id", "message"), [("Hoper-v4", "--env Hoper-v4"), ("CartPole-v1", "action space")])
def test_environments_that_do_not_fit_are_refused(env_id, message):
    with pytest.raises(irl.UserError, match=message):
        irl.make_env(env_id)


# ------------------------------------------------------------------------------------------------------ shipped demos


@pytest.fixture(params=ENVS)
def card(request):
    return json.loads((DEMOS / f"{request.param}.json").read_text())


def test_shipped_files_match_their_hashes(card):
    assert set(card["sha256"]) == {f"{card['env']}.{kind}" for kind in ("npz", "rewards.npz", "expert.npz")}
    bank = json.loads((DEMOS / f"{card['env']}.bank.json").read_text())
    for name, digest in (card["sha256"] | bank["sha256"]).items():
        assert hashlib.sha256((DEMOS / name).read_bytes()).hexdigest() == digest, name


def test_cards_state_what_the_files_hold(card):
    with np.load(DEMOS / f"{card['env']}.npz", allow_pickle=False) as f:
        assert set(f.files) == {"obs", "acts", "lengths", "terminated"}  # and no rewards
        lengths, terminated = f["lengths"], f["terminated"]
        assert f["obs"].dtype == f["acts"].dtype == np.float32 and len(f["obs"]) == len(f["acts"]) + 50
    with np.load(DEMOS / f"{card['env']}.rewards.npz", allow_pickle=False) as f:
        returns = np.add.reduceat(f["rewards"].astype(np.float64), np.cumsum(lengths) - lengths)
    demos = card["expert"]["demos"]
    assert (
        (len(lengths), int(terminated.sum())) == (demos["episodes"], demos["terminated"]) == (50, demos["terminated"])
    )
    for name, value in (("mean", returns.mean()), ("std", returns.std()), ("min", returns.min())):
        assert demos[f"return_{name}"] == pytest.approx(value, abs=1e-6)
    assert card["expert"]["fresh"]["episodes"] == card["random"]["episodes"] == 50


def test_experts_are_good_enough(card):
    least = {"HalfCheetah-v4": 4000, "Hopper-v4": 3000, "Walker2d-v4": 4000}[card["env"]]
    assert min(card["expert"][which]["return_mean"] for which in ("demos", "fresh")) >= least


def test_stored_weights_record_the_stored_episodes_again(card):
    """The first steps only: contacts amplify the last bit, which another processor may round differently."""
    from demos import generate

    expert = generate.Expert.load(DEMOS / f"{card['env']}.expert.npz")
    episode = generate.play(gym.make(card["env"]), expert, card["seeds"]["demos"][0])
    with np.load(DEMOS / f"{card['env']}.npz", allow_pickle=False) as f:
        np.testing.assert_allclose(episode.obs[:20], f["obs"][:20], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(episode.acts[:20], f["acts"][:20], rtol=1e-3, atol=1e-3)


def test_demos_stay_small():
    assert sum(path.stat().st_size for path in DEMOS.glob("*.*")) < 25e6


# -------------------------------------------------------------------------------------------------------------- loader

GOOD = {
    "obs": np.arange(9 * 2, dtype=np.float32).reshape(9, 2),  # episodes of 3 and 4 transitions
    "acts": np.arange(7, dtype=np.float32).reshape(7, 1),
    "lengths": np.array([3, 4]),
    "terminated": np.array([True, False]),
}


def write(path, **changes):
    np.savez(path, **{key: value for key, value in {**GOOD, **changes}.items() if value is not None})
    return path


@pytest.mark.parametrize("episodes", [1, 2])
@pytest.mark.parametrize("subsample", [1, 2, 3])
def test_loader_keeps_every_kth_transition_of_each_episode(tmp_path, episodes, subsample):
    data = irl.load_demos(write(tmp_path / "d.npz"), 2, 1, episodes, subsample)
    obs, acts, next_obs = [], [], []
    for first_obs, first_act, length in [(0, 0, 3), (4, 3, 4)][:episodes]:
        for t in range(0, length, subsample):
            obs.append(GOOD["obs"][first_obs + t]), next_obs.append(GOOD["obs"][first_obs + t + 1])
            acts.append(GOOD["acts"][first_act + t])
    for key, rows in (("obs", obs), ("acts", acts), ("next_obs", next_obs)):
        np.testing.assert_array_equal(data[key].numpy(), rows)


nan = GOOD["obs"].copy()
nan[4, 1] = np.nan


@pytest.mark.parametrize(
    ("changes", "dims", "message"),
    [
        ({"acts": None}, (2, 1), "key 'acts' is missing"),
        ({"obs": GOOD["obs"][:-1]}, (2, 1), r"key 'obs' has shape \(8, 2\); expected \(9, 2\)"),
        ({"acts": GOOD["acts"][:, 0]}, (2, 1), r"key 'acts' has shape \(7,\); expected \(7, 1\)"),
        ({"obs": nan}, (2, 1), "key 'obs' is float32 or not finite"),
        ({"acts": GOOD["acts"].astype(int)}, (2, 1), "key 'acts' is int64"),
        ({"lengths": np.array([3.0, 4.0])}, (2, 1), "key 'lengths' is float64"),
        ({"lengths": np.array([0, 7])}, (2, 1), "expected positive integers"),
        ({"obs": np.array([{"a": 1}], dtype=object)}, (2, 1), "not a readable .npz of plain arrays"),
        ({}, (11, 3), r"key 'obs' has shape \(9, 2\); expected \(9, 11\)"),
    ],
)
def test_loader_names_file_key_and_expectation(tmp_path, changes, dims, message):
    path = write(tmp_path / "bad.npz", **changes)
    with pytest.raises(irl.UserError, match=message) as error:
        irl.load_demos(path, *dims, 2, 1)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_loader_refuses_missing_truncated_and_foreign_files(tmp_path):
    good = write(tmp_path / "good.npz")
    for name, content in (
        ("short.npz", good.read_bytes()[:300]),
        ("text.npz", b"obs"),
        ("pickle.npz", pickle.dumps(1)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(irl.UserError, match=f"{name}: not a readable .npz"):
            irl.load_demos(tmp_path / name, 2, 1, 2, 1)
    with pytest.raises(irl.UserError, match=r"none\.npz: no such file"):
        irl.load_demos(tmp_path / "none.npz", 2, 1, 2, 1)
    with pytest.raises(irl.UserError, match="holds 2 episodes; expected at least 3"):
        irl.load_demos(good, 2, 1, 3, 1)
