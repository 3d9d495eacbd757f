"""Demonstrations of other projects: round trips with their own libraries, and every way in which
rows were once read as transitions that never happened."""

import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imitation.data import serialize
from imitation.data.types import Trajectory
from minari.dataset.minari_storage import MinariStorage

from conftest import ROOT, command
from demos import convert
from demos.expert import Expert, play
from demos.formats import (
    FORMATS,
    DemoError,
    Episode,
    format_of,
    pack,
    read,
    to_own_npz,
    to_transitions,
    write,
)
from tests.fuzz_demos import SUFFIX, Harmful


def make_episodes(
    lengths=(3, 1, 5), obs_dim=2, action_dim=1, rewards=True, seed=0
) -> list[Episode]:
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


def walks(lengths=(30, 20, 25), dim=3, seed=0, terminated=()) -> list[Episode]:
    """Smooth episodes: a reset is a jump that no step makes."""
    rng = np.random.default_rng(seed)
    episodes = []
    for i, n in enumerate(lengths):
        steps = rng.normal(size=(n, dim)) * 0.1 + 0.2
        obs = np.cumsum(np.concatenate([rng.normal(size=(1, dim)) * 0.1, steps]), 0)
        acts = rng.uniform(-1, 1, size=(n, 2))
        episodes.append(
            Episode(np.float32(obs), np.float32(acts), i in terminated, np.float32(steps[:, 0] + 1))
        )
    return episodes


def assert_same(ours: list[Episode], theirs: list[Episode], but: tuple[str, ...] = ()) -> None:
    ours, theirs = pack(ours), pack(theirs)
    for key in {*ours, *theirs} - set(but):
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def without_last(episodes: list[Episode]) -> list[Episode]:
    """What rows without next_obs hold: the last transition of an episode is not known."""
    return [
        Episode(e.obs[:-1], e.acts[:-1], False, None if e.rewards is None else e.rewards[:-1])
        for e in episodes
        if len(e.acts) > 1
    ]


def path_for(name: str, folder: Path) -> Path:
    return folder / f"demos{SUFFIX.get(name, '')}"


def notes_of(demonstrations) -> str:
    return "\n".join(map(str, demonstrations.notes))


