"""Is the reward real?  Examines the reward a run ended with, and the policy trained on it.

    python diagnose.py results/custom/Hopper-v4/seed42       # trains fresh policies on it, too: 20 to 30 minutes
    python diagnose.py results/custom/Hopper-v4/seed42 --fast    # without: under a minute
    python diagnose.py results/*/Hopper-v4/seed42 --fast --table rewards.md    # one after the other, a table of them
    python diagnose.py results/*/Hopper-v4/seed42 --table rewards.md --table-only    # the table of earlier ones

Six examinations, each beside controls that show what "nothing learned" scores; then failure labels and a verdict.
Written to RUN_DIR: diagnosis.json, diagnosis.md and a figure for each. The environment's true reward is used here, for
evaluation alone.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import pandas as pd
import torch
import torch.nn as nn
import tyro
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau, rankdata, spearmanr
from tqdm import tqdm

import custom_irl as irl
from benchmark.retrain import REWARDS, ZOO
from benchmark.retrain import train as train_sb3
from demos.generate import Expert
from report import BEGIN, markdown_table, write_block, write_text

matplotlib.use("Agg")  # nothing here needs a screen
import matplotlib.pyplot as plt

DEMOS = irl.ROOT / "demos"
GAMMA = 0.99  # of the loop, and of every shaping term that the distance must not see
SEGMENT = 100  # steps; segments of one length cannot be told apart by length


@dataclass(frozen=True)
class Config:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """folders of finished runs"""
    table: Path | None = None
    """file for a table with a row a run; in one that has them already, between the lines BEGIN and END of report.py"""
    table_only: bool = False
    """examine nothing: tabulate what earlier examinations left in the folders"""
    seed: int = 0
    """seed of the examination"""
    fast: bool = False
    """leave out retraining"""
    retrain_steps: int = 200_000
    """environment steps of each fresh policy"""
    retrain_perturbed: bool = False
    """also train fresh policies on the reward in perturbed worlds, to compare with taking the old policy there"""
    jobs: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    """fresh policies trained at once"""


@dataclass(frozen=True)
class Subject:
    """A run under examination."""

    folder: Path
    result: dict
    metrics: pd.DataFrame
    env_id: str
    act: Callable[[np.ndarray], np.ndarray]
    rewards: dict[str, irl.Reward]  # "learned", its parts where it has any, and the controls

    @property
    def learned(self) -> irl.Reward:
        return self.rewards["learned"]


@dataclass(frozen=True)
class Steps:
    """Transitions that were played: obs, acts, next_obs (n, dim), the true rewards (n,), and the ends of episodes."""

    obs: np.ndarray
    acts: np.ndarray
    next_obs: np.ndarray
    rewards: np.ndarray
    ended: np.ndarray
    states: list[tuple[np.ndarray, np.ndarray]]  # MuJoCo's qpos and qvel before each step; empty where none was kept

    def __len__(self) -> int:
        return len(self.obs)

    def pay(self, reward: irl.Reward) -> np.ndarray:
        return reward(self.obs, self.acts, self.next_obs)


# ------------------------------------------------------------------------------------------------------------ subject


def policy_action(policy: irl.Policy, space: gym.spaces.Box) -> Callable[[np.ndarray], np.ndarray]:
    def act(obs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return policy.actor_mean(torch.as_tensor(obs, dtype=torch.float32)).numpy().clip(space.low, space.high)

    return act


def load_subject(folder: Path) -> Subject:
    """A finished run, its reward and the controls; UserError naming the file for anything else."""
    path = folder / "result.json"
    if not path.is_file():
        raise irl.UserError(f"{path}: no such file; expected the folder of a finished run")
    result = json.loads(path.read_text())
    method, env_id = result["method"], result["env"]
    if method not in REWARDS:
        raise irl.UserError(f"{path}: method is {method}; expected one with a reward: {', '.join(REWARDS)}")
    for kind in ("bank.npz", "expert.npz"):
        if not (DEMOS / f"{env_id}.{kind}").is_file():
            raise irl.UserError(f"{DEMOS / env_id}.{kind}: no such file; see demos/README.md for how to make one")
    policy, net = irl.load_run(folder, REWARDS[method])
    env = irl.make_env(env_id)
    torch.manual_seed(0)
    untrained = REWARDS[method](env.observation_space.shape[0], env.action_space.shape[0])
    rewards = {"learned": irl.as_function(net)}
    if hasattr(net, "g") and hasattr(net, "features"):  # the parts of a shaped reward
        rewards["g alone"] = irl.as_function(net.g)
        rewards["h alone"] = irl.as_function(lambda o, a, n: net(o, a, n) - net.g(o, a, n))
    rewards["untrained"] = irl.as_function(untrained)
    rewards["constant"] = lambda obs, acts, next_obs: np.ones(len(obs))
    metrics = pd.read_csv(folder / "metrics.csv")
    return Subject(folder, result, metrics, env_id, policy_action(policy, env.action_space), rewards)


# ------------------------------------------------------------------------------------------------------------ playing


def state_of(env: gym.Env) -> tuple[np.ndarray, np.ndarray]:
    data = env.unwrapped.data
    return data.qpos.copy(), data.qvel.copy()


def env_obs(env: gym.Env, state) -> np.ndarray:
    env.unwrapped.set_state(*state)
    return env.unwrapped._get_obs()


def step_from(env: gym.Env, state: tuple[np.ndarray, np.ndarray], action: np.ndarray):
    """One step from a stored MuJoCo state: next_obs, true reward, terminated."""
    env.unwrapped.set_state(*state)
    next_obs, reward, terminated, _, _ = env.unwrapped.step(action)
    return next_obs, reward, terminated


def play(env: gym.Env, act: Callable, n: int, seed: int) -> Steps:
    """`n` steps of whole and one cut episode."""
    rows, states = [], []
    obs, _ = env.reset(seed=seed)
    while len(rows) < n:
        action = act(obs)
        states.append(state_of(env))
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, next_obs, reward, terminated or truncated))
        obs = env.reset()[0] if terminated or truncated else next_obs
    obs, acts, next_obs, rewards, ended = (np.array(column) for column in zip(*rows))
    return Steps(obs, acts, next_obs, rewards, ended, states)


def play_from(env: gym.Env, state, first_obs: np.ndarray, choose: Callable, n: int) -> Steps:
    """At most `n` steps from a stored state under `choose(t, obs)`."""
    env.unwrapped.set_state(*state)
    rows, obs = [], first_obs
    for t in range(n):
        action = choose(t, obs)
        next_obs, reward, terminated, _, _ = env.unwrapped.step(action)
        rows.append((obs, action, next_obs, reward, terminated))
        obs = next_obs
        if terminated:
            break
    return Steps(*(np.array(column) for column in zip(*rows)), [])


def behaviours(subject: Subject, n: int, seed: int) -> dict[str, Steps]:
    """What the subject's reward is shown: the expert, its own policy, one that does nothing, one at random."""
    env = irl.make_env(subject.env_id)
    expert, rng = Expert.load(DEMOS / f"{subject.env_id}.expert.npz"), np.random.default_rng(seed)
    space = env.action_space
    actors = {
        "expert": expert,
        "own policy": subject.act,
        "still": lambda obs: np.zeros(space.shape, np.float32),
        "random": lambda obs: rng.uniform(space.low, space.high).astype(np.float32),
    }
    return {name: play(env, act, n, seed=60_000 + seed) for name, act in actors.items()}


