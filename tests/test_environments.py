"""Environments and demonstrations: restoring, time limits, misbehaviour, shipped files, loader."""

import hashlib
import json
import pickle

import gymnasium as gym
import numpy as np
import pytest

import custom_irl as irl
from benchmark.resume import ReplayableVectorEnv
from benchmark.runs import ENVS
from demos.expert import Expert, play

DEMOS = irl.ROOT / "demos"


def make(env_id, num_envs=1, seed=0, cls=irl.VectorEnv):
    return cls(irl.Args(env_id, seed, num_envs=num_envs, num_steps=2048 // num_envs))


# ------------------------------------------------------------------------------------ environments
@pytest.mark.parametrize("env_id", [*ENVS, "Ant-v4", "Pendulum-v1"])
def test_restoring_replays_the_exact_state(env_id):
    """After some steps, and across resets, a restored copy gives the same numbers bit for bit."""
    rng = np.random.default_rng(0)
    envs = make(env_id, 4, seed=5, cls=ReplayableVectorEnv)
    actions = rng.normal(size=(1250, 4, envs.action_dim)).astype(np.float32)
    for action in actions[:150]:
        envs.step(action)
    copy = make(env_id, 4, seed=99, cls=ReplayableVectorEnv)
    copy.restore(pickle.loads(pickle.dumps(envs.history)))
    np.testing.assert_array_equal(envs.obs, copy.obs)
    for action in actions[150:]:
        for ours, theirs in zip(envs.step(action), copy.step(action)):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(envs.obs, copy.obs)


def test_a_replayable_environment_steps_as_the_plain_one():
    plain = make("Hopper-v4", 2, seed=3)
    replayable = make("Hopper-v4", 2, seed=3, cls=ReplayableVectorEnv)
    rng = np.random.default_rng(0)
    for _ in range(60):
        action = rng.normal(size=(2, 3)).astype(np.float32)
        for ours, theirs in zip(plain.step(action), replayable.step(action)):
            np.testing.assert_array_equal(ours, theirs)


def test_time_limits_end_episodes_without_terminating_them():
    envs = make("HalfCheetah-v4")
    for t in range(1000):
        next_obs, _, terminated, ended = envs.step(np.zeros((1, 6), np.float32))
        assert not terminated[0]
        assert ended[0] == (t == 999)
    assert not np.array_equal(next_obs, envs.obs)  # the last observation; the next episode's first


def test_actions_are_clipped_to_the_action_space():
    one, large = make("Hopper-v4"), make("Hopper-v4")
    for _ in range(5):
        ours = one.step(np.ones((1, 3)))[0]
        np.testing.assert_array_equal(ours, large.step(np.full((1, 3), 50.0))[0])


class Base(gym.Env):
    """A point that follows the action."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=3)
        self.t = 0
        return self.state, {}

    def step(self, action):
        self.state *= 0.9
        self.state[:2] += 0.1 * action
        self.t += 1
        return self.state, -float(self.state @ self.state), False, False, {}


class Broken(Base):
    def step(self, action):
        obs, reward, *rest = super().step(action)
        return (obs * np.nan if self.t > 7 else obs), reward, *rest


class OldApi(Base):
    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs, reward, False, {}


gym.register("Own-v0", entry_point=Base, max_episode_steps=30)
gym.register("OwnNoLimit-v0", entry_point=Base)
gym.register("OwnBroken-v0", entry_point=Broken, max_episode_steps=30)
gym.register("OwnOldApi-v0", entry_point=OldApi, max_episode_steps=30)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Hoper-v4", "--env Hoper-v4"),
        ("CartPole-v1", "action space is Discrete"),
        ("OwnNoLimit-v0", "has no time limit.*expected --max-episode-steps"),
    ],
)
def test_environments_that_do_not_fit_are_refused(env_id, message):
    with pytest.raises(irl.UserError, match=message):
        irl.make_env(env_id)


def test_a_time_limit_can_be_given():
    envs = irl.VectorEnv(irl.Args("OwnNoLimit-v0", num_envs=1, num_steps=2048, max_episode_steps=5))
    ends = [envs.step(np.zeros((1, 2)))[3][0] for _ in range(10)]
    assert np.flatnonzero(ends).tolist() == [4, 9]


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("OwnBroken-v0", "OwnBroken-v0: step 8 of an episode returned NaN or infinity"),
        ("OwnOldApi-v0", r"OwnOldApi-v0: step\(\) returned no obs, reward, terminated"),
    ],
)
def test_an_environment_that_misbehaves_is_named(env_id, message):
    envs = make(env_id)
    with pytest.raises(irl.UserError, match=message):
        for _ in range(10):
            envs.step(np.zeros((1, 2)))


def test_an_environment_that_reuses_its_buffer_is_copied():
    envs = make("Own-v0")
    before = envs.obs.copy()
    first = envs.step(np.ones((1, 2)))[0]
    kept = first.copy()
    envs.step(np.ones((1, 2)))
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(before, first)


# ----------------------------------------------------------------------------------- shipped demos
@pytest.fixture(params=ENVS)
def card(request):
    return json.loads((DEMOS / f"{request.param}.json").read_text())


def test_shipped_files_match_their_hashes(card):
    kinds = ("npz", "rewards.npz", "expert.npz")
    assert set(card["sha256"]) == {f"{card['env']}.{kind}" for kind in kinds}
    bank = json.loads((DEMOS / f"{card['env']}.bank.json").read_text())
    for name, digest in (card["sha256"] | bank["sha256"]).items():
        assert hashlib.sha256((DEMOS / name).read_bytes()).hexdigest() == digest, name


def test_cards_state_what_the_files_hold(card):
    with np.load(DEMOS / f"{card['env']}.npz", allow_pickle=False) as f:
        assert set(f.files) == {"obs", "acts", "lengths", "terminated"}  # and no rewards
        lengths = f["lengths"]
        terminated = f["terminated"]
        assert f["obs"].dtype == f["acts"].dtype == np.float32
        assert len(f["obs"]) == len(f["acts"]) + 50
    with np.load(DEMOS / f"{card['env']}.rewards.npz", allow_pickle=False) as f:
        starts = np.cumsum(lengths) - lengths
        returns = np.add.reduceat(f["rewards"].astype(np.float64), starts)
    demos = card["expert"]["demos"]
    assert len(lengths) == demos["episodes"] == 50
    assert int(terminated.sum()) == demos["terminated"]
    statistics = {"mean": returns.mean(), "std": returns.std(), "min": returns.min()}
    for name, value in statistics.items():
        assert demos[f"return_{name}"] == pytest.approx(value, abs=1e-6)


def test_experts_are_good_enough(card):
    least = {"HalfCheetah-v4": 4000, "Hopper-v4": 3000, "Walker2d-v4": 4000}[card["env"]]
    returns = [card["expert"][which]["return_mean"] for which in ("demos", "fresh")]
    assert min(returns) >= least


def test_stored_weights_record_the_stored_episodes_again(card):
    """The first steps only: contacts amplify the last bit, which processors round differently."""
    expert = Expert.load(DEMOS / f"{card['env']}.expert.npz")
    episode = play(gym.make(card["env"]), expert, card["seeds"]["demos"][0])
    with np.load(DEMOS / f"{card['env']}.npz", allow_pickle=False) as f:
        np.testing.assert_allclose(episode.obs[:20], f["obs"][:20], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(episode.acts[:20], f["acts"][:20], rtol=1e-3, atol=1e-3)


def test_demos_stay_small():
    assert sum(path.stat().st_size for path in DEMOS.glob("*.*")) < 25e6


# ------------------------------------------------------------------------------------------ loader
GOOD = {
    "obs": np.arange(9 * 2, dtype=np.float32).reshape(9, 2),  # episodes of 3 and 4 transitions
    "acts": np.arange(7, dtype=np.float32).reshape(7, 1),
    "lengths": np.array([3, 4]),
    "terminated": np.array([True, False]),
}


def write(path, **changes):
    arrays = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("episodes", [1, 2])
@pytest.mark.parametrize("subsample", [1, 2, 3])
def test_loader_keeps_every_kth_transition_of_each_episode(tmp_path, episodes, subsample):
    demos = irl.load_demos(write(tmp_path / "d.npz"), 2, 1, episodes, subsample)
    rows = {"obs": [], "acts": [], "next_obs": []}
    for first_obs, first_act, length in [(0, 0, 3), (4, 3, 4)][:episodes]:
        for t in range(0, length, subsample):
            rows["obs"].append(GOOD["obs"][first_obs + t])
            rows["next_obs"].append(GOOD["obs"][first_obs + t + 1])
            rows["acts"].append(GOOD["acts"][first_act + t])
    for key, expected in rows.items():
        np.testing.assert_array_equal(demos.tensors[key].numpy(), expected)
    counts = {"episodes": episodes, "episodes_in_file": 2, "transitions_in_file": 7}
    assert counts.items() <= demos.source.items()
    assert demos.source["transitions"] == len(rows["obs"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_lengths_of_a_narrow_type_do_not_wrap_around(tmp_path, dtype):
    obs = np.arange(256 + 4, dtype=np.float32)[:, None].repeat(2, 1)
    acts = np.arange(255 + 3, dtype=np.float32)[:, None]
    arrays = {"obs": obs, "acts": acts, "lengths": np.array([255, 3], dtype)}
    demos = irl.load_demos(write(tmp_path / "d.npz", **arrays), 2, 1, episodes=2, subsample=1)
    np.testing.assert_array_equal(demos.tensors["obs"][:, 0], np.delete(obs[:, 0], [255, 259]))
    np.testing.assert_array_equal(demos.tensors["next_obs"][:, 0], np.delete(obs[:, 0], [0, 256]))
    np.testing.assert_array_equal(demos.tensors["acts"], acts)


NAN = GOOD["obs"].copy()
NAN[4, 1] = np.nan


@pytest.mark.parametrize(
    ("changes", "dims", "message"),
    [
        ({"acts": None}, (2, 1), r"d.npz: .*acts is not a file.*expected an .npz.*demos.convert"),
        ({"lengths": None}, (2, 1), r"lengths is not a file.*arrays obs, acts, lengths"),
        ({"lengths": np.array([3.0, 4.0])}, (2, 1), r"'lengths' is float64 \(2,\)"),
        ({"lengths": np.array([0, 7])}, (2, 1), r"expected positive integers"),
        (
            {"lengths": np.array([3, 5])},
            (2, 1),
            r"'obs' is float32 \(9, 2\); expected finite floats \(10, 2\)",
        ),
        ({"obs": NAN}, (2, 1), r"'obs' is float32 \(9, 2\), not all finite; expected"),
        (
            {"obs": GOOD["obs"].astype(int)},
            (2, 1),
            r"'obs' is int64 \(9, 2\).*; expected finite floats",
        ),
        ({}, (3, 1), r"'obs' is float32 \(9, 2\); expected finite floats \(9, 3\)"),
    ],
)
def test_loader_names_file_key_and_expectation(tmp_path, changes, dims, message):
    with pytest.raises(irl.UserError, match=message):
        irl.load_demos(write(tmp_path / "d.npz", **changes), *dims, episodes=2, subsample=1)


def test_loader_refuses_missing_truncated_and_foreign_files(tmp_path):
    def refused(path, message):
        with pytest.raises(irl.UserError, match=message):
            irl.load_demos(path, 2, 1, episodes=2, subsample=1)

    good = write(tmp_path / "d.npz")
    refused(tmp_path / "nowhere.npz", "nowhere.npz: .*No such file")
    refused(tmp_path, "Is a directory.*; expected an .npz")
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:200])
    refused(tmp_path / "cut.npz", "cut.npz: .*; expected an .npz")
    np.savez(tmp_path / "pickled.npz", **{**GOOD, "obs": np.array([{}], object)})
    refused(tmp_path / "pickled.npz", "pickled.npz: .*; expected an .npz with plain arrays")
    with pytest.raises(irl.UserError, match="holds 2 episodes; expected at least 3"):
        irl.load_demos(good, 2, 1, episodes=3, subsample=1)


def test_a_file_that_unpacks_to_more_than_is_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(irl, "MAX_NPZ_BYTES", 1_000_000)
    np.savez_compressed(tmp_path / "bomb.npz", obs=np.zeros(2_000_000, np.float32))
    assert (tmp_path / "bomb.npz").stat().st_size < 100_000
    with pytest.raises(irl.UserError, match="8000128 bytes uncompressed"):
        irl.load_demos(tmp_path / "bomb.npz", 2, 1, episodes=1, subsample=1)


# ------------------------------------------------------------------------------------------- cards
def card_for(path, **changes):
    card = {
        "schema": irl.CARD_SCHEMA,
        "env": "Hopper-v4",
        "sha256": {path.name: irl.sha256(path)},
        "random": {"return_mean": 10.0},
        "expert": {"demos": {"return_mean": 110.0}},
    }
    path.with_suffix(".json").write_text(json.dumps({**card, **changes}))


def test_the_card_of_these_demonstrations_normalises(tmp_path):
    path = write(tmp_path / "d.npz")
    card_for(path)
    card, note = irl.load_card(path, "Hopper-v4")
    assert not note
    assert irl.normalized(60.0, card) == 0.5
    (tmp_path / "link.npz").symlink_to(path)
    card_for(tmp_path / "link.npz")  # the hash is the file's, not the link's
    assert irl.load_card(tmp_path / "link.npz", "Hopper-v4")[0] is not None


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"schema": "mine"}, "ignored; its schema is not irl-card-1"),
        ({"env": "Walker2d-v4"}, "ignored; it is of Walker2d-v4, not Hopper-v4"),
        ({"sha256": {"d.npz": "0" * 64}}, "ignored; d.npz is not the file that it describes"),
    ],
)
def test_another_card_never_normalises(tmp_path, changes, note):
    path = write(tmp_path / "d.npz")
    card_for(path, **changes)
    card, told = irl.load_card(path, "Hopper-v4")
    assert card is None
    assert note in told
    assert irl.normalized(60.0, card) is None


def test_a_file_of_the_users_own_beside_the_demonstrations_is_ignored(tmp_path):
    path = write(tmp_path / "d.npz")
    own = tmp_path / "d.json"
    for text in ('{"env": "Hopper-v4", "episodes": 4}', "[1]", "{", "[" * 100_000, "\0"):
        own.write_text(text)
        card, note = irl.load_card(path, "Hopper-v4")
        assert card is None
        assert str(own) in note
        assert "\n" not in note


def test_every_shipped_card_states_schema_and_environment():
    for path in sorted(DEMOS.glob("*.json")):
        card = json.loads(path.read_text())
        assert (card["schema"], card["env"]) == (irl.CARD_SCHEMA, path.name.split(".")[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"random": {}},
        {"expert": {"demos": {}}},
        {"random": {"return_mean": float("nan")}},
        {"random": {"return_mean": True}},
        {"random": {"return_mean": 110.0}},
        {"sha256": {}},
    ],
)
def test_a_card_with_keys_missing_or_wrong_is_named(tmp_path, changes):
    path = write(tmp_path / "d.npz")
    card_for(path, **changes)
    with pytest.raises(irl.UserError, match=r"d.json: a card with keys missing"):
        irl.load_card(path, "Hopper-v4")