def save(path: Path, **arrays) -> Path:
    """Columns as .npz or .hdf5, by the suffix."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as f:
            for key, array in arrays.items():
                f[key] = array
    return path


def taken(demonstrations) -> set[bytes]:
    """Every transition that was read, as bytes of obs, act and next_obs."""
    flat = to_transitions(demonstrations)
    return {r.tobytes() for r in np.concatenate([flat[k] for k in ("obs", "acts", "next_obs")], 1)}


# -------------------------------------------------------------------------------- round trips
@pytest.mark.parametrize("rewards", [True, False])
@pytest.mark.parametrize("action_dim", [1, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_recognised_and_read_again(tmp_path, name, action_dim, rewards):
    episodes = make_episodes(action_dim=action_dim, rewards=rewards)
    path = path_for(name, tmp_path)
    write(name, path, episodes)
    assert format_of(path) == name
    assert os.listdir(tmp_path) == [path.name]
    lost = ("terminated",) if name == "lerobot" else ()
    demonstrations = read(path)
    assert demonstrations.format == name
    assert_same(episodes, demonstrations, but=lost)
    to_own_npz(path, tmp_path / "own" / "demos.npz")  # what training gets
    with np.load(tmp_path / "own" / "demos.npz", allow_pickle=False) as own:
        for key, array in pack(episodes).items():
            if key not in lost:
                np.testing.assert_array_equal(own[key], array)


def grid_walks(lengths, seed=0) -> list[Episode]:
    """Steps on a grid of 5 x 5, where observations repeat within and between episodes."""
    rng = np.random.default_rng(seed)
    moves = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
    episodes = []
    for i, n in enumerate(lengths):
        acts = moves[rng.integers(4, size=n)]
        obs = [rng.integers(0, 5, 2).astype(np.float32)]
        for act in acts:
            obs.append(np.clip(obs[-1] + act, 0, 4))
        episodes.append(Episode(np.array(obs), acts, bool(i % 2), np.ones(n, np.float32)))
    return episodes


@pytest.mark.parametrize("name", FORMATS)
def test_observations_that_repeat_survive_every_format(tmp_path, name):
    episodes = grid_walks([30, 17, 30, 22, 9, 30] * 4)
    write(name, path_for(name, tmp_path), episodes)
    lost = ("terminated",) if name == "lerobot" else ()
    assert_same(episodes, read(path_for(name, tmp_path)), but=lost)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    obs_dim=st.integers(1, 4),
    seed=st.integers(0, 99),
    name=st.sampled_from(["irl", "flat", "d4rl", "robomimic"]),
)
def test_any_episodes_survive_the_file_formats(tmp_path_factory, lengths, obs_dim, seed, name):
    episodes = make_episodes(lengths, obs_dim, seed=seed)
    path = path_for(name, tmp_path_factory.mktemp("round"))
    write(name, path, episodes)
    assert_same(episodes, read(path))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    seed=st.integers(0, 999),
    terminated=st.booleans(),
)
def test_rows_in_any_order_are_the_same_episodes(tmp_path_factory, lengths, seed, terminated):
    episodes = make_episodes(lengths, seed=seed)
    flat = to_transitions(episodes)
    order = np.random.default_rng(seed).permutation(len(flat["acts"]))
    flat = {k: x[order] for k, x in flat.items() if terminated or k != "truncated"}
    path = save(tmp_path_factory.mktemp("order") / "flat.npz", **flat)
    ours = sorted(read(path), key=lambda e: e.obs[0].tolist())
    assert_same(sorted(episodes, key=lambda e: e.obs[0].tolist()), ours)


def test_imitation_reads_what_we_write_and_the_reverse(tmp_path):
    episodes = make_episodes()
    write("imitation", tmp_path / "ours", episodes)
    theirs = serialize.load_with_rewards(tmp_path / "ours")
    for ours, one in zip(episodes, theirs, strict=True):
        np.testing.assert_array_equal(ours.obs, one.obs)
        np.testing.assert_array_equal(ours.acts, one.acts)
        assert ours.terminated == one.terminal
    serialize.save(tmp_path / "theirs", serialize.load(tmp_path / "ours"))
    assert_same(episodes, read(tmp_path / "theirs"))


def buffers_of(dataset) -> list:
    return [
        minari.data_collector.EpisodeBuffer(
            observations=e.observations,
            actions=e.actions,
            rewards=e.rewards,
            terminations=e.terminations,
            truncations=e.truncations,
            infos={},
        )
        for e in dataset
    ]


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_minari_reads_what_we_write_and_the_reverse(tmp_path, monkeypatch, data_format):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    episodes = make_episodes()
    write("minari", tmp_path / "ours", episodes)
    dataset = minari.MinariDataset(tmp_path / "ours" / "data")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 9)
    minari.create_dataset_from_buffers(
        "test/demos-v0",
        buffer=buffers_of(dataset),
        observation_space=gym.spaces.Box(-9, 9, (2,), np.float32),
        action_space=gym.spaces.Box(-1, 1, (1,), np.float32),
        data_format=data_format,
    )
    assert_same(episodes, read(tmp_path / "root" / "test" / "demos-v0"))


def test_lerobot_is_read_whatever_the_order_of_its_files(tmp_path):
    """Several files, rows in any order: the columns say which frame of which episode a row is."""
    episodes = make_episodes((3, 2, 4), action_dim=2)
    write("lerobot", tmp_path / "robot", episodes)
    file = tmp_path / "robot" / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    order = np.random.default_rng(0).permutation(len(table))
    pq.write_table(table.take(order[:5]), file)
    pq.write_table(table.take(order[5:]), file.with_name("file-001.parquet"))
    assert_same(episodes, read(tmp_path / "robot"), but=("terminated",))


def test_lerobot_agrees_with_the_library():
    """data/lerobot-0.4.4 was written by lerobot's own writer, from make_episodes(): what it needs
    cannot be installed beside imitation (gymnasium 1.1). Its reader, too, gave back what we write,
    once, by hand."""
    theirs = ROOT / "tests" / "data" / "lerobot-0.4.4"
    assert_same(make_episodes(), read(theirs), but=("terminated",))


def test_lerobot_gets_the_files_its_library_writes(tmp_path):
    theirs, ours = ROOT / "tests" / "data" / "lerobot-0.4.4", tmp_path / "ours"
    write("lerobot", ours, make_episodes())
    infos = [json.loads((f / "meta" / "info.json").read_text()) for f in (theirs, ours)]
    assert infos[0].keys() == infos[1].keys() and infos[0]["features"] == infos[1]["features"]
    for file in (
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/tasks.parquet",
    ):
        schemas = [
            {
                field.name: str(field.type)
                for field in pq.read_schema(folder / file)
                if not field.name.startswith("stats/")
            }
            for folder in (theirs, ours)
        ]
        assert schemas[0] == schemas[1], file


# -------------------------------------------------------------- an index is no order by itself
def two_recordings(tmp_path: Path) -> Path:
    for k in (0, 1):
        write("lerobot", tmp_path / f"part{k}", make_episodes((4, 3), seed=k))
    file = "data/chunk-000/file-000.parquet"
    both = tmp_path / "part0" / "data" / "chunk-000" / "file-001.parquet"
    both.write_bytes((tmp_path / "part1" / file).read_bytes())
    return tmp_path / "part0"


def test_two_recordings_numbered_from_0_are_refused_and_both_files_named(tmp_path):
    with pytest.raises(DemoError, match=r"episode 0 has step 0 in .*file-000.* and .*file-001"):
        read(two_recordings(tmp_path))


def test_a_gap_in_the_frames_cuts_the_episode_and_is_said(tmp_path):
    episodes = walks((20, 20))
    write("lerobot", tmp_path / "robot", episodes)
    file = tmp_path / "robot" / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    frame = table["frame_index"].to_numpy()
    pq.write_table(table.take(np.flatnonzero((frame < 6) | (frame >= 13))), file)
    demonstrations = read(tmp_path / "robot")
    assert taken(demonstrations) <= taken(episodes)
    assert [len(e.acts) for e in demonstrations] == [5, 7, 5, 7]
    assert "2 gaps in 'frame_index' (14 steps missing)" in notes_of(demonstrations)
    assert "total_frames: 42; there are 28" in notes_of(demonstrations)


def with_column(path: Path, name: str, values) -> None:
    table = pq.read_table(path)
    pq.write_table(table.append_column(name, [values]), path)


def test_lerobot_frames_after_one_that_is_done_are_refused(tmp_path):
    write("lerobot", tmp_path / "robot", make_episodes((4, 3)))
    file = next(tmp_path.glob("robot/data/*/*.parquet"))
    last = np.array([0, 0, 0, 0, 1, 0, 0, 0, 1], bool)
    with_column(file, "next.done", last)
    assert len(read(tmp_path / "robot")) == 2
    write("lerobot", tmp_path / "wrong", make_episodes((4, 3)))
    with_column(next(tmp_path.glob("wrong/data/*/*.parquet")), "next.done", np.roll(last, 1))
    with pytest.raises(DemoError, match=r"'next.done' is 1 in 2 rows before .*first: episode 0"):
        read(tmp_path / "wrong")
    write("lerobot", tmp_path / "lists", make_episodes((4, 3)))
    with_column(next(tmp_path.glob("lists/data/*/*.parquet")), "next.done", last[:, None].tolist())
    assert [len(e.acts) for e in read(tmp_path / "lists")] == [4, 3]


def test_lerobot_files_of_two_versions_are_refused(tmp_path):
    write("lerobot", tmp_path / "robot", make_episodes())
    file = tmp_path / "robot" / "data" / "chunk-000" / "file-000.parquet"
    file.with_name("episode_000000.parquet").write_bytes(file.read_bytes())
    with pytest.raises(DemoError, match=r"episode_000000.parquet: no file of a dataset of version"):
        read(tmp_path / "robot")
    info = tmp_path / "robot" / "meta" / "info.json"
    info.write_text(info.read_text().replace("v3.0", "v2.1"))
    file.unlink()
    assert_same(make_episodes(), read(tmp_path / "robot"), but=("terminated",))


def test_an_episode_number_that_comes_back_is_refused_or_put_in_order(tmp_path):
    flat = to_transitions(walks((4, 4)))
    number = np.repeat([0, 0, 1, 1, 0, 0, 1, 1], 1)
    columns = {"observations": flat["obs"], "actions": flat["acts"], "episode_id": number}
    with pytest.raises(DemoError, match="'episode_id' comes back to 0 in row 4"):
        read(save(tmp_path / "a.hdf5", **columns))
    steps = np.array([0, 1, 0, 1, 2, 3, 2, 3])
    demonstrations = read(save(tmp_path / "b.hdf5", **columns, step=steps))
    first = flat["obs"][[0, 1, 4, 5]]
    np.testing.assert_array_equal(demonstrations[0].obs, first)
    with pytest.raises(DemoError, match="episode 0 has step 1 in rows 1 and 5"):
        read(save(tmp_path / "c.hdf5", **columns, step=np.array([0, 1, 0, 1, 2, 1, 2, 3])))


def test_minari_counts_are_compared(tmp_path):
    write("minari", tmp_path / "m", make_episodes())
    with h5py.File(tmp_path / "m" / "data" / "main_data.hdf5", "a") as f:
        del f["episode_2"]
    notes = notes_of(read(tmp_path / "m"))
    assert "total_episodes: 3; there are 2" in notes and "total_steps: 9; there are 4" in notes


# ------------------------------------------------------------------------- end markers
EPISODES = walks((6, 4, 5), terminated=(1,))
FLAT = to_transitions(EPISODES)
ENDED = FLAT["terminated"] | FLAT["truncated"]
ROWS = {"observations": FLAT["obs"], "actions": FLAT["acts"]}


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
@pytest.mark.parametrize(
    "markers",
    [
        {},
        {"terminals": FLAT["terminated"]},
        {"timeouts": ENDED},
        {"masks": 1.0 - FLAT["terminated"]},
    ],
)
def test_rows_whose_ends_cannot_be_known_are_refused(tmp_path, suffix, markers):
    with pytest.raises(DemoError, match="where episodes end cannot be known"):
        read(save(tmp_path / f"demos{suffix}", **ROWS, **markers))


def starts_from(ended: np.ndarray) -> np.ndarray:
    return np.r_[True, ended[:-1]]


MARKERS = {
    "d4rl": {"terminals": FLAT["terminated"], "timeouts": FLAT["truncated"]},
    "columns": {"terminals": FLAT["terminated"][:, None], "timeouts": FLAT["truncated"][:, None]},
    "floats": {
        "terminal": np.float64(FLAT["terminated"]),
        "timeout": np.float32(FLAT["truncated"]),
    },
    "gymnasium": {"terminations": FLAT["terminated"], "truncations": np.int8(FLAT["truncated"])},
    "dones": {"dones": np.uint8(ENDED)},
    "masks": {"masks": 1.0 - FLAT["terminated"], "dones_float": np.float32(ENDED)},
    "first": {"is_first": starts_from(ENDED)},
    "starts": {"episode_starts": np.flatnonzero(starts_from(ENDED))},
    "ends": {"episode_ends": np.flatnonzero(ENDED) + 1},
    "last rows": {"episode_ends": np.flatnonzero(ENDED)},
    "index": {"episode_index": np.repeat([7, 3, 9], (6, 4, 5))},
    "names": {"traj_id": np.repeat(["a", "b", "c"], (6, 4, 5)).astype("S1")},
    "steps": {"timesteps": np.concatenate([np.arange(n) for n in (6, 4, 5)])},
    "lengths": {"lengths": np.array([6, 4, 5])},
}


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
@pytest.mark.parametrize("name", MARKERS)
def test_every_kind_of_end_marker_is_known(tmp_path, name, suffix):
    path = save(tmp_path / f"demos{suffix}", **ROWS, rewards=FLAT["rewards"], **MARKERS[name])
    demonstrations = read(path)
    assert_same(without_last(EPISODES), demonstrations)
    assert "last transition of each of 3 episodes is left out" in notes_of(demonstrations)


@pytest.mark.parametrize("name", [*MARKERS, "none"])
def test_with_next_obs_no_transition_is_lost(tmp_path, name):
    rows = {**ROWS, "next_observations": FLAT["next_obs"], "rewards": FLAT["rewards"]}
    demonstrations = read(save(tmp_path / "demos.npz", **rows, **MARKERS.get(name, {})))
    assert_same(EPISODES, demonstrations, but=("terminated",))
    explicit = ("d4rl", "columns", "floats", "gymnasium", "masks")
    if name in explicit:
        assert [e.terminated for e in demonstrations] == [False, True, False]
    if name == "none":
        assert "no end marker: episodes were cut where next_obs and obs" in notes_of(demonstrations)


NO_ENDS = np.zeros(15, bool)
DELAYED = np.concatenate([np.r_[np.zeros((1, 2)), e.acts[:-1]] for e in EPISODES])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"terminals": NO_ENDS, "timeouts": NO_ENDS}, "no row is marked as an end"),
        ({"dones": starts_from(ENDED)}, "as if the marks were of first rows"),
        ({"is_first": starts_from(ENDED), "actions": DELAYED}, "with the observation that they"),
        ({"episode_starts": [1, 7, 11]}, "'episode_starts' does not begin with row 0"),
        ({"lengths": [6, 4, 5], "episode_ends": [7, 11, 15]}, "'lengths' and 'episode_ends' contr"),
        ({"dones": ENDED, "lengths": [7, 3, 5]}, "'dones' and 'lengths' contradict .* is row 5"),
        ({"dones": ENDED, "traj_id": np.repeat([1, 2], (7, 8))}, "'dones' and 'traj_id' contrad"),
        ({"observations": FLAT["obs"][:, :2].T, "actions": FLAT["acts"].T}, "transposed"),
        ({"dones": ENDED, "actions": np.ones((15, 1), int)}, "discrete; expected vectors"),
    ],
)
def test_rows_that_would_be_put_together_wrongly_are_refused(tmp_path, columns, message):
    with pytest.raises(DemoError, match=message):
        read(save(tmp_path / "demos.npz", **{**ROWS, **columns}))


def test_rows_that_may_be_no_steps_are_said(tmp_path):
    padded = {key: np.r_[x, np.zeros((2, x.shape[1]))] for key, x in ROWS.items()}
    ends = np.r_[ENDED, False, True]
    assert "2 rows with obs and actions all 0" in notes_of(
        read(save(tmp_path / "padded.npz", **padded, dones=ends))
    )
    both = {"terminals": ENDED, "timeouts": ENDED}
    assert "mark the same rows" in notes_of(read(save(tmp_path / "both.npz", **ROWS, **both)))


def test_episodes_stored_whole_keep_their_last_transitions(tmp_path):
    """Where recording went on after a cut, one episode begins with the last one's end."""
    obs = np.arange(26, dtype=np.float32).reshape(13, 2)
    parts = [obs[0:5], obs[4:9], obs[8:13]]
    path = tmp_path / "demos.npz"
    lengths, truncated = np.array([4, 4, 4]), np.ones(3, bool)
    acts = np.ones((12, 1), np.float32)
    save(path, obs=np.concatenate(parts), acts=acts, lengths=lengths, truncated=truncated)
    for name in ("irl", "imitation", "minari"):
        path = path if name == "irl" else tmp_path / name
        if name != "irl":
            write(name, path, [Episode(obs, np.ones((4, 1), np.float32), False) for obs in parts])
        assert [len(e.acts) for e in read(path)] == [4, 4, 4]


