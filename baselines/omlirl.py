"""Offline maximum-likelihood IRL with a conservative world model (Zeng et al. 2023,
arXiv 2302.07457).

    python -m baselines.omlirl --env Hopper-v4

    max_r  E_expert log pi_r(a|s),   pi_r = argmax_pi E_model [sum gamma^t (r - lambda u + H(pi))]

An ensemble of dynamics is fitted to expert and mixed data, once. Then three things alternate: the
actor is rolled out in the ensemble; SAC improves it on r(s, a) - lambda u(s, a), where u is the
ensemble's uncertainty; and r takes a step of E_expert r - E_imagined r, the gradient of the
likelihood, with a gradient penalty. The expert's environment is never stepped.

Deviates from the paper: reward steps on transitions and not on discounted trajectories; a gradient
penalty instead of a bounded output; lambda is adapted. From CleanIL, too: 15,000 gradient steps in
place of 1M (sizes: modelbased.py); the actor starts as a BC clone and its loss holds the expert's
likelihood (modelbased.anchored_loss; --bc-weight 0 --bc-steps 0 is without both); ends
cost (modelbased.RewardNetwork); the reward sees rollouts from the expert's states alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

import custom_irl as irl
from baselines.dynamics import Ensemble, uncertainty
from baselines.modelbased import Learner, ModelBasedConfig
from baselines.modelbased import RewardNetwork as RewardNetwork  # what load_reward rebuilds
from baselines.offpolicy import Log, Task, parse, progress, run
from benchmark.runs import command_line


@dataclass(frozen=True)
class Config(ModelBasedConfig):
    uncertainty_target: float = 2.0
    """mean uncertainty that lambda is adapted to, in that of the expert's transitions"""
    lambda_first: float = 1.0
    lambda_rate: float = 0.1
    """of log lambda, for each rollout and relative excess of uncertainty"""
    lambda_range: tuple[float, float] = (0.1, 100.0)


@torch.no_grad()
def expert_uncertainty(learner: Learner, n: int = 4096) -> float:
    """The ensemble's mean uncertainty at the expert's states and actions."""
    obs, acts = learner.expert["obs"][:n], learner.expert["acts"][:n]
    return uncertainty(*learner.ensemble(obs, acts)).mean().item()


def adapted_lambda(weight: float, observed: float, target: float, config: Config) -> float:
    """log lambda <- log lambda + rate clip(u / target - 1, -1, 1): more while too uncertain."""
    excess = min(max(observed / target - 1, -1.0), 1.0)
    low, high = config.lambda_range
    return min(max(weight * math.exp(config.lambda_rate * excess), low), high)


def train(config: Config, task: Task) -> irl.Training:
    learner = Learner(config, task)
    target = config.uncertainty_target * expert_uncertainty(learner)
    weight = config.lambda_first
    log = Log(online=False, total=config.steps)
    for step in progress(config.steps, f"omlirl {task.args.env}", "step"):
        report = {}
        if (step - 1) % config.rollout_every == 0:
            report |= learner.imagine()
            weight = adapted_lambda(weight, report["matched_uncertainty"], target, config)
            report |= {"lambda": weight, **learner.fit_report}
        if step % config.reward_every == 0:
            report |= learner.reward_step()
        batch = learner.batch()
        rewards = learner.rewards(batch) - weight * batch["uncertainty"]
        report |= learner.policy_step(step, batch, rewards)
        log.add(step, report)
    return learner.training(log.rows)


def main() -> None:
    config, args = parse(Config, __doc__)
    run(train, config, args, "omlirl", uses_mixed=True, parts=(Learner, Ensemble))


if __name__ == "__main__":
    command_line(main)
