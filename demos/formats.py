"""Demonstrations in the formats other projects keep them in: what lies on disk says which it is.

    from demos.formats import read, write
    demonstrations = read(Path("~/.minari/datasets/mujoco/hopper/expert-v0").expanduser())
    print(*demonstrations.notes, sep="\\n")
    write("d4rl", Path("hopper.hdf5"), demonstrations)

    irl         .npz with `lengths`: this project's, see demos/README.md
    flat        .npz of transitions
    imitation   a folder that imitation.data.serialize.save wrote              (package pyarrow)
    minari      a local dataset: its folder, or the folder `data` in it        (package h5py)
    d4rl        .hdf5 with observations, actions, terminals, timeouts, rewards (package h5py)
    robomimic   .hdf5 with data/demo_0/obs/..., actions, dones                 (package h5py)
    lerobot     a LeRobotDataset of version 2 or 3: parquet                    (package pyarrow)

Writing imitation, minari and lerobot needs imitation, minari and datasets. Nothing is unpickled.
Not every format holds everything: LeRobot does not say whether an episode was terminated. Without
next_obs, what the last action of an episode led to is not known: that transition is left out.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from demos import arrow, hdf5
from demos.columns import (
    MAX_BYTES,
    Options,
    Shape,
    is_own,
    read_columns,
    with_last_observations,
)
from demos.transitions import DemoError, Episode, Note, Rows, pack, to_episodes, to_transitions

OWN_KEYS = {"obs", "acts", "lengths", "terminated", "rewards"}  # of this project's .npz


class Demonstrations(list[Episode]):
    """Episodes, with what the reader has to say about them and the format they were in."""

    def __init__(self, episodes: Sequence[Episode], notes: Sequence[Note] = (), format: str = ""):
        super().__init__(episodes)
        self.notes = list(notes)
        self.format = format


def read(
    path: Path, obs_keys: Sequence[str] | None = None, max_bytes: int = MAX_BYTES
) -> Demonstrations:
    """The episodes at `path`, float32, in whichever format they are.

    Raises:
        DemoError: one line naming the path, the key and what was expected.
    """
    name = "?"
    try:
        name = format_of(path)
        rows, sources = READERS[name](path, Options(tuple(obs_keys or ()), max_bytes))
        episodes = to_episodes(rows, sources)
    except DemoError:
        raise
    except ImportError as error:
        raise DemoError(
            f"{path}: a {name} dataset; expected the package {error.name} to be installed"
        ) from None
    except MemoryError:
        raise DemoError(f"{path}: this {name} dataset does not fit into memory") from None
    except Exception as error:  # damaged files: every library has errors of its own
        what = (str(error).strip() or repr(error)).splitlines()[0][:200]
        raise DemoError(f"{path}: not a readable {name} dataset ({what})") from None
    if not episodes:
        raise DemoError(f"{path}: this {name} dataset holds no transition; expected at least one")
    return Demonstrations(episodes, rows.notes, name)


def format_of(path: Path) -> str:
    """Which of FORMATS lies at `path`; DemoError if none does."""
    marks = {
        "imitation": path / "dataset_info.json",
        "lerobot": path / "meta" / "info.json",
        "minari": hdf5.minari_data(path) / "metadata.json",
    }
    known = f"a format of demos/formats.py ({', '.join(FORMATS)})"
    if not path.exists():
        raise DemoError(f"{path}: no such file or folder; expected {known}")
    if path.is_dir():
        for name, mark in marks.items():
            if mark.is_file():
                return name
        lacking = ", ".join(mark.name for mark in marks.values())
        raise DemoError(f"{path}: a folder without {lacking}; expected {known}")
    if path.suffix == ".npz":
        shapes = npz_shapes(path)
        own = {"obs", "acts", "lengths"} <= set(shapes) and is_own(
            *(shapes[key].shape for key in ("obs", "acts", "lengths"))
        )
        return "irl" if own else "flat"
    if path.suffix in (".hdf5", ".h5"):
        with hdf5.open_hdf5(path) as f:
            return "robomimic" if hdf5.is_group(f, "data") else "d4rl"
    raise DemoError(f"{path}: a file of the kind '{path.suffix}'; expected {known}")


def to_own_npz(
    source: Path,
    destination: Path,
    obs_keys: Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> list[str]:
    """Writes the demonstrations at `source`, of any format, as this project's .npz.

    Returns the notes to print. `destination` is replaced, in one step.
    """
    demonstrations = read(source, obs_keys, max_bytes)
    try:
        with replacing(destination) as temporary:
            write_irl(temporary, demonstrations)
    except OSError as error:
        raise cannot_write(destination, error) from None
    return [f"{source}: {note}" for note in demonstrations.notes]


def write(name: str, path: Path, episodes: Sequence[Episode]) -> None:
    """Writes `episodes` to `path`, which must not exist, in the format `name`."""
    if os.path.lexists(path):
        raise DemoError(f"{path}: exists; expected a new name, nothing is overwritten")
    episodes = [e for e in episodes if len(e.acts)]
    if not episodes:
        raise DemoError(f"{path}: no transition to write; expected at least one")
    try:
        with new_folder(path) if name in FOLDERS else replacing(path) as temporary:
            WRITERS[name](temporary, episodes)
    except ImportError as error:
        raise DemoError(
            f"{path}: to write {name}, expected the package {error.name} to be installed"
        ) from None
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> DemoError:
    return DemoError(f"{path}: cannot be written ({error.strerror or str(error).splitlines()[0]})")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name to write to and renames it to `path`; removes it if writing fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path`, or nothing if writing fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# --------------------------------------------------------------------------------------- .npz
def npz_shapes(path: Path) -> dict[str, Shape]:
    """Names, shapes and types of an .npz's arrays, without reading them."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if len(set(members)) != len(members):
                raise DemoError(f"{path}: holds two arrays of one name; expected each name once")
            return {m.removesuffix(".npy"): npy_shape(archive, m) for m in members}
    except DemoError:
        raise
    except (
        Exception
    ) as error:  # truncated, no archive: zipfile and NumPy raise errors of many kinds
        what = (str(error) or repr(error)).splitlines()[0][:200]
        raise DemoError(f"{path}: not a readable .npz of plain arrays ({what})") from None