def test_every_flag_of_episodes_stored_whole_is_used_or_listed(tmp_path):
    arrays = {k: x for k, x in pack(EPISODES).items() if k != "terminated"}
    limits = {"dones": [1, 1, 1], "TimeLimit.truncated": [1, 0, 1]}
    assert_same(EPISODES, read(save(tmp_path / "limits.npz", **arrays, **limits)))
    masks = read(save(tmp_path / "masks.npz", **arrays, masks=[1, 0, 1], steps=np.arange(15)))
    assert_same(EPISODES, masks)
    assert "not read: steps" in notes_of(masks)
    robot = tmp_path / "robot.hdf5"
    write("robomimic", robot, EPISODES)
    write("minari", tmp_path / "minari", EPISODES)
    with h5py.File(robot, "a") as f:
        for i, demo in enumerate(f["data"].values()):
            demo["TimeLimit.truncated"] = demo.pop("truncated")[()]
            demo["episode_id"] = np.full(len(demo["actions"]), i)
            del demo["terminated"]
    assert_same(EPISODES, read(robot))
    assert "not read: episode_id" in notes_of(read(robot))
    with h5py.File(tmp_path / "minari" / "data" / "main_data.hdf5", "a") as f:
        for episode in f.values():
            episode["infos/TimeLimit.truncated"] = np.zeros(len(episode["observations"]), bool)
    assert "not read: infos/TimeLimit.truncated" in notes_of(read(tmp_path / "minari"))


