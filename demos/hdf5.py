"""Datasets in HDF5: D4RL, robomimic and Minari.

    from demos.hdf5 import read_d4rl
    rows, _ = read_d4rl(Path("hopper.hdf5"), Options())

Used by demos/formats.py. Links to other files are not followed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from demos.columns import (
    FLAGS,
    Options,
    Shape,
    check_size,
    memory,
    note_counts,
    note_unread,
    read_columns,
    read_json,
    whole_episodes,
    with_last_observations,
)
from demos.transitions import (
    ALL_NAMES,
    NAMES,
    DemoError,
    Episode,
    Note,
    Rows,
    plural,
    to_transitions,
)


# --------------------------------------------------------------------------------------- HDF5
def open_hdf5(path: Path):
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DemoError(
            f"{path}: not a readable HDF5 file ({str(error).splitlines()[0]})"
        ) from None


def children(group) -> dict:
    """Groups and datasets in an HDF5 group; links to other files or places are not followed."""
    import h5py

    names = [n for n in group if isinstance(group.get(n, getlink=True), h5py.HardLink)]
    return {name: group[name] for name in names}


def is_group(group, name: str) -> bool:
    import h5py

    return isinstance(children(group).get(name), h5py.Group)


def hdf5_shape(dataset) -> Shape:
    """`plain`: numbers that are stored in this file. A piece of it (a chunk) is read whole."""
    here = dataset.shape is not None and not dataset.is_virtual and not dataset.external
    shape = dataset.shape if here else ()
    piece = math.prod(dataset.chunks) * dataset.dtype.itemsize if dataset.chunks else 0
    return Shape(shape, dataset.dtype, here and dataset.dtype.kind in "biufcS", piece)


def arrays_in(group, depth: int = 1, prefix: str = "") -> dict:
    """Datasets of an HDF5 group and of the groups in it, by name: `a` and `b/c`."""
    import h5py

    found = {}
    for name, item in children(group).items():
        if isinstance(item, h5py.Dataset):
            found[prefix + name] = item
        elif isinstance(item, h5py.Group) and depth:
            found |= arrays_in(item, depth - 1, f"{prefix}{name}/")
    return found


def read_d4rl(path: Path, options: Options) -> tuple[Rows, None]:
    with open_hdf5(path) as f:
        datasets = arrays_in(f)
        shapes = {key: hdf5_shape(dataset) for key, dataset in datasets.items()}

        def load(keys: Sequence[str]) -> dict[str, np.ndarray]:
            return {key: datasets[key][()] for key in keys}

        return with_last_observations(read_columns(path, shapes, load, options)), None


# D4RL's names; datasets for which rewards are not known get NaN, there is none without.
D4RL = {
    "obs": "observations",
    "acts": "actions",
    "next_obs": "next_observations",
    "terminated": "terminals",
    "truncated": "timeouts",
    "rewards": "rewards",
}


def write_d4rl(path: Path, episodes: Sequence[Episode]) -> None:
    import h5py

    flat = to_transitions(episodes)
    flat.setdefault("rewards", np.full(len(flat["acts"]), np.nan, np.float32))
    with h5py.File(path, "w") as f:
        for key, array in flat.items():
            f.create_dataset(D4RL[key], data=array, compression="gzip")


def stacked(parts: Sequence[Rows], columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of several episodes after one another, under the first of their names."""
    out = {}
    for key in columns:
        shapes = {part.data[key].shape[1:] for part in parts}
        if len(shapes) > 1:
            raise parts[0].error(key, f"has rows of shapes {sorted(shapes)}; expected one shape")
        out[NAMES[key][0]] = np.concatenate([part.data[key] for part in parts])
    return out


def read_groups(path: Path, groups: Mapping[str, object], options: Options) -> list[Rows]:
    """The episodes of a file with an HDF5 group for each, as rows of their own."""
    datasets = {name: arrays_in(group) for name, group in groups.items()}
    shapes = {name: {k: hdf5_shape(d) for k, d in ds.items()} for name, ds in datasets.items()}
    read = [s for of in shapes.values() for k, s in of.items() if used(k, options.obs_keys)]
    check_size(path, memory(read), options.max_bytes)
    parts = []
    for name, of in datasets.items():

        def load(keys: Sequence[str], of=of) -> dict[str, np.ndarray]:
            return {key: of[key][()] for key in keys}

        parts.append(read_columns(path / name, shapes[name], load, options))
    return parts


def used(key: str, obs_keys: Sequence[str]) -> bool:
    return key in ALL_NAMES or any(key == o or key.endswith(f"/{o}") for o in obs_keys)


