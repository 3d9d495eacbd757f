"""STARC's distance to the true reward: what differs apart from potential and scale.

    c(s, a, s') = R(s, a, s') + gamma V(s') - V(s)      V: the value of the expert's policy, under R
    d(R1, R2)   = sqrt((1 - cos(c1, c2)) / 2)

(Skalse et al. 2024, arXiv 2309.15257, definitions 2 and 4.) A potential Phi changes R by
gamma Phi(s') - Phi(s) and V by -Phi(s), so c not at all. c is the advantage of an action over the
expert's, so the distance says whether a reward values deviations as the true one does. The policy
that V is of is free: the run's own takes the place of an unknown expert's. Environment and policy
are deterministic, so one rollout gives V.
"""

import numpy as np
import pandas as pd

from benchmark.diagnose.subject import Subject, paid, play_from, state_of
from benchmark.diagnose.table import bootstrapped, frame, median_and_range
from benchmark.load import Reward
from demos.formats import Episode

TITLE = "Distance to the true reward"
GAMMA = 0.99
HORIZON = 300
TAIL = 50  # last steps of a cut rollout, whose mean reward goes on
TRANSITIONS = 50  # of each behaviour
RESAMPLES = 500
UNRELATED = np.sqrt(0.5)  # the distance of rewards that have nothing in common


def values(reward: Reward | None, rollouts: list[Episode]) -> np.ndarray:
    """(n,) the discounted sum of each rollout's rewards."""
    sums = []
    for x, rollout in zip(paid(reward, rollouts), rollouts):
        rest = 0.0 if rollout.terminated else GAMMA ** len(x) / (1 - GAMMA) * x[-TAIL:].mean()
        sums.append(GAMMA ** np.arange(len(x)) @ x + rest)
    return np.array(sums)


def canonical(
    reward: Reward | None, taken: list[Episode], before: list[Episode], after: list[Episode]
) -> np.ndarray:
    """c of the one-step episodes `taken`, whose states before and after were rolled out; (n,)."""
    value = values(reward, before)
    alive = np.array([not step.terminated for step in taken])
    c = np.concatenate(paid(reward, taken)) + GAMMA * alive * values(reward, after) - value
    return np.where(np.abs(c) > 1e-6 * np.abs(value).max(), c, 0.0)  # the last bits of V are noise


def cosine_distance(x: np.ndarray, y: np.ndarray) -> float:
    """0 for the same up to a positive factor, UNRELATED also where one is 0, 1 for the negation."""
    scale = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.sqrt(max(0.0, 1 - x @ y / scale) / 2)) if scale > 0 else UNRELATED


def examine(subject: Subject, rng: np.random.Generator) -> pd.DataFrame:
    """On the transitions of each behaviour but that of V's policy, and of all ("mixed").

    Intervals: bootstrap over the transitions. The row "untrained": median and range of networks
    with other random weights.
    """
    env = subject.make_state_env()
    leveller = "own policy" if subject.expert is None else "expert"
    act = subject.expert or subject.act
    behaviours = [who for who in subject.played if who not in ("expert", leveller)]
    starts = []
    taken = []
    ends = []
    for who in behaviours:
        steps = [step for e in subject.played[who] for step in zip(e.states, e.acts)]
        for t in rng.choice(len(steps), TRANSITIONS, replace=False):
            state, action = steps[t]
            starts.append(state)
            taken.append(play_from(env, state, lambda obs, action=action: action, 1))
            ends.append(state_of(env))
    before, after = ([play_from(env, s, act, HORIZON) for s in each] for each in (starts, ends))
    true = canonical(None, taken, before, after)
    others = [canonical(reward, taken, before, after) for reward in subject.untrained]
    who = np.repeat(behaviours, TRANSITIONS)
    table = {}
    for name, reward in subject.rewards.items():
        c = canonical(reward, taken, before, after)
        table[name] = {}
        for where in [*behaviours, "mixed"]:
            rows = np.flatnonzero((who == where) | (where == "mixed"))
            resamples = rows[rng.integers(len(rows), size=(RESAMPLES, len(rows)))]
            resampled = [cosine_distance(c[k], true[k]) for k in resamples]
            table[name] |= bootstrapped(where, cosine_distance(c[rows], true[rows]), resampled)
            if name == "untrained":
                distances = [cosine_distance(x[rows], true[rows]) for x in others]
                table[name] |= median_and_range(where, distances)
    return frame(table, f"V is of the policy: {leveller}")
