"""STARC's distance to the true reward: what differs apart from potential and scale.

    c(s, a, s') = R(s, a, s') + gamma V(s') - V(s)      V: the value of the expert's policy, under R
    d(R1, R2)   = sqrt((1 - cos(c1, c2)) / 2)

(Skalse et al. 2024, arXiv 2309.15257, definitions 2 and 4.) A potential Phi changes R by
gamma Phi(s') - Phi(s) and V by -Phi(s), so c not at all. c is the advantage of an action over the
expert's, so the distance says whether a reward values deviations as the true one does. The policy
that V is of is free: the run's own takes the place of an unknown expert's. Environment and policy
are deterministic, so one rollout gives V.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmark.diagnose.subject import Steps, Subject, play_from
from benchmark.load import Reward

TITLE = "Distance to the true reward"
GAMMA = 0.99
HORIZON = 300
TAIL = 50  # last steps of a cut rollout, whose mean reward goes on
TRANSITIONS = 50  # of each behaviour
RESAMPLES = 500
UNRELATED = np.sqrt(0.5)  # the distance of rewards that have nothing in common


def discounted_sum(paid: np.ndarray, terminated: bool) -> float:
    discount = GAMMA ** np.arange(len(paid))
    rest = 0.0 if terminated else GAMMA ** len(paid) / (1 - GAMMA) * paid[-TAIL:].mean()
    return float(discount @ paid + rest)


def paid_each(reward: Reward | None, rollouts: list[Steps]) -> list[np.ndarray]:
    """The rewards of each rollout; the environment's own if `reward` is None."""
    if reward is None:
        return [steps.rewards for steps in rollouts]
    keys = ("obs", "acts", "next_obs")
    arrays = [np.concatenate([getattr(steps, key) for steps in rollouts]) for key in keys]
    return np.split(reward(*arrays), np.cumsum([len(steps) for steps in rollouts])[:-1])


def canonical(
    reward: Reward | None, taken: list[Steps], before: list[Steps], after: list[Steps]
) -> np.ndarray:
    """c of the transitions `taken`, whose states before and after were rolled out; (n,)."""
    value, next_value = (
        np.array([discounted_sum(x, s.terminated[-1]) for x, s in zip(paid_each(reward, r), r)])
        for r in (before, after)
    )
    alive = np.array([not steps.terminated[-1] for steps in taken])
    c = np.concatenate(paid_each(reward, taken)) + GAMMA * alive * next_value - value
    return np.where(np.abs(c) > 1e-6 * np.abs(value).max(), c, 0.0)  # the last bits of V are noise


def cosine_distance(x: np.ndarray, y: np.ndarray) -> float:
    """0 for the same up to a positive factor, UNRELATED also where one is 0, 1 for the negation."""
    scale = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.sqrt(max(0.0, 1 - x @ y / scale) / 2)) if scale > 0 else UNRELATED


def examine(subject: Subject, rng: np.random.Generator) -> pd.DataFrame:
    """On the transitions of each behaviour but that of V's policy, and of all ("mixed").

    Intervals: 95 %, bootstrap over the transitions. The row "untrained": median and range of
    networks with other random weights.
    """
    env = subject.make_state_env()
    leveller = "own policy" if subject.expert is None else "expert"
    act = subject.expert or subject.act
    played = {who: s for who, s in subject.played.items() if len(s.states) and who != leveller}
    taken = []
    for steps in played.values():
        for t in rng.choice(len(steps), TRANSITIONS, replace=False):
            taken.append(play_from(env, steps.states[t], lambda _, obs, a=steps.acts[t]: a, 1))
    before, after = (
        [play_from(env, steps.states[k], lambda _, obs: act(obs), HORIZON) for steps in taken]
        for k in (0, 1)
    )
    who = np.repeat(list(played), TRANSITIONS)
    true = canonical(None, taken, before, after)
    others = [canonical(reward, taken, before, after) for reward in subject.untrained]
    table = {}
    for name, reward in subject.rewards.items():
        c = canonical(reward, taken, before, after)
        table[name] = {}
        for where in [*played, "mixed"]:
            rows = np.flatnonzero((who == where) | (where == "mixed"))
            resamples = rows[rng.integers(len(rows), size=(RESAMPLES, len(rows)))]
            drawn = [cosine_distance(c[k], true[k]) for k in resamples]
            low, high = np.quantile(drawn, (0.025, 0.975))
            distance = cosine_distance(c[rows], true[rows])
            if name == "untrained":
                drawn = [cosine_distance(x[rows], true[rows]) for x in others]
                low, distance, high = np.quantile(drawn, (0, 0.5, 1))
            table[name] |= {where: distance, f"{where} low": low, f"{where} high": high}
    frame = pd.DataFrame.from_dict(table, orient="index")
    frame.attrs["note"] = f"V is of the policy: {leveller}"
    return frame