def joined_notes(parts: Sequence[Rows]) -> list[Note]:
    """Each note of the parts once, in the order of first appearance."""
    return list(dict.fromkeys(note for part in parts for note in part.notes))


def number_of(name: str) -> tuple[int, str]:
    digits = name.rpartition("_")[2]
    return (int(digits) if digits.isdecimal() and len(digits) < 19 else -1, name)


# ---------------------------------------------------------------------------------- robomimic
def read_robomimic(path: Path, options: Options) -> tuple[Rows, None]:
    """A group an episode. Observations: those chosen, else all vectors in alphabetical order."""
    with open_hdf5(path) as f:
        groups = {k: g for k, g in children(f["data"]).items() if hasattr(g, "keys")}
        groups = {name: groups[name] for name in sorted(groups, key=number_of)}
        if not groups:
            raise DemoError(f"{path}: group 'data' is empty; expected demo_0, demo_1, ...")
        for name, group in groups.items():
            check_robomimic(path, name, group)
        if not options.obs_keys:
            options = Options(vector_keys(path, groups), options.max_bytes)
        keys = tuple(k if k.startswith("obs/") else f"obs/{k}" for k in options.obs_keys)
        parts = read_groups(path, groups, Options(keys, options.max_bytes))
        split = is_group(f, "mask")
    always = in_all(parts, ("obs", "acts", "next_obs", "rewards", *FLAGS))
    check_steps(parts, always)
    lengths = np.array([len(part.data["acts"]) for part in parts])
    columns = stacked(parts, always) | {"lengths": lengths}
    notes = joined_notes(parts)
    note_unread(notes, parts, always)
    if split:
        notes.append(Note("the group mask, a split of the demos, is not read: all of them are"))
    if "done" in columns:
        columns["done"], within = last_only(columns["done"], lengths)
        if within:
            notes.append(Note(f"{plural(within, 'row')} with dones before the last of its demo: "
                              "success, not an end"))  # fmt: skip
        if "terminated" in columns:
            del columns["done"]
    rows = Rows(path, columns, notes)
    if "done" in rows.names:
        rows.names["done"] = "dones"
    return rows, None


def in_all(parts: Sequence[Rows], keys: Sequence[str]) -> list[str]:
    """Those of `keys` that the episodes have; DemoError where some have one and others do not."""
    there = [key for key in keys if any(key in part.data for part in parts)]
    for key in dict.fromkeys(("obs", "acts", *there)):
        for part in parts:
            if key not in part.data:
                raise DemoError(
                    f"{part.where}: key '{key}' is missing; expected it in each or none"
                )
    return there


def check_steps(parts: Sequence[Rows], keys: Sequence[str]) -> None:
    """DemoError where an episode has another number of rows of one of `keys` than of actions."""
    for part in parts:
        steps = len(part.data["acts"])
        for key in keys:
            if len(part.data[key]) != steps:
                raise part.error(key, f"has {len(part.data[key])} rows; expected {steps}, as acts")


def check_robomimic(path: Path, name: str, group) -> None:
    rows = group["actions"].shape[0] if "actions" in children(group) else None
    said = group.attrs.get("num_samples")
    if rows is not None and said is not None and int(said) != rows:
        raise DemoError(
            f"{path}: data/{name} has {rows} actions, its num_samples is {said}; expected the same"
        )


def vector_keys(path: Path, groups: Mapping[str, object]) -> tuple[str, ...]:
    """Names of the observations with a number or vector a row, which every episode has."""
    common: set[str] | None = None
    for name, group in groups.items():
        if not is_group(group, "obs"):
            raise DemoError(f"{path}: data/{name} has no group obs; expected obs/NAME in each demo")
        shapes = {k: hdf5_shape(d) for k, d in arrays_in(group["obs"], 0).items()}
        vectors = {k for k, s in shapes.items() if s.plain and len(s.shape) in (1, 2)}
        common = vectors if common is None else common & vectors
    if not common:
        raise DemoError(f"{path}: no vector in obs that every demo has; expected obs/NAME (n, dim)")
    return tuple(sorted(common))


def last_only(x: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, int]:
    """Flags without those before the last row of an episode, and how many these were."""
    last = np.zeros(len(x), bool)
    last[np.cumsum(lengths)[lengths > 0] - 1] = True
    x = x.reshape(len(x), -1)[:, 0]
    return np.where(last, x, 0), int(((x != 0) & ~last).sum())