def npy_shape(archive: zipfile.ZipFile, member: str) -> Shape:
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with archive.open(member) as f:
        version = np.lib.format.read_magic(f)
        if version not in headers:
            return Shape((), np.dtype(object), plain=False)
        shape, _, dtype = headers[version](f)
    return Shape(shape, dtype, plain=dtype.kind in "biufcUS")


def read_npz(path: Path, options: Options) -> tuple[Rows, None]:
    def load(keys: Sequence[str]) -> dict[str, np.ndarray]:
        with np.load(path, allow_pickle=False) as f:
            return {key: f[key] for key in keys}

    return with_last_observations(read_columns(path, npz_shapes(path), load, options)), None


def write_irl(path: Path, episodes: Sequence[Episode]) -> None:
    with path.open("wb") as f:
        np.savez_compressed(f, **pack(episodes))


def write_flat(path: Path, episodes: Sequence[Episode]) -> None:
    with path.open("wb") as f:
        np.savez_compressed(f, **to_transitions(episodes))


READERS: dict[str, Callable] = {
    "irl": read_npz,
    "flat": read_npz,
    "imitation": arrow.read_imitation,
    "minari": hdf5.read_minari,
    "d4rl": hdf5.read_d4rl,
    "robomimic": hdf5.read_robomimic,
    "lerobot": arrow.read_lerobot,
}
WRITERS: dict[str, Callable[[Path, Sequence[Episode]], None]] = {
    "irl": write_irl,
    "flat": write_flat,
    "imitation": arrow.write_imitation,
    "minari": hdf5.write_minari,
    "d4rl": hdf5.write_d4rl,
    "robomimic": hdf5.write_robomimic,
    "lerobot": arrow.write_lerobot,
}
FORMATS = tuple(READERS)
FOLDERS = ("imitation", "minari", "lerobot")
