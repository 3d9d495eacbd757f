"""A probabilistic ensemble of dynamics, what ends an episode in it, and imagined rollouts.

    ensemble, report = fit_ensemble(obs, acts, next_obs, DynamicsConfig(), seed=1)
    rows, uncertainty = imagine(ensemble, actor, starts, n_steps=40, terminates=termination(env_id))

Each member k of the ensemble (PETS, arXiv 1805.12114) is a network of a diagonal Gaussian

    p_k(s' - s | s, a) = N(mu_k(s, a), diag exp l_k(s, a)),   l_k softly bounded by learned bounds

on normalised inputs and outputs. All members are one batched product (`torch.bmm`) a layer. Members
are fitted to bootstrapped rows until a holdout does not improve; those with the lowest error on it
are kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from tqdm import tqdm

from custom_irl import UserError

Terminates = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class DynamicsConfig:
    members: int = 7
    """networks that are fitted"""
    elites: int = 5
    """networks that are kept: those with the lowest error on the holdout"""
    hidden: int = 200
    """units of each of the three hidden layers"""
    learning_rate: float = 1e-3
    """of Adam, annealed linearly to 0 over `max_steps`"""
    weight_decay: float = 1e-5
    batch_size: int = 256
    """rows of each member in a gradient step"""
    max_steps: int = 8000
    """gradient steps, at most"""
    eval_every: int = 250
    """gradient steps between two evaluations on the holdout"""
    patience: int = 5
    """evaluations without an improvement of 1 % in any member, after which fitting stops"""
    holdout: float = 0.05
    """share of the rows that is held out, of `max_holdout` rows at most"""
    max_holdout: int = 2000
    bound_weight: float = 0.01
    """of the distance between the bounds of the log variance in the loss"""


# ---------------------------------------------------------------------------------------- ensemble
class Ensemble(nn.Module):
    """K Gaussian networks; its inputs and outputs are in the environment's units."""

    def __init__(self, obs_dim: int, action_dim: int, config: DynamicsConfig):
        super().__init__()
        sizes = [obs_dim + action_dim, *3 * [config.hidden], 2 * obs_dim]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for n_in, n_out in pairwise(sizes):
            weight = torch.empty(config.members, n_in, n_out)
            nn.init.trunc_normal_(weight, std=1 / (2 * n_in**0.5))
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(config.members, 1, n_out)))
        self.max_logvar = nn.Parameter(torch.full((obs_dim,), 0.5))
        self.min_logvar = nn.Parameter(torch.full((obs_dim,), -10.0))
        self.register_buffer("input_mean", torch.zeros(obs_dim + action_dim))
        self.register_buffer("input_std", torch.ones(obs_dim + action_dim))
        self.register_buffer("delta_mean", torch.zeros(obs_dim))
        self.register_buffer("delta_std", torch.ones(obs_dim))

    def normalize_by(
        self, obs: torch.Tensor, acts: torch.Tensor, next_obs: torch.Tensor, min_std: float = 1e-6
    ) -> None:
        """Takes means and standard deviations from these rows."""
        inputs = torch.cat([obs, acts], -1)
        delta = next_obs - obs
        self.input_mean.copy_(inputs.mean(0))
        self.input_std.copy_(inputs.std(0).clamp_min(min_std))
        self.delta_mean.copy_(delta.mean(0))
        self.delta_std.copy_(delta.std(0).clamp_min(min_std))

    def normalized_delta(self, obs: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
        return (next_obs - obs - self.delta_mean) / self.delta_std

    def forward(self, obs: torch.Tensor, acts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance (K, n, obs_dim) of the normalised s' - s.

        obs is (n, obs_dim), the same for all members, or (K, n, obs_dim); acts likewise.
        """
        x = (torch.cat([obs, acts], -1) - self.input_mean) / self.input_std
        if x.dim() == 2:
            x = x.expand(len(self.weights[0]), *x.shape)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1]):
            x = F.silu(torch.baddbmm(bias, x, weight))
        mean, logvar = torch.baddbmm(self.biases[-1], x, self.weights[-1]).chunk(2, -1)
        logvar = self.max_logvar - F.softplus(self.max_logvar - logvar)
        logvar = self.min_logvar + F.softplus(logvar - self.min_logvar)
        return mean, logvar

    def keep(self, members: torch.Tensor) -> None:
        """Drops all other members."""
        for parameter in (*self.weights, *self.biases):
            parameter.data = parameter.data[members].clone()
            parameter.grad = None

    @torch.no_grad()
    def sample(self, obs: torch.Tensor, acts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """s' (n, obs_dim), each of a member drawn at random, and the uncertainty (n,) of it."""
        mean, logvar = self(obs, acts)
        member = torch.randint(len(mean), (len(obs),))
        row = torch.arange(len(obs))
        drawn_mean, drawn_std = mean[member, row], (0.5 * logvar[member, row]).exp()
        delta = drawn_mean + drawn_std * torch.randn_like(drawn_mean)
        return obs + self.delta_mean + self.delta_std * delta, uncertainty(mean, logvar)

    def log_prob(
        self, obs: torch.Tensor, acts: torch.Tensor, next_obs: torch.Tensor
    ) -> torch.Tensor:
        """log (1/K) sum_k p_k(s' | s, a)  (n,), of the normalised s' - s."""
        mean, logvar = self(obs, acts)
        target = self.normalized_delta(obs, next_obs)
        constant = 0.5 * target.shape[-1] * torch.log(torch.tensor(2 * torch.pi))
        members = -gaussian_nll(mean, logvar, target).sum(-1) - constant
        return torch.logsumexp(members, 0) - torch.log(torch.tensor(float(len(mean))))


def gaussian_nll(mean: torch.Tensor, logvar: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1/2 [(y - mu)^2 exp(-l) + l], each coordinate's, without the constant 1/2 log 2 pi."""
    return 0.5 * ((target - mean) ** 2 * (-logvar).exp() + logvar)


def ensemble_nll(
    ensemble: Ensemble, obs: torch.Tensor, acts: torch.Tensor, next_obs: torch.Tensor
) -> torch.Tensor:
    """mean_n sum_d NLL_knd  (K,), of rows (K, n, ...) or (n, ...)."""
    mean, logvar = ensemble(obs, acts)
    target = ensemble.normalized_delta(obs, next_obs)
    return gaussian_nll(mean, logvar, target).sum(-1).mean(-1)


def bound_width(ensemble: Ensemble) -> torch.Tensor:
    """sum_d (max l_d - min l_d): its weight in the loss draws the bounds together."""
    return (ensemble.max_logvar - ensemble.min_logvar).sum()


def uncertainty(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """mean_d sqrt(mean_k var_kd + var_k mu_kd)  (n,): the mixture's standard deviation.

    In standard deviations of s' - s, so that all coordinates count alike.
    """
    return (logvar.exp().mean(0) + mean.var(0, unbiased=False)).sqrt().mean(-1)


# --------------------------------------------------------------------------------------------- fit
def fit_ensemble(
    obs: torch.Tensor, acts: torch.Tensor, next_obs: torch.Tensor, config: DynamicsConfig, seed: int
) -> tuple[Ensemble, dict[str, float]]:
    """An ensemble of `config.elites` members, and the steps and errors of its fit."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(obs), generator=generator)
    n_held = max(1, min(int(config.holdout * len(obs)), config.max_holdout))
    held = [x[order[:n_held]] for x in (obs, acts, next_obs)]
    rows = [x[order[n_held:]] for x in (obs, acts, next_obs)]
    ensemble = Ensemble(obs.shape[1], acts.shape[1], config)
    ensemble.normalize_by(*rows)
    steps, errors = descend(ensemble, rows, held, config, generator)
    elites = errors.argsort()[: config.elites]
    ensemble.keep(elites)
    report = {"dynamics_steps": steps, "dynamics_holdout_mse": errors[elites].mean().item()}
    return ensemble, report


def descend(
    ensemble: Ensemble,
    rows: list[torch.Tensor],
    held: list[torch.Tensor],
    config: DynamicsConfig,
    generator: torch.Generator,
) -> tuple[int, torch.Tensor]:
    """Fits all members and leaves each as it was at its best; returns the steps and the squared
    errors (K,) on the holdout."""
    optimizer = optim.Adam(
        ensemble.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    n_rows, members = len(rows[0]), config.members
    bootstrap = torch.randint(n_rows, (members, n_rows), generator=generator)
    best_errors = torch.full((members,), torch.inf)
    best_weights = copy.deepcopy(ensemble.state_dict())
    waited = 0
    for step in tqdm(range(1, config.max_steps + 1), desc="dynamics", unit="step", disable=None):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - (step - 1) / config.max_steps)
        columns = torch.randint(n_rows, (members, config.batch_size), generator=generator)
        picked = bootstrap.gather(1, columns)
        nll = ensemble_nll(ensemble, *(x[picked] for x in rows)).sum()
        loss = nll + config.bound_weight * bound_width(ensemble)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % config.eval_every == 0 or step == config.max_steps:
            errors = holdout_errors(ensemble, held)
            better = errors < 0.99 * best_errors
            remember(ensemble, best_weights, errors < best_errors)
            best_errors = torch.minimum(errors, best_errors)
            waited = 0 if better.any() else waited + 1
            if waited == config.patience:
                break
    ensemble.load_state_dict(best_weights)
    return step, best_errors


def remember(ensemble: Ensemble, weights: dict[str, torch.Tensor], members: torch.Tensor) -> None:
    """Copies those members' present layers into `weights`; what they share is always copied."""
    for name, value in ensemble.state_dict().items():
        if name.startswith(("weights", "biases")):
            weights[name][members] = value[members]
        else:
            weights[name].copy_(value)


@torch.no_grad()
def holdout_errors(ensemble: Ensemble, held: list[torch.Tensor]) -> torch.Tensor:
    """Mean squared errors (K,) of the normalised s' - s."""
    obs, acts, next_obs = held
    mean, _ = ensemble(obs, acts)
    return ((mean - ensemble.normalized_delta(obs, next_obs)) ** 2).mean((1, 2))


# ------------------------------------------------------------------------------------ terminations
def hopper_terminates(obs: torch.Tensor) -> torch.Tensor:
    """As Hopper-v4 does: z <= 0.7 or |angle| >= 0.2.

    Its third condition, a velocity beyond 100, no observation shows: they are clipped to 10.
    """
    z, angle = obs[..., 0], obs[..., 1]
    return (z <= 0.7) | (angle.abs() >= 0.2)


def walker2d_terminates(obs: torch.Tensor) -> torch.Tensor:
    """As Walker2d-v4 does: z outside (0.8, 2) or |angle| >= 1."""
    z, angle = obs[..., 0], obs[..., 1]
    return (z <= 0.8) | (z >= 2.0) | (angle.abs() >= 1.0)


def never_terminates(obs: torch.Tensor) -> torch.Tensor:
    return torch.zeros(obs.shape[:-1], dtype=torch.bool)


# Known to the methods that imagine, and to no other: part of what they are given.
TERMINATIONS: dict[str, Terminates] = {
    "HalfCheetah-v4": never_terminates,
    "Hopper-v4": hopper_terminates,
    "Walker2d-v4": walker2d_terminates,
}


def termination(env_id: str) -> Terminates:
    """What ends an episode, of s' (..., obs_dim); UserError where it is not known."""
    if env_id not in TERMINATIONS:
        known = ", ".join(TERMINATIONS)
        raise UserError(f"--env {env_id}: what ends its episodes is not known; expected {known}")
    return TERMINATIONS[env_id]


# ----------------------------------------------------------------------------------------- rollouts
@torch.no_grad()
def imagine(
    ensemble: Ensemble,
    act: Callable[[torch.Tensor], torch.Tensor],
    starts: torch.Tensor,
    n_steps: int,
    terminates: Terminates,
    bound: tuple[torch.Tensor, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Rollouts of `act` from `starts` (n, obs_dim): at most `n_steps`, until what is imagined ends.

    Returns the transitions as rows obs, acts, next_obs, terminated (0 or 1, of s'), and the
    uncertainty of each. A rollout that is cut after `n_steps` is not terminated: its last s' is
    bootstrapped from. s' is clamped to `bound`, the lowest and the highest of the data.
    """
    obs = starts
    rows = {key: [] for key in ("obs", "acts", "next_obs", "terminated", "uncertainty")}
    for _ in range(n_steps):
        acts = act(obs)
        next_obs, unsure = ensemble.sample(obs, acts)
        next_obs = next_obs.clamp(*bound)
        ended = terminates(next_obs)
        for key, value in zip(rows, (obs, acts, next_obs, ended.float(), unsure)):
            rows[key].append(value)
        obs = next_obs[~ended]
        if not len(obs):
            break
    columns = {key: torch.cat(parts) for key, parts in rows.items()}
    return columns, columns.pop("uncertainty")
