"""The run under examination: its reward, the controls, and the behaviour that both are shown.

Behaviour is played by `demos.expert.play`, from a reset, or by `play_from`, from a stored state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import torch
import torch.nn as nn

import custom_irl as irl
from baselines.constant import ConstantReward
from benchmark import runs
from benchmark.load import Act, Reward, as_function, load_run, policy_action
from demos.expert import Expert, play
from demos.formats import DemoError, Episode, read

DEMOS = irl.ROOT / "demos"
PLAYED_STEPS = 3000  # of each behaviour, or more
UNTRAINED = 10  # networks with random weights: the learned reward has to stand out among them
BATCH = 4096
FIRST_RESET_SEED = 60_000  # none that demos/generate.py uses

State = tuple[np.ndarray, np.ndarray]  # MuJoCo's qpos and qvel


class NotApplicable(Exception):
    """An examination needs what this run or its environment lacks. The message says what."""


# ------------------------------------------------------------------------------------------- steps
@dataclass(frozen=True)
class Steps:
    """Transitions in the order in which they were played."""

    obs: np.ndarray  # (n, obs_dim)
    acts: np.ndarray  # (n, action_dim)
    next_obs: np.ndarray  # (n, obs_dim)
    rewards: np.ndarray  # (n,) the environment's own, NaN where unknown
    terminated: np.ndarray  # (n,) bool
    episode: np.ndarray  # (n,) number of the episode
    states: Sequence[State] = ()  # before each step; empty where none was kept

    def __len__(self) -> int:
        return len(self.obs)

    def paid(self, reward: Reward) -> np.ndarray:
        return reward(self.obs, self.acts, self.next_obs)


def join(episodes: Sequence[Episode], states: Sequence[State] = ()) -> Steps:
    lengths = [len(e.acts) for e in episodes]
    terminated = np.zeros(sum(lengths), bool)
    terminated[np.cumsum(lengths) - 1] = [e.terminated for e in episodes]
    rewards = [np.full(len(e.acts), np.nan) if e.rewards is None else e.rewards for e in episodes]
    return Steps(
        np.concatenate([e.obs[:-1] for e in episodes]),
        np.concatenate([e.acts for e in episodes]),
        np.concatenate([e.obs[1:] for e in episodes]),
        np.concatenate(rewards),
        terminated,
        np.repeat(np.arange(len(lengths)), lengths),
        states,
    )


def first_steps(episodes: Sequence[Episode], n: int) -> Steps:
    """Of the first episodes, as many as have `n` steps."""
    lengths = np.cumsum([len(e.acts) for e in episodes])
    return join(episodes[: int(np.searchsorted(lengths, n)) + 1])


# -------------------------------------------------------------------------------------------- play
def has_states(env: gym.Env) -> bool:
    """Whether the environment can be put into any MuJoCo state, and observes that state alone."""
    needed = ("data", "model", "set_state", "_get_obs")
    same_obs = env.observation_space == env.unwrapped.observation_space
    return same_obs and all(hasattr(env.unwrapped, name) for name in needed)


def state_of(env: gym.Env) -> State:
    data = env.unwrapped.data
    return data.qpos.copy(), data.qvel.copy()


def play_steps(env: gym.Env, act: Act, n: int, seed: int) -> Steps:
    """Whole episodes from reset seeds `seed`, `seed` + 1, ... until they have `n` steps."""
    states = []
    keeps_states = has_states(env)

    def act_and_note(obs: np.ndarray) -> np.ndarray:
        if keeps_states:
            states.append(state_of(env))
        return act(obs)

    episodes = []
    while sum(len(e.acts) for e in episodes) < n:
        episodes.append(play(env, act_and_note, seed + len(episodes)))
    return join(episodes, states)


def play_from(env: gym.Env, state: State, choose: Callable, n: int) -> Steps:
    """At most `n` steps under `choose(t, obs)` from a stored state, without a time limit.

    `states` of what it returns has one more than there are steps: the last.
    """
    world = env.unwrapped
    world.set_state(*state)
    observations = [world._get_obs()]
    acts = []
    rewards = []
    states = [state]
    terminated = False
    while len(acts) < n and not terminated:
        acts.append(choose(len(acts), observations[-1]))
        obs, reward, terminated, _ = irl.step_env(world, acts[-1])
        observations.append(obs)
        rewards.append(reward)
        states.append(state_of(env))
    episode = Episode(np.array(observations), np.array(acts), terminated, np.array(rewards))
    return join([episode], states)


def still(space: gym.spaces.Box) -> Act:
    action = np.zeros(space.shape, np.float32).clip(space.low, space.high)
    return lambda obs: action


# ----------------------------------------------------------------------------------------- subject
class Part(nn.Module):
    """A function of transitions as a reward network."""

    def __init__(self, function: Callable[..., torch.Tensor]):
        super().__init__()
        self.function = function

    def forward(self, obs, acts, next_obs):
        return self.function(obs, acts, next_obs)


@dataclass(frozen=True)
class Subject:
    folder: Path
    result: dict
    metrics: pd.DataFrame
    act: Act  # the run's own policy
    rewards: dict[str, Reward]  # "learned", its parts where it has any, "untrained", "constant"
    untrained: list[Reward]  # "untrained" of `rewards` with other random weights
    seed: int = 0  # of the examination
    retrain_steps: int = 0  # of each fresh policy; 0: none is trained
    jobs: int = 1  # fresh policies trained at once

    @property
    def env_id(self) -> str:
        return self.result["env"]

    def make_env(self) -> gym.Env:
        return irl.make_env(self.env_id, self.result["config"]["max_episode_steps"])

    def make_state_env(self) -> gym.Env:
        """An environment for `play_from`."""
        env = self.make_env()
        if not has_states(env):
            raise NotApplicable(f"{self.env_id} cannot be put into a stored MuJoCo state")
        env.reset(seed=0)
        return env

    @cached_property
    def bank(self) -> list[Steps]:
        """Held-out episodes of mixed quality with true rewards (demos/generate.py --bank)."""
        path = DEMOS / f"{self.env_id}.bank.npz"
        if not path.is_file():
            raise NotApplicable(f"no behaviour of mixed quality is stored, demos/{path.name}")
        return [join([episode]) for episode in read(path)]

    @cached_property
    def has_shipped_demos(self) -> bool:
        """Whether the run's demonstrations are those in demos/, which the expert there gave."""
        path = DEMOS / f"{self.env_id}.npz"
        given = self.result["config"]["demos"]
        same = given is None or (path.is_file() and self.result["demos"]["sha256"] == irl.sha256(path))
        return path.is_file() and same

    @cached_property
    def expert(self) -> Expert:
        path = DEMOS / f"{self.env_id}.expert.npz"
        if not self.has_shipped_demos or not path.is_file():
            raise NotApplicable("the expert's policy is not known")
        return Expert.load(path)

    @cached_property
    def demos(self) -> Steps:
        """Of the run's own demonstrations, the first episodes that have PLAYED_STEPS steps."""
        config = self.result["config"]
        given = config["demos"]
        path = irl.Args(env=self.env_id, demos=given and Path(given)).demos_path
        if not path.is_file():
            raise NotApplicable(f"the demonstrations, {path}, are gone")
        if self.result["demos"]["sha256"] not in (None, irl.sha256(path)):
            raise NotApplicable(f"{path} is not the file that the run learned from")
        try:
            return first_steps(read(path)[: config["demo_episodes"]], PLAYED_STEPS)
        except DemoError as error:
            raise NotApplicable(str(error)) from None

    @cached_property
    def expert_steps(self) -> Steps:
        """The expert, played anew where its policy is known; its demonstrations otherwise."""
        try:
            act = self.expert
        except NotApplicable:
            return self.demos
        return play_steps(self.make_env(), act, PLAYED_STEPS, FIRST_RESET_SEED + self.seed)

    @cached_property
    def played(self) -> dict[str, Steps]:
        """The expert (where it is known), the run's own policy, stillness and random actions."""
        env = self.make_env()
        space = env.action_space
        rng = np.random.default_rng(self.seed)
        actors = {
            "own policy": self.act,
            "still": still(space),
            "random": lambda obs: rng.uniform(space.low, space.high).astype(np.float32),
        }
        seed = FIRST_RESET_SEED + self.seed
        played = {name: play_steps(env, act, PLAYED_STEPS, seed) for name, act in actors.items()}
        try:
            return {"expert": self.expert_steps, **played}
        except NotApplicable:
            return played


