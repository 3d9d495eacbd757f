"""The "placing" demonstrations: the gripper goes back by 20 cm and then down by 30 cm.

A demonstration is a keypoint trajectory z (T, 6) in centimetres, (x, y, z) of the left and the
right fingertip: from a fixed start, T/2 states whose x goes to -20 + N(0, 1) cm, then T/2 states
whose z goes to -30 + N(0, 1) cm (the offsets of Das et al. 2020; the noise is drawn once per
demonstration, from the seed). `follow` gives the joints that reach them. As CSV (columns demo, t,
x1, y1, z1, x2, y2, z2), for `python -m mbirl --demos FILE`:

    python -m mbirl.demos --seed 1 --out demos.csv
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro

from custom_irl import UserError, replacing
from mbirl.kinematics import PUSHER, Arm, keypoints

COLUMNS = ["x1", "y1", "z1", "x2", "y2", "z2"]
START = (0.0, 0.6, 0.0, -0.85, 0.0, -0.3, 0.0)  # radians, inside the limits


@dataclass(frozen=True)
class DemoConfig:
    seed: int = 1
    """seed of the noise"""
    n_train: int = 3
    """demonstrations the cost is learned from"""
    n_test: int = 3
    """demonstrations it is tested on"""
    horizon: int = 10
    """states of a demonstration, T"""
    start: tuple[float, float, float, float, float, float, float] = START
    """joints of the first state, radians"""


def check_joints(arm: Arm, q: tuple[float, ...]) -> None:
    """UserError if one of the joints q (n,), radians, is outside its limits."""
    for i, (value, lower, upper) in enumerate(zip(q, arm.lower, arm.upper)):
        if not lower <= value <= upper:
            raise UserError(f"joint {i} at {value} rad: expected a value in [{lower}, {upper}]")


def place(config: DemoConfig) -> torch.Tensor:
    """The demonstrations (n_train + n_test, T, 6), cm; the same for the same configuration."""
    check_joints(PUSHER, config.start)
    if config.horizon < 4 or config.horizon % 2:
        raise UserError(f"--horizon {config.horizon}: expected an even number of at least 4")
    if min(config.n_train, config.n_test) < 1:
        raise UserError("--n-train and --n-test: expected at least 1")
    if config.seed < 0:
        raise UserError(f"--seed {config.seed}: expected 0 or more")
    rng = np.random.default_rng(config.seed)
    half = config.horizon // 2
    start = keypoints(PUSHER, torch.tensor(config.start, dtype=torch.float64)).numpy()
    demos = np.tile(start, (config.n_train + config.n_test, config.horizon, 1))
    for demo in demos:
        back = -20 + rng.standard_normal()
        down = -30 + rng.standard_normal()
        demo[:half, [0, 3]] += np.linspace(0, back, half)[:, None]
        demo[half:, [0, 3]] += back
        demo[half:, [2, 5]] += np.linspace(0, down, half)[:, None]
    return torch.as_tensor(demos, dtype=torch.float32)


def follow(arm: Arm, demo: torch.Tensor, start: tuple[float, ...], steps: int = 50) -> torch.Tensor:
    """Joints (T, n), within the limits, whose keypoints are the nearest to a demonstration (T, D).

    Damped Gauss-Newton steps from the previous state's joints, with a damping of 1 cm^2:
    dq = J^T (J J^T + I)^-1 (z* - z).
    """
    lower = torch.tensor(arm.lower, dtype=torch.float64)
    upper = torch.tensor(arm.upper, dtype=torch.float64)
    q = torch.tensor(start, dtype=torch.float64)
    path = []
    for target in demo.double():
        for _ in range(steps):
            jacobian = torch.autograd.functional.jacobian(lambda q: keypoints(arm, q), q)
            gram = jacobian @ jacobian.T + torch.eye(len(target), dtype=torch.float64)
            step = jacobian.T @ torch.linalg.solve(gram, target - keypoints(arm, q))
            q = torch.clamp(q + step, lower, upper)
            if step.abs().max() < 1e-5:
                break
        path.append(q)
    return torch.stack(path).float()


def write_demos(path: Path, demos: torch.Tensor) -> None:
    """Writes demonstrations (n, T, 6) as CSV."""
    n, horizon, _ = demos.shape
    index = pd.MultiIndex.from_product([range(n), range(horizon)], names=["demo", "t"])
    frame = pd.DataFrame(demos.flatten(0, 1).numpy(), index=index, columns=COLUMNS)
    with replacing(path) as temporary:
        frame.to_csv(temporary, float_format="%.4f")


def read_demos(path: Path, config: DemoConfig) -> torch.Tensor:
    """Demonstrations (n_train + n_test, T, 6) from CSV, in the order of demo and t = 0 to T-1;
    UserError naming what was expected."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a CSV of demonstrations")
    columns = ["demo", "t", *COLUMNS]
    try:
        frame = pd.read_csv(path)[columns].astype(float)
    except (KeyError, ValueError) as error:
        expected = f"expected numbers in the columns {', '.join(columns)}"
        raise UserError(f"{path}: {expected} ({error})") from None
    if not np.isfinite(frame.to_numpy()).all():
        raise UserError(f"{path}: NaN or infinity; expected finite numbers in {', '.join(columns)}")
    frame = frame.sort_values(["demo", "t"])
    steps = frame.groupby("demo")["t"]
    for demo, t in steps:
        if len(t) != config.horizon:
            raise UserError(f"{path}: demo {demo:g} has {len(t)} states; expected {config.horizon}")
        if not np.array_equal(t, np.arange(config.horizon)):
            raise UserError(f"{path}: demo {demo:g}: expected t from 0 to {config.horizon - 1}")
    n = config.n_train + config.n_test
    if steps.ngroups != n:
        raise UserError(f"{path}: {steps.ngroups} demonstrations; expected {n}")
    values = frame[COLUMNS].to_numpy(np.float32)
    demos = torch.as_tensor(values).view(n, config.horizon, len(COLUMNS))
    still = np.flatnonzero((demos[:, 0] == demos[:, -1]).all(1))
    if len(still):
        problem = f"demonstration {still[0] + 1} of {n} ends where it began"
        raise UserError(f"{path}: {problem}; expected another last state, the planner's goal")
    start = keypoints(PUSHER, torch.tensor(config.start))
    if (demos[:, 0] - start).abs().max() > 1.0:
        raise UserError(f"{path}: first state over 1 cm from the start; expected {start.tolist()}")
    return demos


@dataclass(frozen=True)
class Args(DemoConfig):
    out: Path = Path("demos.csv")
    """file to write, which must not exist"""


def main(flags: list[str] | None = None) -> None:
    """The command line: bad input ends in one line and exit status 1."""
    args = tyro.cli(Args, args=flags, description=__doc__)
    try:
        demos = place(args)
        if os.path.lexists(args.out):
            raise UserError(f"{args.out}: exists; expected a new name, nothing is overwritten")
        write_demos(args.out, demos)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {args.out}: cannot be written ({error.strerror})")


if __name__ == "__main__":
    main()
