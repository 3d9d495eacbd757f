"""True returns of fresh policies, trained on the learned reward or a control.

Taken from finished runs in the same results folder, where `run_all.sh --frozen` has left some.
Otherwise trained here, by the benchmark's own loop and by each learner of benchmark/retrain.py. A
weak learner is not a weak reward: compare each learner with itself on the true reward.
"""

import multiprocessing
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn as nn
from tqdm import tqdm

import custom_irl as irl
from baselines.frozen import Frozen
from benchmark import retrain, runs
from benchmark.diagnose.subject import NotApplicable, Subject
from benchmark.diagnose.table import frame, with_interval

TITLE = "True return of fresh policies"
SEEDS = (101, 102)  # added to the examination's seed
CONTROL_METHODS = {"oracle": "true", "constant": "constant", "untrained": "untrained"}
# Flags that do not change how a fresh policy is trained on a frozen reward.
IRRELEVANT = ("seed", "demos", "demo_episodes", "demo_subsample", "no_policy_access", "true_reward")

Returns = dict[tuple[str, str], list[float]]  # (learner, reward): a mean true return per run


def train_loop(args: irl.Args, reward_net: nn.Module | None) -> irl.Training:
    """By the benchmark's own PPO, on the true reward if `reward_net` is None."""
    envs = irl.VectorEnv(args)
    training = irl.start_training(lambda *dims: reward_net, Frozen, args, envs, None)
    irl.train(training, envs, args, "loop")
    return training


LEARNERS = {"loop": train_loop, **retrain.LEARNERS}


# ----------------------------------------------------------------------------------- finished runs
def settings_of(result: dict) -> dict:
    return {key: value for key, value in result["config"].items() if key not in IRRELEVANT}


def finished_runs(subject: Subject) -> tuple[Returns, dict[str, int]]:
    """Those on this run's reward and on the controls that the same learner trained alike; the
    steps of each learner's."""
    env_folder = subject.folder.resolve().parent  # RESULTS/NAME/ENV, or there are no others
    if not env_folder.match(subject.env_id):
        return {}, {}
    results = Path(*env_folder.parts[: -1 - len(Path(subject.env_id).parts)])
    digest = irl.sha256(subject.folder / "reward_net.pt")
    found = []  # (learner, reward, result)
    for path in sorted(results.glob(f"*/{subject.env_id}/seed*/origin.json")):
        try:
            result = runs.read_result(path.parent)
            frozen = runs.read_json(path)["identity"]["frozen_reward"]["sha256"]
        except (irl.UserError, KeyError):  # unfinished, or of another version
            continue
        prefix, _, rest = result["method"].partition("-")
        learner, method = (prefix, rest) if prefix in LEARNERS else ("loop", result["method"])
        reward = CONTROL_METHODS.get(method.removesuffix("-frozen"))
        if frozen == digest:
            reward = "learned"
        if reward is not None:
            found.append((learner, reward, result))
    returns = defaultdict(list)
    steps = {}
    for by in LEARNERS:
        own = [(reward, result) for learner, reward, result in found if learner == by]
        on_learned = [result for reward, result in own if reward == "learned"]
        if not on_learned:
            continue
        longest = max(on_learned, key=lambda result: result["steps"])
        steps[by] = longest["steps"]
        for reward, result in own:
            if settings_of(result) == settings_of(longest):
                returns[by, reward].append(result["eval_return_mean"])
    return dict(returns), steps


# ---------------------------------------------------------------------------------- fresh policies
def train_one(
    args: irl.Args, nets: dict[str, nn.Module | None], learner: str, reward: str, seed: int
) -> float:
    """The mean true return of a fresh policy over ten deterministic episodes."""
    torch.set_num_threads(1)
    irl.seed_everything(seed)
    args = replace(args, seed=seed, true_reward=nets[reward] is None)
    policy = LEARNERS[learner](args, nets[reward]).policy
    return irl.evaluate(policy, args, irl.EVAL_EPISODES, deterministic=True)["mean"]


def train_fresh(subject: Subject) -> tuple[Returns, dict[str, int]]:
    """Two seeds on each reward; their steps."""
    args = irl.Args(
        env=subject.env_id,
        total_timesteps=subject.retrain_steps,
        max_episode_steps=subject.result["config"]["max_episode_steps"],
    )
    nets = {**subject.nets, "true": None}
    seeds = [subject.seed + seed for seed in SEEDS]
    jobs = [(learner, reward, seed) for learner in LEARNERS for reward in nets for seed in seeds]
    spawn = multiprocessing.get_context("spawn")  # a fork would share torch's state
    with ProcessPoolExecutor(subject.jobs, mp_context=spawn) as pool:
        means = pool.map(partial(train_one, args, nets), *zip(*jobs))
        means = list(tqdm(means, total=len(jobs), desc="training", disable=None))
    returns = defaultdict(list)
    for (learner, reward, _), mean in zip(jobs, means):
        returns[learner, reward].append(mean)
    return returns, dict.fromkeys(LEARNERS, subject.retrain_steps)


def examine(subject: Subject, rng: np.random.Generator) -> pd.DataFrame:
    """Means over runs for each learner. The interval: the lowest and the highest run."""
    source = "finished runs"
    returns, steps = finished_runs(subject)
    if not returns and subject.retrain_steps:
        source = "runs trained here"
        returns, steps = train_fresh(subject)
    if not returns:
        raise NotApplicable("no finished run on this reward is there, and none was to be trained")
    table = defaultdict(dict)
    counts = defaultdict(list)
    for (learner, reward), x in returns.items():
        table[reward] |= with_interval(learner, np.mean(x), min(x), max(x))
        counts[learner].append(f"{reward} {len(x)}")
    texts = [f"{name} ({steps[name]:,} steps): {', '.join(n)}" for name, n in counts.items()]
    return frame(table, f"{source} of {'; '.join(texts)}")
