"""Malformed demonstrations, made from a seed, through every reader of demos/formats.py.

    python -m tests.fuzz_demos --files 1000 --json benchmark/data/fuzz.json

Each file is a small dataset with something broken in it: cut, flipped bits, renamed, reshaped or
retyped arrays, NaN, lengths that lie, arrays that are huge once unpacked, pickles. A reader may
read it or refuse it with one line that names it, within 10 seconds and 1 GB, and may execute and
write nothing. Files are read in a process of their own, so that a crash or a hang is counted too.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import sys
import tempfile
import time
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import tyro

from demos.formats import (
    FORMATS,
    DemoError,
    Episode,
    pack,
    read,
    replacing,
    to_transitions,
    write,
)

SECONDS = 10.0  # the longest a reader may take
BYTES = 10**9  # the most memory its process may use
SUFFIX = {"irl": ".npz", "flat": ".npz", "d4rl": ".hdf5", "robomimic": ".hdf5"}


@dataclass(frozen=True)
class Config:
    files: int = 1000
    """how many files"""
    seed: int = 0
    """first seed: file i is made from seed + i"""
    json: Path | None = None
    """write the figures there"""


class Harmful:
    """Creates the folder `executed` where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def episodes_for(rng: np.random.Generator) -> list[Episode]:
    episodes = []
    for n in rng.integers(1, 12, rng.integers(1, 6)).tolist():
        obs = rng.normal(size=(n + 1, 3)).astype(np.float32)
        acts = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
        rewards = rng.normal(size=n).astype(np.float32)
        episodes.append(Episode(obs, acts, bool(rng.integers(2)), rewards))
    return episodes


# ------------------------------------------------------------------------------- broken bytes
def broken_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """One of: cut, flipped bits, a block of zeros, bytes added, nothing, a pickle, a text."""
    x = np.frombuffer(data, np.uint8).copy()
    kind = int(rng.choice(7, p=[0.25, 0.4, 0.1, 0.1, 0.05, 0.05, 0.05]))
    if kind == 0:
        return data[: rng.integers(0, len(data) + 1)]
    if kind == 1 and len(x):
        at = rng.integers(0, len(x), rng.integers(1, 30))
        x[at] ^= (1 << rng.integers(0, 8, len(at))).astype(np.uint8)
    if kind == 2 and len(x):
        a = rng.integers(0, len(x))
        x[a : a + rng.integers(1, 500)] = 0
    if kind == 3:
        return data + rng.bytes(int(rng.integers(1, 200)))
    if kind == 4:
        return b""
    if kind == 5:
        return pickle.dumps(Harmful())
    if kind == 6:
        return b"obs,acts\n1,2\n"
    return x.tobytes()


