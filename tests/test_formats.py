"""Demonstrations of other projects: round trips with their own libraries, inspection, conversion, bad input."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imitation.data import serialize
from minari.dataset.minari_storage import MinariStorage

import custom_irl as irl
from conftest import ROOT, command
from demos import check
from demos.formats import FORMATS, DemoError, Episode, format_of, pack, read, to_transitions, write

SUFFIX = {"irl": ".npz", "flat": ".npz", "d4rl": ".hdf5"}


def make_episodes(lengths=(3, 1, 5), obs_dim=2, action_dim=1, rewards=True, seed=0) -> list[Episode]:
    rng = np.random.default_rng(seed)
    return [
        Episode(
            rng.normal(size=(n + 1, obs_dim)).astype(np.float32),
            rng.uniform(-1, 1, size=(n, action_dim)).astype(np.float32),
            bool(i % 2),
            rng.normal(size=n).astype(np.float32) if rewards else None,
        )
        for i, n in enumerate(lengths)
    ]


def assert_same(ours: list[Episode], theirs: list[Episode], but: tuple[str, ...] = ()) -> None:
    ours, theirs = pack(ours), pack(theirs)
    for key in {*ours, *theirs} - set(but):
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def path_for(name: str, folder: Path) -> Path:
    return folder / f"demos{SUFFIX.get(name, '')}"


# --------------------------------------------------------------------------------------------------------- round trips
@pytest.mark.parametrize("rewards", [True, False])
@pytest.mark.parametrize("action_dim", [1, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_recognised_and_read_again(tmp_path, name, action_dim, rewards):
    episodes, path = make_episodes(action_dim=action_dim, rewards=rewards), path_for(name, tmp_path)
    write(name, path, episodes)
    assert format_of(path) == name and not list(tmp_path.glob("*.tmp"))
    lost = ("terminated",) if name == "lerobot" else ()
    unknown = ("rewards",) if not rewards and name in ("minari", "d4rl") else ()  # NaN there
    assert_same(episodes, read(path), but=lost + unknown)
    data = irl.load_demos(path, 2, action_dim, episodes=3, subsample=1)  # what training gets
    for key, array in to_transitions(episodes).items():
        if key in data:
            np.testing.assert_array_equal(data[key].numpy(), array)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    obs_dim=st.integers(1, 4),
    seed=st.integers(0, 99),
    name=st.sampled_from(["irl", "flat", "d4rl"]),
)
def test_any_episodes_survive_the_file_formats(tmp_path_factory, lengths, obs_dim, seed, name):
    episodes = make_episodes(lengths, obs_dim, seed=seed)
    path = path_for(name, tmp_path_factory.mktemp("round"))
    write(name, path, episodes)
    assert_same(episodes, read(path))


def test_transitions_that_do_not_follow_each_other_are_episodes_of_their_own(tmp_path):
    flat = {key: x[[4, 2, 0, 8]] for key, x in to_transitions(make_episodes()).items()}
    np.savez(tmp_path / "flat.npz", **flat)
    episodes = read(tmp_path / "flat.npz")
    assert [len(e.acts) for e in episodes] == [1, 1, 1, 1]
    np.testing.assert_array_equal(pack(episodes)["acts"], flat["acts"])


def test_imitation_reads_what_we_write_and_the_reverse(tmp_path):
    episodes = make_episodes()
    write("imitation", tmp_path / "ours", episodes)
    for ours, theirs in zip(episodes, serialize.load_with_rewards(tmp_path / "ours"), strict=True):
        np.testing.assert_array_equal(ours.obs, theirs.obs), np.testing.assert_array_equal(ours.acts, theirs.acts)
        assert ours.terminated == theirs.terminal
    serialize.save(tmp_path / "theirs", serialize.load(tmp_path / "ours"))
    assert_same(episodes, read(tmp_path / "theirs"))


def test_minari_reads_what_we_write_and_the_reverse(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    episodes = make_episodes()
    write("minari", tmp_path / "ours", episodes)
    dataset = minari.MinariDataset(tmp_path / "ours" / "data")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 9)
    buffers = [
        minari.data_collector.EpisodeBuffer(
            observations=e.observations, actions=e.actions, rewards=e.rewards,
            terminations=e.terminations, truncations=e.truncations, infos={},
        )
        for e in dataset
    ]  # fmt: skip
    box = gym.spaces.Box(-9, 9, (2,), np.float32), gym.spaces.Box(-1, 1, (1,), np.float32)
    minari.create_dataset_from_buffers("test/demos-v0", buffer=buffers, observation_space=box[0], action_space=box[1])
    assert_same(episodes, read(tmp_path / "root" / "test" / "demos-v0"))


def test_d4rl_without_next_observations_leaves_the_last_transition_out(tmp_path):
    episodes = make_episodes((4, 1, 3))
    flat = to_transitions(episodes)
    with h5py.File(tmp_path / "old.hdf5", "w") as f:
        for theirs, ours in (
            ("observations", "obs"),
            ("actions", "acts"),
            ("terminals", "terminated"),
            ("timeouts", "truncated"),
        ):
            f[theirs] = flat[ours]
    short = [Episode(e.obs[:-1], e.acts[:-1], False) for e in episodes if len(e.acts) > 1]
    assert_same(short, read(tmp_path / "old.hdf5"))


def test_lerobot_is_read_whatever_the_order_of_its_files(tmp_path):
    """Several files, and rows in any order: the columns say which frame of which episode a row is."""
    import pyarrow.parquet as pq

    episodes = make_episodes((3, 2, 4), action_dim=2)
    write("lerobot", tmp_path / "robot", episodes)
    file = tmp_path / "robot" / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    order = np.random.default_rng(0).permutation(len(table))
    pq.write_table(table.take(order[:5]), file)
    pq.write_table(table.take(order[5:]), file.with_name("file-001.parquet"))
    assert_same(episodes, read(tmp_path / "robot"), but=("terminated",))


def test_lerobot_agrees_with_the_library():
    """data/lerobot-0.4.4 was written by lerobot's own writer, from make_episodes(): what it needs cannot be installed
    beside imitation (gymnasium 1.1). Its reader, too, gave back what we write, once, by hand."""
    theirs = ROOT / "tests" / "data" / "lerobot-0.4.4"
    assert_same(make_episodes(), read(theirs), but=("terminated",))


def test_lerobot_gets_the_files_its_library_writes(tmp_path):
    import pyarrow.parquet as pq

    theirs, ours = ROOT / "tests" / "data" / "lerobot-0.4.4", tmp_path / "ours"
    write("lerobot", ours, make_episodes())
    infos = [json.loads((folder / "meta" / "info.json").read_text()) for folder in (theirs, ours)]
    assert infos[0].keys() == infos[1].keys() and infos[0]["features"] == infos[1]["features"]
    for file in ("data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"):
        schemas = [
            {f.name: str(f.type) for f in pq.read_schema(folder / file) if not f.name.startswith("stats/")}
            for folder in (theirs, ours)
        ]
        assert schemas[0] == schemas[1], file


# ----------------------------------------------------------------------------------------------------------- bad input
def test_what_is_no_demonstration_gets_one_line(tmp_path):
    (tmp_path / "folder").mkdir(), (tmp_path / "text.csv").write_text("a,b")
    (tmp_path / "broken.hdf5").write_bytes(b"no"), np.savez(tmp_path / "half.npz", obs=np.zeros((2, 2)))
    for name, message in (
        ("none", "no such file or folder"),
        ("folder", "a folder without dataset_info.json"),
        ("text.csv", "expected a format"),
        ("broken.hdf5", "not a readable d4rl dataset"),
        ("half.npz", "key 'acts' is missing"),
    ):
        with pytest.raises(DemoError, match=message) as error:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_observations_that_are_no_vectors_get_one_line(tmp_path):
    space = gym.spaces.Dict(goal=gym.spaces.Box(-1, 1, (2,)), state=gym.spaces.Box(-1, 1, (3,)))
    (tmp_path / "goals").mkdir()
    storage = MinariStorage.new(tmp_path / "goals" / "data", space, gym.spaces.Box(-1, 1, (1,)))
    obs = {"goal": np.zeros((3, 2), np.float32), "state": np.zeros((3, 3), np.float32)}
    acts, ends = np.zeros((2, 1), np.float32), np.array([False, True])
    buffer = minari.data_collector.EpisodeBuffer(
        observations=obs, actions=acts, rewards=np.zeros(2), terminations=ends, truncations=~ends, infos={}
    )
    storage.update_metadata({"dataset_id": "test/goals-v0", "minari_version": minari.__version__})
    storage.update_episodes([buffer])
    with pytest.raises(DemoError, match="goals: not a readable minari dataset"):
        read(tmp_path / "goals")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    write("d4rl", tmp_path / "demos.hdf5", make_episodes())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DemoError, match="expected the package h5py"):
        read(tmp_path / "demos.hdf5")
    with pytest.raises(DemoError, match="expected the package h5py"):
        write("d4rl", tmp_path / "new.hdf5", make_episodes())
    assert not (tmp_path / "new.hdf5").exists()


def test_convert_never_overwrites_and_leaves_nothing_half_written(tmp_path):
    source = ROOT / "demos" / "Hopper-v4.bank.npz"
    done = command("-m", "demos.convert", source, tmp_path / "hopper.hdf5")
    assert done.returncode == 0 and "d4rl, 30 episodes" in done.stdout, done.stderr
    assert_same(read(source), read(tmp_path / "hopper.hdf5"))
    before = (tmp_path / "hopper.hdf5").read_bytes()
    for words, message in (
        ([source, tmp_path / "hopper.hdf5"], "nothing is overwritten"),
        ([source, tmp_path / "folder"], "says no format"),
        ([tmp_path / "none.npz", tmp_path / "new.npz"], "no such file"),
    ):
        done = command("-m", "demos.convert", *words)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "hopper.hdf5").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


# ---------------------------------------------------------------------------------------------------------- inspection
def test_check_finds_nothing_wrong_with_our_own_demonstrations():
    for env_id in ("HalfCheetah-v4", "Hopper-v4", "Walker2d-v4"):
        assert check.problems(read(ROOT / "demos" / f"{env_id}.npz"), env_id) == []


def test_check_finds_what_is_planted():
    good = read(ROOT / "demos" / "Hopper-v4.npz")[:3]
    obs = good[0].obs.copy()
    obs[5, 2], obs[:, 7] = np.nan, obs[0, 7]
    broken = replace(good[0], obs=obs, acts=good[0].acts * 3)
    cut = Episode(good[1].obs[:11], good[1].acts[:10], False)
    long = Episode(np.tile(good[2].obs, (2, 1)), np.tile(good[2].acts, (2, 1))[:-1], False)
    long = replace(long, acts=np.concatenate([long.acts, long.acts[:2]])[: len(long.obs) - 1])
    found = "\n".join(check.problems([broken, good[1], cut, long], "Hopper-v4"))
    for line in (
        "2 transitions hold NaN",
        "transitions repeat another one exactly",
        "acts: ",
        "1 episodes are longer than the 1000 steps",
        "1 episodes stop before the 1000 steps",
    ):
        assert line in found, found
    still = [replace(e, obs=np.where(np.arange(11) == 7, np.float32(1), e.obs)) for e in good]
    assert "observation 7: the same number everywhere" in check.problems(still, None)
    assert "obs: 11 numbers; Walker2d-v4 has 17" in check.problems(good, "Walker2d-v4")


def test_check_as_a_user_types_it(tmp_path):
    words = [ROOT / "demos" / "Hopper-v4.bank.npz", "--env", "Hopper-v4", "--picture", tmp_path / "p.png"]
    done = command("-m", "demos.check", *words)
    assert done.returncode == 0, done.stderr
    returns = [e.rewards.sum(dtype=np.float64) for e in read(words[0])]
    assert f"{np.mean(returns):.6g} ±" in done.stdout and "obs[10]" in done.stdout
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


# -------------------------------------------------------------------------------------------------- other environments
@pytest.mark.parametrize("env_id", ["Ant-v4", "InvertedPendulum-v4", "Pendulum-v1", "Reacher-v4"])
def test_other_environments_train_on_demonstrations_of_their_own(tmp_path, env_id):
    env = irl.make_env(env_id)
    env.action_space.seed(0)
    episodes = []
    for seed in range(2):
        obs, acts, over = [env.reset(seed=seed)[0]], [], False
        while not over:
            acts.append(env.action_space.sample())
            next_obs, _, terminated, truncated, _ = env.step(acts[-1])
            obs.append(next_obs)
            over = terminated or truncated
        episodes.append(Episode(np.float32(obs), np.float32(acts), terminated))
    write("imitation", tmp_path / "demos", episodes)
    args = irl.Args(
        env=env_id, demos=tmp_path / "demos", demo_episodes=2, total_timesteps=1024, num_steps=32, out=tmp_path / "run"
    )
    result = irl.run(irl.RewardNetwork, irl.IRLAlgorithm, args, method="custom")
    assert result["steps"] == 1024 and np.isfinite(result["eval_return_mean"])
    assert result["normalized_return"] is None  # nobody said how good these demonstrations are
