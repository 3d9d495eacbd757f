"""A new policy on the reward that a finished run ended with, without its demonstrations.

python -m baselines.frozen results/custom/Hopper-v4/seed42 --env Hopper-v4 --seed 43
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn

from benchmark.load import load_run
from benchmark.runs import OF_A_REWARD, command_line, read_result
from custom_irl import Args, UserError, config_of, parse_args, print_result, run


class Frozen:
    """A reward network that does not learn."""

    needs_demos = False

    def __init__(self, reward_net, expert_demos, obs_dim, action_dim, device, args):
        self.reward_net = reward_net
        self.hyperparameters = getattr(reward_net, "hyperparameters", {})

    def set_policy(self, policy, optimizer):
        """Unused. It is here since --no-policy-access, which the loop refuses for a method without,
        says which variant learned the reward.
        """

    def compute_reward(self, obs, acts, next_obs):
        with torch.no_grad():
            return self.reward_net(obs, acts, next_obs)

    def update(self, policy_obs, policy_acts, policy_next_obs, policy_dones):
        return {}


def frozen(folder: Path, args: Args) -> tuple[Callable[[int, int], nn.Module], type[Frozen], str]:
    """What stands in for the two classes of a method, and the method's name. `args`: of the run
    that is to learn from the reward.

    Raises:
        UserError: if `folder` holds no finished run, or one without a reward network, or one that
            `args` do not fit.
    """
    result = read_result(folder)
    _, net = load_run(folder)
    if net is None:
        raise UserError(f"{folder}: its method learns no reward")
    check_fits(folder, result, args)

    def reward_net(obs_dim: int, action_dim: int) -> nn.Module:
        return net

    reward_net.__module__ = type(net).__module__  # whose file is part of the run's identity
    return reward_net, Frozen, result["method"].removesuffix("-frozen") + "-frozen"


def check_fits(folder: Path, result: dict, args: Args) -> None:
    """UserError unless environment and demonstrations are those that the reward was learned with:
    a run is labelled by its own flags, as if they were the reward's.
    """
    if args.env != result["env"]:
        problem = f"its reward was learned in {result['env']}"
        raise UserError(f"{folder}: {problem}; expected --env {result['env']}")
    given = config_of(args)
    for flag in OF_A_REWARD:
        key = flag.strip("-").replace("-", "_")
        here, there = given[key], result["config"].get(key, given[key])
        if key == "demos" and here and there:  # by name: the file need not be here any more
            here, there = Path(here).name, Path(there).name
        if here != there:
            problem = f"its reward was learned with {key} {there}, here it is {here}"
            raise UserError(f"{folder}: {problem}; expected the same {flag}")


def main() -> None:
    if len(sys.argv) < 2:
        raise UserError("RUN_DIR: expected the folder of a finished run")
    args = parse_args(sys.argv[2:])
    reward_net, algorithm_cls, method = frozen(Path(sys.argv[1]), args)
    print_result(run(reward_net, algorithm_cls, args, method))


if __name__ == "__main__":
    command_line(main)
