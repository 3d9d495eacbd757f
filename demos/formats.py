"""Demonstrations in the formats other projects keep them in: what lies on disk says which it is.

    from demos.formats import read, write
    episodes = read(Path("~/.minari/datasets/mujoco/hopper/expert-v0").expanduser())
    write("d4rl", Path("hopper.hdf5"), episodes)

    irl         .npz with `lengths`: this project's, see demos/README.md
    flat        .npz of transitions: obs, acts, next_obs and, if there, terminated, truncated, rewards
    imitation   a folder that imitation.data.serialize.save wrote
    minari      a local dataset: its folder, or the folder `data` in it                        (packages minari, h5py)
    d4rl        .hdf5 with observations, actions, terminals, timeouts, rewards                 (package h5py)
    lerobot     a LeRobotDataset of version 3: parquet with observation.state and action

Not every format holds everything. LeRobot does not say whether an episode was terminated. D4RL without
next_observations, and LeRobot, do not hold what the last action of an episode led to: that transition is left out.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FRAMES_PER_SECOND = 20  # LeRobot wants one; nothing here depends on it


class DemoError(ValueError):
    """Demonstrations that cannot be read or written: one line with the file, the key and what was expected."""


@dataclass(frozen=True)
class Episode:
    """obs (T+1, obs_dim), acts (T, action_dim), whether it ended in a terminal state, and rewards (T,) if known."""

    obs: np.ndarray
    acts: np.ndarray
    terminated: bool
    rewards: np.ndarray | None = None


def read(path: Path) -> list[Episode]:
    """The episodes at `path`, float32, in whichever format they are; DemoError naming the path if in none."""
    name = format_of(path)
    try:
        episodes = READERS[name](path)
    except ImportError as error:
        raise DemoError(f"{path}: a {name} dataset; expected the package {error.name} to be installed") from None
    except KeyError as error:
        raise DemoError(f"{path}: key {error} is missing from this {name} dataset") from None
    except (OSError, ValueError, TypeError, AssertionError) as error:  # damaged, or observations that are no vectors
        raise DemoError(
            f"{path}: not a readable {name} dataset ({(str(error) or repr(error)).splitlines()[0]})"
        ) from None
    if not episodes:
        raise DemoError(f"{path}: this {name} dataset holds no transition; expected at least one")
    for i, episode in enumerate(episodes):
        if episode.obs.ndim != 2 or episode.acts.ndim != 2 or len(episode.obs) != len(episode.acts) + 1:
            shapes = f"observations {episode.obs.shape} and actions {episode.acts.shape}"
            raise DemoError(f"{path}: episode {i} has {shapes}; expected (T+1, obs_dim) and (T, action_dim)")
    return episodes


def to_own_npz(source: Path, destination: Path) -> list[str]:
    """Writes the demonstrations at `source`, of any format, as this project's .npz; returns the reader's notes."""
    episodes = read(source)
    with replacing(destination) as temporary:
        write_irl(temporary, episodes)
    return []


def format_of(path: Path) -> str:
    """Which of FORMATS lies at `path`; DemoError if none does."""
    marks = {
        "imitation": path / "dataset_info.json",
        "lerobot": path / "meta" / "info.json",
        "minari": minari_data(path) / "metadata.json",
    }
    if not path.exists():
        raise DemoError(f"{path}: no such file or folder; expected demonstrations ({', '.join(FORMATS)})")
    if path.is_dir():
        for name, mark in marks.items():
            if mark.is_file():
                return name
    if path.suffix == ".npz":
        return "irl" if "lengths" in read_npz(path, ["lengths"]) else "flat"
    if path.suffix in (".hdf5", ".h5"):
        return "d4rl"
    holds = "a folder without " + ", ".join(m.name for m in marks.values()) if path.is_dir() else "a file"
    raise DemoError(f"{path}: {holds}; expected a format of demos/formats.py ({', '.join(FORMATS)})")


def pack(episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
    """The arrays of this project's .npz: obs, acts, lengths, terminated, and rewards if every episode has them."""
    arrays = {
        "obs": np.concatenate([e.obs for e in episodes]),
        "acts": np.concatenate([e.acts for e in episodes]),
        "lengths": np.array([len(e.acts) for e in episodes], np.int64),
        "terminated": np.array([e.terminated for e in episodes], bool),
    }
    if all(e.rewards is not None for e in episodes):
        arrays["rewards"] = np.concatenate([e.rewards for e in episodes])
    return arrays


