"""imitation's own BC, GAIL and AIRL on the same demonstrations, with the result of any run.

    python -m baselines.imitation_peers gail --env Hopper-v4 --out results/imitation-gail

stable-baselines3's PPO has the settings of custom_irl.py's and the reward networks have its sizes.
--total-timesteps is the budget (published GAIL and AIRL: 300,000). Not resumable: these trainers
have no checkpoints.
"""

from __future__ import annotations

import sys

import numpy as np
import torch.nn as nn
from imitation.algorithms import bc
from imitation.algorithms.adversarial.airl import AIRL
from imitation.algorithms.adversarial.common import AdversarialTrainer
from imitation.algorithms.adversarial.gail import GAIL
from imitation.data.types import Transitions
from imitation.rewards.reward_nets import BasicRewardNet, BasicShapedRewardNet, RewardNet
from imitation.util import logger
from imitation.util.networks import RunningNorm
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

import custom_irl as irl
from benchmark import runs
from benchmark.retrain import EvaluatedPolicy

NETWORKS = {"net_arch": {"pi": [256, 256], "vf": [256, 256]}, "activation_fn": nn.Tanh}
BC_EPOCHS = 10


def make_envs(args: irl.Args) -> VecEnv:
    make = lambda: irl.make_env(args.env, args.max_episode_steps)  # noqa: E731
    return make_vec_env(make, args.num_envs, seed=args.seed)


def as_transitions(demos: irl.Demos) -> Transitions:
    arrays = {key: array.numpy() for key, array in demos.tensors.items()}
    n = len(arrays["obs"])
    return Transitions(**arrays, dones=np.zeros(n, bool), infos=np.array([{}] * n))


def quiet() -> logger.HierarchicalLogger:
    return logger.configure(format_strs=[])


def make_ppo(args: irl.Args, envs: VecEnv) -> PPO:
    ppo = PPO(
        "MlpPolicy",
        envs,
        seed=args.seed,
        device="cpu",
        policy_kwargs=NETWORKS,
        n_steps=args.num_steps,
        batch_size=args.batch_size // args.num_minibatches,
        n_epochs=args.update_epochs,
        gamma=args.gamma,
        gae_lambda=args.gae_lambda,
        clip_range=args.clip_coef,
        ent_coef=0.0,
        vf_coef=args.vf_coef,
        max_grad_norm=args.max_grad_norm,
    )
    # imitation calls `learn` once a round, so that SB3's own measure of progress starts anew.
    ppo.lr_schedule = lambda _: (
        args.learning_rate * (1 - (ppo.num_timesteps / args.batch_size - 1) / args.num_rounds)
    )
    return ppo


def make_reward_net(trainer_cls: type, envs: VecEnv) -> RewardNet:
    """imitation's network for that trainer, in the sizes of baselines/."""
    spaces = (envs.observation_space, envs.action_space)
    if trainer_cls is AIRL:
        return BasicShapedRewardNet(
            *spaces,
            normalize_input_layer=RunningNorm,
            reward_hid_sizes=(256, 256),
            potential_hid_sizes=(256, 256),
        )
    return BasicRewardNet(
        *spaces, use_next_state=True, normalize_input_layer=RunningNorm, hid_sizes=(256, 256)
    )


def make_trainer(
    trainer_cls: type, args: irl.Args, demos: Transitions, envs: VecEnv
) -> AdversarialTrainer:
    reward_net = make_reward_net(trainer_cls, envs)  # before PPO, which seeds torch anew
    return trainer_cls(
        demonstrations=demos,
        demo_batch_size=min(args.irl_batch_size, len(demos)),
        venv=envs,
        gen_algo=make_ppo(args, envs),
        reward_net=reward_net,
        n_disc_updates_per_round=args.n_irl_updates_per_round,
        gen_replay_buffer_capacity=args.batch_size,
        disc_opt_kwargs={"lr": args.irl_lr},
        allow_variable_horizon=True,
        custom_logger=quiet(),
    )


class RoundRows:
    """imitation's callback after a round: a row of metrics.csv."""

    def __init__(self, ppo: PPO):
        self.ppo = ppo
        self.rows: list[dict] = []

    def __call__(self, round_: int) -> None:
        returns = [episode["r"] for episode in self.ppo.ep_info_buffer]
        mean = float(np.mean(returns)) if returns else ""
        self.rows.append({"steps": self.ppo.num_timesteps, "true_return": mean})


def train_adversarial(trainer_cls: type, args: irl.Args, demos: irl.Demos) -> irl.Training:
    trainer = make_trainer(trainer_cls, args, as_transitions(demos), make_envs(args))
    after_round = RoundRows(trainer.gen_algo)
    trainer.train(args.num_rounds * args.batch_size, callback=after_round)
    return irl.Training(trainer.policy, rows=after_round.rows)


def train_bc(args: irl.Args, demos: irl.Demos) -> irl.Training:
    """BC_EPOCHS epochs with imitation's defaults; no environment steps."""
    envs = make_envs(args)
    spaces = (envs.observation_space, envs.action_space)
    trainer = bc.BC(
        observation_space=spaces[0],
        action_space=spaces[1],
        rng=np.random.default_rng(args.seed),
        policy=ActorCriticPolicy(*spaces, lr_schedule=lambda _: 1e-3, **NETWORKS),
        demonstrations=as_transitions(demos),
        batch_size=min(32, len(demos.tensors["obs"])),  # imitation's default, if there are as many
        device="cpu",
        custom_logger=quiet(),
    )
    trainer.train(n_epochs=BC_EPOCHS, progress_bar=sys.stderr.isatty())
    return irl.Training(trainer.policy, rows=[{"steps": 0, "true_return": ""}])


def run(peer: str, args: irl.Args) -> dict:
    """Trains and evaluates one of runs.PEERS; returns its result.

    Raises:
        UserError: for a flag that these trainers do not have, and as runs.run_trainer.
    """
    for flag in ("true_reward", "no_policy_access"):
        if getattr(args, flag):
            name = flag.replace("_", "-")
            raise irl.UserError(f"--{name}: imitation's trainers have no such choice")
    if args.out is None:
        raise irl.UserError("--out: expected the folder of the run")

    def train(args: irl.Args, demos: irl.Demos) -> irl.Training:
        timer = irl.Training(policy=None)
        with timer.timed("training"):
            if peer == "bc":
                training = train_bc(args, demos)
            else:
                training = train_adversarial({"gail": GAIL, "airl": AIRL}[peer], args, demos)
        training.policy = EvaluatedPolicy(training.policy)
        training.seconds = timer.seconds
        return training

    return runs.run_trainer(train, args, f"imitation-{peer}", (EvaluatedPolicy, RoundRows))


def main() -> None:
    words = sys.argv[1:]
    if not words or words[0] not in runs.PEERS:
        raise irl.UserError(f"expected one of {', '.join(runs.PEERS)}, then flags of custom_irl.py")
    args = irl.parse_args(words[1:])
    if words[0] == "bc":  # takes no environment steps and has settings of its own
        runs.refuse_unread(words, runs.OFFLINE_READS, "imitation's BC")
    irl.print_result(run(words[0], args))


if __name__ == "__main__":
    runs.command_line(main)
