"""True returns of fresh policies, trained on the learned reward or a control.

Taken from finished runs in the same results folder, where `run_all.sh --frozen` has left some.
Otherwise trained here, by the benchmark's own loop and by each learner of benchmark/retrain.py. A
weak learner is not a weak reward: compare each learner with itself on the true reward.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn as nn
from tqdm import tqdm

import custom_irl as irl
from baselines.frozen import Frozen
from benchmark import runs
from benchmark.diagnose.subject import NotApplicable, Subject
from benchmark.retrain import LEARNERS

TITLE = "True return of fresh policies"
LOOP = "loop"  # the learner that is the benchmark's own PPO
SEEDS = (101, 102)  # added to the examination's seed
CONTROL_METHODS = {"oracle": "true", "constant": "constant", "untrained": "untrained"}
# Flags that do not change how a fresh policy is trained on a frozen reward.
IRRELEVANT = ("seed", "demos", "demo_episodes", "demo_subsample", "no_policy_access", "true_reward")

Returns = dict[str, dict[str, list[float]]]  # {learner: {reward: a mean true return per run}}


# ----------------------------------------------------------------------------------- finished runs
def results_folder(subject: Subject) -> Path | None:
    """RESULTS, if the run lies in RESULTS/NAME/ENV/seedN."""
    folder = subject.folder.resolve()
    env = Path(subject.env_id)
    if folder.parts[-1 - len(env.parts) : -1] != env.parts:
        return None
    return folder.parents[len(env.parts) + 1]


def settings_of(result: dict) -> dict:
    return {key: value for key, value in result["config"].items() if key not in IRRELEVANT}


def finished_runs(subject: Subject) -> tuple[Returns, int]:
    """Those on this run's reward and on the controls that were trained alike; their steps."""
    results = results_folder(subject)
    if results is None:
        return {}, 0
    digest = irl.sha256(subject.folder / "reward_net.pt")
    found = []  # (learner, reward, result)
    for path in sorted(results.glob(f"*/{subject.env_id}/seed*/origin.json")):
        try:
            result = runs.read_result(path.parent)
            frozen = runs.read_json(path)["identity"]["frozen_reward"]["sha256"]
        except (irl.UserError, KeyError):  # unfinished, or of another version
            continue
        prefix, _, rest = result["method"].partition("-")
        learner, method = (prefix, rest) if prefix in LEARNERS else (LOOP, result["method"])
        reward = CONTROL_METHODS.get(method.removesuffix("-frozen"))
        if frozen == digest:
            reward = "learned"
        if reward is not None:
            found.append((learner, reward, result))
    on_learned = [result for _, reward, result in found if reward == "learned"]
    if not on_learned:
        return {}, 0
    longest = max(on_learned, key=lambda result: result["steps"])
    returns = {}
    for learner, reward, result in found:
        if settings_of(result) == settings_of(longest):
            of_learner = returns.setdefault(learner, {})
            of_learner.setdefault(reward, []).append(result["eval_return_mean"])
    return {learner: x for learner, x in returns.items() if "learned" in x}, longest["steps"]


# ---------------------------------------------------------------------------------- fresh policies
@dataclass(frozen=True)
class Job:
    reward: str  # of the run's `nets`, or "true"
    net: nn.Module | None  # None: "true"
    learner: str
    args: irl.Args


def train(job: Job) -> float:
    """The mean true return of a fresh policy over ten deterministic episodes."""
    torch.set_num_threads(1)
    irl.seed_everything(job.args.seed)
    if job.learner == LOOP:
        envs = irl.VectorEnv(job.args)
        training = irl.start_training(lambda *dims: job.net, Frozen, job.args, envs, None)
        irl.train(training, envs, job.args, job.reward)
    else:
        training = LEARNERS[job.learner](job.args, job.net)
    return irl.evaluate(training.policy, job.args, irl.EVAL_EPISODES, deterministic=True)["mean"]


def train_fresh(subject: Subject) -> tuple[Returns, int]:
    """Two seeds on each reward."""
    args = irl.Args(
        env=subject.env_id,
        total_timesteps=subject.retrain_steps,
        max_episode_steps=subject.result["config"]["max_episode_steps"],
    )
    jobs = [
        Job(reward, net, learner, replace(args, seed=subject.seed + seed, true_reward=net is None))
        for learner in (LOOP, *LEARNERS)
        for reward, net in {**subject.nets, "true": None}.items()
        for seed in SEEDS
    ]
    spawn = multiprocessing.get_context("spawn")  # a fork would share torch's state
    with ProcessPoolExecutor(subject.jobs, mp_context=spawn) as pool:
        means = list(tqdm(pool.map(train, jobs), total=len(jobs), desc="training", disable=None))
    returns = {}
    for job, mean in zip(jobs, means):
        returns.setdefault(job.learner, {}).setdefault(job.reward, []).append(mean)
    return returns, subject.retrain_steps


def examine(subject: Subject, rng: np.random.Generator) -> pd.DataFrame:
    """Means over runs for each learner. The interval: the lowest and the highest run."""
    source = "finished runs"
    returns, steps = finished_runs(subject)
    if not returns and subject.retrain_steps:
        source = "trained here"
        returns, steps = train_fresh(subject)
    if not returns:
        raise NotApplicable("no finished run on this reward is there, and none was to be trained")
    table = {}
    for learner, by_reward in returns.items():
        for reward, x in by_reward.items():
            row = {learner: np.mean(x), f"{learner} low": min(x), f"{learner} high": max(x)}
            table.setdefault(reward, {}).update(row)
    frame = pd.DataFrame.from_dict(table, orient="index")
    counts = [
        f"{learner}: " + ", ".join(f"{reward} {len(x)}" for reward, x in by_reward.items())
        for learner, by_reward in returns.items()
    ]
    frame.attrs["note"] = f"{source}, {steps:,} steps each; runs of {'; '.join(counts)}"
    return frame
