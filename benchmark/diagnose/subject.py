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


# -------------------------------------------------------------------------------------------- play
def has_states(env: gym.Env) -> bool:
    """Whether the environment can be put into any MuJoCo state, and observes that state alone."""
    needed = ("data", "model", "set_state", "_get_obs")
    same_obs = env.observation_space == env.unwrapped.observation_space
    return same_obs and all(hasattr(env.unwrapped, name) for name in needed)


def state_of(env: gym.Env) -> State:
    data = env.unwrapped.data
    return data.qpos.copy(), data.qvel.copy()


def play_steps(env: gym.Env, act: Act, seed: int) -> Steps:
    """Episodes from reset seeds `seed`, `seed` + 1, ... until they have PLAYED_STEPS steps."""
    states = []
    keeps_states = has_states(env)

    def act_and_note(obs: np.ndarray) -> np.ndarray:
        if keeps_states:
            states.append(state_of(env))
        return act(obs)

    episodes = []
    while sum(len(e.acts) for e in episodes) < PLAYED_STEPS:
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
@dataclass(frozen=True)
class Subject:
    folder: Path
    result: dict
    metrics: pd.DataFrame
    act: Act  # the run's own policy
    nets: dict[str, nn.Module]  # "learned", "untrained", "constant"
    rewards: dict[str, Reward]  # the same as functions, and the parts of a shaped reward
    untrained: list[Reward]  # "untrained" with several random weights
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
            raise NotApplicable(f"no behaviour of mixed quality is stored as demos/{path.name}")
        return [join([episode]) for episode in read(path)]

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
    def demos(self) -> Steps:
        """Of the run's own demonstrations, the first episodes that have PLAYED_STEPS steps."""
        config = self.result["config"]
        path = Path(config["demos"] or DEMOS / f"{self.env_id}.npz")
        if not path.is_file():
            raise NotApplicable(f"the demonstrations, {path}, are gone")
        if self.result["demos"]["sha256"] not in (None, irl.sha256(path)):
            raise NotApplicable(f"{path} is not the file that the run learned from")
        try:
            episodes = read(path)[: config["demo_episodes"]]
        except DemoError as error:
            raise NotApplicable(str(error)) from None
        ends = np.cumsum([len(e.acts) for e in episodes])
        return join(episodes[: np.searchsorted(ends, PLAYED_STEPS) + 1])

    @cached_property
    def expert_steps(self) -> Steps:
        """The expert, played anew where its policy is known; its demonstrations otherwise."""
        if self.expert is None:
            return self.demos
        return play_steps(self.make_env(), self.expert, FIRST_RESET_SEED + self.seed)

    @cached_property
    def played(self) -> dict[str, Steps]:
        """The expert (where it is known), the run's own policy, zero actions, random actions."""
        env = self.make_env()
        space = env.action_space
        rng = np.random.default_rng(self.seed)
        actors = {
            "own policy": self.act,
            "still": still(space),
            "random": lambda obs: rng.uniform(space.low, space.high).astype(np.float32),
        }
        seed = FIRST_RESET_SEED + self.seed
        played = {name: play_steps(env, act, seed) for name, act in actors.items()}
        try:
            return {"expert": self.expert_steps, **played}
        except NotApplicable:
            return played


def untrained_like(net: nn.Module, dims: Sequence[int], seed: int) -> nn.Module:
    """A network of the same class and input statistics with random weights."""
    torch.manual_seed(seed)
    fresh = type(net)(*dims)
    statistics = {name: buffer for name, buffer in net.named_buffers() if buffer.dim()}
    fresh.load_state_dict(statistics, strict=False)
    return fresh.eval()


def load_subject(folder: Path, seed: int = 0, retrain_steps: int = 0, jobs: int = 1) -> Subject:
    """A finished run, its reward and the controls.

    Raises:
        UserError: naming the file for anything else.
    """
    result = runs.read_result(folder)
    policy, net = load_run(folder)
    for name in ("reward_net.pt", "metrics.csv"):
        if not (folder / name).is_file():
            expected = "expected a finished run of a method with a reward"
            raise irl.UserError(f"{folder / name}: no such file; {expected}")
    dims = result["dims"]
    untrained = [untrained_like(net, dims, result["seed"] + i) for i in range(UNTRAINED)]
    nets = {"learned": net, "untrained": untrained[0], "constant": ConstantReward(*dims)}
    rewards = {name: as_function(each) for name, each in nets.items()}
    if callable(getattr(type(net), "g", None)):  # potential-shaped
        rewards["g alone"] = as_function(net.g)
        rewards["shaping alone"] = as_function(lambda *batch: net(*batch) - net.g(*batch))
    space = irl.make_env(result["env"], result["config"]["max_episode_steps"]).action_space
    return Subject(
        folder=folder,
        result=result,
        metrics=pd.read_csv(folder / "metrics.csv"),
        act=policy_action(policy, space),
        nets=nets,
        rewards=rewards,
        untrained=[as_function(each) for each in untrained],
        seed=seed,
        retrain_steps=retrain_steps,
        jobs=jobs,
    )