def test_a_dataset_is_written_wherever_the_command_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("minari", Path("here"), EPISODES)
    assert len(read(Path("here"))) == len(EPISODES)


@pytest.mark.parametrize(
    ("name", "to"), [("out", "irl"), ("out.npz", "d4rl"), ("out.hdf5", "flat")]
)
def test_a_name_by_which_a_format_is_not_known_is_refused(tmp_path, name, to):
    save(tmp_path / "demos.npz", **WITH_NEXT, dones=ENDED)
    with pytest.raises(DemoError, match=f"{name}: expected a name that ends in .*, by which {to}"):
        convert.main(convert.Config(tmp_path / "demos.npz", tmp_path / name, to))
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: resize(f, "data/demo_1/obs/flat", 5), r"demo_1.*'obs' has 5 rows; expected 4"),
        (
            lambda f: resize(f, "data/demo_1/rewards", 3),
            r"demo_1.*'rewards' has 3 rows; expected 4",
        ),
        (lambda f: f.__delitem__("data/demo_1/terminated"), r"demo_1: key 'terminated' is missing"),
    ],
)
def test_demos_of_robomimic_that_are_unlike_the_others_are_refused(tmp_path, change, message):
    path = tmp_path / "demos.hdf5"
    write("robomimic", path, EPISODES)
    with h5py.File(path, "a") as f:
        change(f)
    with pytest.raises(DemoError, match=message):
        read(path)


def resize(f, name: str, n: int) -> None:
    """Repeats or drops rows at the end of a dataset."""
    x = f[name][()]
    del f[name]
    f[name] = np.r_[x, x][:n]


def test_rlds_holds_the_last_observation_in_the_row_with_is_last(tmp_path):
    obs = np.concatenate([e.obs for e in EPISODES])
    acts = np.concatenate([np.r_[e.acts, np.zeros((1, 2), np.float32)] for e in EPISODES])
    last = np.concatenate([np.arange(len(e.obs)) == len(e.acts) for e in EPISODES])
    terminal = last & np.repeat([e.terminated for e in EPISODES], [len(e.obs) for e in EPISODES])
    path = save(
        tmp_path / "rlds.npz", observation=obs, action=acts, is_last=last, is_terminal=terminal
    )
    assert_same(EPISODES, read(path), but=("rewards",))
    alone = read(save(tmp_path / "alone.npz", observation=obs, action=acts, is_last=last))
    assert [e.terminated for e in alone] == [True] * 3
    assert "'is_last' does not tell time limits from terminal states" in notes_of(alone)
    twice = {"observation": np.r_[obs, obs[:7]], "action": np.r_[acts, acts[:7]]}
    limits = read(save(tmp_path / "limits.npz", **twice, is_last=np.r_[last, last[:7]]))
    assert [e.terminated for e in limits] == [False, True, True, False]


def test_one_episode_with_actions_that_seem_delayed_is_said(tmp_path):
    flags = {"is_first": np.arange(7) == 0, "is_last": np.arange(7) == 6}
    obs, acts = EPISODES[0].obs, np.r_[np.zeros((1, 2), np.float32), EPISODES[0].acts]
    path = save(tmp_path / "dreamer.npz", observation=obs, action=acts, **flags)
    assert "stored with the observation that they led to?" in notes_of(read(path))


def test_dones_of_deaths_alone_are_refused_without_next_obs(tmp_path):
    """Time limits without a mark: the next episode's start would be joined to the last end."""
    flat = to_transitions(walks((30, 20, 25, 28), terminated=(0, 2, 3)))
    rows = {"obs": flat["obs"], "acts": flat["acts"], "dones": flat["terminated"]}
    with pytest.raises(DemoError, match="'dones' does not mark 1 place where obs jumps"):
        read(save(tmp_path / "deaths.npz", **rows))
    with pytest.raises(DemoError, match="'dones' does not mark 1 place where obs jumps"):
        read(save(tmp_path / "both.npz", **rows, terminals=flat["terminated"]))
    whole = read(save(tmp_path / "whole.npz", **rows, timeouts=flat["truncated"]))
    assert [len(e.acts) for e in whole] == [29, 19, 24, 27]
    for key in ("timeouts", "truncated"):
        taken = read(save(tmp_path / f"{key}.npz", **rows, **{key: np.zeros(len(rows["dones"]))}))
        assert [len(e.acts) for e in taken] == [29, 44, 27]
        assert f"'{key}' marks no row; taken at its word, in spite of 1 place" in notes_of(taken)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"terminals": np.zeros((15, 2))}, r"'terminals' has shape \(15, 2\)"),
        ({"terminals": np.zeros(14)}, r"'terminals' has shape \(14,\)"),
        ({"dones": np.full(15, 2)}, "'dones' .* not 0 or 1"),
        ({"dones": np.full(15, np.nan)}, "'dones' .* not 0 or 1"),
        ({"episode_index": np.linspace(0, 1, 15)}, "'episode_index' is float64"),
        ({"lengths": np.array([6, 4])}, "'lengths' sums up to 10"),
        ({"lengths": np.array([16, -1])}, "'lengths' holds -1"),
        ({"lengths": np.array([2**62, 2**62, 2**62, 2**62 + 15])}, "'lengths'"),
        ({"episode_ends": np.array([6, 4, 15])}, "'episode_ends' is no list of rising row"),
        ({"episode_ends": np.array([6, 10])}, "'episode_ends' does not end at the last"),
    ],
)
def test_markers_that_do_not_fit_are_refused(tmp_path, columns, message):
    with pytest.raises(DemoError, match=message):
        read(save(tmp_path / "demos.hdf5", **ROWS, **columns))


def test_keys_that_were_not_read_are_listed(tmp_path):
    extra = {"qpos": FLAT["obs"], "my_flag": ENDED}
    demonstrations = read(save(tmp_path / "demos.npz", **ROWS, dones=ENDED, **extra))
    assert "not read: my_flag, qpos" in notes_of(demonstrations)


# ------------------------------------------------------------------------ flags in conflict
WITH_NEXT = {**ROWS, "next_observations": FLAT["next_obs"]}


def test_explicit_flags_win_over_a_combined_done(tmp_path):
    flags = {"terminated": FLAT["terminated"], "truncated": FLAT["truncated"], "dones": ENDED}
    demonstrations = read(save(tmp_path / "demos.npz", **WITH_NEXT, **flags))
    assert [e.terminated for e in demonstrations] == [False, True, False]


