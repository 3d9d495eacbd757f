"""Demonstrations from one format into another; both are described in demos/formats.py.

python -m demos.convert ~/.minari/datasets/mujoco/hopper/expert-v0 hopper.npz    # then: --demos hopper.npz
python -m demos.convert demos/Hopper-v4.npz hopper.hdf5
python -m demos.convert demos/Hopper-v4.npz hopper-imitation --to imitation
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

if (
    __name__ == "__main__"
):  # `python demos/convert.py` finds the project as `python -m demos.convert` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from demos.formats import WRITERS, DemoError, format_of, read, write

BY_SUFFIX = {".npz": "irl", ".hdf5": "d4rl", ".h5": "d4rl"}


@dataclass(frozen=True)
class Config:
    source: tyro.conf.Positional[Path]
    """demonstrations in any of the formats"""
    destination: tyro.conf.Positional[Path]
    """a file or folder that does not exist yet"""
    to: Literal["irl", "flat", "imitation", "minari", "d4rl", "lerobot"] | None = None
    """format to write; default: irl for .npz, d4rl for .hdf5"""


def main(config: Config) -> None:
    to = config.to or BY_SUFFIX.get(config.destination.suffix)
    if to is None:
        raise DemoError(
            f"{config.destination}: says no format; expected --to and one of {', '.join(WRITERS)}"
        )
    episodes = read(config.source)
    write(to, config.destination, episodes)
    steps = sum(len(e.acts) for e in episodes)
    print(
        f"{config.destination}: {to}, {len(episodes)} episodes, {steps} transitions,"
        f" from {config.source}: {format_of(config.source)}"
    )


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except DemoError as error:
        sys.exit(f"error: {error}")
