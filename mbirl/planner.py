"""The inner loop: gradient steps on a robot's actions under a cost, through a model of the arm.

Joints move by q[t+1] = clip(q[t] + a[t], limits); keypoints z[t] follow from a model: the forward
kinematics (`ArmModel`) or learned dynamics (`keypoints.VisualModel`). `plan` keeps the graph of its
gradient steps, so that a loss on the planned trajectory has a gradient with respect to the cost's
weights (Das et al. 2020, arXiv 2010.09034, algorithm 1):

    actions = plan(cost, model, q0, goal, PlanConfig())
    z, q = model.rollout(q0, actions)
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from mbirl.kinematics import Arm, keypoints


@dataclass(frozen=True)
class PlanConfig:
    inner_steps: int = 1
    """gradient steps on the actions, from actions of 0"""
    inner_lr: float = 1e-3
    """step size of the inner loop, rad^2 per unit of cost"""
    detach_state: bool = False
    """published variant: cut the gradient at each state, so that action t reaches z[t+1] alone"""


class Model(Protocol):
    """What the planner needs of a model of the arm."""

    def rollout(self, q0: torch.Tensor, actions: torch.Tensor, detach: bool = False):
        """Keypoints z (T, D) and joints q (T, n) from q0 (n,) under actions (T-1, n), radians."""


def joint_path(arm: Arm, q0: torch.Tensor, actions: torch.Tensor, detach: bool) -> torch.Tensor:
    """Joints (T, n): q[t+1] = clip(q[t] + a[t], limits), with q[t] detached if `detach`."""
    lower = q0.new_tensor(arm.lower)
    upper = q0.new_tensor(arm.upper)
    path = [q0]
    for action in actions:
        q = path[-1].detach() if detach else path[-1]
        path.append(torch.clamp(q + action, lower, upper))
    return torch.stack(path)


@dataclass(frozen=True)
class ArmModel:
    """Ground truth: keypoints by forward kinematics, centimetres."""

    arm: Arm

    def rollout(self, q0, actions, detach=False):
        q = joint_path(self.arm, q0, actions, detach)
        return keypoints(self.arm, q), q


def plan(
    cost, model: Model, q0: torch.Tensor, goal: torch.Tensor, horizon: int, config: PlanConfig
):
    """Actions (horizon - 1, n) after `inner_steps` gradient steps on cost(z, goal) from 0.

    The result is differentiable with respect to the cost's weights, to second order in the model.
    """
    actions = torch.zeros(horizon - 1, len(q0), dtype=q0.dtype, requires_grad=True)
    for _ in range(config.inner_steps):
        z, _ = model.rollout(q0, actions, config.detach_state)
        (gradient,) = torch.autograd.grad(cost(z, goal), actions, create_graph=True)
        actions = actions - config.inner_lr * gradient
    return actions