@pytest.mark.parametrize(
    "flags",
    [
        {"terminated": FLAT["terminated"], "dones": ENDED},
        {"timeouts": FLAT["truncated"], "dones": ENDED},
        {"timeouts": FLAT["truncated"], "dones": FLAT["terminated"]},
        {"dones": ENDED, "TimeLimit.truncated": FLAT["truncated"]},
        {"terminated": FLAT["terminated"], "TimeLimit.truncated": FLAT["truncated"]},
    ],
)
def test_two_flags_together_say_both_kinds_of_ends(tmp_path, flags):
    demonstrations = read(save(tmp_path / "demos.npz", **WITH_NEXT, **flags))
    assert_same(EPISODES, demonstrations, but=("rewards",))


@pytest.mark.parametrize(
    "flags",
    [
        {"dones": ENDED, "done": FLAT["terminated"]},
        {"terminals": ENDED, "terminated": FLAT["terminated"]},
        {"terminals": ENDED, "TimeLimit.truncated": FLAT["truncated"]},
        {"timeouts": FLAT["truncated"], "TimeLimit.truncated": np.roll(FLAT["truncated"], 3)},
        {"terminals": FLAT["terminated"], "timeouts": FLAT["truncated"], "dones": ~ENDED},
        {"terminals": ENDED, "dones": FLAT["terminated"]},
        {"dones": ENDED, "masks": ENDED},
        {"obs": FLAT["obs"] + 1, "dones": ENDED},
    ],
)
def test_flags_and_names_that_contradict_each_other_are_refused(tmp_path, flags):
    with pytest.raises(DemoError, match=r"differ|contradict") as error:
        read(save(tmp_path / "demos.npz", **WITH_NEXT, **flags))
    assert str(error.value).count("'") >= 4  # both keys


def test_one_thing_under_two_names_is_read_if_they_agree(tmp_path):
    both = {"dones": ENDED, "done": np.float32(ENDED)[:, None], "obs": np.float64(FLAT["obs"])}
    assert len(read(save(tmp_path / "demos.npz", **WITH_NEXT, **both))) == 3


@pytest.mark.parametrize("limits", [True, False])
def test_a_combined_done_at_the_common_longest_length_is_a_time_limit(tmp_path, limits):
    lengths = (20, 20, 7, 20) if limits else (20, 19, 7, 18)
    flat = to_transitions(walks(lengths))
    ended = flat.pop("terminated") | flat.pop("truncated")
    demonstrations = read(save(tmp_path / "demos.npz", **flat, dones=ended))
    expected = [False, False, True, False] if limits else [True] * 4
    assert [e.terminated for e in demonstrations] == expected
    assert "'dones' does not tell time limits from terminal states" in notes_of(demonstrations)


@pytest.mark.parametrize("infos", [True, False])
def test_imitations_terminal_marks_time_limits_too(tmp_path, infos):
    """A rollout of a time-limited environment: terminal is true, the infos say what it was."""
    trajectories = []
    for i, e in enumerate(walks((9, 5, 9))):
        steps = np.array([{} for _ in e.acts], dtype=object)
        steps[-1] = {"TimeLimit.truncated": i != 1, "nested": np.float64(3)}
        trajectories.append(Trajectory(e.obs, e.acts, steps if infos else None, True))
    serialize.save(tmp_path / "rollouts", trajectories)
    demonstrations = read(tmp_path / "rollouts")
    assert [e.terminated for e in demonstrations] == [False, True, False]
    assert ("does not tell" in notes_of(demonstrations)) != infos


# ------------------------------------------------------- transitions that physics never made
def same_step(episodes: list[Episode]) -> dict[str, np.ndarray]:
    """As environments record that put the next episode's first observation into next_obs."""
    flat = to_transitions(episodes)
    ended = flat.pop("terminated") | flat.pop("truncated")
    ends = np.flatnonzero(ended)
    flat["next_obs"][ends] = flat["obs"][(ends + 1) % len(ended)]
    flat["next_obs"][-1] += 0.001
    return {**flat, "dones": ended}


def next_step(episodes: list[Episode], rewards: bool) -> dict[str, np.ndarray]:
    """As environments record that reset in the step after the end, ignoring its action."""
    columns: dict[str, list] = {"obs": [], "acts": [], "next_obs": [], "rewards": [], "dones": []}

    def add(obs, acts, next_obs, reward, done):
        for key, value in zip(columns, (obs, acts, next_obs, reward, done)):
            columns[key].append(value)

    for i, e in enumerate(episodes):
        for t in range(len(e.acts)):
            add(e.obs[t], e.acts[t], e.obs[t + 1], e.rewards[t], t == len(e.acts) - 1)
        if i + 1 < len(episodes):
            add(e.obs[-1], e.acts[0], episodes[i + 1].obs[0], 0.0, False)
    arrays = {key: np.array(x) for key, x in columns.items()}
    return arrays if rewards else {k: x for k, x in arrays.items() if k != "rewards"}


