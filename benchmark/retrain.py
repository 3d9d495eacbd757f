"""A second learner for rewards: stable-baselines3's PPO with rl-zoo3's settings, from scratch.

    python -m benchmark.retrain --env Hopper-v4 --seed 7 --frozen-reward results/custom/Hopper-v4/seed42
    python -m benchmark.retrain --env Hopper-v4 --seed 7 --true-reward
    bash run_all.sh --frozen --learner sb3

So that a weak learner is not mistaken for a weak reward: unlike the benchmark's loop it normalises observations and
does not subtract the mean of the rewards. Results are in the schema of custom_irl.py, methods named sb3-oracle,
sb3-custom and so on. Not resumable.
"""

from __future__ import annotations

import random
import sys
from functools import partial

import numpy as np
import torch
import torch.nn as nn
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

import custom_irl as irl
from baselines.airl import AIRLReward
from baselines.bc import NoReward
from baselines.constant import ConstantReward
from baselines.gail import GAILDiscriminator

REWARDS = {
    "custom": irl.RewardNetwork, "gail": GAILDiscriminator, "airl": AIRLReward,
    "bc": NoReward, "constant": ConstantReward, "untrained": AIRLReward,
}  # fmt: skip

# hyperparams/ppo.yml of rl-zoo3 for the -v3 environments, whose -v4 differ in MuJoCo's bindings alone.
NETWORKS = dict(log_std_init=-2, ortho_init=False, activation_fn=nn.ReLU, net_arch=dict(pi=[256, 256], vf=[256, 256]))
ZOO = {
    "HalfCheetah-v4": dict(
        batch_size=64, gamma=0.98, learning_rate=2.0633e-05, ent_coef=0.000401762, clip_range=0.1, n_epochs=20,
        gae_lambda=0.92, max_grad_norm=0.8, vf_coef=0.58096, policy_kwargs=NETWORKS,
    ),
    "Hopper-v4": dict(
        batch_size=32, gamma=0.999, learning_rate=9.80828e-05, ent_coef=0.00229519, clip_range=0.2, n_epochs=5,
        gae_lambda=0.99, max_grad_norm=0.7, vf_coef=0.835671, policy_kwargs=NETWORKS,
    ),
    "Walker2d-v4": dict(
        batch_size=32, gamma=0.99, learning_rate=5.05041e-05, ent_coef=0.000585045, clip_range=0.1, n_epochs=20,
        gae_lambda=0.95, max_grad_norm=1.0, vf_coef=0.871923,
    ),
}  # fmt: skip


class Normalize(nn.Module):
    """VecNormalize's observations, frozen."""

    def __init__(self, envs: VecNormalize):
        super().__init__()
        self.clip = envs.clip_obs
        self.register_buffer("mean", torch.as_tensor(envs.obs_rms.mean, dtype=torch.float32))
        self.register_buffer("std", torch.as_tensor(np.sqrt(envs.obs_rms.var + envs.epsilon), dtype=torch.float32))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return ((obs - self.mean) / self.std).clamp(-self.clip, self.clip)


class EvaluatedPolicy(nn.Module):
    """What custom_irl.evaluate needs of a policy, taken from stable-baselines3's; `inputs` come before its layers."""

    def __init__(self, policy: ActorCriticPolicy, *inputs: nn.Module):
        super().__init__()
        self.actor_mean = nn.Sequential(*inputs, policy.mlp_extractor.policy_net, policy.action_net)
        self.actor_logstd = nn.Parameter(policy.log_std.detach()[None])


class Returns(BaseCallback):
    """A row of metrics every 2048 steps: the mean true return of the last hundred episodes."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def _on_step(self) -> bool:
        if self.num_timesteps % 2048 == 0:
            returns = [episode["r"] for episode in self.model.ep_info_buffer]
            self.rows.append({"steps": self.num_timesteps, "true_return": np.mean(returns) if returns else ""})
        return True


def train(
    env_id: str, reward: irl.Reward | None, seed: int, steps: int, progress: bool
) -> tuple[EvaluatedPolicy, list[dict]]:
    """A policy trained on `reward`, or on the true one if that is None; and rows for metrics.csv."""
    if env_id not in ZOO:
        raise irl.UserError(f"--env {env_id}: rl-zoo3's settings are here for {', '.join(ZOO)} alone")
    wrapper = partial(irl.LearnedReward, reward=reward) if reward else None  # around Monitor, which notes the true one
    envs = make_vec_env(lambda: irl.make_env(env_id), 1, seed=seed, wrapper_class=wrapper)
    envs = VecNormalize(envs, gamma=ZOO[env_id]["gamma"])
    ppo = PPO("MlpPolicy", envs, n_steps=512, seed=seed, device="cpu", **ZOO[env_id])
    callback = Returns()
    ppo.learn(steps, callback=callback, progress_bar=progress)
    return EvaluatedPolicy(ppo.policy, Normalize(envs)), callback.rows


def run(args: irl.Args) -> dict:
    """Trains, evaluates and writes the run's folder as custom_irl.run does."""
    if args.learns_reward:
        raise irl.UserError("benchmark.retrain learns no reward; expected --frozen-reward RUN_DIR or --true-reward")
    random.seed(args.seed), np.random.seed(args.seed), torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    method, reward_net = "oracle", None
    if args.frozen_reward:
        method = irl.run_config(args.frozen_reward)["method"]
        if method not in REWARDS:
            raise irl.UserError(f"{args.frozen_reward}: method is {method}; expected one of {', '.join(REWARDS)}")
        args = irl.inherit_labels(args, method)
        reward_net = irl.load_run(args.frozen_reward, REWARDS[method])[1]
    method = f"sb3-{method}"
    folder, description = args.folder(method), irl.describe_run(args, method, (EvaluatedPolicy,))
    if (result := irl.open_folder(folder, description, args.overwrite)) is not None:
        return result
    origin, seconds = irl.provenance(), {}
    with irl.timed(seconds, "training"):
        reward = irl.as_function(reward_net) if reward_net else None
        policy, rows = train(args.env, reward, args.seed, args.num_rounds * args.batch_size, sys.stderr.isatty())
    irl.write_metrics(folder / "metrics.csv", rows)
    state = {"policy": policy, "reward_net": reward_net, "round": args.num_rounds, "seconds": seconds}
    return irl.write_result(folder, description | origin, args, state, irl.load_card(args.demos_path), 0)


def main() -> None:
    try:
        args = irl.parse_args(sys.argv[1:])
        irl.print_result(run(args), args)
    except irl.UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