def read_bank(env_id: str) -> list[Steps]:
    """The bank's episodes (demos/generate.py --bank)."""
    with np.load(DEMOS / f"{env_id}.bank.npz", allow_pickle=False) as f:
        data = {key: f[key] for key in f.files}
    ends = np.cumsum(data["lengths"])
    episodes = []
    for i, (end, length) in enumerate(zip(ends, data["lengths"])):
        obs = data["obs"][end - length + i : end + i + 1]
        acts, rewards = (data[key][end - length : end] for key in ("acts", "rewards"))
        ended = np.arange(length) == length - 1
        episodes.append(Steps(obs[:-1], acts, obs[1:], rewards, ended, []))
    return episodes


# ---------------------------------------------------------------------------------------------------------- 1 rewards


def examine_steps(subject: Subject, played: dict[str, Steps]) -> dict:
    """Mean reward a step of each behaviour, under each reward and the true one."""
    table = {
        name: {who: float(steps.pay(r).mean()) for who, steps in played.items()} for name, r in subject.rewards.items()
    }
    table["true"] = {who: float(steps.rewards.mean()) for who, steps in played.items()}
    expert, own = (played[who].pay(subject.learned) for who in ("expert", "own policy"))
    return {"per_step": table, "expert_above_own": float((expert[:, None] > own[None, :]).mean())}


# ---------------------------------------------------------------------------------------------------------- 2 ranking


def segments(values: list[np.ndarray]) -> np.ndarray:
    """Sums over the consecutive SEGMENT-step pieces of every episode, of which `values` holds a number a step."""
    return np.array([
        part.sum() for v in values for part in np.split(v, range(SEGMENT, len(v), SEGMENT)) if len(part) == SEGMENT
    ])  # fmt: skip