def write(name: str, path: Path, episodes: Sequence[Episode]) -> None:
    """Writes `episodes` to `path`, which must not exist, in the format `name`."""
    if path.exists():
        raise DemoError(f"{path}: exists; expected a new name, nothing is overwritten")
    try:
        with new_folder(path) if name in FOLDERS else replacing(path) as temporary:
            WRITERS[name](temporary, episodes)
    except ImportError as error:
        raise DemoError(f"{path}: to write {name}, expected the package {error.name} to be installed") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name to write to and renames it to `path`, or removes it if writing fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path`, or nothing if writing fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# -------------------------------------------------------------------------------------- cards
CARD_SCHEMA = "irl-card-1"


def read_card(path: Path) -> tuple[dict | None, str | None]:
    """The card at `path` and None, or None and why it is not one; DemoError if it claims to be one and is broken."""
    try:
        text = path.read_text(encoding="utf-8")
        card = json.loads(text)
    except FileNotFoundError:
        return None, f"{path}: no such card"
    except (OSError, ValueError, RecursionError):
        return None, f"{path}: not readable as JSON; not taken for a card"
    if not isinstance(card, dict) or card.get("schema") != CARD_SCHEMA:
        return None, f'{path}: has no "schema": "{CARD_SCHEMA}"; not taken for a card of demos/generate.py'
    return card, None


# --------------------------------------------------------------------------------------------------------------- .npz
D4RL = {
    "obs": "observations", "acts": "actions", "next_obs": "next_observations",
    "terminated": "terminals", "truncated": "timeouts", "rewards": "rewards",
}  # fmt: skip
NAMES = {ours: (ours, theirs) for ours, theirs in D4RL.items()}
NAMES["terminated"] += ("dones",)  # imitation's
NAMES["rewards"] += ("rews",)


def read_npz(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of `keys` that an .npz of plain arrays holds; DemoError if it is not one."""
    try:
        with np.load(path, allow_pickle=False) as f:
            return {key: f[key] for key in keys if key in f.files}
    except Exception as error:  # truncated, pickled, not an archive: NumPy and zipfile raise errors of many kinds
        raise DemoError(f"{path}: not a readable .npz of plain arrays ({str(error).splitlines()[0]})") from None


def float32(x) -> np.ndarray:
    return np.asarray(x, np.float32)


def known(arrays) -> dict[str, np.ndarray]:
    """What a mapping of arrays holds, under our names."""
    return {ours: np.asarray(arrays[key]) for ours, keys in NAMES.items() for key in keys if key in arrays}


def read_irl(path: Path) -> list[Episode]:
    data = read_npz(path, ("obs", "acts", "lengths", "terminated", "rewards"))
    lengths = data["lengths"]
    obs = np.split(data["obs"], np.cumsum(lengths + 1)[:-1])
    acts, rewards = (np.split(data[k], np.cumsum(lengths)[:-1]) if k in data else None for k in ("acts", "rewards"))
    terminated = data.get("terminated", np.zeros(len(lengths), bool))
    return [
        Episode(
            float32(obs[i]), float32(acts[i]), bool(terminated[i]), None if rewards is None else float32(rewards[i])
        )
        for i in range(len(lengths))
    ]


def write_irl(path: Path, episodes: Sequence[Episode]) -> None:
    with path.open("wb") as f:
        np.savez_compressed(f, **pack(episodes))


def read_flat(path: Path) -> list[Episode]:
    return from_transitions(path, known(read_npz(path, [key for keys in NAMES.values() for key in keys])))


def from_transitions(path: Path, data: dict[str, np.ndarray]) -> list[Episode]:
    """Transitions as episodes: a new one begins after an end, and where an obs is not the next_obs before it."""
    if missing := {"obs", "acts", "next_obs"} - set(data):
        raise DemoError(f"{path}: key '{min(missing)}' is missing; expected obs, acts and next_obs, or lengths")
    obs, acts, next_obs, n = float32(data["obs"]), float32(data["acts"]), float32(data["next_obs"]), len(data["obs"])
    for key, x in data.items():
        if len(x) != n or x.ndim != (2 if key in ("obs", "acts", "next_obs") else 1):
            raise DemoError(f"{path}: key '{key}' has shape {x.shape}; expected a row for each of {n} transitions")
    terminated = data.get("terminated", np.zeros(n, bool)) > 0.5
    ended = terminated | (data.get("truncated", np.zeros(n, bool)) > 0.5)
    starts = np.flatnonzero(np.r_[True, ended[:-1] | (next_obs[:-1] != obs[1:]).any(1)]) if n else np.empty(0, int)
    rewards = data.get("rewards")
    return [
        Episode(
            np.concatenate([obs[a:b], next_obs[b - 1 : b]]),
            acts[a:b],
            bool(terminated[b - 1]),
            None if rewards is None else float32(rewards[a:b]),
        )
        for a, b in zip(starts, [*starts[1:], n])
    ]


def to_transitions(episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
    arrays = pack(episodes)
    last = np.cumsum(arrays["lengths"]) - 1
    terminated, truncated = np.zeros((2, last[-1] + 1), bool)
    terminated[last], truncated[last] = arrays["terminated"], ~arrays["terminated"]
    flat = {
        "obs": np.concatenate([e.obs[:-1] for e in episodes]),
        "acts": arrays["acts"],
        "next_obs": np.concatenate([e.obs[1:] for e in episodes]),
        "terminated": terminated,
        "truncated": truncated,
    }
    return flat | ({"rewards": arrays["rewards"]} if "rewards" in arrays else {})


def write_flat(path: Path, episodes: Sequence[Episode]) -> None:
    with path.open("wb") as f:
        np.savez_compressed(f, **to_transitions(episodes))


# ---------------------------------------------------------------------------------------------------------- imitation
def read_imitation(path: Path) -> list[Episode]:
    from imitation.data import serialize

    return [
        Episode(float32(t.obs), float32(t.acts), bool(t.terminal), float32(t.rews) if hasattr(t, "rews") else None)
        for t in serialize.load(path)
    ]


def write_imitation(path: Path, episodes: Sequence[Episode]) -> None:
    from datasets.utils.logging import disable_progress_bar
    from imitation.data import serialize
    from imitation.data.types import Trajectory, TrajectoryWithRew

    disable_progress_bar()
    rewards = all(e.rewards is not None for e in episodes)
    serialize.save(path, [
        TrajectoryWithRew(e.obs, e.acts, None, e.terminated, e.rewards) if rewards
        else Trajectory(e.obs, e.acts, None, e.terminated)
        for e in episodes
    ])  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- minari
def minari_data(path: Path) -> Path:
    """The folder with a Minari dataset's metadata: `path` or `path`/data."""
    return path if (path / "metadata.json").is_file() else path / "data"


def read_minari(path: Path) -> list[Episode]:
    import minari

    return [
        Episode(float32(e.observations), float32(e.actions), bool(e.terminations[-1]), float32(e.rewards))
        for e in minari.MinariDataset(minari_data(path))
    ]


def write_minari(path: Path, episodes: Sequence[Episode]) -> None:
    """Rewards that are not known become NaN: Minari has no dataset without."""
    import gymnasium as gym
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    spaces = [
        gym.spaces.Box(-np.inf, np.inf, array.shape[1:], np.float32) for array in (episodes[0].obs, episodes[0].acts)
    ]
    path.mkdir()
    storage = MinariStorage.new(path / "data", *spaces)
    storage.update_metadata({"dataset_id": "demos/irl-v0", "minari_version": minari.__version__})
    buffers = []
    for e in episodes:
        last = np.arange(len(e.acts)) == len(e.acts) - 1
        rewards = np.full(len(e.acts), np.nan, np.float32) if e.rewards is None else e.rewards
        ends = {"terminations": last & e.terminated, "truncations": last & (not e.terminated)}
        buffers.append(EpisodeBuffer(observations=e.obs, actions=e.acts, rewards=rewards, **ends, infos={}))
    storage.update_episodes(buffers)


# --------------------------------------------------------------------------------------------------------------- D4RL
def read_d4rl(path: Path) -> list[Episode]:
    import h5py

    with h5py.File(path) as f:
        data = known({key: f[key][()] for key in f if isinstance(f[key], h5py.Dataset)})
    if "next_obs" in data:
        return from_transitions(path, data)
    if missing := {"obs", "acts"} - set(data):
        raise DemoError(f"{path}: key '{D4RL[min(missing)]}' is missing; expected observations and actions")
    ended = sum(
        (data[key] > 0.5 for key in ("terminated", "truncated") if key in data), np.zeros(len(data["obs"]), bool)
    )
    return from_frames(data["obs"], data["acts"], data.get("rewards"), np.flatnonzero(ended) + 1)


def from_frames(obs, acts, rewards, cuts: np.ndarray) -> list[Episode]:
    """Rows of an obs and the action taken there as episodes, cut before the rows `cuts`; of a single row, nothing."""
    bounds = [0, *(cut for cut in cuts if 0 < cut < len(obs)), len(obs)]
    return [
        Episode(
            float32(obs[a:b]), float32(acts[a : b - 1]), False, None if rewards is None else float32(rewards[a : b - 1])
        )
        for a, b in itertools.pairwise(bounds)
        if b - a > 1
    ]


def write_d4rl(path: Path, episodes: Sequence[Episode]) -> None:
    """Rewards that are not known become NaN: D4RL has no dataset without."""
    import h5py

    flat = to_transitions(episodes)
    flat.setdefault("rewards", np.full(len(flat["acts"]), np.nan, np.float32))
    with h5py.File(path, "w") as f:
        for key, array in flat.items():
            f.create_dataset(D4RL[key], data=array, compression="gzip")


# ------------------------------------------------------------------------------------------------------------ LeRobot
LEROBOT_FILE = "chunk-000/file-000.parquet"


def read_lerobot(path: Path) -> list[Episode]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(path.glob("data/*/*.parquet"))
    if not files:
        raise DemoError(f"{path}: no data/*/*.parquet; expected a LeRobotDataset of version 3")
    names = ["observation.state", "action", "episode_index", "frame_index", "next.reward"]
    tables = [pq.read_table(f) for f in files]
    table = pa.concat_tables([t.select([n for n in names if n in t.column_names]) for t in tables])
    columns = {n: np.array(table[n].to_pylist()) for n in table.column_names}
    order = np.lexsort((columns["frame_index"], columns["episode_index"]))
    columns = {n: x[order] for n, x in columns.items()}
    obs, acts = (x[:, None] if x.ndim == 1 else x for x in (columns["observation.state"], columns["action"]))
    return from_frames(obs, acts, columns.get("next.reward"), np.flatnonzero(np.diff(columns["episode_index"])) + 1)


def write_lerobot(path: Path, episodes: Sequence[Episode]) -> None:
    """A row for every observation: the last one of an episode repeats its action, having none of its own."""
    import pandas as pd
    from datasets import Dataset, Features, Value
    from datasets import Sequence as List
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    lengths = np.array([len(e.obs) for e in episodes])
    ends, total = np.cumsum(lengths), int(lengths.sum())
    frame = np.arange(total) - np.repeat(ends - lengths, lengths)
    columns = {
        "observation.state": np.concatenate([e.obs for e in episodes]),
        "action": np.concatenate([np.concatenate([e.acts, e.acts[-1:]]) for e in episodes]),
        "timestamp": float32(frame / FRAMES_PER_SECOND),
        "frame_index": frame,
        "episode_index": np.repeat(np.arange(len(episodes)), lengths),
        "index": np.arange(total),
        "task_index": np.zeros(total, np.int64),
    }
    if all(e.rewards is not None for e in episodes):
        columns["next.reward"] = np.concatenate([np.append(e.rewards, np.float32(0)) for e in episodes])
    shapes = {key: [x.shape[1] if x.ndim == 2 else 1] for key, x in columns.items()}
    features = {key: {"dtype": str(x.dtype), "shape": shapes[key], "names": None} for key, x in columns.items()}

    def column(key: str):
        value = Value(features[key]["dtype"])
        return value if shapes[key] == [1] else List(value, length=shapes[key][0])

    def save(rows: Dataset, part: str) -> None:
        (path / part).parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(path / part)

    squeezed = {key: x.reshape(total) if shapes[key] == [1] else x for key, x in columns.items()}
    schema = Features({key: column(key) for key in columns})
    save(Dataset.from_dict(squeezed, features=schema), f"data/{LEROBOT_FILE}")
    zeros = np.zeros(len(episodes), np.int64)
    episode_rows = {
        "episode_index": np.arange(len(episodes)), "tasks": [["demonstrate"]] * len(episodes), "length": lengths,
        "dataset_from_index": ends - lengths, "dataset_to_index": ends,
        **{f"{of}/{kind}_index": zeros for of in ("data", "meta/episodes") for kind in ("chunk", "file")},
    }  # fmt: skip
    save(Dataset.from_dict(episode_rows), f"meta/episodes/{LEROBOT_FILE}")
    pd.DataFrame({"task_index": [0]}, index=["demonstrate"]).to_parquet(path / "meta" / "tasks.parquet")
    stats = {
        key: {
            name: np.atleast_1d(getattr(x.reshape(total, -1), name)(0)).tolist()
            for name in ("min", "max", "mean", "std")
        }
        | {"count": [total]}
        for key, x in columns.items()
    }
    (path / "meta" / "stats.json").write_text(json.dumps(stats, indent=2))
    info = {
        "codebase_version": "v3.0", "robot_type": None, "total_episodes": len(episodes), "total_frames": total,
        "total_tasks": 1, "chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200,
        "fps": FRAMES_PER_SECOND, "splits": {"train": f"0:{len(episodes)}"}, "video_path": None,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", "features": features,
    }  # fmt: skip
    (path / "meta" / "info.json").write_text(json.dumps(info, indent=2))


READERS: dict[str, Callable[[Path], list[Episode]]] = {
    "irl": read_irl, "flat": read_flat, "imitation": read_imitation,
    "minari": read_minari, "d4rl": read_d4rl, "lerobot": read_lerobot,
}  # fmt: skip
WRITERS: dict[str, Callable[[Path, Sequence[Episode]], None]] = {
    "irl": write_irl, "flat": write_flat, "imitation": write_imitation,
    "minari": write_minari, "d4rl": write_d4rl, "lerobot": write_lerobot,
}  # fmt: skip
FORMATS = tuple(READERS)
FOLDERS = ("imitation", "minari", "lerobot")
