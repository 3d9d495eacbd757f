"""A fresh policy on the reward that a finished run ended with, without its demonstrations:

python -m baselines.frozen results/custom/Hopper-v4/seed42 --env Hopper-v4 --seed 43
"""

import sys
from pathlib import Path

import torch

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


def frozen(run: Path):
    """What stands in for the two classes, and the name of the method."""
    result = read_result(run)

    def reward_net(obs_dim: int, action_dim: int) -> torch.nn.Module:
        _, net = load_run(run)
        expected = (obs_dim, action_dim)
        if result["dims"] != list(expected):
            raise UserError(f"{run}: obs_dim, action_dim are {result['dims']}; expected {expected}")
        return net

    return reward_net, Frozen, f"{result['method']}-frozen"


def run_frozen() -> None:
    if len(sys.argv) < 2:
        raise UserError("python -m baselines.frozen RUN_DIR [flags]: expected a finished run")
    main(*frozen(Path(sys.argv.pop(1))))


if __name__ == "__main__":
    command_line(run_frozen)
