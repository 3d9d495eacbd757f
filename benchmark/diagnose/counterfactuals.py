"""Real steps against counterfactual ones: how often the real one is paid more.

From the expert's states, what it did next against other actions, where its policy is known and the
environment can be put into a state; and its transitions against some that never happen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from benchmark.diagnose.subject import NotApplicable, Steps, Subject, play_from

TITLE = "Real steps against counterfactual ones: how often the real one is paid more"
STARTS = 200
LENGTH = 10  # steps that are compared
BEFORE_A_FALL = 20  # steps


def prefers(real: np.ndarray, other: np.ndarray) -> float:
    """How often the real one is paid more; ties count half, NaN where the pay is unknown."""
    return float((0.5 + 0.5 * np.sign(real - other)).mean())


def starts_of(steps: Steps, rng: np.random.Generator) -> list[int]:
    """Rows with one row before them and LENGTH after them in the same episode."""
    rows = np.arange(1, len(steps) - LENGTH)
    within = steps.episode[rows - 1] == steps.episode[rows + LENGTH]
    return rng.permutation(rows[within])[:STARTS].tolist()


def other_actions(subject: Subject, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """{alternative: {reward: how often the expert's own next steps are paid more}}."""
    act = subject.expert
    if act is None:
        raise NotApplicable("the expert's policy is not known")
    env = subject.make_state_env()
    steps = subject.expert_steps
    space = env.action_space

    def noisy(start: int) -> Callable:
        noise = rng.normal(0, 0.5, (LENGTH, *space.shape))
        return lambda t, obs: (act(obs) + noise[t]).clip(space.low, space.high)

    def delayed(start: int) -> Callable:
        planned = [steps.acts[start - 1]]

        def choose(t: int, obs: np.ndarray) -> np.ndarray:
            planned.append(act(obs))
            return planned[t]

        return choose

    def scaled(factor: float) -> Callable:
        return lambda start: lambda t, obs: factor * act(obs)

    def slowed(start: int):
        qpos, qvel = steps.states[start]
        return qpos, 0.5 * qvel

    def as_it_was(start: int):
        return steps.states[start]

    alternatives = {  # the state it starts from, what it does
        "real": (as_it_was, scaled(1.0)),
        "half the speed": (slowed, scaled(1.0)),
        "noise 0.5": (as_it_was, noisy),
        "negated": (as_it_was, scaled(-1.0)),
        "a step late": (as_it_was, delayed),
        "half as strong": (as_it_was, scaled(0.5)),
        "nothing": (as_it_was, scaled(0.0)),
    }
    starts = starts_of(steps, rng)
    sums = {}
    for name, (state, make) in alternatives.items():
        played = [play_from(env, state(t), make(t), LENGTH) for t in starts]
        sums[name] = {"true": np.array([steps.rewards.sum() for steps in played])}
        for r, f in subject.rewards.items():
            sums[name][r] = np.array([steps.paid(f).sum() for steps in played])
    real = sums.pop("real")
    return {name: {r: prefers(real[r], other[r]) for r in other} for name, other in sums.items()}


def other_transitions(subject: Subject, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """The expert's transitions against some that never happen and against those before a fall.

    The true reward has no opinion on what never happens.
    """
    e = subject.expert_steps
    others = {
        "s' half way": (e.obs, e.acts, e.obs + 0.5 * (e.next_obs - e.obs)),
        "s' = s": (e.obs, e.acts, e.obs),
        "s' to s": (e.next_obs, e.acts, e.obs),
    }
    try:
        falls = [steps for steps in subject.bank if steps.terminated[-1]]
    except NotApplicable:
        falls = []
    if falls:
        keys = ("obs", "acts", "next_obs")
        last = [np.concatenate([getattr(x, k)[-BEFORE_A_FALL:] for x in falls]) for k in keys]
        rows = rng.integers(len(last[0]), size=len(e))
        others["before a fall"] = tuple(x[rows] for x in last)
    return {
        name: {r: prefers(e.paid(f), f(*batch)) for r, f in subject.rewards.items()}
        for name, batch in others.items()
    }


def examine(subject: Subject, rng: np.random.Generator) -> pd.DataFrame:
    """The row "true" is what the environment's reward prefers, where it has an opinion."""
    rates = other_transitions(subject, rng)
    note = ""
    try:
        rates = other_actions(subject, rng) | rates
    except NotApplicable as reason:
        note = f"Other actions are not applicable: {reason}"
    table = pd.DataFrame(rates)
    table.attrs["note"] = note
    return table