def partial_spearman(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Spearman's correlation of x and y with what `given` explains of either's ranks taken out."""
    ranks = [rankdata(v) - (len(v) + 1) / 2 for v in (x, y, given)]
    rest = [v - ranks[2] * (v @ ranks[2]) / max(ranks[2] @ ranks[2], 1e-12) for v in ranks[:2]]
    scale = np.sqrt((rest[0] @ rest[0]) * (rest[1] @ rest[1]))
    return float(rest[0] @ rest[1] / scale) if scale > 1e-9 else 0.0


def preference_accuracy(learned: np.ndarray, true: np.ndarray, rng: np.random.Generator, n: int = 20_000) -> float:
    """How often the learned reward prefers what the true one prefers, over random pairs; ties count half."""
    i, j = rng.integers(len(true), size=(2, n))
    keep = true[i] != true[j]
    agree = np.sign(learned[i] - learned[j]) * np.sign(true[i] - true[j])
    return float((0.5 + 0.5 * agree[keep]).mean())


def correlation(f: Callable, x: np.ndarray, y: np.ndarray) -> float:
    """0 where one of the two is constant: it ranks nothing."""
    return float(f(x, y).statistic) if np.ptp(x) > 1e-9 and np.ptp(y) > 1e-9 else 0.0


def examine_ranking(subject: Subject, bank: list[Steps], rng: np.random.Generator) -> dict:
    lengths = np.array([len(e) for e in bank])
    true = np.array([e.rewards.sum() for e in bank])
    true_segments = segments([e.rewards for e in bank])
    scores, points = {}, {"true": true_segments.tolist()}
    for name, reward in subject.rewards.items():
        paid = [e.pay(reward) for e in bank]
        returns, pieces = np.array([p.sum() for p in paid]), segments(paid)
        if name == "learned":
            points[name] = pieces.tolist()
        scores[name] = {
            "episodes_spearman": correlation(spearmanr, returns, true),
            "episodes_kendall": correlation(kendalltau, returns, true),
            "episodes_spearman_given_length": partial_spearman(returns, true, lengths),
            "segments_spearman": correlation(spearmanr, pieces, true_segments),
            "segments_kendall": correlation(kendalltau, pieces, true_segments),
            "segments_preference": preference_accuracy(pieces, true_segments, rng),
        }
    return {"scores": scores, "episodes": len(bank), "segments": len(true_segments), "points": points}


# --------------------------------------------------------------------------------------------------------- 3 distance


def random_values(
    env: gym.Env, states: list, rewards: dict[str, irl.Reward], rng, horizon: int = 400
) -> dict[str, np.ndarray]:
    """V(s) of uniformly random actions under each reward and the "true" one, one episode a state (Monte Carlo)."""
    values = {name: np.zeros(len(states)) for name in [*rewards, "true"]}
    space = env.action_space
    for i, state in enumerate(states):
        steps = play_from(env, state, env_obs(env, state), lambda t, obs: rng.uniform(space.low, space.high), horizon)
        discount = GAMMA ** np.arange(len(steps))
        values["true"][i] = discount @ steps.rewards
        for name, reward in rewards.items():
            values[name][i] = discount @ steps.pay(reward)
    return values


def cosine_distance(x: np.ndarray, y: np.ndarray) -> float:
    """sqrt((1 - cos) / 2): 0 for the same up to a positive factor, 0.71 for unrelated ones, 1 for the negation."""
    scale = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.sqrt(max(0.0, 1 - x @ y / scale) / 2)) if scale > 1e-9 else float(np.sqrt(0.5))


def examine_distance(subject: Subject, played: dict[str, Steps], rng: np.random.Generator, n: int) -> dict:
    """STARC's distance with value-adjusted levelling (Skalse et al. 2024, arXiv 2309.15257, definitions 2 and 4):

        c(s, a, s') = R(s, a, s') + gamma V(s') - V(s)      V: the value of uniformly random actions under R
        d(R1, R2)   = sqrt((1 - cos(c1, c2)) / 2)

    A potential changes R by gamma Phi(s') - Phi(s) and V by -Phi(s), so c not at all. EPIC and DARD reach the same by
    pairing states that no transition links, where a learned reward was never trained; V needs states that exist.
    Intervals: 95 %, 500 bootstrap samples of the transitions. V comes from one episode a state: that noise, the same
    actions for all rewards, adds to both sides.
    """
    env, distances = irl.make_env(subject.env_id), {}
    env.reset(seed=0)
    sources = {"expert": ["expert"], "mixed": list(played), "random": ["random"]}
    for coverage, names in sources.items():
        rows, before, after, alive = [], [], [], []
        for name in names:
            steps = played[name]
            for t in rng.choice(len(steps) - 1, n // len(names), replace=False):
                obs = env_obs(env, steps.states[t])
                next_obs, reward, terminated = step_from(env, steps.states[t], steps.acts[t])
                rows.append((obs, steps.acts[t], next_obs, reward))
                before.append(steps.states[t]), after.append(state_of(env)), alive.append(not terminated)
        obs, acts, next_obs, true = (np.array(column) for column in zip(*rows))
        v, next_v = (random_values(env, states, subject.rewards, rng) for states in (before, after))
        canonical = {
            name: (true if name == "true" else subject.rewards[name](obs, acts, next_obs))
            + GAMMA * np.array(alive) * next_v[name] - v[name]
            for name in v
        }  # fmt: skip
        resamples = rng.integers(len(rows), size=(500, len(rows)))
        distances[coverage] = {}
        for name in subject.rewards:
            drawn = [cosine_distance(canonical[name][k], canonical["true"][k]) for k in resamples]
            low, high = np.quantile(drawn, (0.025, 0.975))
            d = cosine_distance(canonical[name], canonical["true"])
            distances[coverage][name] = {"distance": d, "low": float(low), "high": float(high)}
    return distances


# --------------------------------------------------------------------------------------------------- 4 counterfactuals


def prefers(real: np.ndarray, other: np.ndarray) -> float:
    """How often the real one is paid more; ties count half."""
    return float((0.5 + 0.5 * np.sign(real - other)).mean())


def examine_counterfactuals(
    subject: Subject, expert_steps: Steps, bank: list[Steps], rng: np.random.Generator, n: int, length: int = 10
) -> dict:
    """From held-out expert states: the expert's next steps against others; its transitions against impossible ones.

    Each number: how often the real thing is paid more. "true" is what the environment's reward prefers, where it has
    an opinion; the impossible transitions never happen, so it has none on them.
    """
    env = irl.make_env(subject.env_id)
    env.reset(seed=0)
    space, act = env.action_space, Expert.load(DEMOS / f"{subject.env_id}.expert.npz")
    starts = rng.choice(np.arange(1, len(expert_steps) - length), n, replace=False)
    starts = [t for t in starts if not expert_steps.ended[t - 1 : t + length].any()]

    def noisy(t: int) -> Callable:
        noise = rng.normal(0, 0.5, (length, *space.shape))
        return lambda k, obs: (act(obs) + noise[k]).clip(space.low, space.high)

    def delayed(t: int) -> Callable:
        late = [expert_steps.acts[t - 1]]

        def choose(k, obs):
            late.append(act(obs))
            return late[-2]

        return choose

    def as_played(t: int) -> tuple:
        return expert_steps.states[t]

    def slowed(t: int) -> tuple:
        qpos, qvel = expert_steps.states[t]
        return qpos, 0.5 * qvel

    def as_the_expert(t: int) -> Callable:
        return lambda k, obs: act(obs)

    alternatives = {  # where it starts, what it does
        "real": (as_played, as_the_expert),
        "at half the speed": (slowed, as_the_expert),
        "noise 0.5": (as_played, noisy),
        "negated": (as_played, lambda t: lambda k, obs: -act(obs)),
        "delayed a step": (as_played, delayed),
        "half as strong": (as_played, lambda t: lambda k, obs: 0.5 * act(obs)),
        "nothing": (as_played, lambda t: lambda k, obs: 0 * act(obs)),
    }
    sums = {}
    for name, (start, make) in alternatives.items():
        played = [play_from(env, start(t), env_obs(env, start(t)), make(t), length) for t in starts]
        sums[name] = {r: np.array([steps.pay(f).sum() for steps in played]) for r, f in subject.rewards.items()}
        sums[name]["true"] = np.array([steps.rewards.sum() for steps in played])
    real = sums.pop("real")
    rates = {name: {r: prefers(real[r], other[r]) for r in other} for name, other in sums.items()}
    e = expert_steps
    falls = [episode for episode in bank if len(episode) < 1000]
    unreal = {
        "slowed (s' half way)": (e.obs, e.acts, e.obs + 0.5 * (e.next_obs - e.obs)),
        "standing still (s' = s)": (e.obs, e.acts, e.obs),
        "reversed (s' to s)": (e.next_obs, e.acts, e.obs),
    }
    if falls:
        last = [np.concatenate([getattr(x, key)[-20:] for x in falls]) for key in ("obs", "acts", "next_obs")]
        rows = rng.integers(len(last[0]), size=len(e))
        unreal["last 20 steps before a fall"] = tuple(x[rows] for x in last)
    for name, batch in unreal.items():
        rates[name] = {r: prefers(e.pay(f), f(*batch)) for r, f in subject.rewards.items()}
    return {"starts": len(starts), "steps": length, "real_preferred": rates}


def examine_ambiguity(subject: Subject, expert_steps: Steps, bank: list[Steps]) -> dict:
    """Two rewards that the demonstrations cannot tell apart, and which one the learned reward sides with.

    Progress is the true reward of a segment, smoothness minus the mean square of the change between its actions; both
    are standardised over the bank. A weighs them 0.9 to 0.1, B 0.6 to 0.4. Both put the expert's segments above most
    others; where they disagree on a pair of these, the demonstrations do not say who is right.
    """
    every = [*bank, expert_steps]

    def jerk(steps: Steps) -> np.ndarray:
        return -np.square(np.diff(steps.acts, axis=0, prepend=steps.acts[:1])).sum(1)

    progress, smooth = segments([s.rewards for s in every]), segments([jerk(s) for s in every])
    learned = segments([s.pay(subject.learned) for s in every])
    n_expert = len(expert_steps) // SEGMENT
    z = [(x - x.mean()) / (x.std() + 1e-9) for x in (progress, smooth)]
    a, b = 0.9 * z[0] + 0.1 * z[1], 0.6 * z[0] + 0.4 * z[1]
    i, j = np.triu_indices(len(a) - n_expert, 1)
    differ = np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) < 0
    i, j = i[differ], j[differ]
    with_a = np.sign(learned[i] - learned[j]) == np.sign(a[i] - a[j])
    return {
        "expert_above_bank": {"A": float((a[-n_expert:, None] > a[None, :-n_expert]).mean()),
                              "B": float((b[-n_expert:, None] > b[None, :-n_expert]).mean())},
        "pairs_they_disagree_on": len(i), "of_pairs": len(differ),
        "learned_sides_with_A": float(with_a.mean()) if len(i) else None,
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------- 5 perturbed worlds


def perturb(env: gym.Env, what: str, factor: float) -> None:
    model = env.unwrapped.model
    if what == "body mass":
        model.body_mass[:] *= factor
        model.body_inertia[:] *= factor
    elif what == "friction":
        model.geom_friction[:] *= factor
    elif what == "gravity":
        model.opt.gravity[:] *= factor
    elif what == "actuator gain":
        model.actuator_gear[:] *= factor


WORLDS = (
    ("as trained", 1.0),
    *((what, by) for what in ("body mass", "friction", "gravity", "actuator gain") for by in (0.7, 0.85, 1.15, 1.3)),
    ("observation noise", 0.05),
    ("action delay", 1.0),
)


def world_name(what: str, amount: float) -> str:
    return what if amount == 1.0 else f"{what} {amount:g}"


def mean_return(env: gym.Env, act: Callable, episodes: int, seed: int, obs_noise=0.0, delay: bool = False) -> float:
    """Mean true return of a policy that sees `obs_noise` (obs_dim,) too much, and acts a step late with `delay`."""
    rng, totals = np.random.default_rng(seed), []
    for reset_seed in irl.seeds_for(seed, purpose=2, n=episodes):
        obs, _ = env.reset(seed=reset_seed)
        total, done, late = 0.0, False, np.zeros(env.action_space.shape)
        while not done:
            action = act(obs + rng.normal(0, 1, obs.shape) * obs_noise)
            now, late = (late, action) if delay else (action, action)
            obs, reward, terminated, truncated, _ = env.step(now)
            total, done = total + float(reward), terminated or truncated
        totals.append(total)
    return float(np.mean(totals))


def examine_perturbed(subject: Subject, bank: list[Steps], episodes: int, seed: int, bar: tqdm) -> dict:
    """Mean true return of the trained policy where the world differs from the one it was trained in."""
    obs_std, returns = np.concatenate([e.obs for e in bank]).std(0), {}
    for what, amount in WORLDS:
        env = irl.make_env(subject.env_id)
        perturb(env, what, amount)
        noise = amount * obs_std if what == "observation noise" else 0.0
        returns[world_name(what, amount)] = mean_return(env, subject.act, episodes, seed, noise, what == "action delay")
        bar.update()
    return {"episodes": episodes, "returns": returns}


# ------------------------------------------------------------------------------------------------------- 6 retraining


class Pay(nn.Module):
    """A Reward as the network that learners ask."""

    def __init__(self, reward: irl.Reward):
        super().__init__()
        self.reward = reward

    def forward(self, *transition: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.reward(*(x.numpy() for x in transition)), dtype=torch.float32)


@dataclass(frozen=True)
class Retraining:
    """A fresh policy to train: on which of a run's rewards ("true": the environment's), by whom, in which world."""

    folder: Path
    reward: str
    learner: str  # "loop", the benchmark's PPO, or "sb3"
    seed: int
    steps: int
    world: tuple[str, float] = ("as trained", 1.0)


def retrain(job: Retraining) -> float:
    """Trains a policy from scratch, without demonstrations; its mean true return over ten episodes."""
    torch.set_num_threads(1)
    subject = load_subject(job.folder)
    torch.manual_seed(job.seed), np.random.seed(job.seed)
    reward = None if job.reward == "true" else subject.rewards[job.reward]
    if job.learner == "sb3":
        policy, _ = train_sb3(subject.env_id, reward, job.seed, job.steps, progress=False)
    else:
        args = irl.Args(subject.env_id, job.seed, job.steps, true_reward=reward is None)
        envs = irl.VectorEnv(subject.env_id, args.num_envs, job.seed)
        for env in envs.envs:
            perturb(env, *job.world)
        state = irl.start_training(lambda *dims: Pay(reward), irl.FrozenReward, args, envs, None)
        for _ in range(args.num_rounds):
            irl.train_round(state, envs, args)
        policy = state["policy"]
    env = irl.make_env(subject.env_id)
    perturb(env, *job.world)
    return mean_return(env, policy_action(policy, env.action_space), 10, job.seed)


def examine_retraining(subject: Subject, config: Config) -> dict:
    """Fresh policies (two seeds) on the learned reward, on its parts and on the controls; by two learners.

    Weak learners are not to be mistaken for weak rewards: each is to be compared with itself on the true reward.
    """
    seeds, learners = (config.seed + 101, config.seed + 102), ("loop", "sb3") if subject.env_id in ZOO else ("loop",)
    rewards = {learner: ["learned", "true", "constant", "untrained"] for learner in learners}
    rewards["loop"] += [name for name in ("g alone", "h alone") if name in subject.rewards]
    jobs = [
        Retraining(subject.folder, reward, learner, seed, config.retrain_steps)
        for learner, names in rewards.items() for reward in names for seed in seeds
    ]  # fmt: skip
    if config.retrain_perturbed:
        worlds = [world for world in WORLDS[1:] if world[0] not in ("observation noise", "action delay")]
        jobs += [
            Retraining(subject.folder, "learned", "loop", seeds[0], config.retrain_steps, world) for world in worlds
        ]
    spawn = multiprocessing.get_context("spawn")  # a fork would share torch's state
    with ProcessPoolExecutor(config.jobs, mp_context=spawn) as pool:
        returns = list(tqdm(pool.map(retrain, jobs), total=len(jobs), desc="retraining", disable=None))
    found = {"steps": config.retrain_steps, "seeds": seeds, "returns": {}, "perturbed": {}}
    for job, value in zip(jobs, returns):
        if job.world == WORLDS[0]:
            found["returns"].setdefault(job.learner, {}).setdefault(job.reward, []).append(value)
        else:
            found["perturbed"][world_name(*job.world)] = value
    return found


# ------------------------------------------------------------------------------------------------------------ 7 labels


def training_trend(metrics: pd.DataFrame, column: str) -> float:
    """Spearman's correlation of a column with time over the last third of training; 0 if there is too little of it."""
    values = metrics[column].dropna()
    values = values.iloc[len(values) * 2 // 3 :].to_numpy()
    return correlation(spearmanr, np.arange(len(values)), values) if len(values) >= 10 else 0.0


def published_bc(result: dict) -> float | None:
    """The best published mean return of cloning on the same demonstrations, if there is one."""
    path = irl.ROOT / "benchmark" / "results.csv"
    runs = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["method", "env", "panel", "eval_return_mean"])
    runs = runs[runs["method"].isin(["bc", "imitation-bc"])]
    runs = runs[(runs["env"] == result["env"]) & (runs["panel"] == result["panel"])]
    return float(runs.groupby("method")["eval_return_mean"].mean().max()) if len(runs) else None


@dataclass(frozen=True)
class Label:
    """A failure: whether it applies (None: unknown here), why, and the stage to look at."""

    name: str
    stage: str  # data coverage, reward, policy optimisation or evaluation
    definition: str
    applies: bool | None
    evidence: str


def failure_labels(subject: Subject, found: dict) -> list[Label]:
    result, metrics = subject.result, subject.metrics
    score, returned = result["normalized_return"], result["eval_return_mean"]
    length = np.median(result["evaluation"]["deterministic"]["lengths"])
    longest = max(len(episode) for episode in read_bank(subject.env_id))
    smooth = metrics["true_return"].rolling(20, min_periods=1).mean().dropna().to_numpy()
    best, last = (smooth.max(), smooth[-1]) if len(smooth) else (np.nan, np.nan)
    learned, true = (training_trend(metrics, c) if c in metrics else 0.0 for c in ("learned_return", "true_return"))
    numbers = metrics.select_dtypes("number").to_numpy()
    broken = int(np.isinf(numbers).sum()) + int(not np.isfinite(returned))
    above, bc = found["steps"]["expert_above_own"], published_bc(result)
    ranks = {name: scores["segments_spearman"] for name, scores in found["ranking"]["scores"].items()}
    control = max(ranks["constant"], ranks["untrained"])
    distance, of_constant = (found["distance"]["mixed"][name]["distance"] for name in ("learned", "constant"))
    fresh = {
        learner: {name: float(np.mean(returns)) for name, returns in by_reward.items()}
        for learner, by_reward in found.get("retraining", {}).get("returns", {}).items()
    }
    survives = bool(fresh) and all(f["learned"] < max(1.1 * f["constant"], f["constant"] + 50) for f in fresh.values())
    falls_short = all(f["learned"] < f["true"] for f in fresh.values()) if fresh else None
    told = "; ".join(
        f"{who}: {f['learned']:.0f}, constant {f['constant']:.0f}, true {f['true']:.0f}" for who, f in fresh.items()
    )
    return [
        Label(
            "early_termination", "policy optimisation", "half of its episodes end before half of the longest known one",
            bool(length < 0.5 * longest), f"median {length:.0f} of {longest} steps",
        ),
        Label(
            "reward_hacking", "reward", "in the last third of training the learned return rises, the true one falls"
            " (Spearman with time above 0.3, below -0.3)",
            bool(learned > 0.3 and true < -0.3), f"learned {learned:+.2f}, true {true:+.2f}",
        ),
        Label(
            "discriminator_saturated", "reward", "nearly every step of the expert is paid more than nearly every one of"
            " a policy below 0.9 of it",
            bool(above > 0.99 and score < 0.9), f"{above:.3f} of pairs, policy at {score:.2f}",
        ),
        Label(
            "policy_collapse", "policy optimisation", "training and evaluation end below half of the best 20 rollouts",
            bool(max(last, returned) < 0.5 * best), f"best {best:.0f}, last {last:.0f}, evaluation {returned:.0f}",
        ),
        Label(
            "non_finite", "policy optimisation", "an infinite number in metrics.csv, or a return that is not finite",
            broken > 0, f"{broken} numbers",
        ),
        Label(
            "worse_than_bc", "evaluation", "returns less than the best published cloning of the same demonstrations"
            " (margin 2 %)",
            None if bc is None else bool(returned < bc - 0.02 * abs(bc)), f"{returned:.0f}, cloning {bc or np.nan:.0f}",
        ),
        Label(
            "survival_only", "reward", "ranks segments of equal length no better than a constant and an untrained"
            " network do (Spearman, margin 0.1), or trains fresh policies no better than a constant (margin 10 %)",
            bool(ranks["learned"] < control + 0.1 or survives),
            f"ranking {ranks['learned']:.2f}, best control {control:.2f}" + (f"; {told}" if survives else ""),
        ),
        Label(
            "fails_retraining", "reward", "fresh policies on it return less than on the true reward, by every learner",
            falls_short, told or "not retrained",
        ),
        Label(
            "distant_reward", "reward", "without its shaping no nearer to the true reward on mixed behaviour than a"
            " constant or an unrelated reward (0.71): who optimises it elsewhere optimises something else",
            bool(distance > min(0.66, of_constant)), f"{distance:.2f}, a constant {of_constant:.2f}",
        ),
        Label(
            "stale_reward", "reward", "pays the run's own policy clearly more than the expert: points away from it",
            bool(above < 0.45), f"the expert is paid more in {above:.2f} of pairs",
        ),
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- report


def examine(subject: Subject, config: Config) -> dict:
    seed, bank = config.seed, read_bank(subject.env_id)
    rng = np.random.default_rng(seed)
    with tqdm(total=23, desc=f"diagnosing {subject.folder}", disable=None) as bar:
        played = behaviours(subject, 3000, seed)
        found = {"steps": examine_steps(subject, played)}
        bar.update()
        found["ranking"] = examine_ranking(subject, bank, rng)
        bar.update()
        found["distance"] = examine_distance(subject, played, rng, n=200)
        bar.update()
        found["counterfactuals"] = examine_counterfactuals(subject, played["expert"], bank, rng, n=200)
        found["ambiguity"] = examine_ambiguity(subject, played["expert"], bank)
        bar.update()
        found["perturbed"] = examine_perturbed(subject, bank, 3, seed, bar)
    if not config.fast:
        found["retraining"] = examine_retraining(subject, config)
    found["labels"] = [asdict(label) for label in failure_labels(subject, found)]
    return found


def verdict(found: dict) -> str:
    """One sentence a person can act on."""
    applies = [label for label in found["labels"] if label["applies"]]
    if not applies:
        holds = "No failure found: the reward ranks behaviour it never saw"
        return f"{holds}, and trains fresh policies." if "retraining" in found else f"{holds}. Next: without --fast."
    stages = ", ".join(dict.fromkeys(label["stage"] for label in applies))
    return f"{', '.join(label['name'] for label in applies)}: look at {stages}."


def tables(found: dict) -> dict[str, pd.DataFrame]:
    """What diagnosis.md and the terminal show: title -> numbers, the controls beside the learned reward."""
    retraining = found.get("retraining", {"returns": {}, "perturbed": {}})
    shown = {
        "Reward a step": pd.DataFrame(found["steps"]["per_step"]).T,
        "Ranking held-out behaviour": pd.DataFrame(found["ranking"]["scores"]).T,
        "Distance to the true reward": pd.DataFrame(
            {where: {name: d["distance"] for name, d in row.items()} for where, row in found["distance"].items()}
        ),
        "Real against counterfactual: how often the real one is paid more": pd.DataFrame(
            found["counterfactuals"]["real_preferred"]
        ).T,
        "The policy's true return in perturbed worlds": pd.DataFrame(
            {"return": found["perturbed"]["returns"]}
            | ({"retrained there": retraining["perturbed"]} if retraining["perturbed"] else {})
        ),
    }
    if retraining["returns"]:
        title = f"True return of fresh policies after {retraining['steps']:,} steps on each reward, mean of two seeds"
        shown[title] = pd.DataFrame(
            {who: {name: np.mean(x) for name, x in row.items()} for who, row in retraining["returns"].items()}
        )
    return shown


def markdown(found: dict) -> str:
    text = f"# {found['run']}\n\n**{verdict(found)}**\n"
    for title, table in tables(found).items():
        digits = 0 if table.abs().max().max() > 100 else 2
        rows = [
            [str(i), *("" if pd.isna(x) else f"{x:.{digits}f}" for x in row)]
            for i, row in zip(table.index, table.values)
        ]
        text += f"\n## {title}\n\n{markdown_table(['', *table.columns], rows)}"
    a = found["ambiguity"]
    if a["learned_sides_with_A"] is not None:
        text += (
            "\n## What the demonstrations leave open\n\nA reward for progress (A) and one that weighs smoothness more"
            f" (B) put the expert above {a['expert_above_bank']['A']:.2f} and {a['expert_above_bank']['B']:.2f} of the"
            f" bank's segments. They disagree on {a['pairs_they_disagree_on']} of {a['of_pairs']} pairs; there the"
            f" learned reward sides with A in {a['learned_sides_with_A']:.2f}.\n"
        )
    rows = [
        [
            x["name"],
            {True: "yes", False: "no", None: "unknown"}[x["applies"]],
            x["evidence"],
            x["stage"],
            x["definition"],
        ]
        for x in found["labels"]
    ]
    return text + "\n## Failure labels\n\n" + markdown_table(["", "applies", "evidence", "stage", "definition"], rows)


def draw(found: dict, folder: Path) -> None:
    """A bar chart of each table, and the segments behind the ranking as points."""
    points = found["ranking"]["points"]
    for number, (title, table) in enumerate(tables(found).items(), start=1):
        figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
        if number == 2:
            axes.scatter(points["true"], points["learned"], s=8)
            spearman = found["ranking"]["scores"]["learned"]["segments_spearman"]
            axes.set(
                xlabel=f"true return of {SEGMENT} steps", ylabel="learned", title=f"{title}: Spearman {spearman:.2f}"
            )
        else:
            table.plot.bar(ax=axes, title=title, legend=len(table.columns) > 1)
            axes.set_xticklabels(axes.get_xticklabels(), rotation=20 if len(table) < 8 else 50, ha="right")
            if len(table.columns) > 1:
                axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes.spines[["top", "right"]].set_visible(False)
        with irl.replacing(folder / f"diagnosis-{number}.png") as temporary:
            figure.savefig(temporary, dpi=120, format="png")
        plt.close(figure)


def show(found: dict, console: Console) -> None:
    """One screen: the labels, and the learned reward beside the controls."""
    table = Table(title=found["run"])
    for column in ("", "learned", "untrained", "constant"):
        table.add_column(column, justify="right" if column else "left")
    for name, scores in (
        ("ranking segments, Spearman", {k: v["segments_spearman"] for k, v in found["ranking"]["scores"].items()}),
        ("preferences between segments", {k: v["segments_preference"] for k, v in found["ranking"]["scores"].items()}),
        ("distance to the true reward", {k: v["distance"] for k, v in found["distance"]["mixed"].items()}),
    ):
        table.add_row(name, *(f"{scores[k]:.2f}" for k in ("learned", "untrained", "constant")))
    console.print(table)
    for label in found["labels"]:
        if label["applies"]:
            console.print(f"[bold]{label['name']}[/bold]: {label['definition']} ({label['evidence']})", highlight=False)
    console.print(verdict(found), highlight=False)


def overview(all_found: list[dict]) -> str:
    """A row a run: what it returned, how its reward ranks and how far it is from the true one, its failures."""
    rows, shown = [], {"sb3": ("learned", "true", "constant")}
    shown["loop"] = (*shown["sb3"], "g alone", "h alone")
    for found in all_found:
        ranks = {name: f"{x['segments_spearman']:.2f}" for name, x in found["ranking"]["scores"].items()}
        distance = {name: f"{x['distance']:.2f}" for name, x in found["distance"]["mixed"].items()}
        fresh, run = found.get("retraining", {}).get("returns", {}), found["result"]
        rows.append({
            "run": f"{run['method']} {run['env']}",
            "policy, normalised": f"{run['normalized_return']:.2f}",
            "ranking": ranks["learned"], "untrained's": ranks["untrained"],
            "distance": distance["learned"], "a constant's": distance["constant"],
            "expert above own": f"{found['steps']['expert_above_own']:.2f}",
            **{
                f"fresh by {who}: {' / '.join(shown[who])}": " / ".join(
                    ", ".join(f"{value:.0f}" for value in x.get(name, [])) or "none" for name in shown[who]
                )
                for who, x in fresh.items()
            },
            "failures": ", ".join(label["name"] for label in found["labels"] if label["applies"]) or "none",
        })  # fmt: skip
    table = pd.DataFrame(rows).fillna("")
    table["failures"] = table.pop("failures")  # last
    return markdown_table(list(table.columns), table.to_numpy().tolist())


def diagnose(folder: Path, config: Config) -> dict:
    """Examines a run and writes what was found into its folder."""
    subject = load_subject(folder)
    keys = ("method", "variant", "panel", "env", "seed", "normalized_return", "git_commit")
    found = {"run": str(folder), "result": {key: subject.result[key] for key in keys}} | examine(subject, config)
    with irl.replacing(folder / "diagnosis.json") as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n")
    with irl.replacing(folder / "diagnosis.md") as temporary:
        temporary.write_text(markdown(found))
    draw(found, folder)
    return found


def read_diagnosis(folder: Path) -> dict:
    path = folder / "diagnosis.json"
    if not path.is_file():
        raise irl.UserError(f"{path}: no such file; expected a run that was examined before")
    return json.loads(path.read_text())


def main(config: Config) -> None:
    if not config.runs:
        raise irl.UserError("diagnose.py: expected the folder of a finished run")
    torch.set_num_threads(1)
    if config.table_only and not config.table:
        raise irl.UserError("--table-only: expected --table FILE too")
    all_found = []
    for folder in config.runs:
        all_found.append(read_diagnosis(folder) if config.table_only else diagnose(folder, config))
        if not config.table_only:
            show(all_found[-1], Console())
    if config.table and config.table.is_file() and BEGIN in config.table.read_text():
        write_block(config.table, overview(all_found))
    elif config.table:
        write_text(config.table, overview(all_found))


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except irl.UserError as error:
        sys.exit(f"error: {error}")
