"""Inverse reinforcement learning in one file: learn a reward from demonstrations, and a policy from that reward.

    python custom_irl.py --env Hopper-v4                       # one run: 1M steps, results/custom/Hopper-v4/seed1/
    python custom_irl.py --env Hopper-v4 --no-policy-access    # the policy learns from the reward and nothing else
    python custom_irl.py --env Hopper-v4 --true-reward         # oracle: the same PPO on the environment's own reward
    python custom_irl.py --env Hopper-v4 --frozen-reward RUN_DIR   # a fresh policy on the reward a run ended with
    bash run_all.sh                                            # the benchmark: 3 environments x 3 seeds, and the report

The two classes between the EDITABLE REGION lines are the method; everything else is the fixed benchmark around it.
A method of your own is two such classes and one call: `main(RewardNetwork, IRLAlgorithm, method="mine")`. The command
of an interrupted run, given again, goes on where it stopped.
"""

import csv
import hashlib
import inspect
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import cloudpickle
import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent
BENCHMARK_TIMESTEPS, QUICK_TIMESTEPS = 1_000_000, 20_480
EVAL_EPISODES = 10
CHECKPOINT_EVERY = 20  # rollouts
PANELS = {(50, 1): "dense", (20, 20): "scarce", (4, 20): "tiny", (1, 20): "one"}  # (episodes, every k-th transition)
PACKAGES = ("gymnasium", "imitation", "mujoco", "numpy", "stable-baselines3", "torch")


class UserError(Exception):
    """Something the caller can mend; `main` prints it as one line, without a traceback."""


# ======================================================================================================== configuration
@dataclass(frozen=True)
class Args:
    env: str = "Hopper-v4"
    """environment id: any Gymnasium environment with one-dimensional Box observations and actions"""
    seed: int = 1
    """seed of everything random in the run (42, 123 and 456 are the benchmark's: tune on others)"""
    total_timesteps: int = BENCHMARK_TIMESTEPS
    """environment steps, rounded down to whole rollouts"""
    num_envs: int = 8
    """environments stepped in turn"""
    num_steps: int = 256
    """steps of each environment in a rollout"""
    demos: Path | None = None
    """demonstrations, in any of the formats of demos/formats.py; default: demos/ENV.npz"""
    demo_episodes: int = 50
    """how many of its episodes to use, from the first on"""
    demo_subsample: int = 1
    """keep every k-th transition of each episode"""
    out: Path | None = None
    """folder of the run; default: results/METHOD/ENV/seedSEED"""
    no_policy_access: bool = False
    """do not call `set_policy`: the policy learns from the reward alone"""
    true_reward: bool = False
    """oracle: train on the environment's reward, without any method"""
    frozen_reward: Path | None = None
    """folder of a finished run: train a fresh policy on the reward it ended with, without its demonstrations"""
    quick: bool = False
    """a look, not a result: 20,480 steps whatever --total-timesteps says, marked as quick everywhere"""
    overwrite: bool = False
    """replace the run of another configuration or code in the same folder"""
    tensorboard: bool = False
    """also log what metrics.csv holds for TensorBoard, in the run's folder"""

    irl_lr: float = 3e-4
    """learning rate of the reward"""
    irl_batch_size: int = 256
    """expert and policy transitions in a batch of the reward's update"""
    n_irl_updates_per_round: int = 5
    """calls of `update` after each rollout"""

    learning_rate: float = 3e-4
    """PPO's Adam learning rate, annealed linearly to 0"""
    gamma: float = 0.99
    """discount"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    num_minibatches: int = 32
    """minibatches in an epoch"""
    update_epochs: int = 10
    """epochs over a rollout"""
    clip_coef: float = 0.2
    """PPO's clipping range of the probability ratio"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """largest norm of PPO's gradient"""

    def __post_init__(self):
        for key, value in vars(self).items():
            if type(value) is int and value < (0 if key == "seed" else 1):
                raise UserError(f"--{key.replace('_', '-')} {value}: expected a positive integer (--seed: or 0)")
        if self.num_rounds < 1:
            raise UserError(f"--total-timesteps {self.total_timesteps}: expected at least {self.batch_size}, a rollout")
        if self.batch_size % self.num_minibatches:
            raise UserError(f"--num-minibatches {self.num_minibatches}: expected a divisor of {self.batch_size}")
        if self.frozen_reward and self.true_reward:
            raise UserError("--frozen-reward and --true-reward: expected one of them")

    @property
    def batch_size(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def num_rounds(self) -> int:
        return (QUICK_TIMESTEPS if self.quick else self.total_timesteps) // self.batch_size

    @property
    def demos_path(self) -> Path:
        return self.demos or ROOT / "demos" / f"{self.env}.npz"

    @property
    def learns_reward(self) -> bool:
        return not self.true_reward and self.frozen_reward is None

    @property
    def reward_file(self) -> Path:
        return self.frozen_reward / "checkpoint" / "reward_net.pt"

    @property
    def panel(self) -> str:
        return PANELS.get((self.demo_episodes, self.demo_subsample), f"{self.demo_episodes}x{self.demo_subsample}")

    def labels(self) -> list[str]:
        """What sets this run apart from the benchmark's own; the report never mixes different labels."""
        marks = {
            "quick": self.quick,
            f"{self.total_timesteps}-steps": not self.quick and self.total_timesteps != BENCHMARK_TIMESTEPS,
            "reward-only": self.no_policy_access,
            "frozen": self.frozen_reward is not None,
            self.panel: self.panel != "dense",
        }
        told = (
            "env", "seed", "out", "overwrite", "tensorboard", "quick", "total_timesteps", "no_policy_access",
            "true_reward", "frozen_reward", "demo_episodes", "demo_subsample",
        )  # fmt: skip
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in told and value != field.default:
                marks[f"{field.name}-{getattr(value, 'stem', value)}".replace("_", "-")] = True
        return [mark for mark, applies in marks.items() if applies]

    def folder(self, method: str, results: Path = ROOT / "results", labels: Sequence[str] | None = None) -> Path:
        labels = self.labels() if labels is None else labels
        return self.out or results / "-".join([method, *labels]) / self.env / f"seed{self.seed}"


# ========================================================================================================= environments
def make_env(env_id: str, **kwargs) -> gym.Env:
    """An environment with flat Box spaces; UserError for anything else. `kwargs` go to gym.make."""
    try:
        env = gym.make(env_id, disable_env_checker=True, **kwargs)
    except gym.error.Error as error:
        raise UserError(f"--env {env_id}: {str(error).splitlines()[0]}") from None
    for name, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise UserError(f"--env {env_id}: the {name} space is {space}; expected a one-dimensional Box")
    return env


def seeds_for(seed: int, purpose: int, n: int) -> list[int]:
    """`n` reset seeds, unrelated between seeds and purposes."""
    return np.random.SeedSequence([seed, purpose]).generate_state(n).tolist()


