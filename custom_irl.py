"""Inverse reinforcement learning in one file: a reward learned from demonstrations, and a policy.

    python custom_irl.py --env Hopper-v4                      # 1M steps, 50 expert episodes
    python custom_irl.py --env Hopper-v4 --no-policy-access   # PPO learns from rewards alone
    python custom_irl.py --env Hopper-v4 --true-reward        # oracle: PPO on the true reward

A run writes metrics.csv, policy.pt, reward_net.pt and result.json into its folder (--out). The
classes between the EDITABLE REGION lines are the method; everything else is the fixed benchmark. A
method of your own is two such classes and `main(RewardNetwork, IRLAlgorithm, method="mine")`.
"""

import csv
import hashlib
import io
import json
import os
import platform
import random
import sys
import time
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent
EVAL_EPISODES = 10
MAX_NPZ_BYTES = 2**30  # of the uncompressed arrays in a file of demonstrations
CARD_SCHEMA = "irl-card-1"  # marks the JSON file beside demonstrations that states their returns
LOCK = ".lock"  # in a run's folder: who trains in it
PACKAGES = ("gymnasium", "mujoco", "numpy", "torch")  # whose versions result.json states


class UserError(Exception):
    """Something the caller can correct. `main` prints it as one line, without a traceback."""


