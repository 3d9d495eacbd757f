"""Costs of a keypoint trajectory, linear in learned weights (Das et al. 2020, arXiv 2010.09034).

With e[t, d] = (z[t, d] - goal[d])^2, cm^2, every cost maps z (T, D) and goal (D,) to a scalar:

    default    mean_t sum_d 0.1 e[t, d]                        nothing is learned
    weighted   mean_t sum_d w[d] e[t, d]                       D weights, initially 0.1
    timedep    mean_td w[t, d] e[t, d]                         T x D weights, initially 0.01
    rbf        mean_d sum_t (K^T theta)[t, d] e[t, d]          5 x D weights, initially 0.01
               K[c, t] = exp(-(centre_c - t)^2 / 2), centres 0, 2, 4, 6, 9 at T = 10

    cost = make_cost("rbf", horizon=10, dim=6)
"""

import torch
import torch.nn as nn

RBF_CENTRES = (0.0, 2 / 9, 4 / 9, 6 / 9, 1.0)  # fractions of the last time step


class Cost(nn.Module):
    """mean over t of sum over d of w[d] e[t, d]; the weights (D,) are learned unless `fixed`."""

    def __init__(self, horizon: int, dim: int, fixed: bool = False):
        super().__init__()
        self.weights = nn.Parameter(torch.full((dim,), 0.1), requires_grad=not fixed)

    def forward(self, z: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return ((z - goal) ** 2 @ self.weights).mean()


class TimeDependentCost(nn.Module):
    """mean over t and d of w[t, d] e[t, d], with learned weights (T, D)."""

    def __init__(self, horizon: int, dim: int):
        super().__init__()
        self.weights = nn.Parameter(torch.full((horizon, dim), 0.01))

    def forward(self, z: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return (self.weights * (z - goal) ** 2).mean()


class RBFCost(nn.Module):
    """mean over d of sum over t of (K^T theta)[t, d] e[t, d], with learned theta (5, D)."""

    def __init__(self, horizon: int, dim: int):
        super().__init__()
        self.weights = nn.Parameter(torch.full((len(RBF_CENTRES), dim), 0.01))
        centres = (horizon - 1) * torch.tensor(RBF_CENTRES)
        distance = centres[:, None] - torch.arange(horizon)
        self.register_buffer("kernel", torch.exp(-(distance**2) / 2))

    def forward(self, z: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        weights = self.kernel.T @ self.weights
        return (weights * (z - goal) ** 2).sum(0).mean()


LEARNED = {"weighted": Cost, "timedep": TimeDependentCost, "rbf": RBFCost}


def make_cost(name: str, horizon: int, dim: int) -> nn.Module:
    """The cost of that name for trajectories (horizon, dim)."""
    if name == "default":
        return Cost(horizon, dim, fixed=True)
    return LEARNED[name](horizon, dim)
