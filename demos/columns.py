"""Arrays of a file by name: observations, actions and end markers, and how large they are.

    from demos.columns import Options, Shape, read_columns
    rows = read_columns(path, shapes, load, Options(obs_keys=("goal", "state")))

Used by every reader of demos/formats.py. Sizes are checked before anything is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demos.transitions import (
    ALL_NAMES,
    NAMES,
    DemoError,
    Note,
    Rows,
    float32,
    plural,
    whole_lengths,
)

MAX_BYTES = 256 * 2**20  # of arrays that are read from one dataset
MAX_JSON = 16 * 2**20  # of a file of metadata
MAX_NAMED = 12  # names listed in a message
FLAGS = ("terminated", "truncated", "done", "limit", "going")  # of an episode's last row
OBS_PREFIXES = tuple(f"{name}{dot}" for name in NAMES["obs"] for dot in "/.")


@dataclass(frozen=True)
class Options:
    """obs_keys: which observations to read, in this order. max_bytes: of arrays to read."""

    obs_keys: tuple[str, ...] = ()
    max_bytes: int = MAX_BYTES


def read_json(path: Path):
    if path.stat().st_size > MAX_JSON:
        raise DemoError(f"{path}: larger than {MAX_JSON} bytes; expected metadata")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise DemoError(f"{path}: not readable as JSON") from None


@dataclass(frozen=True)
class Shape:
    """What a file says about an array before it is read. `plain`: numbers or text, not pickled."""

    shape: tuple[int, ...]
    dtype: np.dtype
    plain: bool = True
    piece: int = 0  # bytes that are read at once: a chunk, which may be larger than the array

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def memory(shapes: Sequence[Shape]) -> int:
    """Bytes that it takes to read these arrays, one after another."""
    return max([sum(shape.size for shape in shapes), *(shape.piece for shape in shapes)])


def check_size(path: Path, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise DemoError(
            f"{path}: holds {size / 2**20:,.0f} MiB of arrays; expected at most"
            f" {max_bytes / 2**20:,.0f} MiB (--max-mib)"
        )


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def read_columns(
    path: Path,
    shapes: Mapping[str, Shape],
    load: Callable[[Sequence[str]], dict[str, np.ndarray]],
    options: Options,
) -> Rows:
    """Those arrays of a file whose names are known, as rows; the others are listed in a note."""
    chosen = choose_obs(path, list(shapes), options.obs_keys)
    following = [next_key(key, shapes) for key in chosen]
    keys = [key for key in shapes if key in ALL_NAMES]
    if chosen:
        keys = [k for k in keys if k not in NAMES["obs"] + NAMES["next_obs"]]
        keys += chosen + ([key for key in following if key] if all(following) else [])
    pickled = [key for key in keys if not shapes[key].plain]
    needed = (*chosen, *NAMES["obs"], *NAMES["acts"], *NAMES["next_obs"])
    if lost := [key for key in pickled if key in needed]:
        raise DemoError(
            f"{path}: key '{lost[0]}' is pickled, elsewhere or no numbers; expected vectors"
        )
    keys = [key for key in keys if shapes[key].plain]
    check_size(path, memory([shapes[key] for key in keys]), options.max_bytes)
    arrays = load(keys)
    if chosen:
        data = {k: x for k, x in arrays.items() if k not in chosen and k not in following}
        data["obs"] = side_by_side(path, chosen, arrays)
        if all(following):
            data["next_obs"] = side_by_side(path, following, arrays)
        arrays = data
    rows = Rows(path, arrays)
    if chosen:
        rows.note(f"observations: {', '.join(chosen)}, in this order")
    if unread := sorted(set(shapes) - set(keys)):
        rows.note(f"not read: {listed(unread)}")
    if pickled:
        rows.note(f"pickled, elsewhere or no numbers: {listed(pickled)}")
    return rows


def choose_obs(path: Path, there: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Full names of the observations to read; none if the file has a plain array of them."""
    inner = [key for key in there if key.startswith(OBS_PREFIXES)]
    if not wanted:
        if inner and not set(NAMES["obs"]) & set(there):
            raise DemoError(
                f"{path}: observations are several arrays: {listed(inner)};"
                " expected a choice of them, e.g. --obs-keys " + inner[0][inner[0].find("/") + 1 :]
            )
        return []
    full = []
    for name in wanted:
        options = [name] if name in there else [p + name for p in OBS_PREFIXES if p + name in there]
        if len(options) != 1:
            raise DemoError(f"{path}: --obs-keys {name}: no such key; there are {listed(there)}")
        full += options
    return full


