"""The outer loop: a cost's weights, improved through the planner (Das et al. 2020, algorithm 1).

    L_IRL(z, z*) = mean over d of sum over t of (z[t, d] - z*[t, d])^2, cm^2

with z planned under the cost towards the demonstration's last state and z* the demonstration. Adam
takes a step on each training demonstration in turn. Apprenticeship learning, the baseline, matches
features instead: its gradient is the cost's own, at the demonstration minus at the plan (Abbeel and
Ng 2004; the costs are linear in their weights, so this is the difference of feature counts).

    python -m mbirl --cost rbf
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from custom_irl import UserError
from mbirl.planner import ArmModel, Model, PlanConfig, plan

METHODS = ("mbirl", "apprenticeship", "none")


@dataclass(frozen=True)
class TrainConfig:
    iterations: int = 100
    """passes over the training demonstrations, one update of the cost on each"""
    outer_lr: float = 1e-2
    """Adam's step size for the cost's weights"""


@dataclass(frozen=True)
class Task:
    """What a cost is learned from, and tested on."""

    planned: Model
    """the model the planner uses"""
    true: ArmModel
    """the arm that executes the actions"""
    q0: torch.Tensor
    """joints (n,) of the first state, radians"""
    seen: torch.Tensor
    """demonstrations (n_train + n_test, T, D) as the planner's model sees them"""
    demos: torch.Tensor
    """the same, true keypoints (n_train + n_test, T, 6), cm"""
    n_train: int
    """how many of them are for training: the first"""

    def split(self, name: str) -> range:
        return range(self.n_train) if name == "train" else range(self.n_train, len(self.demos))


def irl_loss(z: torch.Tensor, demo: torch.Tensor) -> torch.Tensor:
    """L_IRL of keypoints z (T, D) to a demonstration (T, D), cm^2."""
    return ((z - demo) ** 2).sum(0).mean()


def meta_loss(cost, model: Model, q0, demo: torch.Tensor, config: PlanConfig) -> torch.Tensor:
    """L_IRL of the plan for a demonstration (T, D): differentiable in the cost's weights."""
    actions = plan(cost, model, q0, demo[-1], len(demo), config)
    z, _ = model.rollout(q0, actions, config.detach_state)
    return irl_loss(z, demo)


def feature_loss(cost, model: Model, q0, demo: torch.Tensor, config: PlanConfig) -> torch.Tensor:
    """Cost of the demonstration minus cost of the plan, the plan held fixed."""
    actions = plan(cost, model, q0, demo[-1], len(demo), config).detach()
    z, _ = model.rollout(q0, actions)
    return cost(demo, demo[-1]) - cost(z.detach(), demo[-1])


def execute(cost, task: Task, i: int, config: PlanConfig):
    """True keypoints (T, 6), cm, and joints (T, n) of the plan for demonstration i."""
    demo = task.seen[i]
    actions = plan(cost, task.planned, task.q0, demo[-1], len(demo), config).detach()
    return task.true.rollout(task.q0, actions)


def evaluate(cost, task: Task, split: str, config: PlanConfig) -> dict[str, float]:
    """Means over a split's demonstrations, on true keypoints.

    Returns loss (L_IRL, cm^2), loss_ratio (over that of doing nothing), goal_ratio (distance of the
    last state to the demonstration's last, over that of the first state) and at_limit (the share of
    joint positions within 1e-6 rad of a limit).
    """
    arm = task.true.arm
    limits = torch.tensor((arm.lower, arm.upper))
    rows = []
    for i in task.split(split):
        z, q = execute(cost, task, i, config)
        demo = task.demos[i]
        loss = irl_loss(z, demo).item()
        nothing = irl_loss(demo[:1].expand_as(demo), demo).item()
        goal = (torch.dist(z[-1], demo[-1]) / torch.dist(demo[0], demo[-1])).item()
        at_limit = ((q - limits[:, None]).abs() < 1e-6).any(0).float().mean().item()
        rows.append((loss, loss / nothing, goal, at_limit))
    means = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    return dict(zip(("loss", "loss_ratio", "goal_ratio", "at_limit"), means))


def train_cost(
    cost: torch.nn.Module,
    task: Task,
    method: str,
    config: TrainConfig,
    plan_config: PlanConfig,
    log: Callable[[dict], None] = lambda row: None,
) -> None:
    """Learns the weights of `cost` in place; a row of metrics goes to `log` after each iteration.

    Raises:
        UserError: if the loss is no longer finite.
    """
    log({"updates": 0} | measure(cost, task, plan_config))
    if method == "none":
        return
    loss_of = meta_loss if method == "mbirl" else feature_loss
    optimizer = torch.optim.Adam(cost.parameters(), lr=config.outer_lr)
    for iteration in range(config.iterations):
        for i in task.split("train"):
            loss = loss_of(cost, task.planned, task.q0, task.seen[i], plan_config)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        row = {"updates": (iteration + 1) * task.n_train} | measure(cost, task, plan_config)
        log(row)
        if not math.isfinite(row["train_loss"]):
            raise UserError(
                f"iteration {iteration}: the loss is not finite; expected a smaller step"
            )


def measure(cost, task: Task, config: PlanConfig) -> dict[str, float]:
    """`evaluate` on both splits, keys prefixed by train_ and test_."""
    row = {}
    for split in ("train", "test"):
        row |= {f"{split}_{k}": v for k, v in evaluate(cost, task, split, config).items()}
    return row
