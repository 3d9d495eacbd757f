"""Datasets in Arrow and Parquet: imitation's folders and LeRobot's.

    from demos.arrow import read_lerobot
    rows, files = read_lerobot(Path("lerobot/pusht"), Options())

Used by demos/formats.py. Reading needs pyarrow alone: the infos of imitation are JSON that its own
reader would turn into arbitrary objects.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from demos.columns import Options, check_size, note_counts, read_json, whole_episodes
from demos.transitions import DemoError, Episode, Rows, float32, plural

FRAMES_PER_SECOND = 20  # LeRobot wants one; nothing here depends on it


# ---------------------------------------------------------------------------------- imitation
def read_imitation(path: Path, options: Options) -> tuple[Rows, None]:
    """A row a trajectory: obs (T+1 vectors), acts, terminal, infos (JSON texts), rews."""
    import pyarrow as pa

    if options.obs_keys:
        raise DemoError(f"{path}: one array of observations; expected no --obs-keys")
    files = arrow_files(path)
    check_size(path, sum(file.stat().st_size for file in files), options.max_bytes)
    tables = []
    for file in files:
        # Not mapped: a damaged file must not become an access outside of it.
        tables.append(pa.ipc.open_stream(pa.py_buffer(file.read_bytes())).read_all())
        tables[-1].validate(full=True)
    table = pa.concat_tables(tables)
    for key in ("obs", "acts", "terminal"):
        if key not in table.column_names:
            raise DemoError(f"{path}: key '{key}' is missing; expected imitation's columns")
    obs, counts = trajectories(path, "obs", table)
    acts, lengths = trajectories(path, "acts", table)
    if not np.array_equal(counts, lengths + 1):
        i = int(np.flatnonzero(counts != lengths + 1)[0])
        raise DemoError(
            f"{path}: trajectory {i} has {counts[i]} obs and {lengths[i]} acts; expected T+1 and T"
        )
    columns = {"acts": acts}
    if "rews" in table.column_names:
        rewards, steps = trajectories(path, "rews", table)
        if not np.array_equal(steps, lengths):
            raise DemoError(f"{path}: key 'rews' has other lengths than acts; expected one a step")
        columns["rewards"] = rewards
    last = np.cumsum(lengths)[lengths > 0] - 1
    done = np.zeros(len(acts), bool)
    terminal = table["terminal"].to_pylist()
    if not all(isinstance(x, bool) for x in terminal):
        raise DemoError(
            f"{path}: key 'terminal' is {table['terminal'].type}; expected true or false"
        )
    done[last] = np.array(terminal, bool)[lengths > 0]
    columns["done"] = done
    limits = time_limits(table)
    if limits is not None:
        at_limit = np.zeros(len(acts), bool)
        at_limit[last] = limits[lengths > 0]
        columns["TimeLimit.truncated"] = at_limit & done
    rows = whole_episodes(path, obs, lengths, columns)
    rows.names["done"] = "terminal"
    known = {"obs", "acts", "rews", "terminal", "infos"}
    if unread := sorted(set(table.column_names) - known):
        rows.note(f"not read: {', '.join(unread)}")
    return rows, None


def arrow_files(path: Path) -> list[Path]:
    """The files that state.json names, inside the folder."""
    state = read_json(path / "state.json") if (path / "state.json").is_file() else {}
    try:
        names = [entry["filename"] for entry in state["_data_files"]]
    except (KeyError, TypeError):
        raise DemoError(f"{path}/state.json: no _data_files; expected a datasets folder") from None
    if any(not isinstance(name, str) or Path(name).name != name for name in names) or not names:
        raise DemoError(f"{path}/state.json: names files elsewhere or none; expected file names")
    files = [path / name for name in names]
    if lost := [file for file in files if not file.is_file()]:
        raise DemoError(f"{lost[0]}: no such file; state.json names it")
    return files


def trajectories(path: Path, key: str, table) -> tuple[np.ndarray, np.ndarray]:
    """All vectors (or numbers) of a column of lists, and how many each row has."""
    import pyarrow as pa

    column = plain(table[key].combine_chunks())
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise DemoError(f"{path}: key '{key}' is {kind}; expected a list a trajectory")
    if column.null_count:
        raise DemoError(f"{path}: key '{key}' is missing in a trajectory; expected it in all")
    counts = column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    values = plain(column.flatten())
    if key == "rews":
        return numbers(path, key, values), counts
    return matrix(path, key, values), counts


def plain(column):
    """The storage of a column of an extension type (an array of datasets)."""
    return getattr(column, "storage", column)


def numbers(path: Path, key: str, values) -> np.ndarray:
    import pyarrow as pa

    kind = values.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise DemoError(f"{path}: key '{key}' holds {kind}; expected vectors of numbers")
    if values.null_count:
        raise DemoError(f"{path}: key '{key}' has {values.null_count} values missing")
    return values.to_numpy(zero_copy_only=False)


def matrix(path: Path, key: str, column) -> np.ndarray:
    """(n, dim) of a column of lists of numbers, or (n,) of one of numbers."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_struct(kind):
        keys = ", ".join(field.name for field in kind)
        raise DemoError(f"{path}: key '{key}' has several arrays ({keys}); expected vectors")
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (lists or pa.types.is_fixed_size_list(kind)):
        return numbers(path, key, column)
    if column.null_count:
        raise DemoError(f"{path}: key '{key}' is missing in {column.null_count} rows")
    values = numbers(path, key, plain(column.flatten()))
    n = len(column)
    if n == 0:
        return np.zeros((0, 1), np.float32)
    if lists:
        sizes = column.value_lengths().to_numpy(zero_copy_only=False)
        if (sizes != sizes[0]).any():
            raise DemoError(
                f"{path}: key '{key}' has vectors of {sizes.min()} to {sizes.max()} numbers;"
                " expected one length"
            )
    return values.reshape(n, len(values) // n)


def time_limits(table) -> np.ndarray | None:
    """Whether each trajectory's last info says TimeLimit.truncated; None if no info has it."""
    if "infos" not in table.column_names:
        return None
    said = []
    for infos in table["infos"]:
        texts = infos.values if infos.is_valid else None
        said.append(limit_in(texts[-1].as_py()) if texts is not None and len(texts) else None)
    if all(value is None for value in said):
        return None
    return np.array([bool(value) for value in said])


def limit_in(text) -> bool | None:
    """TimeLimit.truncated of an info that was written as JSON; nothing in it is executed."""
    try:
        info = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    value = info.get("TimeLimit.truncated") if isinstance(info, dict) else None
    return value if isinstance(value, bool) else None


def write_imitation(path: Path, episodes: Sequence[Episode]) -> None:
    """The infos say which ends are time limits: imitation's `terminal` marks both kinds."""
    from datasets.utils.logging import disable_progress_bar
    from imitation.data import serialize
    from imitation.data.types import Trajectory, TrajectoryWithRew

    disable_progress_bar()
    rewards = all(e.rewards is not None for e in episodes)
    trajectories = []
    for e in episodes:
        infos = np.array([{} for _ in e.acts], dtype=object)
        infos[-1]["TimeLimit.truncated"] = not e.terminated
        fields = (e.obs, e.acts, infos, e.terminated)
        trajectories.append(
            TrajectoryWithRew(*fields, e.rewards) if rewards else Trajectory(*fields)
        )
    serialize.save(path, trajectories)


# ------------------------------------------------------------------------------------ LeRobot
LEROBOT_FILE = "chunk-000/file-000.parquet"
LEROBOT = {
    "observation.state": "obs",
    "action": "acts",
    "next.reward": "rewards",
    "episode_index": "episode_index",
    "frame_index": "frame_index",
    "next.done": "next.done",  # read to be compared with the former two
}
LEROBOT_OPTIONAL = ("next.reward", "next.done")
# What the library adds to each row; nothing is lost by not reading it.
LEROBOT_OWN = ("timestamp", "index", "task_index", "next.success")


def read_lerobot(path: Path, options: Options) -> tuple[Rows, np.ndarray]:
    """Rows of all files, and for each row the name of the file it came from."""
    import pyarrow.parquet as pq

    info = read_json(path / "meta" / "info.json")
    info = info if isinstance(info, dict) else {}
    files = lerobot_files(path, str(info.get("codebase_version")))
    obs_keys = [k if k.startswith("observation.") else f"observation.{k}" for k in options.obs_keys]
    names = {name: ours for name, ours in LEROBOT.items() if ours != "obs" or not obs_keys}
    names |= dict.fromkeys(obs_keys, "obs")
    opened = [pq.ParquetFile(file) for file in files]
    there = list(dict.fromkeys(name for one in opened for name in one.schema_arrow.names))
    needed = [name for name in names if name not in LEROBOT_OPTIONAL or name in there]
    for file, one in zip(files, opened):
        if missing := [name for name in needed if name not in one.schema_arrow.names]:
            raise DemoError(
                f"{file}: key '{missing[0]}' is missing;"
                f" there are {', '.join(one.schema_arrow.names)}"
            )
    check_size(path, sum(parquet_size(one.metadata, needed) for one in opened), options.max_bytes)
    parts = []
    for file, one in zip(files, opened):
        table = one.read(columns=needed)
        table.validate(full=True)
        parts.append({name: column_of(file, name, table) for name in needed})
    widths = {name: {part[name].shape[1:] for part in parts} for name in needed}
    if odd := [name for name, shapes in widths.items() if len(shapes) > 1]:
        raise DemoError(f"{path}: key '{odd[0]}' has different shapes in its files; expected one")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in needed}
    columns = {ours: joined[name] for name, ours in names.items() if name in joined}
    for key in columns.keys() & {"episode_index", "frame_index", "next.done"}:
        columns[key] = columns[key].reshape(-1)  # some store lists of one
    if obs_keys:
        vectors = [joined[k].reshape(len(joined[k]), -1) for k in obs_keys]
        columns["obs"] = np.concatenate([float32(x, f"{path}: key") for x in vectors], 1)
    rows = Rows(path, columns)
    if obs_keys:
        rows.note(f"observations: {', '.join(obs_keys)}, in this order")
    if unread := [k for k in there if k not in names and k not in LEROBOT_OWN]:
        rows.note(f"not read: {', '.join(unread)}")
    lengths = np.unique(columns["episode_index"], return_counts=True)[1]
    note_counts(rows, "meta/info.json", info, ("total_episodes", "total_frames"), lengths)
    if "next.done" in columns:
        check_done(path, columns)
    sources = np.repeat(
        [str(f.relative_to(path)) for f in files], [len(p["action"]) for p in parts]
    )
    return rows, sources