def interleave(arrays: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """(T, n) rows of n environments as one column, time by time."""
    n = min(len(a["acts"]) for a in arrays)
    return {
        k: np.stack([a[k][:n] for a in arrays], 1).reshape(-1, *arrays[0][k].shape[1:])
        for k in arrays[0]
    }


def test_next_obs_of_a_reset_is_left_out_and_counted(tmp_path):
    episodes = walks((30, 20, 25, 28))
    demonstrations = read(save(tmp_path / "demos.npz", **same_step(episodes)))
    cut = [Episode(e.obs[:-1], e.acts[:-1], False, e.rewards[:-1]) for e in episodes]
    assert_same(cut, demonstrations)
    note = next(n for n in demonstrations.notes if "left out" in n.text)
    assert "4 transitions left out" in note.text and note.rows == (29, 49, 74, 102)


@pytest.mark.parametrize("rewards", [True, False])
def test_a_reset_on_the_next_step_is_left_out_and_counted(tmp_path, rewards):
    episodes = walks((30, 20, 25, 28))
    demonstrations = read(save(tmp_path / "demos.npz", **next_step(episodes, rewards)))
    assert_same(episodes, demonstrations, but=("terminated", "rewards"))
    assert "3 transitions left out" in notes_of(demonstrations)


@pytest.mark.parametrize("rewards", [True, False])
def test_a_reset_on_the_next_step_is_found_without_next_obs(tmp_path, rewards):
    episodes = walks((30, 20, 25, 28))
    columns = next_step(episodes, rewards)
    del columns["next_obs"]
    demonstrations = read(save(tmp_path / "demos.npz", **columns))
    assert taken(demonstrations) <= taken(episodes)
    assert "3 transitions left out" in notes_of(demonstrations)


def test_first_steps_without_reward_are_no_resets(tmp_path):
    """As dm_env gives them: without next_obs, where the observation jumps decides."""
    flat = to_transitions(walks((30, 20, 25, 28)))
    flat["rewards"][[0, 30, 50, 75]] = 0
    rows = {"obs": flat["obs"], "acts": flat["acts"], "rewards": flat["rewards"]}
    demonstrations = read(save(tmp_path / "demos.npz", **rows, dones=flat["truncated"]))
    assert [len(e.acts) for e in demonstrations] == [29, 19, 24, 27]


@pytest.mark.parametrize("record", [same_step, lambda e: next_step(e, True)])
def test_resets_are_found_in_interleaved_rows(tmp_path, record):
    several = [walks((12, 15, 11), seed=k) for k in range(4)]
    rows = interleave([record(episodes) for episodes in several])
    demonstrations = read(save(tmp_path / "demos.npz", **rows))
    assert taken(demonstrations) <= set.union(*(taken(e) for e in several))
    assert len(demonstrations) == 12 and "left out" in notes_of(demonstrations)


def test_resets_without_marks_of_time_limits_are_refused(tmp_path):
    """The resets after a time limit have no mark: they cannot be told from steps."""
    columns = same_step(walks((30, 20, 25, 28)))
    columns["terminated"] = columns.pop("dones") & (np.arange(103) != 49)
    with pytest.raises(DemoError, match="no key marks time limits"):
        read(save(tmp_path / "demos.npz", **columns))


@pytest.mark.parametrize("markers", ["none", "first"])
def test_resets_are_left_out_where_no_flag_marks_the_ends(tmp_path, markers):
    """Without any mark a reset is a jump; the last row is one too, though no row follows it."""
    episodes = walks((30, 20, 25, 28))
    columns = same_step(episodes)
    done = columns.pop("dones")
    if markers == "first":
        columns["episode_starts"] = starts_from(done)
    demonstrations = read(save(tmp_path / "demos.npz", **columns))
    assert taken(demonstrations) <= taken(episodes)
    assert "4 transitions left out" in notes_of(demonstrations)
    assert [len(e.acts) for e in demonstrations] == [29, 19, 24, 27]


# ------------------------------------------------------------------------- interleaved rows
def test_interleaved_rows_are_linked_wherever_they_lie(tmp_path):
    episodes = walks((50,) * 8)
    rows = interleave([to_transitions([e]) for e in episodes])
    demonstrations = read(save(tmp_path / "demos.npz", **rows))
    assert_same(episodes, demonstrations)
    assert "392 rows of 400 linked to a row that is no neighbour" in notes_of(demonstrations)


def test_interleaved_rows_without_next_obs_are_refused_or_said(tmp_path):
    several = [to_transitions([e]) for e in walks((50,) * 8)]
    for k, flat in enumerate(several):
        flat["obs"] += 5 * np.sin(k * np.arange(1, 4, dtype=np.float32))
    rows = interleave(several)
    del rows["next_obs"]
    with pytest.raises(DemoError, match="as if rows of several environments were interleaved"):
        read(save(tmp_path / "demos.npz", **rows))
    rows = {k: x[:-8] for k, x in rows.items()} | {"lengths": np.array([392])}
    demonstrations = read(save(tmp_path / "one.npz", **rows))
    assert "rows 8 apart are closer than neighbours" in notes_of(demonstrations)


@pytest.mark.parametrize("kept", [("step",), ("step", "terminated", "truncated")])
def test_interleaved_rows_with_numbers_of_steps_are_refused_without_next_obs(tmp_path, kept):
    """Cut where the numbers do not go on, each row would be joined with one of the other walk."""
    several = [to_transitions([e]) for e in walks((50,) * 2)]
    rows = interleave([flat | {"step": np.arange(50)} for flat in several])
    rows = {key: rows[key] for key in ("obs", "acts", *kept)}
    message = "'step' has the number of the row before in 49 rows, the first is row 3, as if rows"
    with pytest.raises(DemoError, match=message):
        read(save(tmp_path / "demos.npz", **rows))


def test_the_number_of_a_first_row_may_be_there_twice(tmp_path):
    """An episode of one row before another."""
    flat = to_transitions(walks((1, 20, 20)))
    rows = {"obs": flat["obs"], "acts": flat["acts"], "step": np.r_[0, :20, :20]}
    assert [len(e.acts) for e in read(save(tmp_path / "demos.npz", **rows))] == [19, 19]


def test_a_periodic_gait_is_not_taken_for_interleaved_rows(tmp_path):
    episodes = read(ROOT / "demos" / "HalfCheetah-v4.npz")[:5]
    flat = to_transitions(episodes)
    del flat["next_obs"]
    assert "closer than neighbours" not in notes_of(read(save(tmp_path / "d.npz", **flat)))


def test_ambiguous_followers_are_cut_and_said(tmp_path):
    """Two rows share next_obs, and two rows have it as obs: nothing says which follows which."""
    a, b, c, d = np.eye(4, dtype=np.float32)
    obs, next_obs = np.stack([a, b, d, c, c]), np.stack([c, c, d + 5, d + 6, d + 7])
    rows = {"obs": obs, "next_obs": next_obs, "acts": np.arange(5.0), "done": [0, 0, 1, 1, 1]}
    demonstrations = read(save(tmp_path / "demos.npz", **rows))
    assert [len(e.acts) for e in demonstrations] == [1] * 5
    note = next(n for n in demonstrations.notes if "could be followed by several" in n.text)
    assert note.rows == (0, 1)


def test_transitions_that_do_not_follow_each_other_are_episodes_of_their_own(tmp_path):
    flat = {key: x[[4, 2, 0, 8]] for key, x in to_transitions(make_episodes()).items()}
    demonstrations = read(save(tmp_path / "flat.npz", **flat))
    assert [len(e.acts) for e in demonstrations] == [1, 1, 1, 1]
    np.testing.assert_array_equal(pack(demonstrations)["acts"], flat["acts"])


# -------------------------------------------------------------------- edge lengths and types
def test_episodes_without_a_step_are_left_out_and_flip_no_flag(tmp_path):
    full = make_episodes((2, 3, 1))
    empty = Episode(np.zeros((1, 2), np.float32), np.zeros((0, 1), np.float32), True, np.zeros(0))
    episodes = [empty, full[0], empty, full[1], full[2], empty]
    np.savez(tmp_path / "own.npz", **pack(episodes))
    demonstrations = read(tmp_path / "own.npz")
    assert_same(full, demonstrations)
    assert "3 episodes without a step left out" in notes_of(demonstrations)
    for name in FORMATS:
        write(name, path_for(name, tmp_path / name), episodes)
        lost = ("terminated",) if name == "lerobot" else ()
        assert_same(full, read(path_for(name, tmp_path / name)), but=lost)
    with pytest.raises(DemoError, match="no transition to write"):
        write("irl", tmp_path / "none.npz", [empty])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.int8, np.uint8])
