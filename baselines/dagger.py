"""DAgger (Ross et al. 2011, arXiv 1011.0686), imitation's own: the expert answers online.

    python -m baselines.dagger --env Hopper-v4
    bash run_all.sh --method dagger

    in round i act with beta_i expert + (1 - beta_i) policy, beta_i = max(0, 1 - i / 15);
    ask the expert for its action in every state visited; fit the policy to all pairs so far,
    min -E log pi(a_expert | s), which start with the demonstrations.

NOT COMPARABLE with the other methods, which have the demonstrations alone: this one asks the expert
(demos/ENV.expert.npz) at every environment step. A run says how often: "data", "expert_queries" in
result.json. CleanIL has no DAgger. No reward network.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial

import datasets
import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
from imitation.algorithms import bc
from imitation.algorithms.dagger import LinearBetaSchedule, SimpleDAggerTrainer
from imitation.data.types import Trajectory
from imitation.policies.base import NonTrainablePolicy
from imitation.util import logger
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

import custom_irl as irl
from baselines import offpolicy as op
from benchmark.retrain import EvaluatedPolicy
from benchmark.runs import command_line
from demos.expert import Expert


@dataclass(frozen=True)
class Config:
    rounds: int = 15
    """rounds of collecting and fitting"""
    round_steps: int = 2_000
    """environment steps in a round, at least; whole episodes are played"""
    epochs: int = 8
    """epochs over all pairs in a round"""
    batch_size: int = 128
    """pairs in a batch"""
    lr: float = 1e-3
    """Adam's learning rate"""


class Standardized(BaseFeaturesExtractor):
    """Observations normalised by the demonstrations' statistics, which `fit` sets."""

    def __init__(self, space: gym.spaces.Box):
        super().__init__(space, space.shape[0])
        self.norm = op.Normalizer(space.shape[0])

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.norm(obs)


def make_network(obs_space: gym.spaces.Box, act_space: gym.spaces.Box, lr: float):
    """stable-baselines3's policy with the sizes of imitation_peers.py."""
    return ActorCriticPolicy(
        obs_space,
        act_space,
        lr_schedule=lambda _: lr,
        net_arch={"pi": [256, 256], "vf": [256, 256]},
        activation_fn=nn.Tanh,
        features_extractor_class=Standardized,
    )


def evaluated(network: ActorCriticPolicy) -> EvaluatedPolicy:
    return EvaluatedPolicy(network, network.features_extractor.norm)


def make_policy(dims: list[int], hyperparameters: dict) -> EvaluatedPolicy:
    """The policy of a finished run, before its weights: runs.Trainer needs it."""
    spaces = [gym.spaces.Box(-np.inf, np.inf, (dim,), np.float32) for dim in dims]
    return evaluated(make_network(*spaces, lr=hyperparameters["lr"]))


class AskedExpert(NonTrainablePolicy):
    """The expert as imitation's policy; counts what it is asked."""

    def __init__(self, expert: Expert, obs_space: gym.spaces.Box, act_space: gym.spaces.Box):
        super().__init__(obs_space, act_space)
        self.expert = expert
        self.queries = 0

    def _choose_action(self, obs: np.ndarray) -> np.ndarray:
        self.queries += 1
        return self.expert(obs)


def trajectories(demos: op.Batch, lengths: np.ndarray) -> list[Trajectory]:
    """The demonstrations by episode; where rows are left out, the pairs (s, a) alone count."""
    ends = np.cumsum(lengths)
    parts = [slice(end - n, end) for end, n in zip(ends, lengths)]
    return [
        Trajectory(
            obs=np.concatenate([demos["obs"][part], demos["next_obs"][part][-1:]]),
            acts=demos["acts"][part].numpy(),
            infos=None,
            terminal=True,
        )
        for part in parts
    ]


class CountedEnv(gym.Wrapper):
    """Counts steps, and notes the return of every finished episode."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.steps = 0
        self.running = 0.0
        self.returns: list[float] = []

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        self.running += float(reward)
        if terminated or truncated:
            self.returns.append(self.running)
            self.running = 0.0
        return obs, reward, terminated, truncated, info


def train(config: Config, task: op.Task) -> irl.Training:
    args = task.args
    expert_path = irl.ROOT / "demos" / f"{args.env}.expert.npz"
    if not expert_path.is_file():
        raise irl.UserError(f"{expert_path}: no such file; DAgger needs an expert to ask")
    lengths = irl.read_npz(args.demos_path, ("lengths",))["lengths"][: args.demo_episodes]
    env = CountedEnv(task.env)
    venv = make_vec_env(lambda: env, 1, seed=args.seed)
    network = make_network(venv.observation_space, venv.action_space, config.lr)
    network.features_extractor.norm.fit(task.expert["obs"])
    quiet = logger.configure(format_strs=[])
    rng = np.random.default_rng(args.seed)
    learner = bc.BC(
        observation_space=venv.observation_space,
        action_space=venv.action_space,
        rng=rng,
        policy=network,
        batch_size=config.batch_size,
        optimizer_kwargs={"lr": config.lr},
        device="cpu",
        custom_logger=quiet,
    )
    expert = AskedExpert(Expert.load(expert_path), venv.observation_space, venv.action_space)
    fit = {"n_epochs": config.epochs, "log_rollouts_venv": None, "progress_bar": False}
    rows = []
    datasets.disable_progress_bars()  # imitation stores every episode with it
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SimpleDAggerTrainer(
            venv=venv,
            scratch_dir=scratch,
            expert_policy=expert,
            rng=rng,
            expert_trajs=trajectories(task.expert, op.kept_lengths(lengths, args)),
            beta_schedule=LinearBetaSchedule(config.rounds),
            bc_trainer=learner,
            custom_logger=quiet,
        )
        advance = partial(
            trainer.train,
            config.round_steps,
            rollout_round_min_episodes=1,
            rollout_round_min_timesteps=config.round_steps,
            bc_train_kwargs=fit,
        )
        for _ in op.progress(config.rounds, f"dagger {args.env}", "round"):
            seen = len(env.returns)
            advance()
            returns = env.returns[seen:]
            # Not `true_return`: some of the actions are the expert's.
            rows.append({"steps": env.steps, "mixture_return": float(np.mean(returns))})
    training = irl.Training(evaluated(network), rows=rows)
    training.data["expert_queries"] = expert.queries
    return training


def main() -> None:
    config, args = op.parse(Config, __doc__)
    op.run(train, config, args, "dagger")


if __name__ == "__main__":
    command_line(main)
