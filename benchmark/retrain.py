"""Other learners for rewards: a fresh policy by stable-baselines3, not by the benchmark's loop.

    python -m benchmark.retrain --reward RUN_DIR --env Hopper-v4 --seed 43 --out FOLDER
    python -m benchmark.retrain --true-reward --learner sac --env Hopper-v4 --seed 43 --out FOLDER

A reward that one learner fails on may still be a good one. Neither subtracts the mean of the
rewards, as the loop does: `sb3` is PPO with normalised observations, `sac` is SAC, which learns to
walk from the true reward within 300,000 steps where PPO does not. Of custom_irl.py's flags it takes
those of environment, seed, steps, folder and, to name the reward, demonstrations and its update.
The method is LEARNER-oracle or LEARNER-METHOD-frozen. Not resumable.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import tyro
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

import custom_irl as irl
from baselines.frozen import Frozen, frozen
from benchmark import runs
from benchmark.load import LearnedReward, as_function

# hyperparams/ppo.yml of rl-zoo3 for the -v3 environments, whose -v4 differ in MuJoCo's bindings
# alone. Other environments get stable-baselines3's defaults.
N_STEPS = 512
NETWORKS = {
    "log_std_init": -2,
    "ortho_init": False,
    "activation_fn": nn.ReLU,
    "net_arch": {"pi": [256, 256], "vf": [256, 256]},
}
PPO_SETTINGS = {
    "HalfCheetah-v4": {
        "batch_size": 64, "gamma": 0.98, "learning_rate": 2.0633e-05, "ent_coef": 0.000401762,
        "clip_range": 0.1, "n_epochs": 20, "gae_lambda": 0.92, "max_grad_norm": 0.8,
        "vf_coef": 0.58096, "policy_kwargs": NETWORKS,
    },
    "Hopper-v4": {
        "batch_size": 32, "gamma": 0.999, "learning_rate": 9.80828e-05, "ent_coef": 0.00229519,
        "clip_range": 0.2, "n_epochs": 5, "gae_lambda": 0.99, "max_grad_norm": 0.7,
        "vf_coef": 0.835671, "policy_kwargs": NETWORKS,
    },
    "Walker2d-v4": {
        "batch_size": 32, "gamma": 0.99, "learning_rate": 5.05041e-05, "ent_coef": 0.000585045,
        "clip_range": 0.1, "n_epochs": 20, "gae_lambda": 0.95, "max_grad_norm": 1.0,
        "vf_coef": 0.871923,
    },
}  # fmt: skip

# hyperparams/sac.yml of rl-zoo3 for the same, but for a gradient step every second environment step
# and not every one, and 128-128 units and not 256-256: 300,000 steps take 30 minutes of a core.
SAC_SETTINGS = {
    "learning_starts": 10_000,
    "train_freq": 2,
    "gradient_steps": 1,
    "policy_kwargs": {"net_arch": [128, 128]},
}


@dataclass(frozen=True)
class Config:
    reward: Path | None = None
    """folder of the finished run whose reward is learned from; or else --true-reward"""
    learner: Literal["sb3", "sac"] = "sb3"
    """what learns, of stable-baselines3: PPO (sb3) or SAC"""


class Normalize(nn.Module):
    """VecNormalize's observations with the statistics of the end of training."""

    def __init__(self, envs: VecNormalize):
        super().__init__()
        self.clip = envs.clip_obs
        std = np.sqrt(envs.obs_rms.var + envs.epsilon)
        self.register_buffer("mean", torch.as_tensor(envs.obs_rms.mean, dtype=torch.float32))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return ((obs - self.mean) / self.std).clamp(-self.clip, self.clip)


class EvaluatedPolicy(nn.Module):
    """What `custom_irl.evaluate` needs, of an SB3 policy; `inputs` come before its layers."""

    def __init__(self, policy: ActorCriticPolicy, *inputs: nn.Module):
        super().__init__()
        layers = (*inputs, policy.mlp_extractor.policy_net, policy.action_net)
        self.actor_mean = nn.Sequential(*layers)
        self.actor_logstd = nn.Parameter(policy.log_std.detach()[None])


class SquashedPolicy(nn.Module):
    """The same of SAC: a tanh of the mean, on the range of actions.

    `noise` (action_dim,): the standard deviation of the sampled variant.
    """

    def __init__(self, sac: SAC, noise: torch.Tensor):
        super().__init__()
        actor = sac.actor
        range_ = Range(sac.action_space)
        self.actor_mean = nn.Sequential(actor.latent_pi, actor.mu, nn.Tanh(), range_)
        self.actor_logstd = nn.Parameter((noise * range_.scale).log()[None])