def test_numbers_of_any_type_become_float32(tmp_path, dtype):
    flat = to_transitions(walks((5, 6)))
    arrays = {k: (flat[k] * 20).astype(dtype) for k in ("obs", "acts", "next_obs")}
    if dtype is np.uint8:
        arrays = {k: np.abs(flat[k] * 20).astype(dtype) for k in arrays}
    demonstrations = read(save(tmp_path / "demos.npz", **arrays, truncated=flat["truncated"],
                               terminated=flat["terminated"]))  # fmt: skip
    assert pack(demonstrations)["obs"].dtype == np.float32
    np.testing.assert_array_equal(pack(demonstrations)["acts"], np.float32(arrays["acts"]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"actions": np.arange(15)}, "discrete"),
        ({"actions": FLAT["acts"].astype(complex)}, "complex128; expected real numbers"),
        ({"actions": FLAT["acts"].astype("S8")}, "expected real numbers"),
        ({"observations": np.full((15, 3), 1e300)}, "float32 cannot hold"),
        ({"observations": np.zeros((15, 4, 4))}, r"'observations' has shape \(15, 4, 4\)"),
        ({"observations": np.zeros((12, 3))}, r"'observations' has shape \(12, 3\)"),
        ({"rewards": np.zeros((15, 2))}, r"'rewards' has shape \(15, 2\)"),
        ({"observations": np.zeros((0, 3)), "actions": np.zeros((0, 2)), "dones": np.zeros(0)},
         "holds no transition"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_demonstrations_get_one_line(tmp_path, changed, message):
    with pytest.raises(DemoError, match=message) as error:
        read(save(tmp_path / "demos.npz", **{**ROWS, "dones": ENDED, **changed}))
    assert "demos.npz" in str(error.value) and "\n" not in str(error.value)


def test_a_plain_column_of_numbers_is_a_vector_of_one(tmp_path):
    path = save(tmp_path / "d.npz", obs=FLAT["obs"][:, 0], acts=FLAT["acts"][:, 0], dones=ENDED)
    assert (read(path)[0].obs.shape, read(path)[0].acts.shape) == ((6, 1), (5, 1))


def test_own_demonstrations_without_terminated_are_said_to_be_cut_off(tmp_path):
    arrays = pack(make_episodes())
    del arrays["terminated"]
    demonstrations = read(save(tmp_path / "own.npz", **arrays))
    assert not any(e.terminated for e in demonstrations)
    assert "no key terminated" in notes_of(demonstrations)


def test_dict_observations_say_which_keys_there_are_and_can_be_picked(tmp_path):
    box = gym.spaces.Box(-1, 1, (2,))
    space = gym.spaces.Dict(goal=box, state=gym.spaces.Box(-1, 1, (3,)))
    (tmp_path / "goals").mkdir()
    storage = MinariStorage.new(tmp_path / "goals" / "data", space, gym.spaces.Box(-1, 1, (1,)))
    rng = np.random.default_rng(0)
    obs = {
        "goal": np.float32(rng.normal(size=(3, 2))),
        "state": np.float32(rng.normal(size=(3, 3))),
    }
    acts, ends = np.zeros((2, 1), np.float32), np.array([False, True])
    buffer = minari.data_collector.EpisodeBuffer(
        observations=obs,
        actions=acts,
        rewards=np.zeros(2),
        terminations=ends,
        truncations=np.zeros(2, bool),
        infos={},
    )
    storage.update_metadata({"dataset_id": "test/goals-v0", "minari_version": minari.__version__})
    storage.update_episodes([buffer])
    with pytest.raises(DemoError, match=r"observations/goal, observations/state.*--obs-keys goal"):
        read(tmp_path / "goals")
    demonstrations = read(tmp_path / "goals", ["state", "goal"])
    expected = np.concatenate([obs["state"], obs["goal"]], 1)
    np.testing.assert_array_equal(pack(demonstrations)["obs"], expected)
    with pytest.raises(DemoError, match="--obs-keys nothing: no such key"):
        read(tmp_path / "goals", ["nothing"])


def test_robomimic_says_and_lets_choose_the_observations(tmp_path):
    """The layout that robomimic writes: many arrays, images among them, demos in text order."""
    episodes = walks([3] * 11)
    with h5py.File(tmp_path / "lift.hdf5", "w") as f:
        for i, e in enumerate(episodes):
            demo = f.create_group(f"data/demo_{i}")
            demo.attrs["num_samples"] = 3
            demo["actions"], demo["rewards"], demo["states"] = e.acts, e.rewards, np.ones((3, 9))
            demo["dones"] = np.array([0, 1, 1])  # success holds on: not two ends
            for group, rows in (("obs", e.obs[:-1]), ("next_obs", e.obs[1:])):
                demo[f"{group}/eef"], demo[f"{group}/object"] = rows[:, :2], rows[:, 2]
                demo[f"{group}/camera"] = np.zeros((3, 8, 8, 3), np.uint8)
        f["mask/train"] = np.array([b"demo_0"])
    demonstrations = read(tmp_path / "lift.hdf5")
    assert demonstrations.format == "robomimic"
    assert_same(episodes, demonstrations, but=("terminated",))  # demo_2 before demo_10
    notes = notes_of(demonstrations)
    assert "observations: obs/eef, obs/object, in this order" in notes and "obs/camera" in notes
    assert "11 rows with dones before the last" in notes and "does not tell" in notes
    other = read(tmp_path / "lift.hdf5", ["object", "eef"])
    np.testing.assert_array_equal(other[4].obs, episodes[4].obs[:, [2, 0, 1]])
    with h5py.File(tmp_path / "lift.hdf5", "a") as f:
        f["data/demo_3"].attrs["num_samples"] = 4
    with pytest.raises(DemoError, match="demo_3 has 3 actions, its num_samples is 4"):
        read(tmp_path / "lift.hdf5")


def test_symbolic_links_are_read_and_never_overwritten(tmp_path):
    write("lerobot", tmp_path / "robot", make_episodes())
    (tmp_path / "link").symlink_to(tmp_path / "robot")
    assert_same(make_episodes(), read(tmp_path / "link"), but=("terminated",))
    (tmp_path / "dangling.npz").symlink_to(tmp_path / "elsewhere.npz")
    with pytest.raises(DemoError, match="exists; expected a new name"):
        write("irl", tmp_path / "dangling.npz", make_episodes())
    assert (tmp_path / "dangling.npz").is_symlink()


@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_gets_one_line_and_leaves_nothing(tmp_path, name, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DemoError, match=r"cannot be written .No space left on device"):
        write(name, path_for(name, tmp_path / "new"), make_episodes())
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "own.npz").write_bytes(b"before")
    source = ROOT / "demos" / "Hopper-v4.bank.npz"
    with pytest.raises(DemoError, match="cannot be written"):
        to_own_npz(source, tmp_path / "own.npz")
    assert (tmp_path / "own.npz").read_bytes() == b"before"


def test_a_folder_that_is_a_file_gets_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoError, match="cannot be written"):
        write("irl", tmp_path / "file" / "demos.npz", make_episodes())