class VectorEnv:
    """`num_envs` copies of an environment, stepped in turn; a copy is reset as soon as its episode ends.

    The state of a copy is its generator at the last reset and the actions since. Replaying them restores what
    environments do not expose as well: MuJoCo's `qacc_warmstart`, the time limit's counter.
    """

    def __init__(self, env_id: str, num_envs: int, seed: int):
        self.envs = [make_env(env_id) for _ in range(num_envs)]
        space, self.action_space = self.envs[0].observation_space, self.envs[0].action_space
        self.obs = np.zeros((num_envs, space.shape[0]), np.float32)
        self.history: list[tuple[dict, list[np.ndarray]]] = [({}, []) for _ in self.envs]
        for i, env_seed in enumerate(seeds_for(seed, purpose=0, n=num_envs)):
            self.envs[i].reset(seed=env_seed)
            self._reset(i)

    def _reset(self, i: int) -> None:
        self.history[i] = (self.envs[i].unwrapped.np_random.bit_generator.state, [])
        self.obs[i] = self.envs[i].reset()[0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Steps every copy with its row of `actions` (N, action_dim), clipped to the action space.

        Returns next_obs (N, obs_dim) as it was before any reset, the environment's rewards (N,), `terminated` (N,)
        and `ended` (N,), which is true for time limits too. `self.obs` then holds the observations to act on.
        """
        actions = np.clip(actions, self.action_space.low, self.action_space.high)
        next_obs, rewards = np.empty_like(self.obs), np.empty(len(self.envs), np.float32)
        terminated, ended = np.empty(len(self.envs), bool), np.empty(len(self.envs), bool)
        for i, (env, action) in enumerate(zip(self.envs, actions)):
            next_obs[i], rewards[i], terminated[i], truncated, _ = env.step(action)
            self.history[i][1].append(action)
            ended[i] = terminated[i] or truncated
            self.obs[i] = next_obs[i]
            if ended[i]:
                self._reset(i)
        return next_obs, rewards, terminated, ended

    def restore(self, history: list[tuple[dict, list[np.ndarray]]]) -> None:
        """Brings every copy to the state another VectorEnv's `history` describes."""
        for i, (generator, actions) in enumerate(history):
            self.envs[i].unwrapped.np_random.bit_generator.state = generator
            self._reset(i)
            for action in actions:
                self.obs[i] = self.envs[i].step(action)[0]
            self.history[i][1].extend(actions)


# ================================================================================================================ demos
def read_npz(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of `keys` that an .npz of plain arrays holds; UserError if it is not one."""
    try:
        with np.load(path, allow_pickle=False) as f:
            return {key: f[key] for key in keys if key in f.files}
    except Exception as error:  # truncated, pickled, not an archive: NumPy and zipfile raise errors of many kinds
        raise UserError(f"{path}: not a readable .npz of plain arrays ({str(error).splitlines()[0]})") from None


def load_demos(path: Path, obs_dim: int, action_dim: int, episodes: int, subsample: int) -> dict[str, torch.Tensor]:
    """Every `subsample`-th transition of the first `episodes` episodes of an .npz as demos/README.md describes it.

    Other formats go through demos/formats.py. Returns float32 tensors obs (n, obs_dim), acts (n, action_dim), next_obs
    (n, obs_dim). Rewards are not read, and this project's demonstrations hold none.

    Raises:
        UserError: naming the file, the key and what was expected, if the file does not hold that.
    """
    data = read_npz(path, ("obs", "acts", "lengths")) if path.suffix == ".npz" and path.is_file() else {}
    if "lengths" not in data:
        from demos.formats import pack, read  # here, so that this file runs without them on this project's own

        data = pack(read(path))
    if missing := {"obs", "acts"} - set(data):
        raise UserError(f"{path}: key '{min(missing)}' is missing; expected obs, acts and lengths")
    lengths = data["lengths"]
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 1).any():
        raise UserError(f"{path}: key 'lengths' is {lengths.dtype} {lengths.shape}; expected positive integers (n,)")
    if episodes > len(lengths):
        raise UserError(f"{path}: holds {len(lengths)} episodes; expected at least {episodes} (--demo-episodes)")
    total = int(lengths.sum())
    for key, shape in (("obs", (total + len(lengths), obs_dim)), ("acts", (total, action_dim))):
        if data[key].shape != shape:
            raise UserError(f"{path}: key '{key}' has shape {data[key].shape}; expected {shape}")
        if data[key].dtype.kind != "f" or not np.isfinite(data[key]).all():
            raise UserError(f"{path}: key '{key}' is {data[key].dtype} or not finite; expected finite floats")
    # Episode e's obs has one row more than its acts, so transition t of episode e starts at row t + e of obs.
    episode = np.repeat(np.arange(len(lengths)), lengths)
    step = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    keep = np.flatnonzero((episode < episodes) & (step % subsample == 0))
    row = keep + episode[keep]
    arrays = {"obs": data["obs"][row], "acts": data["acts"][keep], "next_obs": data["obs"][row + 1]}
    return {key: torch.as_tensor(np.ascontiguousarray(array, np.float32)) for key, array in arrays.items()}


def load_card(path: Path) -> dict | None:
    """The card beside the demonstrations (returns of the expert and of a random policy), or None without one."""
    card = path.with_suffix(".json")
    try:
        return json.loads(card.read_text()) if card.is_file() else None
    except ValueError:
        raise UserError(f"{card}: not readable as JSON; expected the card demos/generate.py writes") from None


def normalized(score: float, card: dict | None) -> float | None:
    """0 is the random policy, 1 the expert's demonstrations."""
    if card is None:
        return None
    floor, ceiling = card["random"]["return_mean"], card["expert"]["demos"]["return_mean"]
    return (score - floor) / (ceiling - floor)


# =============================================================================================================== policy
def tanh_mlp(in_dim: int, out_dim: int, out_std: float) -> nn.Sequential:
    layers = [nn.Linear(in_dim, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, out_dim)]
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
        """action (batch, action_dim), sampled if None, and log_prob, entropy and value (batch,)."""
        mean, logstd = self.actor_mean(obs), self.actor_logstd.expand(len(obs), -1)
        if action is None:
            action = mean + logstd.exp() * torch.randn_like(mean)
        # The density by hand: torch.distributions costs more than the network at this size.
        z = (action - mean) / logstd.exp()
        log_prob = (-0.5 * z**2 - logstd - 0.5 * np.log(2 * np.pi)).sum(-1)
        entropy = (logstd + 0.5 * np.log(2 * np.pi * np.e)).sum(-1)
        return action, log_prob, entropy, self.get_value(obs)


# ================================================================================================ EDITABLE REGION BEGIN
def mlp(in_dim, hidden, out_dim=1):
    return nn.Sequential(
        nn.Linear(in_dim, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, out_dim)
    )


def descend(optimizer, loss):
    optimizer.zero_grad()
    loss.backward(inputs=optimizer.param_groups[0]["params"])  # not those that it only passes through
    optimizer.step()
    return loss.item()


class RewardNetwork(nn.Module):
    """Potential-shaped reward  f(s, a, s') = g(s, a, s') + gamma Phi(s') - Phi(s)   (Ng et al. 1999; AIRL, eq. 4).

    A critic scores transitions; p(s) is the probability that reaching s ended an episode. Two rewards share them:

    forward          What is left when training ends. g is linear in the score, 1 at the better of random and still
                     behaviour, 3 at the expert's, at least 0: being alive is worth something. Phi = (1 - p) c.
    training_reward  What the policy gets. g is a sigmoid of the score, 0.05 at the policy's average of late, 0.95 at
                     the expert's: a slope where the policy is now. Phi = (1 - p) V, V the value of that g, so that
                     the reward is the advantage, with mean 0 in every state.

    Either way dying costs Phi and a time limit nothing, although no `done` is passed. The loop subtracts the mean of
    the rewards, and with it the incentive to survive; this brings it back.
    """

    gamma, c = 0.99, 15.0
    value_scale = 10.0  # V is between 0 and 100, too large for the network's own output

    def __init__(self, obs_dim, action_dim):
        super().__init__()
        self.critic = mlp(2 * obs_dim + action_dim, 160)
        self.end_logit = mlp(obs_dim, 64)
        self.value = mlp(obs_dim, 160)
        nn.init.zeros_(self.value[-1].weight)
        buffers = {"obs_mean": torch.zeros(obs_dim), "obs_std": torch.ones(obs_dim)}
        buffers |= {"act_low": -torch.ones(action_dim), "act_high": torch.ones(action_dim)}
        scalars = {"unskilled_score": 0.0, "policy_score": 0.0, "expert_score": 1.0, "end_log_odds": -10.0}
        for name, value in (buffers | {k: torch.tensor(v) for k, v in scalars.items()}).items():
            self.register_buffer(name, value)

    def fit_normalizer(self, obs, acts):
        self.obs_mean.copy_(obs.mean(0))
        self.obs_std.copy_(obs.std(0, unbiased=False).clamp(min=0.05))  # nearly constant inputs would blow up noise
        self.act_low.copy_(acts.amin(0)), self.act_high.copy_(acts.amax(0))

    def normalize(self, obs):
        """A wide clip: a slow policy is many of the expert's standard deviations away, and must still see a slope."""
        return ((obs - self.obs_mean) / self.obs_std).clamp(-20, 20)

    def features(self, state, action, next_state):
        """s' - s says more than s', which nearly equals s. Actions outside the expert's range are no giveaway."""
        s, next_s = self.normalize(state), self.normalize(next_state)
        return torch.cat([s, action.clamp(self.act_low, self.act_high), next_s - s], -1)

    def score(self, state, action, next_state, zero):
        """The critic's score on a scale from 0, at the score `zero`, to 1, at the expert's."""
        score = self.critic(self.features(state, action, next_state)).squeeze(-1)
        return (score - zero) / (self.expert_score - zero).clamp(min=0.1)

    def ending(self, state):
        """The logit of p, as if ends were as many as other states."""
        return self.end_logit(self.normalize(state)).squeeze(-1)

    def alive(self, state):
        """1 - p(s)."""
        return torch.sigmoid(-self.ending(state) - self.end_log_odds)

    def deadly(self, state):
        """Whether an end in this state was a death. Not p, for which it would also have to be likely: the better the
        policy, the less would a fall cost. The 3: where time limits end episodes looks like any other state.
        """
        return torch.sigmoid(self.ending(state) - 3)

    def g(self, state, action, next_state):
        return 1 + 2 * self.score(state, action, next_state, self.unskilled_score).clamp(-0.5, 1.5)

    def forward(self, state, action, next_state):
        shaping = self.gamma * self.c * self.alive(next_state) - self.c * self.alive(state)
        return self.g(state, action, next_state) + shaping

    def training_g(self, state, action, next_state):
        return torch.sigmoid(6 * self.score(state, action, next_state, self.policy_score) - 3)

    def training_value(self, state):
        return self.value_scale * self.value(self.normalize(state)).squeeze(-1)

    def training_potential(self, state):
        return self.alive(state) * self.training_value(state)

    def training_reward(self, state, action, next_state):
        shaping = self.gamma * self.training_potential(next_state) - self.training_potential(state)
        return self.training_g(state, action, next_state) + shaping


def q_network(in_dim, hidden=128):
    """Layer norm keeps the value of actions that nobody tried from running away (arXiv 2302.02948)."""
    layers = [layer for n in (in_dim, hidden) for layer in (nn.Linear(n, hidden), nn.LayerNorm(hidden), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(hidden, 1))


class IRLAlgorithm:
    """Adversarial IRL: a Wasserstein critic and a value potential, for PPO to do the rest. Where the policy may be
    touched PPO rests: the policy stays a clone of the expert where two clones agree, learns from the reward where they
    do not, by a Q of all rollouts there were, and acts as an average of what has learned.
    """

    steps = 3  # gradient steps of critic and p in one call of `update`
    gradient_penalty = 10.0
    recent_rounds = 5  # half of the critic's policy side
    decay = 0.9  # lambda, of V and Q
    value_steps = 40  # gradient steps of V a rollout
    clone_rounds, clone_steps = 20, 1000  # steps after each of these rollouts but the first; thrice with many data
    watch_rounds = 10  # rollouts of the finished clone, nearly without noise: Q becomes its own
    agreement = 4e-4  # mean squared difference of two clones' actions: the unit of doubt
    doubt_cost = 0.15  # what a state costs Q, by the logarithm of its doubt
    loyalty = 1.0  # of the policy to the clone
    evenly = 0.2  # how much rows count to learn from in which there is no doubt
    noise_logstd = -3.0  # in every second rollout that is learned from: a fast walk falls under more
    q_rounds, q_steps, policy_steps = 120, 10, 4  # so many times a rollout so many gradient steps
    q_batch, q_lag, q_recent_rounds = 128, 0.3, 20
    q_scale = 30.0  # Q is up to 400, too large for the network's own output

    def __init__(self, reward_net, expert_demos, obs_dim, action_dim, device, args):
        self.reward_net, self.args, self.device = reward_net, args, device
        demos = [expert_demos[key] for key in ("obs", "acts", "next_obs")]
        reward_net.fit_normalizer(*demos[:2])
        self.critic_optimizer = optim.Adam(reward_net.critic.parameters(), lr=args.irl_lr, fused=True)
        self.end_optimizer = optim.Adam(reward_net.end_logit.parameters(), lr=3e-3, fused=True)
        self.value_optimizer = optim.Adam(reward_net.value.parameters(), lr=1e-3, fused=True)
        # transitions, first the demonstrations; whether they ended an episode; the rows of their successors
        self.n_expert = n = len(demos[0])
        ended, successor = torch.zeros(n, dtype=torch.bool, device=device), torch.full((n,), -1, device=device)
        self.memory = [*demos, ended, successor]
        self.seen = self.calls = self.round = 0  # transitions of rollouts, calls of `update`, rollouts
        self.policy = None  # without set_policy PPO is on its own

    def compute_reward(self, obs, acts, next_obs):
        with torch.no_grad():
            if self.policy is not None:  # PPO's critic is 0 as well, and so is then its gradient, exactly
                return torch.zeros(len(obs), device=self.device)
            return self.reward_net.training_reward(obs, acts, next_obs)

    def update(self, policy_obs, policy_acts, policy_next_obs, policy_dones):
        report = {}
        if self.calls % self.args.n_irl_updates_per_round == 0:  # a new rollout
            self.round += 1
            self.remember(policy_obs, policy_acts, policy_next_obs, policy_dones.flatten() > 0.5)
            if self.policy is None:
                self.fit_value()
            else:
                self.guide_policy()
            with torch.no_grad():
                report = {"g": self.reward_net.g(policy_obs, policy_acts, policy_next_obs).mean().item()}
        self.calls += 1
        for _ in range(self.steps):
            report |= {**self.critic_step(), **self.end_step()}
        return report

    # -------------------------------------------------------------------------------------------------- transitions
    def remember(self, obs, acts, next_obs, ended):
        """A transition's successor, of which the obs is this one's next_obs, is found by sorting a random projection
        of both: the rollout's order is not promised. -1: there is none.
        """
        net, n, first_row = self.reward_net, len(obs), len(self.memory[0])
        projection = torch.randn(obs.shape[1], dtype=torch.float64, device=self.device)
        keys, order = (obs.double() @ projection).sort()
        wanted = next_obs.double() @ projection
        at = torch.searchsorted(keys, wanted).clamp(max=n - 1)
        successor = torch.where(keys[at] == wanted, first_row + order[at], -1)
        self.memory = [torch.cat(x) for x in zip(self.memory, (obs, acts, next_obs, ended, successor))]
        self.rollout_size, self.seen, self.endings = n, self.seen + n, self.memory[2][self.memory[3]]
        if len(self.endings):
            net.end_log_odds.fill_(np.log(len(self.endings) / max(1, self.seen - len(self.endings))))
        with torch.no_grad():  # the better of the first two rollouts: still and thrown about, or scratch
            first = net.critic(net.features(*(x[self.n_expert :][: 2 * n] for x in self.memory[:3]))).split(n)
            net.unskilled_score.copy_(max(score.mean() for score in first))

    def random_rows(self, n, size):
        return torch.randint(n, (size,), device=self.device)

    def expert_rows(self, size):
        return self.random_rows(self.n_expert, size)

    def rollout_rows(self, size, rounds=None):
        """Counted from the end, of all rollouts or of the last ones."""
        return -1 - self.random_rows(self.recent(rounds) if rounds else self.seen, size)

    def recent(self, rounds):
        return min(self.seen, rounds * self.rollout_size)

    def remembered(self, rows):
        return [x[rows] for x in self.memory[:4]]

    def lambda_returns(self, n, rewards, value):
        """Of the last n transitions: sums of `rewards` that go over into `value` (Peng's Q(lambda), arXiv 2103.00107).
        An end is a death if its state looks deadly.
        """
        _, _, next_obs, ended, successor = (x[-n:] for x in self.memory)
        with torch.no_grad():
            after, first_row = self.survived(next_obs, ended) * value(next_obs), len(self.memory[0]) - n
            row, found = (successor - first_row).clamp(min=0), successor >= first_row
            returns = rewards + self.reward_net.gamma * after
            for _ in range(40):  # decay ** 40 = 0.01: what is further away hardly counts
                later = torch.where(found, (1 - self.decay) * after + self.decay * returns[row], after)
                returns = rewards + self.reward_net.gamma * later
        return returns

    def survived(self, next_obs, ended):
        return 1 - ended * self.reward_net.deadly(next_obs)

    # ------------------------------------------------------------------------------------------------------- reward
    def critic_step(self):
        """WGAN-GP (arXiv 1704.00028), one-sided: unlike a classifier it does not saturate, however far the policy is.
        Half of the policy's side is from the last rollouts, half from all there were: no bad behaviour is forgotten.
        """
        net, size = self.reward_net, self.args.irl_batch_size
        sides = torch.cat([self.expert_rows(size), self.policy_rows(size)])
        features = net.features(*self.remembered(sides)[:3])
        expert_score, policy_score = (x.mean() for x in net.critic(features).split(size))
        expert, policy = features.split(size)
        mix = torch.rand(size, 1, device=self.device)
        between = (mix * expert + (1 - mix) * policy).requires_grad_(True)
        (slope,) = torch.autograd.grad(net.critic(between).sum(), between, create_graph=True)
        penalty = (F.relu(slope.norm(dim=1) - 1) ** 2).mean()
        descend(self.critic_optimizer, policy_score - expert_score + self.gradient_penalty * penalty)
        net.expert_score.lerp_(expert_score.detach(), 0.1)
        net.policy_score.lerp_(policy_score.detach(), 0.1)
        return {"critic_gap": (expert_score - policy_score).item(), "gradient_penalty": penalty.item()}

    def policy_rows(self, size):
        first = min(self.seen, (self.clone_rounds + 1) * self.rollout_size)
        beginners = self.n_expert + self.random_rows(first, size // 8)  # ever fewer among all
        old = self.rollout_rows(size // 2 - size // 8)
        return torch.cat([self.rollout_rows(size - size // 2, self.recent_rounds), beginners, old])

    def end_step(self):
        """Logistic regression of "this next state ended an episode" on as many endings as others, half of these the
        expert's; then corrected by the log-odds of an ending (Bayes). Time limits end episodes where hardly any state
        does, so p stays near 0 there, whether or not `policy_dones` counts them.
        """
        if not 0 < len(self.endings) < self.seen:
            return {"end_loss": 0.0}
        size = self.args.irl_batch_size // 2
        rows = torch.cat([self.rollout_rows(size - size // 2), self.expert_rows(size // 2)])
        _, _, next_obs, ended = self.remembered(rows)
        endings = self.endings[self.random_rows(len(self.endings), size)]
        logits = self.reward_net.ending(torch.cat([endings, next_obs[~ended]]))
        loss = F.softplus(-logits[:size]).mean() + F.softplus(logits[size:]).mean()
        return {"end_loss": descend(self.end_optimizer, loss)}

    def fit_value(self):
        net, n = self.reward_net, self.rollout_size
        obs, acts, next_obs, _ = self.remembered(slice(-n, None))
        with torch.no_grad():
            targets = self.lambda_returns(n, net.training_g(obs, acts, next_obs), net.training_value)
        for _ in range(self.value_steps):
            rows = self.random_rows(n, self.args.irl_batch_size)
            descend(self.value_optimizer, ((net.training_value(obs[rows]) - targets[rows]) ** 2).mean())

    # ------------------------------------------------------------------------------------------------------- policy
    def set_policy(self, policy, optimizer):
        self.policy, self.ppo_optimizer, self.first_lr = policy, optimizer, optimizer.param_groups[0]["lr"]
        net, dims = self.reward_net, [x.shape[1] for x in self.memory[:2]]
        self.first, self.second, self.learner = (mlp(dims[0], 256, dims[1]).to(self.device) for _ in range(3))
        with torch.no_grad():
            for clone in (self.first, self.second):
                for layer in clone[:-1:2]:
                    nn.init.orthogonal_(layer.weight, 2**0.5)
                clone[0].weight /= net.obs_std  # the loop does not normalise observations
                clone[0].bias -= clone[0].weight @ net.obs_mean
            for head in (x[-1] for x in (policy.critic, policy.actor_mean, self.first, self.second)):
                for p in head.parameters():
                    p.zero_()  # the critic: see compute_reward; the actors: they stand still first
            policy.actor_logstd.fill_(-2.0)
        self.clone_acts, self.doubt = self.memory[1][:0], self.memory[1][:0, 0]  # of the memory's rows: see ask_clones
        clones = [*self.first.parameters(), *self.second.parameters()]
        self.clone_optimizer = optim.Adam(clones, fused=True)
        self.optimizer = optim.Adam(self.learner.parameters(), fused=True)
        twins = [nn.ModuleList(q_network(sum(dims)) for _ in range(2)).to(self.device) for _ in range(2)]
        self.q, self.slow_q = twins
        self.slow_q.load_state_dict(self.q.state_dict())
        self.q_optimizer = optim.Adam(self.q.parameters(), fused=True)
        self.worth = 1.0  # of the clone, until it has been watched

    def guide_policy(self):
        """Prepares the policy of the next rollout. The first are of all kinds, so that the critic meets bad ones: the
        clone at all of its strength, a half, a quarter and none, each under more and more noise; calm first: what noise
        has thrown on its back lies there for long. After its watch the policy learns, before every second rollout, and
        acts with noise and then nearly without, as in the end. Who acts is an average of who learned (polynomial
        decay, arXiv 1212.1824): what is noise in the steps of the second cancels out in the first.
        """
        learning, logstd = self.round - self.clone_rounds - self.watch_rounds, -4.0
        self.left = self.ppo_optimizer.param_groups[0]["lr"] / self.first_lr  # 1 throughout if the loop does not anneal
        if self.round == 1:
            logstd = 0.0
        elif learning == 1:
            self.worth = self.clones_worth()
        elif self.round <= self.clone_rounds:
            self.clone(1e-3 * (1 + np.cos(np.pi * (self.round - 1) / self.clone_rounds)))
            self.move(self.learner, self.first)
            self.move(self.policy.actor_mean, self.first, (1.0, 1.0, 0.5, 0.25, 2.0**-10)[self.round // 4 % 5])
            logstd = self.round % 4 - 3.0
        if self.round > 1 and (learning <= 0 or learning % 2):
            self.ask_clones()
            self.fit_q(learning > 0)
            if learning > 0:
                self.move(self.policy.actor_mean, self.learner, way=18 / (17 + learning))  # 9 / (8 + t), t = 1, 2, ...
                logstd = self.noise_logstd
        with torch.no_grad():
            self.policy.actor_logstd.fill_(logstd)

    def clones_worth(self):
        """So many times as loyal, and as slow, is learning: what is as good as the expert can only be lost. 1 where the
        watched clone lacks a tenth or more of what separates the expert from the unskilled, up to 100 where nothing.
        """
        watched = self.remembered(slice(-self.recent(self.watch_rounds), None))[:3]
        with torch.no_grad():
            lacks = 1 - self.reward_net.score(*watched, self.reward_net.unskilled_score).mean().item()
        return 0.1 / min(max(lacks, 0.001), 0.1)

    def move(self, actor, other, strength=1.0, way=1.0):
        """Moves the weights of an actor towards those of another one, whose actions are scaled."""
        with torch.no_grad():
            for p, new in zip(actor.parameters(), other.parameters()):
                p.lerp_(new, way)
            for p in actor[-1].parameters():
                p *= strength

    def clone(self, lr):
        """Regresses two mean actions on the expert's, half of each batch drawn in proportion to the error: what is rare
        in the demonstrations, as the first steps of an episode are, may decide whether it falls, but hardly counts in
        a mean.
        """
        self.clone_optimizer.param_groups[0]["lr"], size = lr, self.args.irl_batch_size // 2
        self.clone_acts, self.doubt = self.clone_acts[:0], self.doubt[:0]  # new clones have other opinions
        for step in range(int(self.clone_steps * min(3, 1 + self.n_expert / 20_000))):
            if step % 100 == 0:
                some = self.expert_rows(8192)
                obs, acts, *_ = self.remembered(some)
                with torch.no_grad():
                    hard = some[torch.multinomial((self.first(obs) - acts).norm(dim=1) + 1e-6, 2048)]
            obs, acts, *_ = self.remembered(torch.cat([self.expert_rows(size), hard[self.random_rows(2048, size)]]))
            errors = [(clone(obs) - acts).square().sum(1).mean() for clone in (self.first, self.second)]
            descend(self.clone_optimizer, sum(errors))

    def ask_clones(self):
        """What the clone does wherever somebody was, and how much another one disagrees: that tells where it errs, and
        what will fall long before it does (disagreement as a cost: DRIL, Brantley et al. 2020).
        """
        obs = self.memory[0][len(self.doubt) :]
        with torch.no_grad():
            acts = self.first(obs)
            doubt = (self.second(obs) - acts).square().mean(1) / self.agreement
        self.clone_acts, self.doubt = torch.cat([self.clone_acts, acts]), torch.cat([self.doubt, doubt])

    def action_values(self, networks, obs, acts):
        """(networks, n). Beyond the expert's range of actions nothing changes: there are no data."""
        net = self.reward_net
        x = torch.cat([net.normalize(obs), acts.clamp(net.act_low, net.act_high)], -1)
        return self.q_scale * torch.stack([q(x).squeeze(-1) for q in networks])

    def slow_value(self, obs):
        """The lower of two values of acting with a little noise: TD3's target (arXiv 1802.09477), but of who acts, not
        of the learner. What the learner is said to be better by nobody has tried: in targets it would feed on itself.
        """
        acts = self.policy.actor_mean(obs)
        noise = (0.1 * max(0.1, self.left) * torch.randn_like(acts)).clamp(-0.3, 0.3)
        return self.action_values(self.slow_q, obs, acts + noise).amin(0)

    def q_rewards(self, rows):
        obs, acts, next_obs, _ = self.remembered(rows)
        with torch.no_grad():
            return self.reward_net.g(obs, acts, next_obs) - self.doubt_cost * self.doubt[rows].log1p()

    def fit_q(self, learn):
        """TD3 (arXiv 1802.09477) for g, as DAC (arXiv 1809.02925), and what doubt costs, on the last rollouts, of which
        there are lambda-returns, all there were, and the demonstrations. One-step targets of ten batches are computed
        at once: what they are made of moves slowly.
        """
        eighth, n = self.q_steps * self.q_batch // 8, self.recent(self.q_recent_rounds)
        self.q_optimizer.param_groups[0]["lr"] = self.left * self.first_lr
        self.optimizer.param_groups[0]["lr"] = self.left * self.first_lr / self.worth
        returns = self.lambda_returns(n, self.q_rewards(slice(-n, None)), self.slow_value)
        for _ in range(self.q_rounds):
            recent = self.rollout_rows(3 * eighth, self.q_recent_rounds)
            rows = torch.cat([self.expert_rows(2 * eighth), self.rollout_rows(3 * eighth)])
            _, _, next_obs, ended = self.remembered(rows)
            with torch.no_grad():
                after = self.survived(next_obs, ended) * self.slow_value(next_obs)
            targets = torch.cat([self.q_rewards(rows) + self.reward_net.gamma * after, returns[recent]])
            rows = torch.cat([rows, recent])
            obs, acts, *_ = self.remembered(rows)
            for batch in torch.randperm(len(rows), device=self.device).split(self.q_batch):
                error = self.action_values(self.q, obs[batch], acts[batch]) - targets[batch]
                descend(self.q_optimizer, error.square().sum(0).mean())
            with torch.no_grad():
                for slow, fast in zip(self.slow_q.parameters(), self.q.parameters()):
                    slow.lerp_(fast, self.q_lag)
            for _ in range(self.policy_steps if learn else 0):
                self.follow(rows)

    def heard(self, doubt):
        """How much Q is worth in the policy's loss: nothing where there is no doubt. Q's errors do not shrink with the
        clone's, and a hundredth of them in every action is enough to make a perfect Hopper fall.
        """
        return doubt**2 / (1 + doubt**2)

    def follow(self, rows):
        """Up the lower of two slow Qs where there is doubt, and the less away from the clone, the less there is. Rows
        are drawn by doubt: there is something to learn.
        """
        at = rows[torch.multinomial(self.doubt[rows].log1p() + self.evenly, self.q_batch)]
        obs, doubt = self.memory[0][at], self.doubt[at]
        acts = self.learner(obs)
        strayed = ((acts - self.clone_acts[at]).square().sum(1) / (1 + doubt)).mean()
        values = self.action_values(self.slow_q, obs, acts).amin(0)
        gain = (self.heard(doubt) * values).mean() / values.detach().mean().abs()
        descend(self.optimizer, self.worth * self.loyalty * strayed - gain)


# ================================================================================================== EDITABLE REGION END


# ================================================================================================================== PPO


@dataclass(frozen=True)
class Rollout:
    """T steps of N environments. `next_obs` is the observation before any reset; `ended` counts time limits too."""

    obs: torch.Tensor  # (T, N, obs_dim)
    acts: torch.Tensor  # (T, N, action_dim), before clipping to the action space
    next_obs: torch.Tensor  # (T, N, obs_dim)
    logprobs: torch.Tensor  # (T, N)
    values: torch.Tensor  # (T, N)
    next_values: torch.Tensor  # (T, N), of next_obs
    true_rewards: torch.Tensor  # (T, N), for evaluation and the oracle alone
    terminated: torch.Tensor  # (T, N), bool
    ended: torch.Tensor  # (T, N), bool


@torch.no_grad()
def collect_rollout(envs: VectorEnv, policy: Policy, num_steps: int) -> Rollout:
    """Steps the environments with sampled actions; log-probabilities and values are computed once, at the end."""
    (N, obs_dim), action_dim = envs.obs.shape, envs.action_space.shape[0]
    obs, next_obs = torch.empty(num_steps, N, obs_dim), torch.empty(num_steps, N, obs_dim)
    true_rewards = torch.empty(num_steps, N)
    terminated, ended = torch.empty(num_steps, N, dtype=torch.bool), torch.empty(num_steps, N, dtype=torch.bool)
    acts = policy.actor_logstd.exp() * torch.randn(num_steps, N, action_dim)  # the noise; the mean is added below
    for t in range(num_steps):
        obs[t] = torch.from_numpy(envs.obs)
        acts[t] += layer_inputs(policy.actor_mean, obs[t])[-1]
        step = envs.step(acts[t].numpy())
        next_obs[t], true_rewards[t], terminated[t], ended[t] = map(torch.from_numpy, step)
    flat = obs.flatten(0, 1)
    _, logprobs, _, values = policy.get_action_and_value(flat, acts.flatten(0, 1))
    next_values = policy.get_value(next_obs.flatten(0, 1))
    logprobs, values, next_values = (x.view(num_steps, N) for x in (logprobs, values, next_values))
    return Rollout(obs, acts, next_obs, logprobs, values, next_values, true_rewards, terminated, ended)


class RunningNorm:
    """Running mean and variance of all rewards so far (Chan et al. 1979)."""

    def __init__(self):
        self.count, self.mean, self.var = 0, 0.0, 1.0

    def __call__(self, rewards: torch.Tensor) -> torch.Tensor:
        """Takes `rewards` into the statistics, then returns (rewards - mean) / std, float32."""
        x = rewards.double()
        count, mean, var = x.numel(), x.mean().item(), x.var(unbiased=False).item()
        delta, total = mean - self.mean, self.count + count
        self.var = (self.var * self.count + var * count + delta**2 * self.count * count / total) / total
        self.mean += delta * count / total
        self.count = total
        return ((x - self.mean) / (self.var + 1e-8) ** 0.5).float()


def compute_gae(rewards, values, next_values, terminated, ended, gamma: float, gae_lambda: float):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16); everything (T, N), returns advantages (T, N).

    A terminal state has value 0. A time limit bootstraps from the last observation, and either cuts the sum.
    """
    deltas = rewards + gamma * next_values * ~terminated - values
    decay = gamma * gae_lambda * ~ended
    advantages, running = torch.empty_like(deltas), torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        advantages[t] = running = deltas[t] + decay[t] * running
    return advantages


def layer_inputs(net: nn.Sequential, x: torch.Tensor) -> list[torch.Tensor]:
    """The input of each Linear layer of a `tanh_mlp`, and last its output. No autograd: see `backward`."""
    first, second, last = net[::2]
    hidden = torch.addmm(first.bias, x, first.weight.t())
    np.tanh(hidden.numpy(), out=hidden.numpy())  # several times as fast as torch.tanh
    hidden_2 = torch.addmm(second.bias, hidden, second.weight.t())
    np.tanh(hidden_2.numpy(), out=hidden_2.numpy())
    return [x, hidden, hidden_2, torch.addmm(last.bias, hidden_2, last.weight.t())]


def backward(net: nn.Sequential, inputs: list[torch.Tensor], grad: torch.Tensor) -> None:
    """Backpropagates `grad`, the loss's gradient in the net's output, into the `.grad` of its parameters."""
    for layer, x in zip(reversed(net[::2]), reversed(inputs[:-1])):
        torch.mm(grad.t(), x, out=layer.weight.grad)
        torch.sum(grad, 0, out=layer.bias.grad)
        if layer is not net[0]:
            grad = torch.ops.aten.tanh_backward(torch.mm(grad, layer.weight), x)


def ppo_gradient(policy: Policy, obs, acts, old_logprobs, advantages, returns, args: Args) -> dict[str, torch.Tensor]:
    """PPO's clipped loss (Schulman et al. 2017, eq. 7) on a minibatch: fills the policy's `.grad`, returns statistics.

    The same numbers as autograd's, by hand: at this size autograd's bookkeeping costs as much as the arithmetic.
    """
    n = len(obs)
    actor, critic = layer_inputs(policy.actor_mean, obs), layer_inputs(policy.critic, obs)
    std = policy.actor_logstd.exp()
    z = (acts - actor[-1]) / std
    logprobs = (-0.5 * z * z - policy.actor_logstd - 0.5 * np.log(2 * np.pi)).sum(-1)
    logratio = logprobs - old_logprobs
    ratio = logratio.exp()
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    # loss = -mean(min(adv * ratio, adv * clip(ratio))); where the clipped term is the smaller one it is constant
    gain, clipped_gain = advantages * ratio, advantages * ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    by_logprob = torch.where(gain <= clipped_gain, -gain / n, 0.0)[:, None]
    backward(policy.actor_mean, actor, by_logprob * z / std)
    torch.sum(by_logprob * (z * z - 1), 0, keepdim=True, out=policy.actor_logstd.grad)
    # loss = vf_coef * mean(0.5 * (values - returns)^2)
    errors = critic[-1] - returns[:, None]
    backward(policy.critic, critic, args.vf_coef / n * errors)
    return {
        "approx_kl": (ratio - 1 - logratio).mean(),  # k3 of http://joschu.net/blog/kl-approx.html
        "clip_fraction": ((ratio - 1).abs() > args.clip_coef).float().mean(),
        "ppo_value_loss": 0.5 * (errors * errors).mean(),
    }


@torch.no_grad()
def update_policy(
    policy: Policy, optimizer: optim.Optimizer, rollout: Rollout, rewards: torch.Tensor, args: Args
) -> dict:
    """PPO's epochs over a rollout with `rewards` (T, N), already normalised; returns the means of its statistics."""
    advantages = compute_gae(
        rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.ended, args.gamma, args.gae_lambda
    )
    returns = advantages + rollout.values
    batch = [x.flatten(0, 1) for x in (rollout.obs, rollout.acts, rollout.logprobs, advantages, returns)]
    # All gradients lie in one vector, so that their norm is one call.
    parameters = list(policy.parameters())
    gradient = torch.zeros(sum(p.numel() for p in parameters))
    for p, part in zip(parameters, gradient.split([p.numel() for p in parameters])):
        p.grad = part.view_as(p)
    statistics, resting = [], False
    for _ in range(args.update_epochs):
        order, before = torch.randperm(args.batch_size), torch.cat([p.flatten() for p in parameters])
        for minibatch in zip(*(x[order].split(args.batch_size // args.num_minibatches) for x in batch)):
            if not resting:
                statistics.append(ppo_gradient(policy, *minibatch, args))
                gradient *= (args.max_grad_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)
            optimizer.step()
        # An epoch moved nothing, as where a method pays 0: the gradient stays exactly 0, only Adam's clock goes on.
        resting = not gradient.any() and torch.equal(before, torch.cat([p.flatten() for p in parameters]))
    unexplained = (returns - rollout.values).var() / (returns.var() + 1e-12)
    return {
        **{name: torch.stack([row[name] for row in statistics]).mean().item() for name in statistics[0]},
        "explained_variance": 1 - unexplained.item(),
        "logstd": policy.actor_logstd.mean().item(),
    }


# =============================================================================================================== method
def check_size(reward_net: nn.Module, obs_dim: int, action_dim: int) -> None:
    """The contract's cap: 1.05 x AIRL's g on [s, a] and h on s, each 256-256-1."""
    airl = sum((n + 1) * 256 + 257 * 256 + 257 for n in (obs_dim + action_dim, obs_dim))
    size = sum(p.numel() for p in reward_net.parameters())
    if size > 1.05 * airl:
        name, most = type(reward_net).__name__, int(1.05 * airl)
        raise UserError(f"{name}: {size} parameters; at most {most} are allowed (1.05 x AIRL's {airl})")


def learned_rewards(algorithm, flat: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """`compute_reward` of a flat rollout, checked; names the class at fault."""
    rewards, n = algorithm.compute_reward(*flat), len(flat[0])
    name = f"{type(algorithm).__name__}.compute_reward"
    if not isinstance(rewards, torch.Tensor) or rewards.shape != (n,):
        raise UserError(f"{name}: returned shape {tuple(getattr(rewards, 'shape', ()))}; expected ({n},)")
    rewards = rewards.detach().float()
    if not rewards.isfinite().all():
        raise UserError(f"{name}: returned {int((~rewards.isfinite()).sum())} values of {n} that are not finite")
    return rewards


class FrozenReward:
    """A reward that no longer learns."""

    def __init__(self, reward_net, expert_demos, obs_dim, action_dim, device, args):
        self.reward_net = reward_net

    def compute_reward(self, obs, acts, next_obs):
        with torch.no_grad():
            return self.reward_net(obs, acts, next_obs)

    def update(self, policy_obs, policy_acts, policy_next_obs, policy_dones):
        return {}


def update_reward(algorithm, flat: tuple[torch.Tensor, ...], dones: torch.Tensor, n_updates: int) -> dict[str, float]:
    """Calls `update` `n_updates` times; returns the mean of each number it reports."""
    reports = [algorithm.update(*flat, dones) or {} for _ in range(n_updates)]
    keys = dict.fromkeys(key for report in reports for key in report)
    return {f"irl/{key}": float(np.mean([float(r[key]) for r in reports if key in r])) for key in keys}


# =========================================================================================================== evaluation
@torch.no_grad()
def evaluate(policy: Policy, env_id: str, episodes: int, seed: int, deterministic: bool) -> dict:
    """Plays `episodes` episodes under the environment's own reward; returns their returns and lengths."""
    env = make_env(env_id)
    generator = torch.Generator().manual_seed(seed)
    std, returns, lengths = policy.actor_logstd.exp()[0], [], []
    for reset_seed in seeds_for(seed, purpose=1, n=episodes):
        obs, _ = env.reset(seed=reset_seed)
        total, length, done = 0.0, 0, False
        while not done:
            action = policy.actor_mean(torch.as_tensor(obs, dtype=torch.float32))
            if not deterministic:
                action = action + std * torch.randn(std.shape, generator=generator)
            obs, reward, terminated, truncated, _ = env.step(
                action.numpy().clip(env.action_space.low, env.action_space.high)
            )
            total, length, done = total + float(reward), length + 1, terminated or truncated
        returns.append(total), lengths.append(length)
    return {"returns": returns, "lengths": lengths, "mean": float(np.mean(returns)), "std": float(np.std(returns))}


# ============================================================================================== results and checkpoints
@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name to write to and renames it to `path`, so that `path` is never half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    os.replace(temporary, path)


def sha256(path: Path) -> str:
    """Of a file, or of all files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


def provenance() -> dict:
    """Where the numbers come from: commit, whether the tree was clean, hardware."""
    commit, changes = (
        subprocess.run(["git", "-C", ROOT, *words.split()], capture_output=True, text=True).stdout.strip()
        for words in ("rev-parse HEAD", "status --porcelain")
    )
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    cpu = models[0] if models else platform.processor()
    hardware = {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "system": platform.platform()}
    return {"git_commit": commit, "git_clean": bool(commit) and not changes, "hardware": hardware}


def describe_run(args: Args, method: str, classes: tuple[type, ...]) -> dict[str, dict]:
    """All that has to be equal for two runs to give the same numbers: method, configuration, demos, code, versions."""
    told = ("out", "overwrite", "tensorboard")  # these change no number
    config = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(args).items() if k not in told}
    files = {Path(__file__).resolve(), *(Path(inspect.getfile(c)).resolve() for c in classes)}
    return {
        "config": {"method": method, **config},
        "demos": {"sha256": sha256(args.demos_path) if args.learns_reward else None},
        "frozen_reward": {"sha256": sha256(args.reward_file) if args.frozen_reward else None},
        "code_sha256": {f.name: sha256(f) for f in sorted(files)},
        "versions": {p: version(p) for p in PACKAGES} | {"python": platform.python_version()},
    }


def write_metrics(path: Path, rows: list[dict]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="") as f:
        writer = csv.DictWriter(f, dict.fromkeys(key for row in rows for key in row))
        writer.writeheader(), writer.writerows(rows)


@contextmanager
def event_log(folder: Path | None, done: int) -> Iterator[Callable[[dict], None]]:
    """Gives a function that logs a row of metrics.csv, after `done` steps, for TensorBoard in `folder`, if any."""
    if folder is None:
        yield lambda row: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard: expected the package tensorboard to be installed") from None
    with SummaryWriter(folder, purge_step=done + 1) as writer:

        def log(row: dict) -> None:
            for name, value in row.items():
                if value != "" and name not in ("round", "steps"):
                    writer.add_scalar(name, value, row["steps"])

        yield log


def save_training(path: Path, state: dict, envs: VectorEnv) -> None:
    """One pickle for all that trains, so that what the method shares with the loop (policy, optimizer) stays shared."""
    generators = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    with replacing(path) as temporary:
        saved = {"state": state, "envs": envs.history, "generators": generators}
        torch.save(saved, temporary, pickle_module=cloudpickle)


def load_training(path: Path, envs: VectorEnv) -> dict:
    """The state `save_training` wrote here, with the environments and all generators brought back to it."""
    try:
        saved = torch.load(path, weights_only=False)  # our own file: the folder's config.json names the same code
    except Exception as error:
        raise UserError(f"{path}: cannot be resumed from ({error!r}); remove it to start this run anew") from None
    envs.restore(saved["envs"])
    random.setstate(saved["generators"][0])
    np.random.set_state(saved["generators"][1])
    torch.set_rng_state(saved["generators"][2])
    return saved["state"]


def run_config(folder: Path, *needed: str) -> dict:
    """The configuration of the finished run in `folder`; UserError if its checkpoint lacks that or one of `needed`."""
    for name in ("config.json", *needed):
        if not (path := folder / "checkpoint" / name).is_file():
            raise UserError(f"{path}: no such file; expected {folder} to be the folder of a finished run")
    return json.loads((folder / "checkpoint" / "config.json").read_text())["config"]


def inherit_labels(args: Args, method: str) -> Args:
    """Args with the panel and the policy access of the run that --frozen-reward names, so that its labels say them.

    Raises:
        UserError: if that is not a finished run of this method in this environment.
    """
    trained, config = run_config(args.frozen_reward, "reward_net.pt"), args.frozen_reward / "checkpoint" / "config.json"
    for key, expected in (("env", args.env), ("method", method)):
        if trained[key] != expected:
            raise UserError(f"{config}: {key} is {trained[key]}; expected {expected}")
    return replace(args, **{k: trained[k] for k in ("demo_episodes", "demo_subsample", "no_policy_access")})


def open_folder(folder: Path, run: dict, overwrite: bool) -> dict | None:
    """Prepares the run's folder; returns the result if it is there already. Never replaces another run unasked."""
    config, result = folder / "checkpoint" / "config.json", folder / "result.json"
    if config.exists():
        there = json.loads(config.read_text())
        changed = [f"{part} {key}" for part in run for key in run[part] if there[part].get(key) != run[part][key]]
        if not changed:
            return json.loads(result.read_text()) if result.exists() else None
        if not overwrite:
            raise UserError(f"{folder}: another run ({', '.join(changed)} differ); --overwrite it or change --out")
        for old in (result, folder / "metrics.csv", *folder.glob("tensorboard/*"), *config.parent.iterdir()):
            old.unlink(missing_ok=True)
    with replacing(config) as temporary:
        temporary.write_text(json.dumps(run, indent=2) + "\n")
    return None


def write_result(folder: Path, run: dict, args: Args, state: dict, card: dict | None, n_demos: int) -> dict:
    """Evaluates the final policy, writes its checkpoint and result.json, and returns the result."""
    with timed(state["seconds"], "evaluation"):
        deterministic, sampled = (
            evaluate(state["policy"], args.env, EVAL_EPISODES, args.seed, d) for d in (True, False)
        )
    for name in ("policy", "reward_net"):
        if state[name] is not None:
            with replacing(folder / "checkpoint" / f"{name}.pt") as temporary:
                torch.save(state[name].state_dict(), temporary)
    steps, seconds = state["round"] * args.batch_size, {k: round(v, 3) for k, v in state["seconds"].items()}
    result = {
        "schema": 1,
        "method": run["config"]["method"],
        "variant": "frozen" if args.frozen_reward else "reward-only" if args.no_policy_access else "full",
        "panel": args.panel,
        "labels": args.labels(),
        "env": args.env,
        "seed": args.seed,
        "steps": steps,
        "eval_return_mean": deterministic["mean"],
        "eval_return_std": deterministic["std"],
        "normalized_return": normalized(deterministic["mean"], card),
        "evaluation": {"deterministic": deterministic, "sampled": sampled},
        "steps_per_second": steps / (sum(seconds.values()) - seconds["evaluation"]),
        "seconds": seconds,
        **run,
        "demos": {**run["demos"], "file": args.demos_path.name, "transitions": n_demos},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with replacing(folder / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    (folder / "checkpoint" / "training.pt").unlink(missing_ok=True)
    return result


def load_run(folder: Path | str, reward_cls: type | None = None) -> tuple[Policy, nn.Module | None]:
    """The final policy and, given its class, the learned reward network of a finished run.

    Raises:
        UserError: naming the file that is missing or does not fit.
    """
    folder = Path(folder)
    config = run_config(folder, "policy.pt", *(["reward_net.pt"] if reward_cls else []))
    env, checkpoint = make_env(config["env"]), folder / "checkpoint"
    dims = env.observation_space.shape[0], env.action_space.shape[0]
    nets = [Policy(*dims), reward_cls(*dims) if reward_cls else None]
    for net, name in zip(nets, ("policy", "reward_net")):
        if net is not None:
            try:
                net.load_state_dict(torch.load(checkpoint / f"{name}.pt", weights_only=True))
            except RuntimeError:
                raise UserError(
                    f"{checkpoint / name}.pt: does not fit {type(net).__name__}; expected its class"
                ) from None
    return nets[0], nets[1]


# ================================================================================================= the reward elsewhere
Reward = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def as_function(net: Callable[..., torch.Tensor]) -> Reward:
    """A network as a function of arrays obs (n, obs_dim), acts (n, action_dim), next_obs (n, obs_dim); rewards (n,)."""

    def reward(obs: np.ndarray, acts: np.ndarray, next_obs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(*(torch.as_tensor(x, dtype=torch.float32) for x in (obs, acts, next_obs))).numpy().astype(float)

    return reward


def load_reward(folder: Path | str, reward_cls: type = RewardNetwork) -> Reward:
    """The reward that a finished run ended with, as `as_function` gives it. `reward_cls`: the class of its network."""
    return as_function(load_run(folder, reward_cls)[1])


class LearnedReward(gym.Wrapper):
    """Pays a Reward for every step; the environment's own is info["true_reward"]."""

    def __init__(self, env: gym.Env, reward: Reward):
        super().__init__(env)
        self.reward = reward

    def reset(self, **kwargs):
        self.obs, info = self.env.reset(**kwargs)
        return self.obs, info

    def step(self, action):
        next_obs, true_reward, terminated, truncated, info = self.env.step(action)
        reward = float(self.reward(self.obs[None], np.asarray(action)[None], next_obs[None])[0])
        self.obs = next_obs
        return next_obs, reward, terminated, truncated, {**info, "true_reward": true_reward}


# ================================================================================================================= main
@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start


def note_signals() -> list[int]:
    """Ctrl-C and SIGTERM join the list returned, so that the round under way can end; the second one interrupts."""
    received = []

    def note(signum, frame):
        received.append(signum)
        signal.signal(signum, signal.default_int_handler)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, note)
    return received


def episode_sums(values: np.ndarray, ended: np.ndarray, running: np.ndarray) -> list[float]:
    """Sums of `values` (T, N) over the episodes that ended; `running` (N,) carries the unfinished ones, in place."""
    sums = []
    for value, end in zip(values, ended):
        running += value
        sums.extend(running[end].tolist())
        running[end] = 0.0
    return sums


def start_training(reward_cls: type, algorithm_cls: type, args: Args, envs: VectorEnv, demos: dict | None) -> dict:
    """Everything that training changes, in one dict: what a checkpoint saves."""
    obs_dim, action_dim = envs.obs.shape[1], envs.action_space.shape[0]
    policy = Policy(obs_dim, action_dim)
    optimizer = optim.Adam(policy.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)
    reward_net = algorithm = None
    if args.frozen_reward:
        algorithm_cls = FrozenReward
    if not args.true_reward:
        frozen = args.frozen_reward
        reward_net = load_run(frozen, reward_cls)[1] if frozen else reward_cls(obs_dim, action_dim)
        check_size(reward_net, obs_dim, action_dim)
        algorithm = algorithm_cls(reward_net, demos, obs_dim, action_dim, torch.device("cpu"), args)
        if hasattr(algorithm, "set_policy") and not args.no_policy_access:
            algorithm.set_policy(policy, optimizer)
    carried = {name: np.zeros(args.num_envs) for name in ("true_return", "episode_length", "learned_return")}
    return {
        "policy": policy, "optimizer": optimizer, "reward_net": reward_net, "algorithm": algorithm,
        "reward_norm": RunningNorm(), "round": 0, "carried": carried, "rows": [], "seconds": {},
    }  # fmt: skip


def train_round(state: dict, envs: VectorEnv, args: Args) -> dict:
    """One rollout, the reward's update and the policy's update; returns the row for metrics.csv."""
    policy, optimizer, algorithm, seconds = (state[k] for k in ("policy", "optimizer", "algorithm", "seconds"))
    start = time.perf_counter()
    for group in optimizer.param_groups:
        group["lr"] = args.learning_rate * (1 - state["round"] / args.num_rounds)
    with timed(seconds, "rollout"):
        rollout = collect_rollout(envs, policy, args.num_steps)
    rewards, irl = rollout.true_rewards, {}
    if algorithm is not None:
        flat = tuple(x.flatten(0, 1) for x in (rollout.obs, rollout.acts, rollout.next_obs))
        with timed(seconds, "reward"):
            rewards = learned_rewards(algorithm, flat).view_as(rewards)
        with timed(seconds, "reward_update"):
            irl = update_reward(algorithm, flat, rollout.ended.flatten().float(), args.n_irl_updates_per_round)
    with timed(seconds, "ppo"):
        ppo = update_policy(policy, optimizer, rollout, state["reward_norm"](rewards), args)
    state["round"] += 1
    per_step = {
        "true_return": rollout.true_rewards,
        "episode_length": torch.ones_like(rewards),
        "learned_return": rewards,
    }
    ended = rollout.ended.numpy()
    finished = {name: episode_sums(x.numpy(), ended, state["carried"][name]) for name, x in per_step.items()}
    return {
        "round": state["round"],
        "steps": state["round"] * args.batch_size,
        "episodes": len(finished["true_return"]),
        **{name: float(np.mean(sums)) if sums else "" for name, sums in finished.items()},
        "reward_mean": rewards.mean().item(),
        "reward_std": rewards.std().item(),
        **irl,
        **ppo,
        "steps_per_second": args.batch_size / (time.perf_counter() - start),
    }


def run(reward_cls: type, algorithm_cls: type, args: Args, method: str, signals: Sequence[int] = ()) -> dict | None:
    """Trains and evaluates one method on one environment with one seed; goes on with an interrupted run.

    It stops, with a checkpoint, at the end of the round in which `signals` (see `note_signals`) is no longer empty.

    Returns:
        what result.json holds, or None if a signal stopped the run (the same call goes on with it).

    Raises:
        UserError: bad arguments or demonstrations, a folder with another run in it, a method that breaks the contract.
    """
    method = "oracle" if args.true_reward else method
    if args.frozen_reward:
        args = inherit_labels(args, method)
    torch.set_num_threads(1)  # a second thread costs more than it brings at this size
    random.seed(args.seed), np.random.seed(args.seed), torch.manual_seed(args.seed)
    envs = VectorEnv(args.env, args.num_envs, args.seed)
    demos = None
    if args.learns_reward:
        dims = envs.obs.shape[1], envs.action_space.shape[0]
        demos = load_demos(args.demos_path, *dims, args.demo_episodes, args.demo_subsample)
    card, n_demos = load_card(args.demos_path), 0 if demos is None else len(demos["obs"])
    folder, description = args.folder(method), describe_run(args, method, (reward_cls, algorithm_cls))
    origin = provenance()
    if (result := open_folder(folder, description, args.overwrite)) is not None:
        return result
    unfinished = folder / "checkpoint" / "training.pt"
    if unfinished.exists():
        state = load_training(unfinished, envs)
    else:
        state = start_training(reward_cls, algorithm_cls, args, envs, demos)
    total, done = args.num_rounds * args.batch_size, state["round"] * args.batch_size
    name = f"{method} {args.env} seed {args.seed}"
    with (
        tqdm(total=total, initial=done, desc=name, unit="step", unit_scale=True, disable=None) as bar,
        event_log(folder / "tensorboard" if args.tensorboard else None, done) as log,
    ):
        while state["round"] < args.num_rounds and not signals:
            row = train_round(state, envs, args)
            with timed(state["seconds"], "logging"):
                state["rows"].append(row)
                log(row)
                write_metrics(folder / "metrics.csv", state["rows"])
                if state["round"] % CHECKPOINT_EVERY == 0:
                    save_training(unfinished, state, envs)
            bar.update(args.batch_size)
            if row["episodes"]:
                bar.set_postfix_str(f"return {row['true_return']:.0f}")
    if state["round"] < args.num_rounds:
        save_training(unfinished, state, envs)
        return None
    return write_result(folder, description | origin, args, state, card, n_demos)


def parse_args(flags: Sequence[str] | None = None) -> Args:
    """Args from command-line flags (those of this process if None)."""
    return tyro.cli(tyro.conf.FlagCreatePairsOff[Args], args=flags, description=__doc__)


def print_result(result: dict, args: Args) -> None:
    """A run's summary; the last line is the benchmark's metric."""
    if result["labels"]:
        print(f"not the benchmark's own configuration: {', '.join(result['labels'])}")
    share = "" if result["normalized_return"] is None else f", {result['normalized_return']:.3f} of the expert's"
    folder = args.folder(result["method"], labels=result["labels"])  # a frozen reward's run has inherited labels
    print(f"{result['steps']} steps, {result['steps_per_second']:.0f} steps/s, {folder}")
    print(f"final policy: {result['eval_return_mean']:.1f} ± {result['eval_return_std']:.1f}{share}")
    print(f"eval_return_{args.env.lower().replace('-', '_')}: {result['eval_return_mean']:.2f}")


def main(reward_cls: type, algorithm_cls: type, method: str) -> None:
    """The command line of a method: parses the flags, runs, prints the score on the last line."""
    try:
        args = parse_args()
        result = run(reward_cls, algorithm_cls, args, method, note_signals())
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        result = None
    if result is None:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    print_result(result, args)


if __name__ == "__main__":
    sys.modules["custom_irl"] = sys.modules["__main__"]  # demos/formats.py imports this module, not a second copy of it
    main(RewardNetwork, IRLAlgorithm, method="custom")
