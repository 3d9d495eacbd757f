"""Differentiable forward kinematics of serial arms with hinge joints, in PyTorch.

`PUSHER` is the 7-joint arm of Gymnasium's Pusher-v4, `REACHER` the 2-joint arm of Reacher-v4. Both
agree with MuJoCo to 1e-5 m:

    python -m pytest tests/test_mbirl.py -k kinematics
"""

import math
from dataclasses import dataclass

import torch

CM_PER_M = 100.0
X = (1.0, 0.0, 0.0)
Y = (0.0, 1.0, 0.0)
Z = (0.0, 0.0, 1.0)
ORIGIN = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Arm:
    """A chain of hinges: joint i turns about `axes[i]` after a shift by `offsets[i]`."""

    offsets: tuple[tuple[float, float, float], ...]
    """position of each joint in its parent's frame, metres"""
    axes: tuple[tuple[float, float, float], ...]
    """axis of each joint, unit length, in its own frame"""
    lower: tuple[float, ...]
    """lower limit of each joint, radians"""
    upper: tuple[float, ...]
    """upper limit of each joint, radians"""
    tips: tuple[tuple[float, float, float], ...]
    """keypoints in the frame of the last joint, metres"""

    @property
    def num_joints(self) -> int:
        return len(self.axes)


# Offsets, axes, limits and tips as in gymnasium/envs/mujoco/assets/pusher.xml.
PUSHER = Arm(
    offsets=(
        (0.0, -0.6, 0.0),
        (0.1, 0.0, 0.0),
        ORIGIN,
        (0.4, 0.0, 0.0),
        ORIGIN,
        (0.321, 0.0, 0.0),
        ORIGIN,
    ),
    axes=(Z, Y, X, Y, X, Y, X),
    lower=(-2.2854, -0.5236, -1.5, -2.3213, -1.5, -1.094, -1.5),
    upper=(1.714602, 1.3963, 1.7, 0.0, 1.5, 0.0, 1.5),
    tips=((0.1, -0.1, 0.0), (0.1, 0.1, 0.0)),
)
# As in reacher.xml; the first joint has no limit.
REACHER = Arm(
    offsets=((0.0, 0.0, 0.01), (0.1, 0.0, 0.0)),
    axes=(Z, Z),
    lower=(-math.inf, -3.0),
    upper=(math.inf, 3.0),
    tips=((0.11, 0.0, 0.0),),
)


def rotations(axes: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Rotation matrices (..., n, 3, 3) about unit `axes` (n, 3) by angles q (..., n), radians.

    Rodrigues: R = I + sin(q) K + (1 - cos(q)) K^2, with K the cross-product matrix of the axis.
    """
    x, y, z = axes.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).view(-1, 3, 3)
    sin = torch.sin(q)[..., None, None]
    cos = torch.cos(q)[..., None, None]
    return torch.eye(3, dtype=q.dtype) + sin * cross + (1 - cos) * (cross @ cross)


def forward(arm: Arm, q: torch.Tensor) -> torch.Tensor:
    """Positions (..., n_tips, 3) of the arm's tips in the world, metres, at joints q (..., n)."""
    turns = rotations(q.new_tensor(arm.axes), q)
    offsets = q.new_tensor(arm.offsets)
    frame = torch.eye(3, dtype=q.dtype).expand(*q.shape[:-1], 3, 3)
    position = torch.zeros(*q.shape[:-1], 3, dtype=q.dtype)
    for i in range(arm.num_joints):
        position = position + frame @ offsets[i]
        frame = frame @ turns[..., i, :, :]
    tips = q.new_tensor(arm.tips)
    return position[..., None, :] + tips @ frame.transpose(-1, -2)


def keypoints(arm: Arm, q: torch.Tensor) -> torch.Tensor:
    """Tips in centimetres, flattened: z (..., 3 n_tips) at joints q (..., n)."""
    return CM_PER_M * forward(arm, q).flatten(-2)