# ------------------------------------------------------------------------------ broken arrays
def broken_array(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another shape, type or content."""
    kind = rng.integers(14)
    if kind == 0:
        return x.T
    if kind == 1:
        return x[None]
    if kind == 2:
        return x[..., None]
    if kind == 3:
        return x[: rng.integers(0, len(x) + 1)]
    if kind == 4:
        return np.concatenate([x, x])
    if kind == 5:
        return x.astype("S4")
    if kind == 6:
        return x.astype(rng.choice(["f2", "f8", "i1", "i8", "u8", "c8", "?"]))
    if kind == 7:
        return np.where(rng.random(x.shape) < 0.2, np.nan, x)
    if kind == 8:
        return np.where(rng.random(x.shape) < 0.2, rng.choice([np.inf, -1, 1e300, 2.0**63]), x)
    if kind == 9:
        return rng.integers(-3, 40, x.shape)
    if kind == 10:
        return rng.integers(0, 2, x.shape)
    if kind == 11:
        return np.float64(3)
    if kind == 12:
        return np.full(x.shape, rng.choice([-(2**62), 2**62, 2**31, 0]))
    return rng.permutation(x.reshape(-1)).reshape(x.shape)


RENAMED = (
    "obs", "acts", "next_obs", "dones", "done", "masks", "is_first", "is_last", "terminals",
    "timeouts", "truncated", "lengths", "episode_ends", "episode_starts", "episode_id", "step",
    "rewards", "state", "other", "obs/a", "TimeLimit.truncated", "",
)  # fmt: skip


def broken_arrays(arrays: dict[str, np.ndarray], rng: np.random.Generator) -> dict:
    arrays = dict(arrays)
    for _ in range(rng.integers(1, 4)):
        key = str(rng.choice(sorted(arrays)))
        action = rng.integers(5)
        if action == 0:
            del arrays[key]
        elif action == 1:
            arrays[str(rng.choice(RENAMED)) or "x"] = arrays.pop(key)
        elif action == 2:
            arrays[str(rng.choice(RENAMED)) or "x"] = arrays[key]
        else:
            arrays[key] = broken_array(arrays[key], rng)
        if not arrays:
            break
    return arrays


def write_npz(path: Path, arrays: dict, rng: np.random.Generator) -> None:
    if rng.random() < 0.1:
        key = str(rng.choice(sorted(arrays) or ["obs"]))
        arrays = {**arrays, key: np.array([Harmful()] * 3, dtype=object)}
    np.savez(path, **arrays)


def huge_npz(path: Path, keys, rng: np.random.Generator) -> None:
    """A few kilobytes that say they are, or really are, up to gigabytes."""
    rows = int(10 ** rng.uniform(6, 13))
    stored = min(rows * 12, int(10 ** rng.uniform(3, 8)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for key in keys:
            shape = (rows, 3) if key in ("obs", "acts", "next_obs") else (rows,)
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            with archive.open(f"{key}.npy", "w", force_zip64=True) as f:
                np.lib.format.write_array_header_1_0(f, header)
                for start in range(0, stored, 2**20):
                    f.write(bytes(min(2**20, stored - start)))


def huge_hdf5(path: Path, rng: np.random.Generator, prefix: str) -> None:
    """Arrays of which nothing is stored, or zeros that are packed well."""
    rows = int(10 ** rng.uniform(6, 12))
    chunk = int(10 ** rng.uniform(2, 7))
    with h5py.File(path, "w") as f:
        for key in (
            ("obs/flat", "actions", "dones") if prefix else ("observations", "actions", "dones")
        ):
            shape = (rows, 3) if key != "dones" else (rows,)
            chunks = (min(chunk, rows), *shape[1:])
            d = f.create_dataset(prefix + key, shape, "f4", chunks=chunks, compression="gzip")
            if chunk > 10**5:  # smaller ones take minutes to write
                d[: min(rows, 10**6)] = 0


def items(group: h5py.Group) -> list[str]:
    names: list[str] = []
    group.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
    return sorted(names)


def break_hdf5(path: Path, rng: np.random.Generator) -> None:
    """A few datasets removed, renamed or replaced."""
    with h5py.File(path, "a") as f:
        for _ in range(rng.integers(1, 4)):
            names = items(f)
            if not names:
                return
            name = str(rng.choice(names))
            array = f[name][()]
            action = rng.integers(4)
            if action != 3:
                del f[name]
            if action == 0:
                continue
            parent = name.rpartition("/")[0]
            if action == 1 or action == 3:
                name = f"{parent}/{rng.choice(RENAMED) or 'x'}"
                if name in f:
                    continue
            if action == 2:
                array = broken_array(array, rng) if array.ndim else np.zeros(3)
            f[name] = array


def broken_json(path: Path, rng: np.random.Generator) -> None:
    """A value replaced by one of another type."""
    value = json.loads(path.read_text())
    if not isinstance(value, dict) or not value:
        return
    key = str(rng.choice(sorted(value)))
    others = (None, -1, "x", [], {}, 1e300, True, [{"filename": "../../x"}], "v2.1", 10**30)
    value[key] = others[rng.integers(len(others))]
    path.write_text(json.dumps(value) if rng.random() < 0.9 else "[" * 100_000)


# ---------------------------------------------------------------------------------- one file
def make(folder: Path, bases: Path, seed: int) -> tuple[str, Path]:
    """Makes malformed file number `seed`; its format and path. `bases`: good folders to copy."""
    rng = np.random.default_rng(seed)
    name = FORMATS[seed % len(FORMATS)]
    path = folder / f"demos{SUFFIX.get(name, '')}"
    kind = rng.random()
    if name in ("irl", "flat"):
        episodes = episodes_for(rng)
        arrays = pack(episodes) if name == "irl" else to_transitions(episodes)
        if kind < 0.03:
            huge_npz(path, list(arrays), rng)
        elif kind < 0.6:
            write_npz(path, broken_arrays(arrays, rng), rng)
        else:
            write(name, path, episodes)
            path.write_bytes(broken_bytes(path.read_bytes(), rng))
    elif name in ("d4rl", "robomimic"):
        if kind < 0.03:
            huge_hdf5(path, rng, "" if name == "d4rl" else "data/demo_0/")
            return name, path
        write(name, path, episodes_for(rng))
        if kind < 0.6:
            break_hdf5(path, rng)
        else:
            path.write_bytes(broken_bytes(path.read_bytes(), rng))
    else:
        shutil.copytree(bases / name, path)
        break_folder(path, rng)
    return name, path


def break_folder(path: Path, rng: np.random.Generator) -> None:
    files = sorted(f for f in path.rglob("*") if f.is_file())
    data = [f for f in files if f.suffix in (".hdf5", ".parquet", ".arrow")]
    kind = rng.random()
    if kind < 0.2:
        broken_json(
            files[int(rng.choice([i for i, f in enumerate(files) if f.suffix == ".json"]))], rng
        )
    elif kind < 0.3:
        files[rng.integers(len(files))].unlink()
    elif kind < 0.4:
        other = rng.choice(["file-001.parquet", "episode_0.parquet", "x.arrow", "main_data.hdf5"])
        shutil.copy(data[0], data[0].with_name(str(other))) if other != data[0].name else None
    elif kind < 0.6 and data[0].suffix == ".hdf5":
        break_hdf5(data[0], rng)
    elif kind < 0.65 and data[0].suffix == ".hdf5":
        data[0].unlink()
        huge_hdf5(data[0], rng, "episode_0/")
    else:
        file = (
            data[rng.integers(len(data))] if rng.random() < 0.8 else files[rng.integers(len(files))]
        )
        file.write_bytes(broken_bytes(file.read_bytes(), rng))


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    found = sorted(p for p in folder.rglob("*"))
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in found}


def outcome_of(path: Path) -> str:
    """read, refused, or what went wrong."""
    try:
        episodes = read(path)
    except DemoError as error:
        text = str(error)
        fine = str(path) in text and "\n" not in text and len(text) < 2000
        return "refused" if fine else f"message: {text[:300]}"
    except BaseException as error:
        return f"traceback: {error!r}"[:300]
    for e in episodes:
        shapes = e.obs.ndim == e.acts.ndim == 2 and len(e.obs) == len(e.acts) + 1 > 1
        types = e.obs.dtype == e.acts.dtype == np.float32
        if not (shapes and types and (e.rewards is None or len(e.rewards) == len(e.acts))):
            return "malformed episodes"
    pack(episodes)
    return "read"


def serve(pipe, folder: Path) -> None:
    """Reads the paths that come through the pipe; answers with outcome and peak memory."""
    os.chdir(folder)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    while (path := pipe.recv()) is not None:
        outcome = outcome_of(path)
        pipe.send((outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def start(folder: Path):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, folder), daemon=True)
    process.start()
    theirs.close()
    return process, ours


# ----------------------------------------------------------------------------------- all files
def fuzz(files: int, seed: int, show=None) -> dict:
    """The figures; `failures` lists every file that a reader did not treat as it should."""
    counts: dict[str, Counter] = {name: Counter() for name in FORMATS}
    failures = []
    slowest = peak = 0.0
    begun = time.time()
    with tempfile.TemporaryDirectory() as top:
        bases, cwd = Path(top) / "bases", Path(top) / "cwd"
        cwd.mkdir()
        for name in ("imitation", "minari", "lerobot"):
            write(name, bases / name, episodes_for(np.random.default_rng(seed)))
        process, pipe = start(cwd)
        fresh = True
        for i in range(seed, seed + files):
            folder = Path(top) / f"file{i}"
            folder.mkdir()
            name, path = make(folder, bases, i)
            before = listing(folder)
            at = time.time()
            try:
                pipe.send(path)
                patience = SECONDS + (60 if fresh else 5)  # a new process imports everything
                outcome, memory = pipe.recv() if pipe.poll(patience) else ("hang", 0)
            except (EOFError, OSError):
                outcome, memory = "crash", 0
            if not fresh:
                slowest = max(slowest, time.time() - at)
            peak = max(peak, memory)
            imported, fresh = not fresh, outcome in ("hang", "crash")
            if fresh:
                process.kill()
                process, pipe = start(cwd)
            elif imported and time.time() - at > SECONDS:
                outcome = f"slow: {time.time() - at:.1f} s"
            elif memory > BYTES:
                outcome = f"memory: {memory / 1e6:.0f} MB"
            elif list(cwd.iterdir()):
                outcome = "executed or wrote: " + ", ".join(p.name for p in cwd.iterdir())
                for p in cwd.iterdir():
                    shutil.rmtree(p) if p.is_dir() else p.unlink()
            elif listing(folder) != before:
                outcome = "changed its file"
            counts[name][outcome.partition(":")[0]] += 1
            if outcome not in ("read", "refused"):
                failures.append({"seed": i, "format": name, "outcome": outcome})
            shutil.rmtree(folder)
            if show:
                show(i - seed + 1, len(failures))
        pipe.send(None)
        process.join(10)
    return {
        "files": files,
        "seed": seed,
        "outcomes": dict(sum(counts.values(), Counter())),
        "formats": {name: dict(sorted(count.items())) for name, count in counts.items()},
        "slowest_seconds": round(slowest, 3),
        "peak_memory_mb": round(peak / 1e6),
        "wall_seconds": round(time.time() - begun, 1),
        "failures": failures,
    }


def main(config: Config) -> int:
    def show(done: int, failed: int) -> None:
        if sys.stderr.isatty() or done % 100 == 0:
            print(f"\r{done}/{config.files} files, {failed} failures", end="", file=sys.stderr)

    figures = fuzz(config.files, config.seed, show)
    print(file=sys.stderr)
    print(json.dumps(figures, indent=2))
    if config.json:
        with replacing(config.json) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n")
    return int(bool(figures["failures"]))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