class Range(nn.Module):
    """Actions from -1 to 1 on the range of a Box."""

    def __init__(self, space: gym.spaces.Box):
        super().__init__()
        self.register_buffer("center", torch.as_tensor((space.high + space.low) / 2))
        self.register_buffer("scale", torch.as_tensor((space.high - space.low) / 2))

    def forward(self, acts: torch.Tensor) -> torch.Tensor:
        return self.center + self.scale * acts


class Returns(BaseCallback):
    """A row of metrics every `steps` steps: the mean true return of the last hundred episodes."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps
        self.rows = []

    def _on_step(self) -> bool:
        if self.num_timesteps % self.steps == 0:
            returns = [episode["r"] for episode in self.model.ep_info_buffer]
            true_return = float(np.mean(returns)) if returns else ""
            self.rows.append({"steps": self.num_timesteps, "true_return": true_return})
        return True


def make_envs(args: irl.Args, reward_net: nn.Module | None) -> VecEnv:
    """One environment that pays the reward of `reward_net`, or the true one if that is None.

    The reward's wrapper goes around SB3's Monitor, which therefore notes true returns.
    """
    pay = None if reward_net is None else partial(LearnedReward, reward=as_function(reward_net))
    make = partial(irl.make_env, args.env, args.max_episode_steps)
    return make_vec_env(make, 1, seed=args.seed, wrapper_class=pay)


def learn(model: PPO | SAC, args: irl.Args, reward_net: nn.Module | None) -> irl.Training:
    """Trains `model` in place; its time and its rows of metrics, without the policy."""
    returns = Returns(args.batch_size)
    training = irl.Training(policy=None, reward_net=reward_net, rows=returns.rows)
    steps = args.num_rounds * args.batch_size
    with training.timed("training"):
        model.learn(steps, callback=returns, progress_bar=sys.stderr.isatty())
    return training


def train_ppo(args: irl.Args, reward_net: nn.Module | None) -> irl.Training:
    settings = {"gamma": 0.99, **PPO_SETTINGS.get(args.env, {})}
    envs = VecNormalize(make_envs(args, reward_net), gamma=settings["gamma"])
    ppo = PPO("MlpPolicy", envs, n_steps=N_STEPS, seed=args.seed, device="cpu", **settings)
    training = learn(ppo, args, reward_net)
    training.policy = EvaluatedPolicy(ppo.policy, Normalize(envs))
    return training


def train_sac(args: irl.Args, reward_net: nn.Module | None) -> irl.Training:
    envs = make_envs(args, reward_net)
    sac = SAC("MlpPolicy", envs, seed=args.seed, device="cpu", **SAC_SETTINGS)
    training = learn(sac, args, reward_net)
    training.policy = SquashedPolicy(sac, action_noise(sac))
    return training


@torch.no_grad()
def action_noise(sac: SAC) -> torch.Tensor:
    """Root mean square (action_dim,) of sampled minus deterministic actions, from -1 to 1, over
    states of the replay."""
    obs = sac.replay_buffer.sample(10_000).observations
    return (sac.actor(obs) - sac.actor(obs, deterministic=True)).square().mean(0).sqrt()


LEARNERS = {"sb3": train_ppo, "sac": train_sac}


def run(config: Config, args: irl.Args) -> dict:
    """Trains, evaluates and writes the run's folder, as custom_irl.run does.

    Raises:
        UserError: without a reward or a folder to write to, and for a reward of another task.
    """
    if (config.reward is None) != args.true_reward:
        raise irl.UserError("expected one of --reward RUN_DIR and --true-reward")
    if args.out is None:
        raise irl.UserError("--out: expected the folder of the run")
    reward_net = None
    method = "oracle"
    classes = [EvaluatedPolicy, Frozen]
    if config.reward is not None:
        make_reward_net, _, method = frozen(config.reward, args)
        reward_net = make_reward_net(*irl.env_dims(args))
        classes.append(type(reward_net))

    def train(args: irl.Args, demos: irl.Demos) -> irl.Training:
        training = LEARNERS[config.learner](args, reward_net)
        training.algorithm = Frozen(reward_net, None, *irl.env_dims(args), None, args)
        return training

    name = f"{config.learner}-{method}"
    return runs.run_trainer(train, args, name, classes, config.reward)


def main() -> None:
    config, flags = tyro.cli(Config, description=__doc__, return_unknown_args=True)
    args = irl.parse_args(flags)
    read = runs.RETRAIN_READS + (runs.OF_A_REWARD if config.reward else ())
    runs.refuse_unread(flags, read, f"--learner {config.learner}")
    irl.print_result(run(config, args))


if __name__ == "__main__":
    runs.command_line(main)