def next_key(key: str, there: Mapping[str, Shape]) -> str | None:
    """The array that holds what followed the observations in `key`."""
    for obs, following in zip(NAMES["obs"], NAMES["next_obs"]):
        for dot in "/.":
            name = following + key[len(obs) :]
            if key.startswith(obs + dot) and name in there:
                return name
    return f"next_{key}" if f"next_{key}" in there else None


def side_by_side(path: Path, keys: Sequence[str], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n, dim) of several (n, dim_i) or (n,)."""
    parts = []
    for key in keys:
        x = arrays[key]
        if x.ndim not in (1, 2) or len(x) != len(arrays[keys[0]]):
            raise DemoError(
                f"{path}: key '{key}' has shape {x.shape}; expected a vector for each row"
            )
        parts.append(float32(x.reshape(len(x), -1), f"{path}: key '{key}'"))
    return np.concatenate(parts, 1)


def with_last_observations(rows: Rows) -> Rows:
    """Rows of a file that has T+1 observations for T actions, episode after episode, and lengths.

    `terminated` and the other flags have one an episode.
    """
    data = rows.data
    if not {"obs", "acts", "lengths"} <= set(data):
        return rows
    if not is_own(data["obs"].shape, data["acts"].shape, data["lengths"].shape):
        return rows
    lengths = whole_lengths(rows, len(data["acts"]))
    columns = {k: data[k] for k in ("acts", "rewards") if k in data}
    new = whole_episodes(rows.where, data["obs"], lengths, columns, rows.notes)
    last = np.cumsum(lengths) - 1
    if not set(FLAGS) & set(data):
        new.note("no key terminated: every episode is taken as cut off, not as terminal")
    for ours in FLAGS:
        if ours in data:
            new.add(ours, rows.names[ours], per_row(rows, ours, lengths, last))
    note_unread(new.notes, [rows], ("obs", "acts", "rewards", "lengths", *FLAGS))
    return new


def whole_episodes(
    where: Path,
    obs: np.ndarray,
    lengths: np.ndarray,
    columns: Mapping[str, np.ndarray],
    notes: Sequence[Note] = (),
) -> Rows:
    """Rows of episodes with T+1 observations each, one after another, and columns of T.

    Transition t of episode e starts at row t + e of obs.
    """
    at = np.arange(lengths.sum()) + np.repeat(np.arange(len(lengths)), lengths)
    pairs = {"obs": obs[at], "next_obs": obs[at + 1], "lengths": lengths}
    rows = Rows(where, {**columns, **pairs}, list(notes), whole=True)
    if empty := int((lengths == 0).sum()):
        rows.note(f"{plural(empty, 'episode')} without a step left out")
    return rows


def note_unread(notes: list[Note], parts: Sequence[Rows], used: Sequence[str]) -> None:
    """Lists the columns of known names that a reader does not use."""
    unread = {part.names[ours] for part in parts for ours in part.data if ours not in used}
    if unread:
        notes.append(Note(f"not read: {listed(sorted(unread))}"))


def per_row(rows: Rows, ours: str, lengths: np.ndarray, last: np.ndarray) -> np.ndarray:
    """A flag an episode as a flag a row, on the episode's last."""
    x = rows.data[ours]
    if x.size == len(last) and max(x.shape, default=0) == x.size:
        out = np.full(int(lengths.sum()), ours == "going").astype(x.dtype)
        out[last[lengths > 0]] = x.reshape(-1)[lengths > 0]
        return out
    raise rows.error(ours, f"has shape {x.shape}; expected ({len(last)},), a flag an episode")


def is_own(obs: tuple, acts: tuple, lengths: tuple) -> bool:
    """Do these shapes have an observation more than actions for each episode?"""
    return (
        all(map(len, (obs, acts, lengths)))
        and obs[0] == acts[0] + math.prod(lengths)
        and math.prod(lengths) > 0
    )


def note_counts(rows: Rows, file: str, said, keys: tuple[str, str], lengths: np.ndarray) -> None:
    """Notes where metadata count other episodes and rows than there are."""
    for key, count in zip(keys, (len(lengths), int(lengths.sum()))):
        told = said.get(key) if isinstance(said, dict) else None
        if told is not None and told != count:
            rows.note(f"{file} says {key}: {told}; there are {count}")
