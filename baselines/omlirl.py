"""Offline maximum-likelihood IRL with a conservative world model (Zeng et al. 2023,
arXiv 2302.07457).

    python -m baselines.omlirl --env Hopper-v4

    max_r  E_expert log pi_r(a|s),   pi_r = argmax_pi E_model [sum gamma^t (r - lambda u + H(pi))]

An ensemble of dynamics is fitted to expert and mixed data, once. Then three things alternate: the
actor is rolled out in the ensemble; SAC improves it on r(s, a) - lambda u(s, a), where u is the
ensemble's uncertainty; and r takes a step of E_expert r - E_imagined r, the gradient of the
likelihood, with a gradient penalty. The expert's environment is never stepped.

Deviates from the paper: reward steps on transitions and not on discounted trajectories; a gradient
penalty instead of a bounded output; lambda is adapted. Deviates from CleanIL, too: 50,000 gradient
steps in place of 1M, a fifth of its imagined transitions, rollouts from states of which half are
the expert's, a baseline that makes terminations bad (modelbased.RewardNetwork).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm import tqdm

import custom_irl as irl
from baselines import dynamics
from baselines.modelbased import Learner, ModelBasedConfig
from baselines.modelbased import RewardNetwork as RewardNetwork  # what load_reward rebuilds
from baselines.offpolicy import sac_step


@dataclass(frozen=True)
class Config(ModelBasedConfig):
    uncertainty_target: float = 1.5
    """mean uncertainty that lambda is adapted to, in that of the expert's transitions"""
    lambda_first: float = 1.0
    lambda_rate: float = 0.1
    """of log lambda, for each rollout and relative excess of uncertainty"""
    lambda_range: tuple[float, float] = (0.1, 100.0)


@torch.no_grad()
def expert_uncertainty(learner: Learner, n: int = 4096) -> float:
    """The ensemble's mean uncertainty at the expert's states and actions."""
    obs, acts = learner.expert["obs"][:n], learner.expert["acts"][:n]
    return dynamics.uncertainty(*learner.ensemble(obs, acts)).mean().item()


def adapted_lambda(weight: float, uncertainty: float, target: float, config: Config) -> float:
    """log lambda <- log lambda + rate clip(u / target - 1, -1, 1): more while too uncertain."""
    excess = min(max(uncertainty / target - 1, -1.0), 1.0)
    low, high = config.lambda_range
    return min(max(weight * math.exp(config.lambda_rate * excess), low), high)


def train(
    args: irl.Args,
    demos: irl.Demos,
    config: Config = Config(),  # noqa: B008
    after: Callable = lambda *a: None,
) -> irl.Training:
    training = irl.Training(policy=None)
    with training.timed("dynamics"):
        learner = Learner(args, demos, config)
    target = config.uncertainty_target * expert_uncertainty(learner)
    weight = config.lambda_first
    stats = dict(learner.report)
    print(stats, training.seconds, flush=True)
    with training.timed("training"):
        for step in tqdm(range(config.steps), desc="omlirl", unit="step", disable=None):
            if step % config.rollout_every == 0:
                stats |= learner.imagine()
                weight = adapted_lambda(weight, stats["imagined_uncertainty"], target, config)
            if step % config.reward_every == 0:
                stats |= learner.reward_step()
            batch = learner.batch()
            rewards = learner.rewards(batch) - weight * batch["uncertainty"]
            stats |= sac_step(learner.sac, batch, rewards)
            if (step + 1) % 1000 == 0:
                stats["lambda"] = weight
                training.rows.append(
                    {"steps": 0, "gradient_steps": step + 1, "true_return": "", **stats}
                )
                after(step + 1, training.rows[-1], learner.sac.actor)
    training.policy, training.reward_net = learner.sac.actor, learner.reward_net
    return training
