"""Demonstrations from one format into another; both are described in demos/formats.py.

    python -m demos.convert ~/.minari/datasets/mujoco/hopper/expert-v0 hopper.npz
    python -m demos.convert demos/Hopper-v4.npz hopper.hdf5
    python -m demos.convert demos/Hopper-v4.npz hopper-imitation --to imitation
    python -m demos.convert lift.hdf5 lift.npz --obs-keys object robot0_eef_pos

Then: --demos hopper.npz. What the reader decided or left out is printed, a line each.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

if __name__ == "__main__":  # `python demos/convert.py` finds the project as -m does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from demos.formats import MAX_BYTES, WRITERS, DemoError, read, write

BY_SUFFIX = {".npz": "irl", ".hdf5": "d4rl", ".h5": "d4rl"}
HDF5 = (".hdf5", ".h5")
SUFFIXES = {"irl": (".npz",), "flat": (".npz",), "d4rl": HDF5, "robomimic": HDF5}  # others: folders


@dataclass(frozen=True)
class Config:
    source: tyro.conf.Positional[Path]
    """demonstrations in any of the formats"""
    destination: tyro.conf.Positional[Path]
    """a file or folder that does not exist yet"""
    to: Literal["irl", "flat", "imitation", "minari", "d4rl", "robomimic", "lerobot"] | None = None
    """format to write; default: irl for .npz, d4rl for .hdf5"""
    obs_keys: tuple[str, ...] = ()
    """which observations to read, in this order, where there are several arrays of them"""
    max_mib: int = MAX_BYTES // 2**20
    """largest size of the arrays to read, in MiB"""


def main(config: Config) -> None:
    to = config.to or BY_SUFFIX.get(config.destination.suffix)
    if to is None:
        raise DemoError(
            f"{config.destination}: says no format; expected --to and one of {', '.join(WRITERS)}"
        )
    if config.destination.suffix not in SUFFIXES.get(to, (config.destination.suffix,)):
        expected = (
            f"expected a name that ends in {' or '.join(SUFFIXES[to])}, by which {to} is known"
        )
        raise DemoError(f"{config.destination}: {expected}")
    demonstrations = read(config.source, config.obs_keys, config.max_mib * 2**20)
    for note in demonstrations.notes:
        print(f"note: {note}")
    write(to, config.destination, demonstrations)
    steps = sum(len(e.acts) for e in demonstrations)
    print(
        f"{config.destination}: {to}, {len(demonstrations)} episodes, {steps} transitions,"
        f" from {config.source}: {demonstrations.format}"
    )


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except DemoError as error:
        sys.exit(f"error: {error}")
