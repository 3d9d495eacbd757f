"""The same benchmark for imitation's own BC, GAIL and AIRL trainers, with the results in the same layout and report:

    python -m benchmark.peers gail --env Hopper-v4
    bash run_all.sh --method imitation-gail

stable-baselines3's PPO has the settings of custom_irl.py's, the reward networks its sizes, the demonstrations and the
step budget are the same. Not resumable: these trainers have no checkpoints.
"""

import random
import sys
from functools import partial

import numpy as np
import torch
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

import custom_irl as irl
from benchmark.retrain import EvaluatedPolicy


class ImitationReward(RewardNet):
    """A learned reward network as imitation's, for its trainers and wrappers: ImitationReward(*spaces, net)."""

    def __init__(self, observation_space, action_space, net: nn.Module):
        super().__init__(observation_space, action_space)
        self.net = net

    def forward(self, state, action, next_state, done):
        return self.net(state, action, next_state)


NETWORKS = dict(net_arch=dict(pi=[256, 256], vf=[256, 256]), activation_fn=nn.Tanh)


def make_ppo(args: irl.Args, envs) -> PPO:
    ppo = PPO(
        "MlpPolicy", envs, seed=args.seed, device="cpu", policy_kwargs=NETWORKS,
        n_steps=args.num_steps, batch_size=args.batch_size // args.num_minibatches, n_epochs=args.update_epochs,
        gamma=args.gamma, gae_lambda=args.gae_lambda, clip_range=args.clip_coef, ent_coef=0.0, vf_coef=args.vf_coef,
        max_grad_norm=args.max_grad_norm,
    )  # fmt: skip
    # imitation calls `learn` once a round, so SB3's own notion of progress starts anew each time.
    ppo.lr_schedule = lambda _: (
        args.learning_rate * (1 - (ppo.num_timesteps / args.batch_size - 1) / args.num_rounds)
    )
    return ppo


def train_bc(args: irl.Args, demos: Transitions, envs, rows: list[dict]) -> ActorCriticPolicy:
    """Ten epochs with imitation's defaults; no environment steps."""
    spaces = envs.observation_space, envs.action_space
    trainer = bc.BC(
        observation_space=spaces[0], action_space=spaces[1], rng=np.random.default_rng(args.seed),
        policy=ActorCriticPolicy(*spaces, lr_schedule=lambda _: 1e-3, **NETWORKS), demonstrations=demos, device="cpu",
        custom_logger=logger.configure(format_strs=[]),
    )  # fmt: skip
    trainer.train(n_epochs=10, progress_bar=sys.stderr.isatty())
    rows.append({"steps": 0, "true_return": ""})
    return trainer.policy


def make_trainer(trainer_cls: type, args: irl.Args, demos: Transitions, envs) -> AdversarialTrainer:
    """imitation's GAIL with BasicRewardNet or AIRL with BasicShapedRewardNet."""
    spaces = envs.observation_space, envs.action_space
    if trainer_cls is AIRL:
        sizes = dict(reward_hid_sizes=(256, 256), potential_hid_sizes=(256, 256))
        reward_net = BasicShapedRewardNet(*spaces, normalize_input_layer=RunningNorm, **sizes)
    else:
        reward_net = BasicRewardNet(
            *spaces, use_next_state=True, normalize_input_layer=RunningNorm, hid_sizes=(256, 256)
        )
    return trainer_cls(
        demonstrations=demos, demo_batch_size=min(args.irl_batch_size, len(demos)), venv=envs,
        gen_algo=make_ppo(args, envs),
        reward_net=reward_net, n_disc_updates_per_round=args.n_irl_updates_per_round,
        gen_replay_buffer_capacity=args.batch_size, disc_opt_kwargs=dict(lr=args.irl_lr), allow_variable_horizon=True,
        custom_logger=logger.configure(format_strs=[]),
    )  # fmt: skip


def train_adversarial(
    trainer_cls: type, args: irl.Args, demos: Transitions, envs, rows: list[dict]
):
    """A row of metrics a round; returns the policy."""
    trainer = make_trainer(trainer_cls, args, demos, envs)
    ppo = trainer.gen_algo

    def note(round_: int) -> None:
        returns = [episode["r"] for episode in ppo.ep_info_buffer]
        rows.append(
            {"steps": ppo.num_timesteps, "true_return": float(np.mean(returns)) if returns else ""}
        )

    trainer.train(args.num_rounds * args.batch_size, callback=note)
    return trainer.policy


PEERS = {
    "bc": train_bc,
    "gail": partial(train_adversarial, GAIL),
    "airl": partial(train_adversarial, AIRL),
}


def as_transitions(demos: dict[str, torch.Tensor]) -> Transitions:
    n = len(demos["obs"])
    arrays = {key: array.numpy() for key, array in demos.items()}
    return Transitions(**arrays, dones=np.zeros(n, bool), infos=np.array([{}] * n))


def run(peer: str, args: irl.Args) -> dict:
    """Trains and evaluates one of PEERS and writes its folder as custom_irl.run does."""
    random.seed(args.seed), np.random.seed(args.seed), torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    envs = make_vec_env(lambda: irl.make_env(args.env), args.num_envs, seed=args.seed)
    dims = envs.observation_space.shape[0], envs.action_space.shape[0]
    demos = as_transitions(
        irl.load_demos(args.demos_path, *dims, args.demo_episodes, args.demo_subsample)
    )
    method = f"imitation-{peer}"
    folder, description = (
        args.folder(method),
        irl.describe_run(args, method, (EvaluatedPolicy, train_bc)),
    )
    if (result := irl.open_folder(folder, description, args.overwrite)) is not None:
        return result
    origin, rows, seconds = irl.provenance(), [], {}
    with irl.timed(seconds, "training"):
        policy = PEERS[peer](args, demos, envs, rows)
    irl.write_metrics(folder / "metrics.csv", rows)
    rounds = 0 if peer == "bc" else args.num_rounds
    state = {
        "policy": EvaluatedPolicy(policy),
        "reward_net": None,
        "round": rounds,
        "seconds": seconds,
    }
    return irl.write_result(
        folder, description | origin, args, state, irl.load_card(args.demos_path), len(demos)
    )


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in PEERS:
        sys.exit(
            f"error: python -m benchmark.peers PEER [flags of custom_irl.py]; PEER is one of {', '.join(PEERS)}"
        )
    try:
        args = irl.parse_args(sys.argv[2:])
        irl.print_result(run(sys.argv[1], args), args)
    except irl.UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