def check_done(path: Path, columns: dict[str, np.ndarray]) -> None:
    """DemoError where an episode goes on after a row that says it is done."""
    order = np.lexsort((columns["frame_index"], columns["episode_index"]))
    episode, done = columns["episode_index"][order], columns["next.done"][order]
    early = np.flatnonzero((done[:-1] != 0) & (episode[1:] == episode[:-1]))
    if len(early):
        raise DemoError(
            f"{path}: key 'next.done' is 1 in {plural(len(early), 'row')} before the last frame of"
            f" an episode (first: episode {episode[early[0]]}); expected it in last frames alone"
        )


def lerobot_files(path: Path, version: str) -> list[Path]:
    """data/*/file-*.parquet of version 3, data/*/episode_*.parquet of version 2; never both."""
    kinds = {"v3": "file-", "v2": "episode_"}
    start = kinds.get(version[:2])
    if start is None:
        raise DemoError(f"{path}/meta/info.json: codebase_version is {version}; expected v2 or v3")
    files = sorted(path.glob("data/*/*.parquet"))
    if not files:
        raise DemoError(f"{path}: no data/*/*.parquet; expected a LeRobotDataset of version 2 or 3")
    if odd := [file for file in files if not file.name.startswith(start)]:
        raise DemoError(
            f"{odd[0]}: no file of a dataset of version {version} ({start}*.parquet), which"
            f" meta/info.json says this is; expected files of one version"
        )
    return files


