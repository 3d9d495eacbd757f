"""Implicit behavioural cloning (Florence et al. 2021, arXiv 2109.00137): an energy, then a policy.

    python -m baselines.ibc --env Hopper-v4
    bash run_all.sh --method ibc

A score f(s, a) (minus the energy) ranks the expert's action above k others in the same state
(InfoNCE), and the policy is the soft maximum of the score, pi(a|s) ~ exp(f(s, a) / alpha):

    f:   min  -mean log [ exp f(s, a) / (exp f(s, a) + sum_j exp f(s, a_j)) ] + c GP(f, 10)
    pi:  min  mean alpha log pi(a|s) - f(s, a),  a ~ pi

Offline: no environment steps and no mixed data. As in CleanIL, and unlike the paper, an actor
trained on the score stands in for a search over actions at every step, and one of the k actions is
the actor's; the others are uniform. Deviates from CleanIL: slopes of the score up to 10 are free
(there 1) and alpha is fixed at 0.02 (there learned, from 0.2), since a spread of about 0.1 is too
wide for Hopper; the gradient penalty takes no uniform actions; the policy is a running average of
the actor, which chases a score that moves; the learning rate falls to 0; sizes:

|                       | here            | CleanIL         |
|-----------------------|-----------------|-----------------|
| gradient steps, batch | 30,000 of 128   | 500,000 of 256  |
| networks              | 192-192 ReLU    | 256-256-256 SiLU|
| actions a_j           | 1 + 7           | 1 + 3           |

The score is no reward: it may differ by any function of s, so no reward network is saved.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import custom_irl as irl
from baselines import offpolicy as op
from benchmark.runs import command_line


@dataclass(frozen=True)
class Config:
    hidden: tuple[int, ...] = (192, 192)
    """sizes of the hidden layers of score and actor"""
    lr: float = 3e-4
    """Adam's first learning rate of score and actor"""
    batch_size: int = 128
    """expert transitions in a batch"""
    alpha: float = 0.02
    """temperature of the policy on the score"""
    updates: int = 30_000
    """gradient steps of score and actor"""
    average_tau: float = 0.002
    """Polyak coefficient of the averaged actor, per gradient step: the policy of the run"""
    uniform_negatives: int = 7
    """uniform actions a_j for each expert action, beside one of the actor's"""
    gp_coef: float = 10.0
    """weight of the gradient penalty"""
    gp_target: float = 10.0
    """largest slope of the score that is not penalised"""


class Score(nn.Module):
    """f(s, a): obs (n, obs_dim), acts (n, action_dim) -> (n,); minus the energy of the paper."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: tuple[int, ...]):
        super().__init__()
        self.norm = op.Normalizer(obs_dim)
        self.layers = op.mlp(obs_dim + action_dim, hidden, 1)

    def inputs(self, obs: torch.Tensor, acts: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.norm(obs), acts], -1)

    def head(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).squeeze(-1)

    def forward(self, obs: torch.Tensor, acts: torch.Tensor) -> torch.Tensor:
        return self.head(self.inputs(obs, acts))


def info_nce_loss(scores: torch.Tensor) -> torch.Tensor:
    """-mean log softmax(scores)[0] for scores (n, 1 + k) with the expert's action first."""
    return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))


def score_loss(
    score: Score, batch: op.Batch, actor_acts: torch.Tensor, low, high, config: Config
) -> dict[str, torch.Tensor]:
    """The terms of f's loss on a batch of the expert's and one action of the actor a state."""
    obs, acts = batch["obs"], batch["acts"]
    n, k = len(obs), config.uniform_negatives
    uniform = low + (high - low) * torch.rand(n, k, acts.shape[1])
    candidates = torch.cat([acts[:, None], actor_acts[:, None], uniform], 1)
    states = obs[:, None].expand(-1, k + 2, -1)
    penalty = op.gradient_penalty(
        score.head, score.inputs(obs, acts), score.inputs(obs, actor_acts), config.gp_target
    )
    return {"info_nce": info_nce_loss(score(states, candidates)), "penalty": penalty}


def train(config: Config, task: op.Task) -> irl.Training:
    low, high = (torch.as_tensor(x) for x in task.action_range)
    score = Score(*task.dims, config.hidden)
    actor = op.TanhGaussianActor(*task.dims, config.hidden, low, high)
    for net in (score, actor):
        net.norm.fit(task.expert["obs"])
    score_optimizer = op.adam(score.parameters(), config.lr)
    actor_optimizer = op.adam(actor.parameters(), config.lr)
    averaged = copy.deepcopy(actor)
    log = op.Log(online=False, total=config.updates)
    for step in op.progress(config.updates, f"ibc {task.args.env}", "update"):
        for optimizer in (score_optimizer, actor_optimizer):
            irl.anneal(optimizer, config.lr, step - 1, config.updates)
        batch = op.sample(task.expert, config.batch_size)
        acts, logprob = actor.sample(batch["obs"])
        terms = score_loss(score, batch, acts.detach(), low, high, config)
        op.gradient_step(score_optimizer, terms["info_nce"] + config.gp_coef * terms["penalty"])
        loss = op.actor_loss(score(batch["obs"], acts)[None], logprob, config.alpha)
        op.gradient_step(actor_optimizer, loss)
        op.polyak_update(averaged, actor, config.average_tau)
        report = {name: term.item() for name, term in terms.items()}
        report |= {"actor_loss": loss.item(), "entropy": -logprob.mean().item()}
        if step % op.LOG_EVERY == 0:
            with torch.no_grad():
                error = averaged.mode(task.expert["obs"]) - task.expert["acts"]
            report["action_error"] = error.square().mean().item()
        log.add(step, report)
    averaged.fit_evaluation_noise(task.expert["obs"])
    return irl.Training(averaged, rows=log.rows)


def main() -> None:
    config, args = op.parse(Config, __doc__)
    op.run(train, config, args, "ibc")


if __name__ == "__main__":
    command_line(main)