# ------------------------------------------------------------------------------- bad input
def test_what_is_no_demonstration_gets_one_line(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.csv").write_text("a,b")
    (tmp_path / "broken.hdf5").write_bytes(b"no")
    np.savez(tmp_path / "half.npz", obs=np.zeros((2, 2)))
    for name, message in (
        ("none", "no such file or folder"),
        ("folder", "a folder without dataset_info.json"),
        ("text.csv", "expected a format"),
        ("broken.hdf5", "not a readable HDF5 file"),
        ("half.npz", "key 'acts' is missing"),
    ):
        with pytest.raises(DemoError, match=message) as error:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_nothing_pickled_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    harmful = np.array([Harmful()] * 15, dtype=object)
    path = save(tmp_path / "demos.npz", **WITH_NEXT, dones=ENDED, infos=harmful)
    assert "not read: infos" in notes_of(read(path))  # a Python object
    with pytest.raises(DemoError, match="'obs' is pickled"):
        read(save(tmp_path / "obs.npz", obs=harmful, acts=FLAT["acts"], dones=ENDED))
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(DemoError, match=r"not a readable .npz"):
        read(tmp_path / "plain.npz")
    episode = walks((3,))[0]
    write("imitation", tmp_path / "rollouts", [episode])
    infos = np.array([{"x": Harmful()}] * 3, dtype=object)
    serialize.save(tmp_path / "harmful", [Trajectory(episode.obs, episode.acts, infos, False)])
    read(tmp_path / "harmful")
    assert not (tmp_path / "executed").exists()


def test_sizes_are_checked_before_anything_is_read(tmp_path):
    big = (200_000_000, 3)
    with h5py.File(tmp_path / "big.hdf5", "w") as f:
        for key in ("observations", "actions"):
            f.create_dataset(key, big, "f4", chunks=(1000, 3))
        f.create_dataset("dones", (big[0],), "i1", chunks=(1000,))
    header = {"descr": "<f4", "fortran_order": False, "shape": big}
    with zipfile.ZipFile(tmp_path / "big.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for key in ("obs", "acts", "next_obs"):
            with archive.open(f"{key}.npy", "w") as f:
                np.lib.format.write_array_header_1_0(f, header)
                f.write(bytes(1000))
    for name in ("big.hdf5", "big.npz"):
        with pytest.raises(DemoError, match="MiB of arrays; expected at most 256 MiB"):
            read(tmp_path / name)
    source = ROOT / "demos" / "Hopper-v4.bank.npz"
    with pytest.raises(DemoError, match="expected at most 0 MiB"):
        read(source, max_bytes=1000)
    with h5py.File(tmp_path / "chunk.hdf5", "w") as f:  # a chunk is read whole
        f.create_dataset("observations", (10, 3), "f4", maxshape=(None, 3), chunks=(30_000_000, 3))
        f.create_dataset("actions", (10, 1), "f4")
        f["dones"] = np.arange(10) == 9
    with pytest.raises(DemoError, match="343 MiB of arrays; expected at most 256 MiB"):
        read(tmp_path / "chunk.hdf5")
    assert len(read(tmp_path / "chunk.hdf5", max_bytes=2**30)) == 1


def test_links_of_hdf5_to_other_files_are_not_followed(tmp_path):
    save(tmp_path / "other.hdf5", **ROWS, dones=ENDED)
    with h5py.File(tmp_path / "link.hdf5", "w") as f:
        for key in (*ROWS, "dones"):
            f[key] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), key)
    with pytest.raises(DemoError, match="key 'obs' is missing"):
        read(tmp_path / "link.hdf5")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    write("d4rl", tmp_path / "demos.hdf5", make_episodes())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DemoError, match="expected the package h5py"):
        read(tmp_path / "demos.hdf5")
    with pytest.raises(DemoError, match="expected the package h5py"):
        write("d4rl", tmp_path / "new.hdf5", make_episodes())
    assert not (tmp_path / "new.hdf5").exists()


# --------------------------------------------------------------------------------- convert
def test_convert_never_overwrites_and_leaves_nothing_half_written(tmp_path, capsys):
    source = ROOT / "demos" / "Hopper-v4.bank.npz"
    convert.main(convert.Config(source, tmp_path / "hopper.hdf5"))
    assert "d4rl, 30 episodes" in capsys.readouterr().out
    assert_same(read(source), read(tmp_path / "hopper.hdf5"))
    before = (tmp_path / "hopper.hdf5").read_bytes()
    for words, message in (
        ([source, tmp_path / "hopper.hdf5"], "nothing is overwritten"),
        ([source, tmp_path / "folder"], "says no format"),
        ([tmp_path / "none.npz", tmp_path / "new.npz"], "no such file"),
    ):
        with pytest.raises(DemoError, match=message):
            convert.main(convert.Config(*words))
    assert (tmp_path / "hopper.hdf5").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_convert_prints_every_note_and_takes_keys(tmp_path, capsys):
    path = save(tmp_path / "demos.npz", **ROWS, dones=ENDED, left=FLAT["obs"][:, :1] + 1)
    convert.main(convert.Config(path, tmp_path / "own.npz", obs_keys=("left", "observations")))
    printed = capsys.readouterr().out
    assert "note: observations: left, observations, in this order" in printed
    assert "note: no next_obs: the last transition" in printed
    assert read(tmp_path / "own.npz")[0].obs.shape == (6, 4)


@pytest.mark.parametrize("words", [["demos/convert.py"], ["-m", "demos.convert"]])
def test_convert_as_a_user_types_it(tmp_path, words):
    done = command(*words, tmp_path / "none.npz", tmp_path / "new.npz")
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


# ------------------------------------------------------------------------------------- experts
class InPlace(gym.Env):
    """Hands out one buffer and changes it in place."""

    observation_space = gym.spaces.Box(-9, 9, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, seed=None, options=None):
        self.state = np.zeros(2)
        return self.state, {}

    def step(self, action):
        self.state += 1
        return self.state, 1.0, False, self.state[0] == 3, {}


def test_an_episode_holds_copies():
    action = np.zeros(2, np.float32)

    def act(obs):
        action[:] = obs
        return action

    episode = play(InPlace(), act, 0)
    np.testing.assert_array_equal(episode.obs[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(episode.acts[:, 0], [0, 1, 2])


def test_an_expert_that_is_none_gets_one_line(tmp_path):
    (tmp_path / "expert.npz").write_bytes(b"no")
    with pytest.raises(DemoError, match=r"expert.npz: not a readable expert"):
        Expert.load(tmp_path / "expert.npz")


# ---------------------------------------------------------------------- other environments
@pytest.mark.parametrize("env_id", ["Ant-v4", "InvertedPendulum-v4", "Pendulum-v1", "Reacher-v4"])
def test_episodes_of_other_environments_pass_through_every_format(tmp_path, env_id):
    env = gym.make(env_id)
    env.action_space.seed(0)
    episodes = [play(env, lambda obs: env.action_space.sample(), seed) for seed in range(2)]
    for name in FORMATS:
        path = path_for(name, tmp_path / name)
        write(name, path, episodes)
        lost = ("terminated",) if name == "lerobot" else ()
        assert_same(episodes, read(path), but=lost)