# ================================================================================== configuration
@dataclass(frozen=True)
class Args:
    env: str = "Hopper-v4"  # a Gymnasium environment with one-dimensional Box spaces
    seed: int = 1  # of everything random (42, 123 and 456 are the benchmark's: tune on others)
    total_timesteps: int = 1_000_000  # environment steps, rounded down to whole rollouts
    num_envs: int = 8  # environments, stepped in turn
    num_steps: int = 256  # steps of each environment in a rollout
    max_episode_steps: int | None = None  # an episode's time limit; default: the environment's own
    demos: Path | None = None  # an .npz as demos/README.md describes it; default: demos/ENV.npz
    demo_episodes: int = 50  # episodes used, from the first on
    demo_subsample: int = 1  # keep every k-th transition of each episode
    out: Path | None = None  # folder of the run; default: below results/, by method, env and seed
    overwrite: bool = False  # replace a finished run in that folder
    no_policy_access: bool = False  # no call of `set_policy`: PPO learns from rewards alone
    true_reward: bool = False  # oracle: train on the environment's reward, without any method

    irl_lr: float = 3e-4  # learning rate of the reward's update
    irl_batch_size: int = 256  # transitions of the expert, and of the policy, in a batch of it
    n_irl_updates_per_round: int = 5  # calls of `update` after each rollout

    learning_rate: float = 3e-4  # PPO's Adam learning rate, annealed linearly to 0
    gamma: float = 0.99  # discount
    gae_lambda: float = 0.95  # lambda of generalised advantage estimation
    num_minibatches: int = 32  # minibatches in an epoch
    update_epochs: int = 10  # epochs over a rollout
    clip_coef: float = 0.2  # PPO's clipping range of the probability ratio
    vf_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # largest norm of PPO's gradient

    def __post_init__(self):
        for key, value in vars(self).items():
            expected = ""
            least = 0 if key == "seed" else 1
            if type(value) is int and not least <= value < 2**63:
                expected = f"an integer from {least} to 2^63 - 1"
            elif key in ("gamma", "gae_lambda"):
                expected = "" if 0 <= value <= 1 else "a number from 0 to 1"
            elif type(value) is float and not 0 < value < np.inf:
                expected = "a finite number above 0"
            if expected:
                raise UserError(f"--{key.replace('_', '-')} {value}: expected {expected}")
        if self.true_reward and self.no_policy_access:
            raise UserError("--true-reward: not with --no-policy-access; the oracle has no method")
        if self.num_rounds < 1:
            raise UserError(f"--total-timesteps: expected at least {self.batch_size}, a rollout")
        if self.batch_size % self.num_minibatches or self.num_minibatches == self.batch_size:
            raise UserError(f"--num-minibatches: expected a divisor below {self.batch_size}")

    @property
    def batch_size(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def num_rounds(self) -> int:
        return self.total_timesteps // self.batch_size

    @property
    def demos_path(self) -> Path:
        return self.demos or ROOT / "demos" / f"{self.env}.npz"


# =================================================================================== environments
def make_env(env_id: str, max_episode_steps: int | None = None, **kwargs) -> gym.Env:
    """gym.make; UserError unless it has flat Box spaces and a time limit."""
    kwargs |= {"max_episode_steps": max_episode_steps, "disable_env_checker": True}
    try:
        env = gym.make(env_id, **kwargs)
    except (gym.error.Error, ImportError, ValueError) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UserError(f"--env {env_id}: {reason}") from None
    for name, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            kind = "expected a one-dimensional Box"
            raise UserError(f"--env {env_id}: the {name} space is {space}; {kind}")
    if env.spec.max_episode_steps is None:
        raise UserError(f"--env {env_id}: has no time limit; expected --max-episode-steps N")
    return env


def check_finite(env: gym.Env, obs: np.ndarray, reward: float) -> None:
    if not (np.isfinite(reward) and np.isfinite(obs).all()):
        where = f"--env {env.spec.id}: step {env.get_wrapper_attr('_elapsed_steps')} of an episode"
        numbers = f"reward {reward}, observation {np.asarray(obs).tolist()}"
        raise UserError(f"{where} returned NaN or infinity ({numbers})")


def reset_env(env: gym.Env, seed: int | None = None) -> np.ndarray:
    """The first observation; UserError for the API of Gym before 0.26, and for NaN or infinity."""
    first = env.reset(seed=seed)
    if not (isinstance(first, tuple) and len(first) == 2):
        raise UserError(f"--env {env.spec.id}: reset() returned no (obs, info) as Gymnasium's does")
    check_finite(env, first[0], reward=0.0)
    return first[0]


def step_env(env: gym.Env, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
    """One step: next_obs, reward, terminated, truncated; UserError as `reset_env`."""
    try:
        next_obs, reward, terminated, truncated, _ = env.step(action)
    except ValueError as error:
        if "unpack" not in str(error):
            raise
        expected = "obs, reward, terminated, truncated, info as Gymnasium's does"
        raise UserError(f"--env {env.spec.id}: step() returned no {expected}") from None
    check_finite(env, next_obs, reward)
    return next_obs, reward, terminated, truncated


def seeds_for(seed: int, purpose: int, n: int) -> list[int]:
    """`n` reset seeds, independent between seeds and purposes."""
    return np.random.SeedSequence([seed, purpose]).generate_state(n).tolist()


def env_dims(args: Args) -> tuple[int, int]:
    """obs_dim and action_dim."""
    env = make_env(args.env, args.max_episode_steps)
    return env.observation_space.shape[0], env.action_space.shape[0]


class VectorEnv:
    """`num_envs` copies of an environment, stepped in turn, each reset when its episode ends."""

    def __init__(self, args: Args):
        self.envs = [make_env(args.env, args.max_episode_steps) for _ in range(args.num_envs)]
        self.action_space = self.envs[0].action_space
        self.obs_dim = self.envs[0].observation_space.shape[0]
        self.action_dim = self.action_space.shape[0]
        self.obs = np.zeros((args.num_envs, self.obs_dim), np.float32)  # to act on
        for i, seed in enumerate(seeds_for(args.seed, purpose=0, n=args.num_envs)):
            reset_env(self.envs[i], seed)
            self.reset(i)

    def reset(self, i: int) -> None:
        self.obs[i] = reset_env(self.envs[i])

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Steps every copy with its row of `actions` (N, action_dim), clipped to the action space.

        Returns next_obs (N, obs_dim) before any reset, the environment's rewards (N,), `terminated`
        (N,) and `ended` (N,), which is true for time limits too.
        """
        actions = np.clip(actions, self.action_space.low, self.action_space.high)
        next_obs = np.empty_like(self.obs)
        rewards = np.empty(len(self.envs), np.float32)
        terminated, truncated = np.empty((2, len(self.envs)), bool)
        for i, env in enumerate(self.envs):
            next_obs[i], rewards[i], terminated[i], truncated[i] = step_env(env, actions[i])
        self.obs[:] = next_obs
        ended = terminated | truncated
        for i in np.flatnonzero(ended):
            self.reset(i)
        return next_obs, rewards, terminated, ended


# ================================================================================= demonstrations
@dataclass(frozen=True)
class Demos:
    """Expert transitions, what they are of a file, and the card beside that file."""

    tensors: dict[str, torch.Tensor] | None  # obs, acts and next_obs, float32; None: not read
    source: dict[str, str | int | None]  # as result.json states it
    card: dict | None = None


def sha256(path: Path) -> str:
    """Of a file's content; a symbolic link's is that of the file it points to."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_npz(path: Path, keys=("obs", "acts", "lengths"), optional=()) -> dict[str, np.ndarray]:
    """The arrays `keys` of an .npz, and those of `optional` that it has; UserError for others."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_NPZ_BYTES:
            raise ValueError(f"{size} bytes uncompressed; at most {MAX_NPZ_BYTES} are read")
        with np.load(path, allow_pickle=False) as f:
            found = [*keys, *(key for key in optional if key in f.files)]
            return {key: np.ascontiguousarray(f[key]) for key in found}
    except Exception as error:  # NumPy and zipfile raise errors of many kinds for a damaged file
        reason = (str(error) or repr(error)).splitlines()[0]
        convert = f"another format? python -m demos.convert {path} NEW.npz"
        expected = f"an .npz with plain arrays {', '.join(keys)} ({convert})"
        raise UserError(f"{path}: {reason}; expected {expected}") from None


def load_demos(path: Path, obs_dim: int, action_dim: int, episodes: int, subsample: int) -> Demos:
    """Every `subsample`-th transition of the first `episodes` episodes of an .npz with the keys
    obs (sum of T+1, obs_dim), acts (sum of T, action_dim) and lengths (episodes,), the T of each.
    UserError names the file, the key and what was expected.
    """
    data = read_npz(path)
    lengths = data["lengths"]
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 1).any():
        found = f"{lengths.dtype} {lengths.shape}"
        raise UserError(f"{path}: key 'lengths' is {found}; expected positive integers (n,)")
    if episodes > len(lengths):
        expected = f"expected at least {episodes} (--demo-episodes)"
        raise UserError(f"{path}: holds {len(lengths)} episodes; {expected}")
    total = sum(lengths.tolist())
    for key, shape in (("obs", (total + len(lengths), obs_dim)), ("acts", (total, action_dim))):
        x = data[key]
        finite = x.dtype.kind == "f" and (abs(x) <= np.finfo(np.float32).max).all()
        if x.shape != shape or not finite:
            found = f"{x.dtype} {x.shape}{'' if finite else ', not all finite'}"
            raise UserError(f"{path}: key '{key}' is {found}; expected finite floats {shape}")
    lengths = lengths.astype(np.int64)  # 255 + 1 is 0 in uint8
    obs = np.split(data["obs"], np.cumsum(lengths[:episodes] + 1))[:episodes]
    acts = np.split(data["acts"], np.cumsum(lengths[:episodes]))[:episodes]
    kept = {
        "obs": [x[:-1:subsample] for x in obs],
        "acts": [x[::subsample] for x in acts],
        "next_obs": [x[1::subsample] for x in obs],
    }
    tensors = {k: torch.from_numpy(np.concatenate(x, dtype=np.float32)) for k, x in kept.items()}
    source = {"file": path.name, "sha256": sha256(path)}
    source |= {"episodes": episodes, "episodes_in_file": len(lengths)}
    source |= {"transitions": len(tensors["obs"]), "transitions_in_file": total}
    return Demos(tensors, source)


def load_card(path: Path, env_id: str) -> tuple[dict | None, str]:
    """The card NAME.json of NAME.npz, which states the mean returns of a random policy and of the
    expert, if it is of `env_id` and of that very file; else None, and a line that says why.
    UserError if it lacks what it has to state.
    """
    card_path = path.parent / f"{path.stem}.json"
    if not card_path.is_file():
        return None, ""
    try:
        card = json.loads(card_path.read_text())
    except (ValueError, RecursionError):
        card = None
    if not isinstance(card, dict) or card.get("schema") != CARD_SCHEMA:
        return None, f"{card_path}: ignored; its schema is not {CARD_SCHEMA}"
    try:
        env, digest = card["env"], card["sha256"][path.name]
        returns = (card["random"]["return_mean"], card["expert"]["demos"]["return_mean"])
        valid = all(type(x) in (int, float) and np.isfinite(x) for x in returns)
    except (KeyError, TypeError):
        valid = False
    if not valid or returns[0] == returns[1]:
        keys = "env, sha256, random.return_mean and expert.demos.return_mean, two finite numbers"
        raise UserError(f"{card_path}: a card with keys missing or wrong; expected {keys}")
    if env != env_id:
        return None, f"{card_path}: ignored; it is of {env}, not {env_id}"
    if path.exists() and digest != sha256(path):
        return None, f"{card_path}: ignored; {path.name} is not the file that it describes"
    return card, ""


def normalized(score: float, card: dict | None) -> float | None:
    """`score` on a scale from 0, the random policy, to 1, the expert; None without a card."""
    if card is None:
        return None
    floor = card["random"]["return_mean"]
    ceiling = card["expert"]["demos"]["return_mean"]
    return (score - floor) / (ceiling - floor)


def prepare_demos(args: Args, algorithm_cls: type | None = None) -> Demos:
    """The demonstrations with their card; prints how much of them is used. They are not read for
    the oracle and for a method whose class says `needs_demos = False`.
    """
    path = args.demos_path
    card, note = load_card(path, args.env)
    if card and args.max_episode_steps not in (None, gym.spec(args.env).max_episode_steps):
        card = None
        note = f"--max-episode-steps: not the limit of {path.stem}.json; no return is normalised"
    if note:
        print(note, file=sys.stderr)
    if args.true_reward or not getattr(algorithm_cls, "needs_demos", True):
        unread = {"file": path.name, "sha256": None, "episodes": 0, "transitions": 0}
        return Demos(None, unread, card)
    demos = load_demos(path, *env_dims(args), args.demo_episodes, args.demo_subsample)
    source = demos.source
    transitions = f"{source['transitions']} of {source['transitions_in_file']} transitions"
    print(f"{path}: {transitions}, {source['episodes']} of {source['episodes_in_file']} episodes")
    if args.demo_episodes == Args.demo_episodes < source["episodes_in_file"] / 2:
        print("warning: --demo-episodes leaves out most of the file by default", file=sys.stderr)
    return replace(demos, card=card)


# ========================================================================================= policy
def tanh_mlp(in_dim: int, out_dim: int, out_std: float) -> nn.Sequential:
    layers = [nn.Linear(in_dim, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh()]
    layers.append(nn.Linear(256, out_dim))
    for layer, std in zip(layers[::2], (np.sqrt(2), np.sqrt(2), out_std)):
        nn.init.orthogonal_(layer.weight, std)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class Policy(nn.Module):
    """Gaussian policy with a state-independent standard deviation, and a critic of its own."""

    def __init__(self, obs_dim: int, action_dim: int):
        super().__init__()
        self.critic = tanh_mlp(obs_dim, 1, out_std=1.0)
        self.actor_mean = tanh_mlp(obs_dim, action_dim, out_std=0.01)
        self.actor_logstd = nn.Parameter(torch.zeros(1, action_dim))

    def get_value(self, obs: torch.Tensor) -> torch.Tensor:
        """Values (batch,) of obs (batch, obs_dim)."""
        return self.critic(obs).squeeze(-1)

    def get_action_and_value(self, obs, action=None):
        """action (batch, action_dim), sampled if None; log_prob, entropy and value (batch,)."""
        mean = self.actor_mean(obs)
        logstd = self.actor_logstd.expand(len(obs), -1)
        if action is None:
            action = mean + logstd.exp() * torch.randn_like(mean)
        # The density written out: torch.distributions costs more than the network at this size.
        z = (action - mean) / logstd.exp()
        log_prob = (-0.5 * z**2 - logstd - 0.5 * np.log(2 * np.pi)).sum(-1)
        entropy = (logstd + 0.5 * np.log(2 * np.pi * np.e)).sum(-1)
        return action, log_prob, entropy, self.get_value(obs)


# ============================================================================ EDITABLE REGION BEGIN
@dataclass(frozen=True)
class Hyperparameters:
    """The settings of the method. A run writes them into its result.json."""

    # Reward network
    gamma: float = 0.99  # discount of the shaping term, of the value and of Q
    terminal_cost: float = 15.0  # potential of a state that ends no episode, in `forward`
    obs_clip: float = 20.0  # bound of normalised observations, in standard deviations
    min_obs_std: float = 0.05  # floor of the standard deviation, for nearly constant inputs
    critic_hidden: int = 160
    termination_hidden: int = 64
    value_hidden: int = 160
    value_scale: float = 10.0  # V lies between 0 and 100: unit of the value network's output

    # Reward update
    critic_steps: int = 3  # gradient steps of critic and termination network per `update`
    gradient_penalty: float = 10.0  # weight of the one-sided gradient penalty
    recent_rounds: int = 5  # rollouts that half of the critic's policy batch is drawn from
    termination_lr: float = 3e-3
    value_lr: float = 1e-3
    value_steps: int = 40  # gradient steps of V per rollout
    td_lambda: float = 0.9  # lambda of the returns that V and Q are fitted to

    # Imitation reward, without policy access only
    imitation_coef: float = 1.0  # weight of the squared distance to the BC actor's action
    gae_lambda: float = 0.95  # of the loop's advantages

    # Behaviour cloning
    bc_rounds: int = 20  # rollouts during which the BC actors are trained
    bc_steps: int = 2000  # gradient steps per rollout; fewer on less than 1,000 transitions
    bc_batch: int = 128  # transitions per gradient step
    bc_lr: float = 2e-3  # decays to 0 along a cosine

    # Rollouts of the BC actors, with policy access only
    bc_action_scales: tuple = (1.0, 1.0, 0.5, 0.25, 2.0**-10)  # of the BC actor, 4 rollouts each
    bc_logstds: tuple = (-3.0, -2.0, -1.0, 0.0)  # exploration of those rollouts, in turn
    bc_eval_rounds: int = 10  # rollouts of the trained BC actor with little noise
    disagreement_scale: float = 4e-4  # mean squared action difference that counts as 1
    uncertainty_penalty: float = 0.15  # subtracted from Q's reward, times log(1 + disagreement)

    # Q and actor, with policy access only
    improvement_interval: int = 5  # rollouts from one policy improvement to the next
    target_refreshes: int = 120  # per fit, times q_share; targets are computed once in each
    q_steps_per_refresh: int = 10
    actor_steps_per_refresh: int = 4
    q_batch: int = 128
    q_hidden: int = 128
    q_scale: float = 30.0  # Q lies mostly between 0 and 400: unit of the networks' output
    q_recent_rounds: int = 20  # rollouts with lambda-returns as targets
    tau: float = 0.3  # Polyak coefficient of the target networks, per refresh
    target_noise: float = 0.1  # standard deviation of target policy smoothing
    target_noise_clip: float = 0.3
    bc_coef: float = 1.0  # weight of the BC term in the actor's loss
    sampling_floor: float = 0.2  # weight of rows with disagreement 0 in the actor's batches
    exploration_logstd: float = -3.0  # after an improvement; a fast gait falls under more noise
    quiet_logstd: float = -4.0  # of the other rollouts: close to the deterministic policy


def mlp(in_dim, hidden, out_dim=1, norm=False):
    """`norm`: layer norm, which bounds Q at actions without data (arXiv 2302.02948)."""
    layers = []
    for n in (in_dim, hidden):
        layers.append(nn.Linear(n, hidden))
        layers += [nn.LayerNorm(hidden), nn.ReLU()] if norm else [nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(hidden, out_dim))


def adam(network, lr=1e-3):
    return optim.Adam(network.parameters(), lr=lr, fused=True)


def gradient_step(optimizer, loss):
    """One step on the optimizer's own parameters; no other gets a gradient. Returns the loss."""
    optimizer.zero_grad()
    loss.backward(inputs=optimizer.param_groups[0]["params"])
    optimizer.step()
    return loss.item()


class RewardNetwork(nn.Module):
    """Potential-shaped reward  f(s, a, s') = g(s, a, s') + gamma Phi(s') - Phi(s)   (Ng et al.
    1999; AIRL, eq. 4). p(s) is the probability that reaching s ended an episode.

    forward          That of a finished run. g is linear in the critic's score: 1 at the baseline
                     score, 3 at the expert's, at least 0. Phi = (1 - p) terminal_cost.
    training_reward  What PPO gets. g is a sigmoid of the score: 0.05 at the policy's mean score,
                     0.95 at the expert's. Phi = (1 - p) V with V the value of that g.

    A terminal s' costs Phi(s) and a time limit nothing, although no `done` is passed: the loop
    subtracts the mean reward, and with it any incentive to survive.
    """

    hyperparameters = Hyperparameters()

    def __init__(self, obs_dim, action_dim):
        super().__init__()
        hp = self.hyperparameters
        self.critic = mlp(2 * obs_dim + action_dim, hp.critic_hidden)
        self.termination_net = mlp(obs_dim, hp.termination_hidden)
        self.value_net = mlp(obs_dim, hp.value_hidden)
        nn.init.zeros_(self.value_net[-1].weight)
        self.register_buffer("obs_mean", torch.zeros(obs_dim))
        self.register_buffer("obs_std", torch.ones(obs_dim))
        self.register_buffer("act_low", -torch.ones(action_dim))
        self.register_buffer("act_high", torch.ones(action_dim))
        self.register_buffer("baseline_score", torch.tensor(0.0))
        self.register_buffer("policy_score_ema", torch.tensor(0.0))
        self.register_buffer("expert_score_ema", torch.tensor(1.0))
        self.register_buffer("termination_prior_logit", torch.tensor(-10.0))

    def fit_normalizer(self, obs, acts):
        self.obs_mean.copy_(obs.mean(0))
        self.obs_std.copy_(obs.std(0, unbiased=False).clamp(min=self.hyperparameters.min_obs_std))
        self.act_low.copy_(acts.amin(0))
        self.act_high.copy_(acts.amax(0))

    def normalize(self, obs):
        """(obs - mean) / std of the demonstrations. The clip is wide: an untrained policy is many
        standard deviations away from the expert, and the critic must have a gradient there.
        """
        clip = self.hyperparameters.obs_clip
        return ((obs - self.obs_mean) / self.obs_std).clamp(-clip, clip)

    def features(self, state, action, next_state):
        """[s, a, s' - s], normalised, (batch, 2 obs_dim + action_dim). Actions are clamped to the
        expert's range so that exploration noise alone does not identify the policy.
        """
        s = self.normalize(state)
        next_s = self.normalize(next_state)
        return torch.cat([s, action.clamp(self.act_low, self.act_high), next_s - s], -1)

    def normalized_score(self, state, action, next_state, baseline):
        """The critic's output (batch,), rescaled: 0 at the score `baseline`, 1 at the expert's."""
        score = self.critic(self.features(state, action, next_state)).squeeze(-1)
        return (score - baseline) / (self.expert_score_ema - baseline).clamp(min=0.1)

    def termination_logit(self, state):
        """The logit of p, for equal numbers of terminal and other states (`termination_step`)."""
        return self.termination_net(self.normalize(state)).squeeze(-1)

    def survival_prob(self, state):
        """1 - p(s): Bayes' rule adds the prior log-odds of a terminal state to the logit."""
        return torch.sigmoid(-self.termination_logit(state) - self.termination_prior_logit)

    def continuation(self, next_state, ended):
        """The weight of next_state's value: less where `ended` (batch,) bool marks a termination.
        p(s) does not tell it from a time limit: it falls with the rate of terminations, so a better
        policy's falls would cost less. The 3: a logit of 0, as at a time limit, gives 0.05.
        """
        return 1 - ended * torch.sigmoid(self.termination_logit(next_state) - 3)

    def g(self, state, action, next_state):
        score = self.normalized_score(state, action, next_state, self.baseline_score)
        return 1 + 2 * score.clamp(-0.5, 1.5)

    def forward(self, state, action, next_state):
        hp = self.hyperparameters
        next_potential = hp.gamma * hp.terminal_cost * self.survival_prob(next_state)
        shaping = next_potential - hp.terminal_cost * self.survival_prob(state)
        return self.g(state, action, next_state) + shaping

    def policy_relative_g(self, state, action, next_state):
        score = self.normalized_score(state, action, next_state, self.policy_score_ema)
        return torch.sigmoid(6 * score - 3)

    def value(self, state):
        """V (batch,): the discounted sum of `policy_relative_g` under the current policy."""
        return self.hyperparameters.value_scale * self.value_net(self.normalize(state)).squeeze(-1)

    def potential(self, state):
        return self.survival_prob(state) * self.value(state)

    def training_reward(self, state, action, next_state):
        shaping = self.hyperparameters.gamma * self.potential(next_state) - self.potential(state)
        return self.policy_relative_g(state, action, next_state) + shaping


def successors(obs, next_obs):
    """For each of n transitions the row (n,) int of the one whose obs equals its next_obs, and
    whether there is one (n,) bool. Equal vectors are found by sorting a random projection of both.
    """
    projection = torch.randn(obs.shape[1], dtype=torch.float64, device=obs.device)
    keys, order = (obs.double() @ projection).sort()
    wanted = next_obs.double() @ projection
    at = torch.searchsorted(keys, wanted).clamp(max=len(obs) - 1)
    return order[at], keys[at] == wanted


class Replay:
    """The demonstrations (rows 0 to n_expert - 1), then every transition of every rollout.

    Columns: obs, acts, next_obs (n, dim); ended (n,) bool; next_row (n,) int: the row that follows
    in the episode, -1 if there is none, as for the expert's.
    """

    def __init__(self, obs, acts, next_obs):
        self.obs = obs
        self.acts = acts
        self.next_obs = next_obs
        self.n_expert = len(obs)
        self.n_policy = 0
        self.rollout_size = 0
        self.buffers = {}  # of the columns, by name
        self.ended = torch.zeros(self.n_expert, dtype=torch.bool, device=obs.device)
        self.next_row = torch.full((self.n_expert,), -1, device=obs.device)

    def add(self, obs, acts, next_obs, ended):
        """Appends a rollout."""
        next_row, followed = successors(obs, next_obs)
        next_row = torch.where(followed, len(self.obs) + next_row, -1)
        self.append("obs", obs)
        self.append("acts", acts)
        self.append("next_obs", next_obs)
        self.append("ended", ended)
        self.append("next_row", next_row)
        self.rollout_size = len(obs)
        self.n_policy += len(obs)

    def append(self, name, rows):
        """Appends to a column: a view of a buffer, which is copied once in 32 rollouts to grow."""
        column = getattr(self, name)
        n = len(column) + len(rows)
        if n > len(self.buffers.get(name, column)):
            room = column.new_zeros(32 * len(rows), *column.shape[1:])
            self.buffers[name] = torch.cat([column, room])
        self.buffers[name][len(column) : n] = rows
        setattr(self, name, self.buffers[name][:n])

    def recent(self, rollouts):
        """The number of transitions in the newest `rollouts` rollouts."""
        return min(self.n_policy, rollouts * self.rollout_size)

    def sample_expert(self, size):
        return torch.randint(self.n_expert, (size,), device=self.obs.device)

    def sample_policy(self, size, rollouts=None):
        """Rows of all rollouts, or of the newest `rollouts`, counted from the end (negative)."""
        n = self.n_policy if rollouts is None else self.recent(rollouts)
        return -1 - torch.randint(n, (size,), device=self.obs.device)

    def transitions(self, rows):
        return self.obs[rows], self.acts[rows], self.next_obs[rows]

    def lambda_returns(self, rewards, next_values, gamma, td_lambda):
        """Lambda-returns (n,) of the newest n transitions (Peng's Q(lambda), arXiv 2103.00107).
        `next_values` (n,): of next_obs, 0 where that is terminal. 40 backups: 0.9^40 is 0.01.
        """
        n = len(rewards)
        first_row = len(self.obs) - n
        next_row = self.next_row[-n:]
        followed = next_row >= first_row
        row = (next_row - first_row).clamp(min=0)
        returns = rewards + gamma * next_values
        for _ in range(40):
            mixed = (1 - td_lambda) * next_values + td_lambda * returns[row]
            returns = rewards + gamma * torch.where(followed, mixed, next_values)
        return returns


class BehaviourCloning:
    """Actors trained on the demonstrations alone, by squared error of their actions."""

    @torch.no_grad()
    def __init__(self, algorithm, n_actors):
        net, replay = algorithm.reward_net, algorithm.replay
        self.hp = algorithm.hyperparameters
        self.replay = replay
        dims = (replay.obs.shape[1], 256, replay.acts.shape[1])
        self.actors = [mlp(*dims).to(algorithm.device) for _ in range(n_actors)]
        # The first layers normalise observations, which the loop does not; all actions are 0.
        for actor in self.actors:
            for layer in actor[:-1:2]:
                nn.init.orthogonal_(layer.weight, 2**0.5)
            actor[0].weight /= net.obs_std
            actor[0].bias -= actor[0].weight @ net.obs_mean
            for p in actor[-1].parameters():
                p.zero_()
        self.optimizer = adam(nn.ModuleList(self.actors))

    def train(self, round_):
        """The gradient steps of rollout `round_`. Half of each batch is drawn in proportion to the
        error: the first steps of an episode are rare in the data, but an error there ends it.
        """
        hp, replay, size = self.hp, self.replay, self.hp.bc_batch // 2
        decay = 0.5 * (1 + np.cos(np.pi * (round_ - 1) / hp.bc_rounds))
        self.optimizer.param_groups[0]["lr"] = decay * hp.bc_lr
        for step in range(round(hp.bc_steps * min(1, 0.5 + replay.n_expert / 2000))):
            if step % 100 == 0:
                candidates = replay.sample_expert(8192)
                with torch.no_grad():
                    errors = self.actors[0](replay.obs[candidates]) - replay.acts[candidates]
                hard = candidates[torch.multinomial(errors.norm(dim=1) + 1e-6, 2048)]
            even = replay.sample_expert(size)
            picked = torch.randint(2048, (size,), device=hard.device)
            rows = torch.cat([even, hard[picked]])
            obs, acts = replay.obs[rows], replay.acts[rows]
            losses = [(actor(obs) - acts).square().sum(1).mean() for actor in self.actors]
            gradient_step(self.optimizer, sum(losses))


def polyak_update(target, source, tau):
    """target <- (1 - tau) target + tau source, parameter by parameter."""
    with torch.no_grad():
        for p, new in zip(target.parameters(), source.parameters(), strict=True):
            p.lerp_(new, tau)


class PolicyImprovement:
    """With access to the policy: BC actors, a Q of the learned reward, an actor that climbs Q.

    Where the two BC actors disagree the demonstrations do not determine the action. `actor` starts
    as the first, stays it where disagreement is 0, and climbs Q where it is high.
    `policy.actor_mean`, which collects rollouts, is its Polyak average. PPO is paid 0 meanwhile and
    its critic outputs 0, so that its gradient is exactly 0.
    """

    def __init__(self, algorithm, policy, ppo_optimizer):
        self.hp = hp = algorithm.hyperparameters
        self.reward_net = algorithm.reward_net
        self.replay = replay = algorithm.replay
        self.policy = policy
        self.ppo_optimizer = ppo_optimizer
        self.base_lr = ppo_optimizer.param_groups[0]["lr"]
        self.lr_fraction = 1.0  # of base_lr: follows the loop's annealing, if it anneals
        self.bc_scale = 1.0  # until the BC actor has been evaluated
        self.q_share = 1.0  # share of target_refreshes, likewise
        obs_dim, action_dim = replay.obs.shape[1], replay.acts.shape[1]
        device = algorithm.device
        self.cloning = BehaviourCloning(algorithm, n_actors=2)
        self.bc_actors = self.cloning.actors
        self.actor = mlp(obs_dim, 256, action_dim).to(device)
        # Mean actions start at 0, and so do the values of PPO's critic.
        for network in (policy.critic, policy.actor_mean):
            for p in network[-1].parameters():
                nn.init.zeros_(p)
        nn.init.constant_(policy.actor_logstd, -2.0)
        # Of each row of the replay, computed once: first BC actor's action, disagreement.
        self.bc_acts = replay.acts[:0]
        self.disagreement = replay.acts[:0, 0]
        q_dims = (obs_dim + action_dim, hp.q_hidden)
        self.q = nn.ModuleList(mlp(*q_dims, norm=True) for _ in range(2)).to(device)
        self.q_target = nn.ModuleList(mlp(*q_dims, norm=True) for _ in range(2)).to(device)
        self.q_target.load_state_dict(self.q.state_dict())
        self.actor_optimizer = adam(self.actor)
        self.q_optimizer = adam(self.q)

    def prepare_rollout_policy(self, round_):
        """Sets the policy of the next rollout, after rollout number `round_` (1, 2, ...):

        rollouts                 mean                            log std
        1 to 2                   0                               -2, 0
        3 to bc_rounds + 1       first BC actor, scaled          bc_logstds in turn
        then bc_eval_rounds      first BC actor                  quiet_logstd
        the others               average of the actor            exploration_logstd after an
                                                                 improvement, else quiet_logstd

        Low noise first: a HalfCheetah flipped by noise stays on its back until the episode ends.
        """
        hp = self.hp
        self.lr_fraction = self.ppo_optimizer.param_groups[0]["lr"] / self.base_lr
        improvement = round_ - hp.bc_rounds - hp.bc_eval_rounds  # 1, 2, ... from then on
        logstd = hp.quiet_logstd
        if round_ == 1:
            logstd = 0.0
        elif round_ <= hp.bc_rounds:
            self.cloning.train(round_)
            self.bc_acts = self.bc_acts[:0]
            self.disagreement = self.disagreement[:0]
            polyak_update(self.actor, self.bc_actors[0], tau=1.0)
            polyak_update(self.policy.actor_mean, self.bc_actors[0], tau=1.0)
            scale = hp.bc_action_scales[round_ // 4 % len(hp.bc_action_scales)]
            with torch.no_grad():
                for p in self.policy.actor_mean[-1].parameters():
                    p *= scale if round_ < hp.bc_rounds else 1.0
            logstd = hp.bc_logstds[round_ % 4]
        t, rest = divmod(improvement - 1, hp.improvement_interval)
        improves = improvement > 0 and rest == 0
        if improves or (round_ > 1 and improvement <= 0):
            self.query_bc_actors()
            if improvement == 1:
                self.bc_scale = self.estimate_bc_scale()
                self.q_share = self.estimate_q_share()
            self.fit_q(with_actor=improves)
        if improves:
            # Polynomial-decay averaging (arXiv 1212.1824), eta = 8; t is 0 at the first
            polyak_update(self.policy.actor_mean, self.actor, tau=9 / (9 + t))
            logstd = hp.exploration_logstd
        nn.init.constant_(self.policy.actor_logstd, logstd)

    def estimate_bc_scale(self):
        """1 where the BC actor's score lacks a tenth or more of the way from baseline to expert,
        100 where it lacks a thousandth or less: learning can only harm one as good as the expert.
        """
        rows = slice(-self.replay.recent(self.hp.bc_eval_rounds), None)
        net = self.reward_net
        with torch.no_grad():
            scores = net.normalized_score(*self.replay.transitions(rows), net.baseline_score)
        gap = 1 - scores.mean().item()
        return 0.1 / min(max(gap, 0.001), 0.1)

    def estimate_q_share(self):
        """Share of the updates of Q and actor, which take most of a run's time: twice the mean
        weight of Q in the states that the BC actor visits, at most 1.
        """
        visited = self.disagreement[-self.replay.recent(self.hp.bc_eval_rounds) :]
        return min(1.0, 2 * self.q_weight(visited).mean().item())

    def query_bc_actors(self):
        """BC action and ensemble disagreement (DRIL, Brantley et al. 2020) of new replay rows."""
        obs = self.replay.obs[len(self.disagreement) :]
        with torch.no_grad():
            acts = self.bc_actors[0](obs)
            squares = (self.bc_actors[1](obs) - acts).square().mean(1)
        self.bc_acts = torch.cat([self.bc_acts, acts])
        self.disagreement = torch.cat([self.disagreement, squares / self.hp.disagreement_scale])

    def q_values(self, networks, obs, acts):
        """(2, n). Actions are clamped to the expert's range: there are no data beyond it."""
        net = self.reward_net
        x = torch.cat([net.normalize(obs), acts.clamp(net.act_low, net.act_high)], -1)
        return self.hp.q_scale * torch.stack([q(x).squeeze(-1) for q in networks])

    def target_value(self, obs):
        """The lower of two target Qs (n,) at a smoothed action (TD3, arXiv 1802.09477) of the
        averaged actor: with the learner's own, overestimation at untried actions is bootstrapped.
        """
        acts = self.policy.actor_mean(obs)
        std = self.hp.target_noise * max(0.1, self.lr_fraction)
        limit = self.hp.target_noise_clip
        noise = (std * torch.randn_like(acts)).clamp(-limit, limit)
        return self.q_values(self.q_target, obs, acts + noise).amin(0)

    def q_rewards(self, rows):
        """g, less a penalty where the BC actors disagree (as MOPO penalises uncertainty)."""
        g = self.reward_net.g(*self.replay.transitions(rows))
        return g - self.hp.uncertainty_penalty * self.disagreement[rows].log1p()

    def next_values(self, rows):
        next_obs = self.replay.next_obs[rows]
        continuation = self.reward_net.continuation(next_obs, self.replay.ended[rows])
        return continuation * self.target_value(next_obs)

    @torch.no_grad()
    def td_targets(self, rows):
        return self.q_rewards(rows) + self.hp.gamma * self.next_values(rows)

    @torch.no_grad()
    def recent_returns(self):
        """Lambda-returns of the newest q_recent_rounds rollouts."""
        rows = slice(-self.replay.recent(self.hp.q_recent_rounds), None)
        rewards, values = self.q_rewards(rows), self.next_values(rows)
        return self.replay.lambda_returns(rewards, values, self.hp.gamma, self.hp.td_lambda)

    def fit_q(self, with_actor):
        """TD3 on `q_rewards` (as DAC, arXiv 1809.02925): lambda-returns for recent rows, 3/8 of
        a batch, and one-step targets for rows of all rollouts, 3/8, and of the demonstrations, 1/4.
        """
        hp, replay = self.hp, self.replay
        n = hp.q_steps_per_refresh * hp.q_batch
        self.q_optimizer.param_groups[0]["lr"] = self.lr_fraction * self.base_lr
        self.actor_optimizer.param_groups[0]["lr"] = self.lr_fraction * self.base_lr / self.bc_scale
        returns = self.recent_returns()
        for _ in range(round(self.q_share * hp.target_refreshes)):
            recent = replay.sample_policy(3 * n // 8, hp.q_recent_rounds)
            expert = replay.sample_expert(n // 4)
            old = replay.sample_policy(3 * n // 8)
            targets = torch.cat([self.td_targets(torch.cat([expert, old])), returns[recent]])
            rows = torch.cat([expert, old, recent])
            obs, acts = replay.obs[rows], replay.acts[rows]
            for batch in torch.randperm(len(rows), device=rows.device).split(hp.q_batch):
                error = self.q_values(self.q, obs[batch], acts[batch]) - targets[batch]
                gradient_step(self.q_optimizer, error.square().sum(0).mean())
            polyak_update(self.q_target, self.q, hp.tau)
            for _ in range(hp.actor_steps_per_refresh if with_actor else 0):
                self.actor_step(rows)

    def q_weight(self, disagreement):
        """Weight of Q in the actor's loss: 0 at disagreement 0, where Q's error does not vanish."""
        return disagreement**2 / (1 + disagreement**2)

    def actor_step(self, rows):
        """TD3+BC (Fujimoto and Gu 2021), both terms and the choice of rows by disagreement."""
        weights = self.disagreement[rows].log1p() + self.hp.sampling_floor
        rows = rows[torch.multinomial(weights, self.hp.q_batch)]
        obs, disagreement = self.replay.obs[rows], self.disagreement[rows]
        acts = self.actor(obs)
        distance = (acts - self.bc_acts[rows]).square().sum(1)
        bc_loss = (distance / (1 + disagreement)).mean()
        values = self.q_values(self.q_target, obs, acts).amin(0)
        q_loss = -(self.q_weight(disagreement) * values).mean() / values.detach().mean().abs()
        gradient_step(self.actor_optimizer, self.bc_scale * self.hp.bc_coef * bc_loss + q_loss)


class IRLAlgorithm:
    """Adversarial IRL with a Wasserstein critic, a termination probability and a value potential.

    Without `set_policy` PPO is paid `training_reward` + `imitation_reward`; with it, 0, and
    PolicyImprovement trains the policy on the learned reward.
    """

    hyperparameters = Hyperparameters()
    policy_improvement_cls = PolicyImprovement

    def __init__(self, reward_net, expert_demos, obs_dim, action_dim, device, args):
        hp = self.hyperparameters
        self.reward_net = reward_net
        self.args = args
        self.device = device
        self.replay = Replay(expert_demos["obs"], expert_demos["acts"], expert_demos["next_obs"])
        self.terminal_obs = self.replay.obs[:0]  # next_obs of transitions that ended an episode
        reward_net.hyperparameters = hp
        reward_net.fit_normalizer(expert_demos["obs"], expert_demos["acts"])  # actors copy it
        self.cloning = BehaviourCloning(self, n_actors=1)
        self.baseline_net = mlp(obs_dim, hp.value_hidden).to(device)
        self.improvement = None  # set by set_policy
        self.calls = 0
        self.round = 0
        self.critic_optimizer = adam(reward_net.critic, args.irl_lr)
        self.termination_optimizer = adam(reward_net.termination_net, hp.termination_lr)
        self.value_optimizer = adam(reward_net.value_net, hp.value_lr)
        self.baseline_optimizer = adam(self.baseline_net, hp.value_lr)

    def set_policy(self, policy, optimizer):
        self.improvement = self.policy_improvement_cls(self, policy, optimizer)

    def compute_reward(self, obs, acts, next_obs):
        if self.improvement is not None:
            return torch.zeros(len(obs), device=self.device)
        with torch.no_grad():
            reward = self.reward_net.training_reward(obs, acts, next_obs)
        return reward + self.imitation_reward(obs, acts, next_obs)

    def imitation_reward(self, obs, acts, next_obs):
        """c(s, a) - gamma lambda c(s', a') of consecutive transitions, (batch,), with
        c = -imitation_coef |a - mu(s)|^2 less its mean in the state, and mu the BC actor. In
        generalised advantage estimation the sum telescopes: an action's advantage is its own c.
        """
        hp = self.hyperparameters
        with torch.no_grad():
            distance = (acts - self.cloning.actors[0](obs)).square().sum(1)
        c = -hp.imitation_coef * distance
        c = c - self.fit_baseline(obs, c)
        next_row, followed = successors(obs, next_obs)
        return c - hp.gamma * hp.gae_lambda * torch.where(followed, c[next_row], 0.0)

    @torch.enable_grad()
    def fit_baseline(self, obs, c):
        """The mean of c in each state, (batch,), fitted to these transitions. With it the imitation
        reward neither pays for some states nor charges for others, which would reward an end.
        A loop may ask for rewards under `no_grad`.
        """
        states = self.reward_net.normalize(obs)
        for _ in range(self.hyperparameters.value_steps):
            rows = torch.randint(len(c), (self.args.irl_batch_size,), device=self.device)
            loss = ((self.baseline_net(states[rows]).squeeze(-1) - c[rows]) ** 2).mean()
            gradient_step(self.baseline_optimizer, loss)
        with torch.no_grad():
            return self.baseline_net(states).squeeze(-1)

    def update(self, policy_obs, policy_acts, policy_next_obs, policy_dones):
        rollout = (policy_obs, policy_acts, policy_next_obs, policy_dones.flatten() > 0.5)
        first = self.calls % self.args.n_irl_updates_per_round == 0
        stats = self.start_round(*rollout) if first else {}
        self.calls += 1
        for _ in range(self.hyperparameters.critic_steps):
            stats |= self.critic_step()
            stats |= self.termination_step()
        return stats

    def start_round(self, obs, acts, next_obs, ended):
        """What happens once a rollout. Returns its mean g and, with policy access, how good the BC
        actor was estimated to be (bc_scale) and how much Q is trained (q_share).
        """
        self.round += 1
        self.replay.add(obs, acts, next_obs, ended)
        self.terminal_obs = self.replay.next_obs[self.replay.ended]
        if n := len(self.terminal_obs):
            odds = n / max(1, self.replay.n_policy - n)
            self.reward_net.termination_prior_logit.fill_(np.log(odds))
        self.update_baseline_score()
        stats = {}
        if self.improvement is None:
            self.fit_value()
            if self.round <= self.hyperparameters.bc_rounds:
                self.cloning.train(self.round)
        else:
            self.improvement.prepare_rollout_policy(self.round)
            stats = {"bc_scale": self.improvement.bc_scale, "q_share": self.improvement.q_share}
        with torch.no_grad():
            return stats | {"g": self.reward_net.g(obs, acts, next_obs).mean().item()}

    @torch.no_grad()
    def update_baseline_score(self):
        """The better mean score of the first two rollouts, the second after at most one update."""
        replay, n = self.replay, self.replay.rollout_size
        rows = slice(replay.n_expert, replay.n_expert + 2 * n)
        scores = self.reward_net.critic(self.reward_net.features(*replay.transitions(rows)))
        self.reward_net.baseline_score.copy_(max(part.mean() for part in scores.split(n)))

    def sample_policy_rows(self, size):
        """Half from recent rollouts, an eighth from the first ones, the rest from all: without old
        rows the critic forgets bad behaviour that the policy no longer shows.
        """
        hp, replay = self.hyperparameters, self.replay
        n_first = replay.recent(hp.bc_rounds + 1)  # as many as there are in the first ones
        first = replay.n_expert + torch.randint(n_first, (size // 8,), device=self.device)
        old = replay.sample_policy(size // 2 - size // 8)
        recent = replay.sample_policy(size - size // 2, hp.recent_rounds)
        return torch.cat([recent, first, old])

    def critic_step(self):
        """WGAN-GP (arXiv 1704.00028), one-sided: unlike a classifier's, scores do not saturate."""
        net, size = self.reward_net, self.args.irl_batch_size
        rows = torch.cat([self.replay.sample_expert(size), self.sample_policy_rows(size)])
        features = net.features(*self.replay.transitions(rows))
        expert_score, policy_score = (x.mean() for x in net.critic(features).split(size))
        expert, policy = features.split(size)
        eps = torch.rand(size, 1, device=self.device)
        interpolated = (eps * expert + (1 - eps) * policy).requires_grad_(True)
        scores = net.critic(interpolated).sum()
        (grad,) = torch.autograd.grad(scores, interpolated, create_graph=True)
        penalty = (F.relu(grad.norm(dim=1) - 1) ** 2).mean()
        loss = policy_score - expert_score + self.hyperparameters.gradient_penalty * penalty
        gradient_step(self.critic_optimizer, loss)
        net.expert_score_ema.lerp_(expert_score.detach(), 0.1)
        net.policy_score_ema.lerp_(policy_score.detach(), 0.1)
        gap = (expert_score - policy_score).item()
        return {"critic_gap": gap, "gradient_penalty": penalty.item()}

    def termination_step(self):
        """Logistic regression: states that ended an episode against as many that did not
        (`survival_prob` corrects for the equal numbers), half of these the expert's. Where a time
        limit ends an episode p stays near 0: such states occur elsewhere, too.
        """
        if not 0 < len(self.terminal_obs) < self.replay.n_policy:
            return {"termination_loss": 0.0}
        size = max(2, self.args.irl_batch_size // 2)
        policy_rows = self.replay.sample_policy(size - size // 2)
        rows = torch.cat([policy_rows, self.replay.sample_expert(size // 2)])
        ordinary = self.replay.next_obs[rows][~self.replay.ended[rows]]
        picked = torch.randint(len(self.terminal_obs), (size,), device=self.device)
        logits = self.reward_net.termination_logit(torch.cat([self.terminal_obs[picked], ordinary]))
        loss = F.softplus(-logits[:size]).mean() + F.softplus(logits[size:]).mean()
        return {"termination_loss": gradient_step(self.termination_optimizer, loss)}

    def fit_value(self):
        """Fits V to the lambda-returns of `policy_relative_g` over the newest rollout."""
        net, hp, n = self.reward_net, self.hyperparameters, self.replay.rollout_size
        obs, acts, next_obs = self.replay.transitions(slice(-n, None))
        with torch.no_grad():
            rewards = net.policy_relative_g(obs, acts, next_obs)
            next_values = net.continuation(next_obs, self.replay.ended[-n:]) * net.value(next_obs)
            targets = self.replay.lambda_returns(rewards, next_values, hp.gamma, hp.td_lambda)
        for _ in range(hp.value_steps):
            rows = torch.randint(n, (self.args.irl_batch_size,), device=self.device)
            loss = ((net.value(obs[rows]) - targets[rows]) ** 2).mean()
            gradient_step(self.value_optimizer, loss)


# ============================================================================== EDITABLE REGION END


# ============================================================================================ PPO
@dataclass(frozen=True)
class Rollout:
    """T steps of N environments. `next_obs` is the observation before any reset."""

    obs: torch.Tensor  # (T, N, obs_dim)
    acts: torch.Tensor  # (T, N, action_dim), before clipping to the action space
    next_obs: torch.Tensor  # (T, N, obs_dim)
    logprobs: torch.Tensor  # (T, N)
    values: torch.Tensor  # (T, N)
    next_values: torch.Tensor  # (T, N), of next_obs
    true_rewards: torch.Tensor  # (T, N), for evaluation and the oracle alone
    terminated: torch.Tensor  # (T, N) bool
    ended: torch.Tensor  # (T, N) bool, time limits included

    def flat(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """obs, acts and next_obs with T and N flattened into one dimension, as methods get them."""
        return self.obs.flatten(0, 1), self.acts.flatten(0, 1), self.next_obs.flatten(0, 1)


@torch.no_grad()
def collect_rollout(envs: VectorEnv, policy: Policy, num_steps: int) -> Rollout:
    """Steps the environments with sampled actions. Log-probabilities and values are computed once,
    at the end: the policy does not change during a rollout.
    """
    noise = torch.randn(num_steps, len(envs.envs), envs.action_dim)
    steps = []
    for deviation in policy.actor_logstd.exp() * noise:
        obs = torch.tensor(envs.obs)
        acts = mlp_forward(policy.actor_mean, obs)[-1] + deviation
        if not acts.isfinite().all():
            raise UserError("the policy's actions are NaN or infinite: training has diverged")
        steps.append((obs, acts, *map(torch.from_numpy, envs.step(acts.numpy()))))
    obs, acts, next_obs, true_rewards, terminated, ended = map(torch.stack, zip(*steps))
    _, logprobs, _, values = policy.get_action_and_value(obs.flatten(0, 1), acts.flatten(0, 1))
    next_values = policy.get_value(next_obs.flatten(0, 1))
    estimates = (x.view_as(true_rewards) for x in (logprobs, values, next_values))
    return Rollout(obs, acts, next_obs, *estimates, true_rewards, terminated, ended)


class RunningNorm:
    """Running mean and variance of all rewards so far (Chan et al. 1979)."""

    def __init__(self):
        self.count = 0
        self.mean = 0.0
        self.var = 1.0

    def __call__(self, rewards: torch.Tensor) -> torch.Tensor:
        """Adds `rewards` to the statistics, then returns (rewards - mean) / std, float32."""
        x = rewards.double()
        count = x.numel()
        var = x.var(unbiased=False).item()
        delta = x.mean().item() - self.mean
        total = self.count + count
        between = delta**2 * self.count * count / total
        self.var = (self.var * self.count + var * count + between) / total
        self.mean += delta * count / total
        self.count = total
        return ((x - self.mean) / (self.var + 1e-8) ** 0.5).float()


def compute_gae(rewards, values, next_values, terminated, ended, gamma: float, lam: float):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), tensors (T, N). A time limit
    bootstraps from the last observation, a termination does not; either ends the sum.
    """
    deltas = rewards + gamma * next_values * ~terminated - values
    decay = gamma * lam * ~ended
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        running = deltas[t] + decay[t] * running
        advantages[t] = running
    return advantages


def mlp_forward(net: nn.Sequential, x: torch.Tensor) -> list[torch.Tensor]:
    """The input of each Linear layer of a `tanh_mlp`, and last its output. No autograd."""
    first, second, last = net[::2]
    hidden_1 = torch.addmm(first.bias, x, first.weight.t())
    np.tanh(hidden_1.numpy(), out=hidden_1.numpy())  # several times as fast as torch.tanh
    hidden_2 = torch.addmm(second.bias, hidden_1, second.weight.t())
    np.tanh(hidden_2.numpy(), out=hidden_2.numpy())
    return [x, hidden_1, hidden_2, torch.addmm(last.bias, hidden_2, last.weight.t())]


def mlp_backward(net: nn.Sequential, inputs: list[torch.Tensor], grad: torch.Tensor) -> None:
    """Backpropagates `grad`, the loss's gradient in the output, into `.grad` of the parameters."""
    for layer, x in zip(reversed(net[::2]), reversed(inputs[:-1])):
        torch.mm(grad.t(), x, out=layer.weight.grad)
        torch.sum(grad, 0, out=layer.bias.grad)
        if layer is not net[0]:
            grad = torch.ops.aten.tanh_backward(torch.mm(grad, layer.weight), x)


def ppo_gradient(policy: Policy, obs, acts, old_logprobs, advantages, returns, args: Args) -> dict:
    """PPO's clipped loss (Schulman et al. 2017, eq. 7) on a minibatch of n rows: fills the policy's
    `.grad` and returns statistics. The gradient equals autograd's and is written out because
    autograd's overhead at this size is as large as the arithmetic.
    """
    n = len(obs)
    actor = mlp_forward(policy.actor_mean, obs)
    critic = mlp_forward(policy.critic, obs)
    std = policy.actor_logstd.exp()
    z = (acts - actor[-1]) / std
    logprobs = (-0.5 * z * z - policy.actor_logstd - 0.5 * np.log(2 * np.pi)).sum(-1)
    logratio = logprobs - old_logprobs
    ratio = logratio.exp()
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    # loss = -mean(min(adv * ratio, adv * clip(ratio))): constant where the clipped term is smaller
    surrogate = advantages * ratio
    clipped = advantages * ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    d_logprob = torch.where(surrogate <= clipped, -surrogate / n, 0.0)[:, None]
    mlp_backward(policy.actor_mean, actor, d_logprob * z / std)
    torch.sum(d_logprob * (z * z - 1), 0, keepdim=True, out=policy.actor_logstd.grad)
    # loss = vf_coef * mean(0.5 * (values - returns)^2)
    errors = critic[-1] - returns[:, None]
    mlp_backward(policy.critic, critic, args.vf_coef / n * errors)
    return {
        "approx_kl": (ratio - 1 - logratio).mean(),  # k3 of http://joschu.net/blog/kl-approx.html
        "clip_fraction": ((ratio - 1).abs() > args.clip_coef).float().mean(),
        "ppo_value_loss": 0.5 * (errors * errors).mean(),
    }


@torch.no_grad()
def update_policy(policy: Policy, optimizer, rollout: Rollout, rewards, args: Args) -> dict:
    """PPO's epochs over a rollout with normalised `rewards` (T, N); returns mean statistics."""
    steps = (rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.ended)
    advantages = compute_gae(*steps, args.gamma, args.gae_lambda)
    returns = advantages + rollout.values
    columns = (rollout.obs, rollout.acts, rollout.logprobs, advantages, returns)
    batch = [x.flatten(0, 1) for x in columns]
    parameters = list(policy.parameters())
    # One vector of which every parameter's `.grad` is a view: one call gives its norm.
    sizes = [p.numel() for p in parameters]
    gradient = torch.zeros(sum(sizes))
    for p, part in zip(parameters, gradient.split(sizes)):
        p.grad = part.view_as(p)
    stats = []
    converged = False
    for _ in range(args.update_epochs):
        before = nn.utils.parameters_to_vector(parameters)
        for rows in torch.randperm(args.batch_size).split(args.batch_size // args.num_minibatches):
            if not converged:
                stats.append(ppo_gradient(policy, *(x[rows] for x in batch), args))
                gradient *= (args.max_grad_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)
            optimizer.step()
        # After an epoch of zero gradients that moved nothing (a method that pays 0) the gradient
        # stays 0, and only Adam's step count advances.
        moved = not torch.equal(before, nn.utils.parameters_to_vector(parameters))
        converged = not moved and not gradient.any()
    unexplained = (returns - rollout.values).var() / (returns.var() + 1e-12)
    return {
        **{key: torch.stack([s[key] for s in stats]).mean().item() for key in stats[0]},
        "explained_variance": 1 - unexplained.item(),
        "logstd": policy.actor_logstd.mean().item(),
    }


# ================================================================================ contract checks
def check_size(reward_net: nn.Module, obs_dim: int, action_dim: int) -> None:
    """The contract's cap: 1.05 x AIRL's g on [s, a] and h on s, each 256-256-1."""
    airl = sum((n + 1) * 256 + 257 * 256 + 257 for n in (obs_dim + action_dim, obs_dim))
    size = sum(p.numel() for p in reward_net.parameters())
    if size > 1.05 * airl:
        allowed = f"at most {int(1.05 * airl)} are allowed (1.05 x AIRL's {airl})"
        raise UserError(f"{type(reward_net).__name__}: {size} parameters; {allowed}")


def learned_rewards(algorithm, rollout: Rollout) -> torch.Tensor:
    """`compute_reward` of a rollout, checked, (T, N); without a method the true rewards."""
    if algorithm is None:
        return rollout.true_rewards
    rewards = algorithm.compute_reward(*rollout.flat())
    n = rollout.true_rewards.numel()
    name = f"{type(algorithm).__name__}.compute_reward"
    if not isinstance(rewards, torch.Tensor) or rewards.shape != (n,):
        shape = tuple(getattr(rewards, "shape", ()))
        raise UserError(f"{name}: returned shape {shape}; expected ({n},)")
    rewards = rewards.detach().float()
    if broken := int((~rewards.isfinite()).sum()):
        raise UserError(f"{name}: returned {broken} values of {n} that are not finite")
    return rewards.view_as(rollout.true_rewards)


def update_reward(algorithm, rollout: Rollout, n_updates: int) -> dict[str, float]:
    """Calls `update` `n_updates` times; returns the mean of each number that it reports."""
    if algorithm is None:
        return {}
    dones = rollout.ended.flatten().float()
    reported = {}
    for _ in range(n_updates):
        for key, value in (algorithm.update(*rollout.flat(), dones) or {}).items():
            reported.setdefault(f"irl/{key}", []).append(float(value))
    return {key: float(np.mean(values)) for key, values in reported.items()}


# ===================================================================================== evaluation
@torch.no_grad()
def evaluate(policy: Policy, args: Args, episodes: int, deterministic: bool) -> dict:
    """Returns and lengths of `episodes` episodes under the environment's own reward."""
    env = make_env(args.env, args.max_episode_steps)
    generator = torch.Generator().manual_seed(args.seed)
    std = policy.actor_logstd.exp()[0]
    returns = [0.0] * episodes
    lengths = [0] * episodes
    for i, reset_seed in enumerate(seeds_for(args.seed, purpose=1, n=episodes)):
        obs = reset_env(env, reset_seed)
        done = False
        while not done:
            action = policy.actor_mean(torch.as_tensor(obs, dtype=torch.float32))
            if not deterministic:
                action = action + std * torch.randn(std.shape, generator=generator)
            clipped = action.numpy().clip(env.action_space.low, env.action_space.high)
            obs, reward, terminated, truncated = step_env(env, clipped)
            returns[i] += float(reward)
            lengths[i] += 1
            done = terminated or truncated
    mean, std_return = float(np.mean(returns)), float(np.std(returns))
    return {"returns": returns, "lengths": lengths, "mean": mean, "std": std_return}


# ======================================================================================= training
def finished_episodes(running: np.ndarray, rollout: Rollout, rewards: torch.Tensor) -> dict:
    """Sums over the episodes that ended in a rollout; `running` (3, N): over those that go on."""
    steps = torch.stack([rollout.true_rewards, torch.ones_like(rewards), rewards], 1)
    sums = []
    for values, ended in zip(steps.numpy(), rollout.ended.numpy()):
        running += values
        sums.append(running[:, ended])
        running[:, ended] = 0.0
    names = ("true_return", "episode_length", "learned_return")
    return dict(zip(names, np.concatenate(sums, 1).tolist()))


@dataclass
class Training:
    """Everything that training changes. A trainer with a loop of its own fills what it has."""

    policy: nn.Module
    optimizer: optim.Optimizer | None = None
    reward_net: nn.Module | None = None  # None, as algorithm: the oracle
    algorithm: object | None = None
    reward_norm: RunningNorm = field(default_factory=RunningNorm)
    episodes: np.ndarray | None = None  # (3, num_envs), of finished_episodes
    rows: list[dict] = field(default_factory=list)  # of metrics.csv, one a round
    data: dict[str, int] = field(default_factory=dict)  # used beside demonstrations: amounts
    seconds: dict[str, float] = field(default_factory=dict)  # spent in each phase

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def start_training(reward_cls, algorithm_cls, args: Args, envs: VectorEnv, expert) -> Training:
    """Policy, optimizer, reward network and algorithm before the first round. `expert`: the
    demonstrations' tensors, or None for a method that needs none.
    """
    dims = (envs.obs_dim, envs.action_dim)
    policy = Policy(*dims)
    optimizer = optim.Adam(policy.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)
    training = Training(policy, optimizer, episodes=np.zeros((3, args.num_envs)))
    if args.true_reward:
        return training
    training.reward_net = reward_cls(*dims)
    check_size(training.reward_net, *dims)
    device = torch.device("cpu")
    training.algorithm = algorithm_cls(training.reward_net, expert, *dims, device, args)
    has_access = hasattr(training.algorithm, "set_policy")
    if args.no_policy_access and not has_access:
        raise UserError(f"--no-policy-access: {algorithm_cls.__name__} has no set_policy anyway")
    if has_access and not args.no_policy_access:
        training.algorithm.set_policy(policy, optimizer)
    return training


def anneal(optimizer: optim.Optimizer, learning_rate: float, round_: int, num_rounds: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * (1 - round_ / num_rounds)


def train(training: Training, envs: VectorEnv, args: Args, title: str, after_round=None) -> None:
    """Runs the rounds that are left; each appends a row to `training.rows` and then calls
    `after_round(training)`, if there is one.
    """
    policy, optimizer, algorithm = training.policy, training.optimizer, training.algorithm
    size = args.batch_size
    done = len(training.rows)
    steps = {"initial": done * size, "total": args.num_rounds * size}
    with tqdm(desc=title, **steps, unit="step", unit_scale=True, disable=None) as bar:
        for round_ in range(done, args.num_rounds):
            start = time.perf_counter()
            anneal(optimizer, args.learning_rate, round_, args.num_rounds)
            with training.timed("rollout"):
                rollout = collect_rollout(envs, policy, args.num_steps)
            with training.timed("reward"):
                rewards = learned_rewards(algorithm, rollout)
            with training.timed("reward_update"):
                irl_stats = update_reward(algorithm, rollout, args.n_irl_updates_per_round)
            with training.timed("ppo"):
                normalized_rewards = training.reward_norm(rewards)
                ppo_stats = update_policy(policy, optimizer, rollout, normalized_rewards, args)
            sums = finished_episodes(training.episodes, rollout, rewards)
            row = {
                "round": round_ + 1,
                "steps": (round_ + 1) * size,
                "episodes": len(sums["true_return"]),
                **{name: float(np.mean(x)) if x else "" for name, x in sums.items()},
                "reward_mean": rewards.mean().item(),
                "reward_std": rewards.std().item(),
                **irl_stats,
                **ppo_stats,
                "steps_per_second": size / (time.perf_counter() - start),
            }
            training.rows.append(row)
            bar.update(size)
            if row["episodes"]:
                bar.set_postfix_str(f"return {row['true_return']:.0f}")
            if after_round is not None:
                after_round(training)


# ======================================================================================== results
@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to, renamed to `path` at the end: `path` is never half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # that of a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def save_weights(path: Path, net: nn.Module | None) -> None:
    """By way of memory, so that a full disk is an OSError as for any other file. Without a net
    those that are there are removed.
    """
    if net is None:
        path.unlink(missing_ok=True)
        return
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def write_metrics(path: Path, rows: list[dict]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="") as f:
        writer = csv.DictWriter(f, dict.fromkeys(key for row in rows for key in row))
        writer.writeheader()
        writer.writerows(rows)


def config_of(args: Args) -> dict:
    """The flags that can change a number, as JSON."""
    config = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(args).items()}
    return {key: value for key, value in config.items() if key not in ("out", "overwrite")}


def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


def save_run(folder: Path, training: Training, args: Args, method: str, demos: Demos) -> dict:
    """Evaluates the final policy and writes the files of a finished run; returns the result.

    result.json is written last: a folder that has one is complete.
    """
    with training.timed("evaluation"):
        deterministic = evaluate(training.policy, args, EVAL_EPISODES, deterministic=True)
        sampled = evaluate(training.policy, args, EVAL_EPISODES, deterministic=False)
    (folder / "result.json").unlink(missing_ok=True)  # of a run that is overwritten
    save_weights(folder / "policy.pt", training.policy)
    save_weights(folder / "reward_net.pt", training.reward_net)
    write_metrics(folder / "metrics.csv", training.rows)
    hyperparameters = getattr(training.algorithm, "hyperparameters", None) or {}
    if is_dataclass(hyperparameters):
        hyperparameters = asdict(hyperparameters)
    seconds = {phase: round(s, 3) for phase, s in training.seconds.items()}
    steps = training.rows[-1]["steps"] if training.rows else 0
    result = {
        "schema": 2,
        "id": uuid.uuid4().hex,
        "method": method,
        "env": args.env,
        "dims": env_dims(args),
        "seed": args.seed,
        "steps": steps,
        "eval_return_mean": deterministic["mean"],
        "eval_return_std": deterministic["std"],
        "normalized_return": normalized(deterministic["mean"], demos.card),
        "evaluation": {"deterministic": deterministic, "sampled": sampled},
        "steps_per_second": steps / (sum(seconds.values()) - seconds["evaluation"]),
        "seconds": seconds,
        "config": config_of(args),
        "hyperparameters": hyperparameters,
        "demos": demos.source,
        "data": {
            "expert_transitions": demos.source["transitions"],
            "mixed_transitions": 0,
            "environment_steps": steps,
            **training.data,
        },
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    text = json.dumps(result, indent=2) + "\n"
    write_text(folder / "result.json", text)
    return json.loads(text)


# =========================================================================================== main
def parse_args(flags: Sequence[str] | None = None) -> Args:
    """Args from command-line flags (those of this process if None)."""
    return tyro.cli(tyro.conf.FlagCreatePairsOff[Args], args=flags, description=__doc__)


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # NumPy's legacy generator takes 32 bits
    torch.manual_seed(seed)


class Held(UserError):
    """Another process trains in the folder."""


@contextmanager
def locked(folder: Path, holder: str = "", check=lambda left: None) -> Iterator[None]:
    """Keeps `folder` for this process until the end of the block; Held if another one has it.

    The kernel releases the lock when the process dies. Until then its file says who the `holder`
    is, in the words of benchmark/runs.py. `check` gets what one that did not end properly left.
    """
    import fcntl  # POSIX only; results can be read without it

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    holder = holder or f"{platform.node()} {os.getpid()} - - 0"
    with path.open("a+b", buffering=0) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        except OSError as error:
            expected = "expected a folder on a file system with locks"
            raise UserError(f"{path}: cannot be locked ({error.strerror}); {expected}") from None
        lock.seek(0)
        left = lock.read().decode(errors="replace")
        if not free:
            host, pid = (*left.split(), "-", "-")[:2]
            raise Held(f"{folder}: held by process {pid} on host {host}, which trains in it")
        check(left)
        lock.truncate(0)
        try:
            lock.write(f"{holder}\n".encode())
        except OSError as error:
            error.filename = str(path)
            raise
        try:
            yield
        finally:
            lock.truncate(0)


def run(reward_cls: type, algorithm_cls: type, args: Args, method: str) -> dict:
    """Trains and evaluates one method on one environment with one seed; returns its result.

    UserError for bad arguments or demonstrations, a folder that holds a finished run, and a method
    that breaks the contract.
    """
    method = "oracle" if args.true_reward else method
    variant = "-reward-only" if args.no_policy_access and not args.true_reward else ""
    folder = args.out or Path("results", method + variant, args.env, f"seed{args.seed}")
    if (folder / "result.json").exists() and not args.overwrite:
        raise UserError(f"{folder}: holds a finished run; --overwrite it or change --out")
    torch.set_num_threads(1)  # a second thread costs more than it saves at this size
    seed_everything(args.seed)
    demos = prepare_demos(args, algorithm_cls)
    envs = VectorEnv(args)
    training = start_training(reward_cls, algorithm_cls, args, envs, demos.tensors)
    title = f"{method} {args.env} seed {args.seed}"
    print(f"{title}, {folder}")
    with locked(folder):
        train(training, envs, args, title)
        for path in (folder / "origin.json", folder / "watch.mp4", *folder.glob("diagnosis*")):
            path.unlink(missing_ok=True)  # of a run of the launcher that is overwritten
        return save_run(folder, training, args, method, demos)


def print_result(result: dict) -> None:
    """A run's summary; the last line is the benchmark's metric."""
    share = ""
    if result["normalized_return"] is not None:
        share = f", {result['normalized_return']:.3f} of the expert's"
    mean, std = result["eval_return_mean"], result["eval_return_std"]
    print(f"{result['steps']} steps, {result['steps_per_second']:.0f} steps/s")
    print(f"final policy: {mean:.1f} ± {std:.1f}{share}")
    print(f"eval_return_{result['env'].lower().replace('-', '_')}: {mean:.2f}")


def main(reward_cls: type, algorithm_cls: type, method: str) -> None:
    """The command line of a method: parses the flags, runs, prints the score on the last line."""
    try:
        print_result(run(reward_cls, algorithm_cls, parse_args(), method))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; an unfinished run leaves no result")


if __name__ == "__main__":
    main(RewardNetwork, IRLAlgorithm, method="custom")
