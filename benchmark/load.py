"""A finished run's policy and reward, for use elsewhere.

    from benchmark.load import LearnedReward, load_reward
    reward = load_reward("results/custom/Hopper-v4/seed1")  # reward(obs, acts, next_obs) -> (n,)
    env = LearnedReward(gymnasium.make("Hopper-v4"), reward)

Runs with the newest Gymnasium and MuJoCo as well; imitation is imported by `imitation_reward`
alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn

import custom_irl as irl
from benchmark import runs

Reward = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Act = Callable[[np.ndarray], np.ndarray]


def load_run(
    folder: Path | str, reward_cls: type | None = None
) -> tuple[nn.Module, nn.Module | None]:
    """The final policy and the learned reward network of a finished run.

    `reward_cls`: the class of the network; by default the one that runs.py names. The network is
    None for a method without one.

    Raises:
        UserError: naming the file that is missing or does not fit.
    """
    folder = Path(folder)
    result = runs.read_result(folder)
    policy = load_policy(folder)
    if not (folder / "reward_net.pt").is_file() and reward_cls is None:
        return policy, None
    if reward_cls is None:
        name = result["method"].removesuffix("-frozen")
        reward_cls, _ = runs.method_named(name).classes()
    reward_net = reward_cls(*result["dims"])
    load_weights(reward_net, folder / "reward_net.pt")
    restore_hyperparameters(reward_net, folder / "result.json", result.get("hyperparameters", {}))
    return policy, reward_net


def restore_hyperparameters(net: nn.Module, path: Path, saved: dict) -> None:
    """Gives a network that reads a dataclass `hyperparameters` those of its run, in place of its
    class's present ones. `saved`: what the run's result.json, at `path`, says.
    """
    present = getattr(net, "hyperparameters", None)
    if not is_dataclass(present):
        return
    changes = {}
    for name, value in asdict(present).items():
        found = saved.get(name, value)
        found = tuple(found) if isinstance(found, list) else found
        if not isinstance(found, (int, float) if isinstance(value, float) else type(value)):
            problem = f"hyperparameter '{name}' is {found!r}"
            raise irl.UserError(f"{path}: {problem}; expected {type(value).__name__}")
        changes[name] = found
    net.hyperparameters = replace(present, **changes)


def load_policy(folder: Path | str) -> nn.Module:
    """The final policy of a finished run, of a method of one's own too.

    Raises:
        UserError: naming the file that is missing or does not fit, or whose policy is of imitation
            or stable-baselines3.
    """
    result = runs.read_result(Path(folder))
    if result["method"].startswith(runs.OTHER_LIBRARIES):
        problem = f"a policy of another library ({result['method']}), which cannot be loaded"
        raise irl.UserError(f"{Path(folder) / 'policy.pt'}: {problem}")
    trainer = runs.TRAINERS.get(result["method"])
    policy = trainer.make_policy(result) if trainer else irl.Policy(*result["dims"])
    load_weights(policy, Path(folder) / "policy.pt")
    return policy


def load_weights(net: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise irl.UserError(f"{path}: no such file; expected the folder of a finished run")
    try:
        net.load_state_dict(torch.load(path, weights_only=True))
    except Exception as error:  # damaged, or of another class: torch raises errors of many kinds
        name = type(net).__name__
        reason = str(error).splitlines()[0]
        raise irl.UserError(
            f"{path}: does not fit {name}; expected its weights ({reason})"
        ) from None


def policy_action(policy: nn.Module, space: gym.spaces.Box) -> Act:
    """The deterministic action of one observation, clipped to the action space."""

    def act(obs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            mean = policy.actor_mean(torch.as_tensor(obs, dtype=torch.float32))
        return mean.numpy().clip(space.low, space.high)

    return act


def as_function(net: Callable[..., torch.Tensor]) -> Reward:
    """A network as a function of arrays obs (n, obs_dim), acts (n, action_dim), next_obs (n,
    obs_dim).

    It returns rewards (n,), float64.
    """

    def reward(obs: np.ndarray, acts: np.ndarray, next_obs: np.ndarray) -> np.ndarray:
        tensors = (torch.as_tensor(x, dtype=torch.float32) for x in (obs, acts, next_obs))
        with torch.no_grad():  # in batches whose hidden layers stay in the processor's cache
            batches = zip(*(x.split(4096) for x in tensors))
            return torch.cat([net(*batch) for batch in batches]).numpy().astype(float)

    return reward


def load_reward(folder: Path | str, reward_cls: type | None = None) -> Reward:
    """The reward that a finished run ended with, as `as_function` gives it."""
    _, net = load_run(folder, reward_cls)
    if net is None:
        raise irl.UserError(f"{folder}: its method learns no reward")
    return as_function(net)


class LearnedReward(gym.Wrapper):
    """Pays a Reward for every step; the environment's own is info["true_reward"]."""

    def __init__(self, env: gym.Env, reward: Reward):
        super().__init__(env)
        self.reward = reward

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        self.obs = np.array(obs)  # a copy: an environment may reuse its buffer
        return obs, info

    def step(self, action):
        next_obs, true_reward, terminated, truncated, info = self.env.step(action)
        transition = (self.obs[None], np.asarray(action)[None], np.asarray(next_obs)[None])
        reward = float(self.reward(*transition)[0])
        self.obs = np.array(next_obs)
        return next_obs, reward, terminated, truncated, {**info, "true_reward": true_reward}


def imitation_reward(observation_space, action_space, net: nn.Module):
    """A reward network as imitation's RewardNet, for its trainers and wrappers."""
    from imitation.rewards.reward_nets import RewardNet

    class ImitationReward(RewardNet):
        def __init__(self):
            super().__init__(observation_space, action_space)
            self.net = net

        def forward(self, state, action, next_state, done):
            return self.net(state, action, next_state)

    return ImitationReward()
