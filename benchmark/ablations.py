"""What each part of the method is worth: the method without it, and each part alone.

    bash run_all.sh --method ablation-no-value --envs Hopper-v4 --seeds 1 2 3 --update-epochs 1
    python -m benchmark.ablations --publish    # results/ into data/ablations.csv, figure, METHOD.md
    python -m benchmark.ablations --blocks     # METHOD.md's table anew from data/ablations.csv

With policy access PPO is paid 0 and its gradient is exactly 0, so that one epoch does what ten do
(--update-epochs 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import pandas as pd
import torch
import torch.nn as nn
import tyro

import custom_irl as irl
from benchmark import runs, tables
from custom_irl import IRLAlgorithm, PolicyImprovement, RewardNetwork  # noqa: F401 (method_named)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DEFAULTS = IRLAlgorithm.hyperparameters
NO_LAMBDA_RETURNS = {"td_lambda": 0.0}
NO_GRADIENT_PENALTY = {"gradient_penalty": 0.0}
NO_BC_TERM = {"bc_coef": 0.0}
NO_BC = {"bc_steps": 0, **NO_BC_TERM}


# ------------------------------------------------------------------------------ policy improvement
class UngatedQ(PolicyImprovement):
    """Q moves the actor where the BC actors agree, too."""

    def q_weight(self, disagreement):
        return torch.ones_like(disagreement)


class ConstantValue(PolicyImprovement):
    """The value of every next state is the constant potential of the final reward."""

    def target_value(self, obs):
        terminal_cost = self.reward_net.hyperparameters.terminal_cost
        return torch.full((len(obs),), terminal_cost, device=obs.device)


class ConstantValueUngatedQ(ConstantValue, UngatedQ):
    pass


class UnitBCScale(PolicyImprovement):
    """However good the BC actor is, the actor is held to it equally and learns equally fast."""

    def estimate_bc_scale(self):
        return 1.0


class NotAveraged(PolicyImprovement):
    """The policy is the actor itself, not its average."""

    def prepare_rollout_policy(self, round_):
        super().prepare_rollout_policy(round_)
        if round_ > self.hp.bc_rounds + self.hp.bc_eval_rounds:
            irl.polyak_update(self.policy.actor_mean, self.actor, tau=1.0)


# --------------------------------------------------------------------------------------- ablations
class Full(IRLAlgorithm):
    """Nothing is left out."""


class NoTermination(IRLAlgorithm):
    """p is 0 everywhere: a termination only ends the sum of rewards."""

    def __init__(self, reward_net, *rest):
        super().__init__(reward_net, *rest)
        nn.init.zeros_(reward_net.termination_net[-1].weight)
        nn.init.constant_(reward_net.termination_net[-1].bias, -20.0)

    def termination_step(self):
        return {}


class NoValue(IRLAlgorithm):
    """Q is the reward of one step plus the constant potential of a state that is not terminal."""

    hyperparameters = replace(DEFAULTS, **NO_LAMBDA_RETURNS)
    policy_improvement_cls = ConstantValue


class OneStep(IRLAlgorithm):
    """Q is fitted to one-step targets alone."""

    hyperparameters = replace(DEFAULTS, **NO_LAMBDA_RETURNS)


class NoGradientPenalty(IRLAlgorithm):
    hyperparameters = replace(DEFAULTS, **NO_GRADIENT_PENALTY)


class NoBC(IRLAlgorithm):
    """The actor starts from 0. Both BC actors are untrained: their outputs are 0 and agree."""

    hyperparameters = replace(DEFAULTS, **NO_BC)
    policy_improvement_cls = UngatedQ


class NoBCTerm(IRLAlgorithm):
    """The actor starts as the BC actor and climbs Q everywhere, without any other term."""

    hyperparameters = replace(DEFAULTS, **NO_BC_TERM)
    policy_improvement_cls = UngatedQ


class FixedBCScale(IRLAlgorithm):
    policy_improvement_cls = UnitBCScale


class Ungated(IRLAlgorithm):
    policy_improvement_cls = UngatedQ


class NoUncertaintyPenalty(IRLAlgorithm):
    hyperparameters = replace(DEFAULTS, uncertainty_penalty=0.0)


class UniformRows(IRLAlgorithm):
    """The actor's batches are drawn uniformly: the floor outweighs any disagreement."""

    hyperparameters = replace(DEFAULTS, sampling_floor=1e9)


class NoAverage(IRLAlgorithm):
    policy_improvement_cls = NotAveraged


class OnlyTermination(IRLAlgorithm):
    """From scratch on a critic without penalty and a constant potential that terminations cost."""

    hyperparameters = replace(DEFAULTS, **NO_LAMBDA_RETURNS, **NO_GRADIENT_PENALTY, **NO_BC)
    policy_improvement_cls = ConstantValueUngatedQ


class OnlyValue(NoTermination):
    """From scratch on a critic without penalty; Q takes no end for a termination."""

    hyperparameters = replace(DEFAULTS, **NO_GRADIENT_PENALTY, **NO_BC)
    policy_improvement_cls = UngatedQ


class OnlyGradientPenalty(NoTermination):
    """From scratch on the critic's score of single steps."""

    hyperparameters = replace(DEFAULTS, **NO_LAMBDA_RETURNS, **NO_BC)
    policy_improvement_cls = ConstantValueUngatedQ


class OnlyBC(IRLAlgorithm):
    """The BC actor is never moved."""

    hyperparameters = replace(DEFAULTS, actor_steps_per_refresh=0)


ABLATIONS = {
    "full": Full,
    "no-termination": NoTermination,
    "no-value": NoValue,
    "one-step": OneStep,
    "no-gradient-penalty": NoGradientPenalty,
    "no-bc": NoBC,
    "no-bc-term": NoBCTerm,
    "fixed-bc-scale": FixedBCScale,
    "ungated-q": Ungated,
    "no-uncertainty-penalty": NoUncertaintyPenalty,
    "uniform-rows": UniformRows,
    "no-average": NoAverage,
    "only-termination": OnlyTermination,
    "only-value": OnlyValue,
    "only-gradient-penalty": OnlyGradientPenalty,
    "only-bc": OnlyBC,
}
