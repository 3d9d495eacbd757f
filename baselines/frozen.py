"""A new policy on the reward that a finished run ended with, without its demonstrations.

python -m baselines.frozen results/custom/Hopper-v4/seed42 --env Hopper-v4 --seed 43
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn

from benchmark.load import load_run
from benchmark.runs import command_line, read_result
from custom_irl import UserError, main


class Frozen:
    """A reward network that does not learn."""

    needs_demos = False

    def __init__(self, reward_net, expert_demos, obs_dim, action_dim, device, args):
        self.reward_net = reward_net

    def compute_reward(self, obs, acts, next_obs):
        with torch.no_grad():
            return self.reward_net(obs, acts, next_obs)

    def update(self, policy_obs, policy_acts, policy_next_obs, policy_dones):
        return {}


def frozen(run: Path) -> tuple[Callable[[int, int], nn.Module], type[Frozen], str]:
    """What stands in for the two classes of a method, and the method's name.

    Raises:
        UserError: if `run` is no finished run, or one without a reward network.
    """
    result = read_result(run)
    _, net = load_run(run)
    if net is None:
        raise UserError(f"{run}: its method learns no reward")

    def reward_net(obs_dim: int, action_dim: int) -> nn.Module:
        if result["dims"] != [obs_dim, action_dim]:
            expected = [obs_dim, action_dim]
            raise UserError(f"{run}: obs_dim, action_dim are {result['dims']}; expected {expected}")
        return net

    reward_net.__module__ = type(net).__module__  # whose file is part of the run's identity
    return reward_net, Frozen, result["method"].removesuffix("-frozen") + "-frozen"


def run_frozen() -> None:
    if len(sys.argv) < 2:
        raise UserError("RUN_DIR: expected the folder of a finished run")
    main(*frozen(Path(sys.argv.pop(1))))


if __name__ == "__main__":
    command_line(run_frozen)