def parquet_size(metadata, names: Sequence[str]) -> int:
    """Bytes of some columns, were every value of eight bytes."""
    values = 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for j in range(group.num_columns):
            chunk = group.column(j)
            if chunk.path_in_schema.split(".list.")[0] in names:
                values += max(chunk.num_values, group.num_rows)
    return 8 * values


def column_of(file: Path, name: str, table) -> np.ndarray:
    chunks = [matrix(file, name, plain(chunk)) for chunk in table[name].chunks]
    if not chunks:
        return np.zeros(0, table[name].type.to_pandas_dtype())
    return np.concatenate(chunks)


def write_lerobot(path: Path, episodes: Sequence[Episode]) -> None:
    """A row for every observation: the last one of an episode, without an action, repeats one."""
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
        "timestamp": np.float32(frame / FRAMES_PER_SECOND),
        "frame_index": frame,
        "episode_index": np.repeat(np.arange(len(episodes)), lengths),
        "index": np.arange(total),
        "task_index": np.zeros(total, np.int64),
    }
    if all(e.rewards is not None for e in episodes):
        columns["next.reward"] = np.concatenate(
            [np.append(e.rewards, np.float32(0)) for e in episodes]
        )
    shapes = {key: [x.shape[1] if x.ndim == 2 else 1] for key, x in columns.items()}
    features = {
        key: {"dtype": str(x.dtype), "shape": shapes[key], "names": None}
        for key, x in columns.items()
    }

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
        "episode_index": np.arange(len(episodes)),
        "tasks": [["demonstrate"]] * len(episodes),
        "length": lengths,
        "dataset_from_index": ends - lengths,
        "dataset_to_index": ends,
        "data/chunk_index": zeros,
        "data/file_index": zeros,
        "meta/episodes/chunk_index": zeros,
        "meta/episodes/file_index": zeros,
    }
    save(Dataset.from_dict(episode_rows), f"meta/episodes/{LEROBOT_FILE}")
    pd.DataFrame({"task_index": [0]}, index=["demonstrate"]).to_parquet(
        path / "meta" / "tasks.parquet"
    )
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
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": len(episodes),
        "total_frames": total,
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": FRAMES_PER_SECOND,
        "splits": {"train": f"0:{len(episodes)}"},
        "video_path": None,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "features": features,
    }
    (path / "meta" / "info.json").write_text(json.dumps(info, indent=2))
