"""The run under examination: its reward, the controls, and the behaviour that both are shown.

Behaviour is a list of episodes: stored ones, or played by demos.expert.play from a reset, or by
`play_from` from a stored state.
"""

from collections.abc import Sequence
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
from demos.formats import Episode, read

DEMOS = irl.ROOT / "demos"
PLAYED_STEPS = 3000  # of each behaviour, or more
UNTRAINED = 10  # networks with random weights: the learned reward has to stand out among them
FIRST_RESET_SEED = 60_000  # none that demos/generate.py uses

State = tuple[np.ndarray, np.ndarray]  # MuJoCo's qpos and qvel


class NotApplicable(Exception):
    """An examination needs what this run or its environment lacks. The message says what."""


# ---------------------------------------------------------------------------------------- episodes
@dataclass(frozen=True)
class Played(Episode):
    states: Sequence[State] = ()  # before each step; empty where the environment keeps none


def transitions(episodes: Sequence[Episode]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """obs (n, obs_dim), acts (n, action_dim), next_obs (n, obs_dim) of all episodes."""
    return (
        np.concatenate([e.obs[:-1] for e in episodes]),
        np.concatenate([e.acts for e in episodes]),
        np.concatenate([e.obs[1:] for e in episodes]),
    )


def paid(reward: Reward | None, episodes: Sequence[Episode]) -> list[np.ndarray]:
    """The rewards (T,) of each episode; None: the environment's own, NaN where unknown."""
    if reward is None:
        return [np.full(len(e.acts), np.nan) if e.rewards is None else e.rewards for e in episodes]
    ends = np.cumsum([len(e.acts) for e in episodes])
    return np.split(reward(*transitions(episodes)), ends[:-1])


def has_states(env: gym.Env) -> bool:
    """Whether the environment can be put into any MuJoCo state, and observes that state alone."""
    needed = ("data", "model", "set_state", "_get_obs")
    same_obs = env.observation_space == env.unwrapped.observation_space
    return same_obs and all(hasattr(env.unwrapped, name) for name in needed)


def state_of(env: gym.Env) -> State:
    data = env.unwrapped.data
    return data.qpos.copy(), data.qvel.copy()


def play_steps(env: gym.Env, act: Act, seed: int) -> list[Played]:
    """Episodes from reset seeds `seed`, `seed` + 1, ... until they have PLAYED_STEPS steps."""
    keeps_states = has_states(env)
    states = []

    def act_and_note(obs: np.ndarray) -> np.ndarray:
        if keeps_states:
            states.append(state_of(env))
        return act(obs)

    episodes = []
    while sum(len(e.acts) for e in episodes) < PLAYED_STEPS:
        episode = play(env, act_and_note, seed + len(episodes))
        episodes.append(Played(**vars(episode), states=tuple(states)))
        states.clear()
    return episodes


def play_from(env: gym.Env, state: State, act: Act, n: int) -> Episode:
    """At most `n` steps from a stored state, without a time limit. Leaves `env` at their end."""
    world = env.unwrapped
    world.set_state(*state)
    observations = [world._get_obs()]
    acts = []
    rewards = []
    terminated = False
    while len(acts) < n and not terminated:
        acts.append(act(observations[-1]))
        obs, reward, terminated, _ = irl.step_env(world, acts[-1])
        observations.append(obs)
        rewards.append(reward)
    return Episode(np.array(observations), np.array(acts), terminated, np.array(rewards))


def delayed(act: Act, first: np.ndarray) -> Act:
    """Each action a step late, after `first`."""
    planned = [first]

    def act_late(obs: np.ndarray) -> np.ndarray:
        planned.append(act(obs))
        return planned.pop(0)

    return act_late


# ----------------------------------------------------------------------------------------- subject
def untrained_like(net: nn.Module, dims: Sequence[int], seed: int) -> nn.Module:
    """A network of the same class and input statistics with random weights."""
    torch.manual_seed(seed)
    fresh = type(net)(*dims)
    statistics = {name: buffer for name, buffer in net.named_buffers() if buffer.dim()}
    fresh.load_state_dict(statistics, strict=False)
    return fresh.eval()


class Subject:
    def __init__(self, folder: Path, seed: int = 0, retrain_steps: int = 0, jobs: int = 1):
        """A finished run; UserError naming the file for anything else."""
        self.folder = folder
        self.seed = seed  # of the examination
        self.retrain_steps = retrain_steps  # of each fresh policy; 0: none is trained
        self.jobs = jobs  # fresh policies trained at once
        self.result = runs.read_result(folder)
        policy, net = load_run(folder)
        for name in ("reward_net.pt", "metrics.csv"):
            if not (folder / name).is_file():
                expected = "expected a finished run of a method with a reward"
                raise irl.UserError(f"{folder / name}: no such file; {expected}")
        self.metrics = pd.read_csv(folder / "metrics.csv")
        self.act = policy_action(policy, self.make_env().action_space)
        dims = self.result["dims"]
        untrained = [untrained_like(net, dims, self.result["seed"] + i) for i in range(UNTRAINED)]
        self.untrained = [as_function(each) for each in untrained]
        self.nets = {"learned": net, "untrained": untrained[0], "constant": ConstantReward(*dims)}
        self.rewards = {name: as_function(each) for name, each in self.nets.items()}
        if callable(getattr(type(net), "g", None)):  # potential-shaped
            self.rewards["g alone"] = as_function(net.g)
            self.rewards["shaping alone"] = as_function(lambda *x: net(*x) - net.g(*x))

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
    def bank(self) -> list[Episode]:
        """Held-out episodes of mixed quality with true rewards (demos/generate.py --bank)."""
        path = DEMOS / f"{self.env_id}.bank.npz"
        if not path.is_file():
            raise NotApplicable(f"no behaviour of mixed quality is stored as demos/{path.name}")
        return read(path)

    @cached_property
    def has_shipped_demos(self) -> bool:
        """Whether the run's demonstrations are those in demos/, of the expert there."""
        path = DEMOS / f"{self.env_id}.npz"
        default = self.result["config"]["demos"] is None
        return path.is_file() and (default or self.result["demos"]["sha256"] == irl.sha256(path))

    @cached_property
    def expert(self) -> Expert | None:
        path = DEMOS / f"{self.env_id}.expert.npz"
        return Expert.load(path) if self.has_shipped_demos and path.is_file() else None

    @cached_property
    def expert_episodes(self) -> list[Episode]:
        """Played anew where the expert's policy is known; else PLAYED_STEPS of demonstrations."""
        if self.expert is not None:
            return play_steps(self.make_env(), self.expert, FIRST_RESET_SEED + self.seed)
        config = self.result["config"]
        path = Path(config["demos"] or DEMOS / f"{self.env_id}.npz")
        if not path.is_file():
            raise NotApplicable(f"the demonstrations, {path}, are gone")
        if self.result["demos"]["sha256"] not in (None, irl.sha256(path)):
            raise NotApplicable(f"{path} is not the file that the run learned from")
        episodes = read(path)[: config["demo_episodes"]]
        ends = np.cumsum([len(e.acts) for e in episodes])
        return episodes[: np.searchsorted(ends, PLAYED_STEPS) + 1]

    @cached_property
    def played(self) -> dict[str, list[Episode]]:
        """The expert (where it is known), the run's own policy, zero actions, random actions."""
        env = self.make_env()
        space = env.action_space
        rng = np.random.default_rng(self.seed)
        zero = np.zeros(space.shape, np.float32).clip(space.low, space.high)
        actors = {
            "own policy": self.act,
            "still": lambda obs: zero,
            "random": lambda obs: rng.uniform(space.low, space.high).astype(np.float32),
        }
        seed = FIRST_RESET_SEED + self.seed
        played = {name: play_steps(env, act, seed) for name, act in actors.items()}
        try:
            return {"expert": self.expert_episodes, **played}
        except NotApplicable:
            return played