def reward_networks(net: nn.Module, result: dict) -> dict[str, nn.Module]:
    """The learned reward network, its parts if it is potential-shaped, and the controls."""
    nets = {"learned": net}
    if callable(getattr(type(net), "g", None)):
        nets["g alone"] = Part(net.g)
        nets["shaping alone"] = Part(lambda *transition: net(*transition) - net.g(*transition))
    nets["untrained"] = untrained_like(net, result["dims"], result["seed"])
    nets["constant"] = ConstantReward(*result["dims"])
    return nets


def untrained_like(net: nn.Module, dims: Sequence[int], seed: int) -> nn.Module:
    """A network of the same class and input statistics with random weights."""
    torch.manual_seed(seed)
    fresh = type(net)(*dims)
    statistics = {name: buffer for name, buffer in net.named_buffers() if buffer.dim()}
    fresh.load_state_dict(statistics, strict=False)
    return fresh.eval()


def in_batches(reward: Reward) -> Reward:
    """The same function, faster on many rows: a network's hidden layers stay in the cache."""

    def batched(*arrays: np.ndarray) -> np.ndarray:
        starts = range(0, len(arrays[0]), BATCH)
        return np.concatenate([reward(*(x[i : i + BATCH] for x in arrays)) for i in starts])

    return batched


def load_reward_networks(folder: Path, result: dict) -> dict[str, nn.Module]:
    _, net = load_run(folder)
    if net is None:
        path = folder / "reward_net.pt"
        raise irl.UserError(f"{path}: no such file; expected a run of a method with a reward")
    return reward_networks(net, result)


def load_subject(folder: Path, seed: int = 0, retrain_steps: int = 0, jobs: int = 1) -> Subject:
    """A finished run, its reward and the controls.

    Raises:
        UserError: naming the file for anything else.
    """
    result = runs.read_result(folder)
    nets = load_reward_networks(folder, result)
    policy, net = load_run(folder)
    untrained = [untrained_like(net, result["dims"], result["seed"] + i) for i in range(UNTRAINED)]
    path = folder / "metrics.csv"
    if not path.is_file():
        raise irl.UserError(f"{path}: no such file; expected the folder of a finished run")
    space = irl.make_env(result["env"], result["config"]["max_episode_steps"]).action_space
    return Subject(
        folder,
        result,
        pd.read_csv(path),
        policy_action(policy, space),
        {name: in_batches(as_function(each)) for name, each in nets.items()},
        [in_batches(as_function(each)) for each in untrained],
        seed,
        retrain_steps,
        jobs,
    )