def write_robomimic(path: Path, episodes: Sequence[Episode]) -> None:
    """As robomimic's own conversion of D4RL: one vector, obs/flat; and `terminated`, which it
    ignores, because its dones also mark success and the end of a recording."""
    import h5py

    with h5py.File(path, "w") as f:
        data = f.create_group("data")
        data.attrs["total"] = sum(len(e.acts) for e in episodes)
        data.attrs["env_args"] = json.dumps({"env_name": "unknown", "type": 2, "env_kwargs": {}})
        for i, e in enumerate(episodes):
            last = np.arange(len(e.acts)) == len(e.acts) - 1
            arrays = {
                "obs/flat": e.obs[:-1],
                "next_obs/flat": e.obs[1:],
                "actions": e.acts,
                "dones": last.astype(np.int64),
                "terminated": (last & e.terminated).astype(np.int64),
                "truncated": (last & (not e.terminated)).astype(np.int64),
            }
            if e.rewards is not None:
                arrays["rewards"] = e.rewards
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = len(e.acts)
            for key, array in arrays.items():
                demo.create_dataset(key, data=array)


# ------------------------------------------------------------------------------------- minari
def minari_data(path: Path) -> Path:
    """The folder with a Minari dataset's metadata: `path` or `path`/data."""
    return path if (path / "metadata.json").is_file() else path / "data"


def read_minari(path: Path, options: Options) -> tuple[Rows, None]:
    """An HDF5 group an episode, with an observation more than actions."""
    folder = minari_data(path)
    metadata = read_json(folder / "metadata.json")
    file = folder / "main_data.hdf5"
    if not file.is_file():
        parts = minari_parts(folder, options)
    else:
        with open_hdf5(file) as f:
            groups = {k: g for k, g in children(f).items() if k.startswith("episode_")}
            groups = {name: groups[name] for name in sorted(groups, key=number_of)}
            parts = read_groups(file, groups, options)
    if not parts:
        raise DemoError(f"{folder}: holds no episode; expected episode_0, episode_1, ...")
    always = in_all(parts, ("acts", "rewards", "terminated", "truncated"))
    check_steps(parts, always)
    for part in parts:
        if len(part.data["obs"]) != len(part.data["acts"]) + 1:
            shapes = f"{len(part.data['obs'])} observations, {len(part.data['acts'])} actions"
            raise DemoError(f"{part.where}: has {shapes}; expected T+1 and T")
    lengths = np.array([len(part.data["acts"]) for part in parts])
    notes = joined_notes(parts)
    note_unread(notes, parts, ("obs", *always))
    obs = stacked(parts, ["obs"])["obs"]
    rows = whole_episodes(path, obs, lengths, stacked(parts, always), notes)
    note_counts(rows, "metadata.json", metadata, ("total_episodes", "total_steps"), lengths)
    return rows, None


def minari_parts(folder: Path, options: Options) -> list[Rows]:
    """The episodes of a dataset in Minari's other format (Parquet), as Minari reads it."""
    import minari

    files = [file for file in folder.rglob("*") if file.is_file()]
    check_size(folder, sum(file.stat().st_size for file in files), options.max_bytes)
    parts = []
    for e in minari.MinariDataset(folder):
        arrays = {
            "actions": e.actions,
            "rewards": e.rewards,
            "terminations": e.terminations,
            "truncations": e.truncations,
        }
        if isinstance(e.observations, dict):
            arrays |= {f"observations/{key}": x for key, x in e.observations.items()}
        else:
            arrays["observations"] = e.observations
        arrays = {key: np.asarray(x) for key, x in arrays.items()}
        shapes = {k: Shape(x.shape, x.dtype, x.dtype.kind in "biuf") for k, x in arrays.items()}
        where = folder / f"episode_{e.id}"
        parts.append(
            read_columns(where, shapes, lambda keys, a=arrays: {k: a[k] for k in keys}, options)
        )
    return parts


def write_minari(path: Path, episodes: Sequence[Episode]) -> None:
    """Rewards that are not known become NaN: Minari has no dataset without."""
    import gymnasium as gym
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    spaces = [
        gym.spaces.Box(-np.inf, np.inf, array.shape[1:], np.float32)
        for array in (episodes[0].obs, episodes[0].acts)
    ]
    path.mkdir()
    storage = MinariStorage.new((path / "data").absolute(), *spaces)
    storage.update_metadata({"dataset_id": "demos/irl-v0", "minari_version": minari.__version__})
    buffers = []
    for e in episodes:
        last = np.arange(len(e.acts)) == len(e.acts) - 1
        rewards = np.full(len(e.acts), np.nan, np.float32) if e.rewards is None else e.rewards
        ends = {"terminations": last & e.terminated, "truncations": last & (not e.terminated)}
        buffers.append(
            EpisodeBuffer(observations=e.obs, actions=e.acts, rewards=rewards, **ends, infos={})
        )
    storage.update_episodes(buffers)
