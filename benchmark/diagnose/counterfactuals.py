"""Real steps against counterfactual ones: how often the real one is paid more.

From the expert's states, what it did next against other actions, where its policy is known and the
environment can be put into a state; and its transitions against some that never happen.
"""

import numpy as np
import pandas as pd

from benchmark.diagnose.subject import (
    NotApplicable,
    Subject,
    delayed,
    paid,
    play_from,
    transitions,
)
from benchmark.diagnose.table import frame, prefers
from benchmark.load import Act
from demos.formats import Episode

TITLE = "Real steps against counterfactual ones: how often the real one is paid more"
STARTS = 200
LENGTH = 10  # steps that are compared
BEFORE_A_FALL = 20  # steps

Rates = dict[str, dict[str, float]]  # {counterfactual: {reward: how often the real one is above}}


def starts_of(episodes: list[Episode], rng: np.random.Generator) -> list[tuple[Episode, int]]:
    """Steps with one step before them and LENGTH after them in their episode."""
    starts = [(e, t) for e in episodes for t in range(1, len(e.acts) - LENGTH)]
    return [starts[i] for i in rng.permutation(len(starts))[:STARTS]]


def other_actions(subject: Subject, rng: np.random.Generator) -> Rates:
    """Sums over LENGTH steps."""
    act = subject.expert
    if act is None:
        raise NotApplicable("the expert's policy is not known")
    env = subject.make_state_env()
    space = env.action_space

    def scaled(factor: float) -> Act:
        return lambda obs: factor * act(obs)

    def noisy() -> Act:
        noise = iter(rng.normal(0, 0.5, (LENGTH, *space.shape)))
        return lambda obs: (act(obs) + next(noise)).clip(space.low, space.high)

    alternatives = {  # what it does after the action before, and by what its velocity is multiplied
        "real": (lambda before: act, 1.0),
        "half the speed": (lambda before: act, 0.5),
        "noise 0.5": (lambda before: noisy(), 1.0),
        "negated": (lambda before: scaled(-1.0), 1.0),
        "a step late": (lambda before: delayed(act, before), 1.0),
        "half as strong": (lambda before: scaled(0.5), 1.0),
        "nothing": (lambda before: scaled(0.0), 1.0),
    }
    starts = starts_of(subject.expert_episodes, rng)
    sums = {}
    for name, (make_act, speed) in alternatives.items():
        played = []
        for episode, t in starts:
            qpos, qvel = episode.states[t]
            other = make_act(episode.acts[t - 1])
            played.append(play_from(env, (qpos, speed * qvel), other, LENGTH))
        sums[name] = {
            r: np.array([x.sum() for x in paid(reward, played)])
            for r, reward in {"true": None, **subject.rewards}.items()
        }
    real = sums.pop("real")
    return {name: {r: prefers(real[r], other[r]) for r in other} for name, other in sums.items()}


def other_transitions(subject: Subject, rng: np.random.Generator) -> Rates:
    """The expert's transitions against some that never happen and against those before a fall.

    The true reward has no opinion on what never happens.
    """
    obs, acts, next_obs = real = transitions(subject.expert_episodes)
    others = {
        "s' half way": (obs, acts, obs + 0.5 * (next_obs - obs)),
        "s' = s": (obs, acts, obs),
        "s' to s": (next_obs, acts, obs),
    }
    try:
        falls = [episode for episode in subject.bank if episode.terminated]
    except NotApplicable:
        falls = []
    if falls:
        n = BEFORE_A_FALL
        last = transitions([Episode(e.obs[-n - 1 :], e.acts[-n:], True) for e in falls])
        rows = rng.integers(len(last[0]), size=len(obs))
        others["before a fall"] = tuple(x[rows] for x in last)
    return {
        name: {r: prefers(reward(*real), reward(*batch)) for r, reward in subject.rewards.items()}
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
    return frame(rates, note).T
