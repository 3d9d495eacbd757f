"""Two rewards that the demonstrations cannot tell apart, and which one the learned reward takes.

Progress is the true reward of a segment; smoothness is minus the mean square of the change between
its actions. Both are standardised over the bank. A weighs them 0.9 to 0.1, B 0.6 to 0.4. Both put
the expert's segments above most others; where A and B disagree on a pair of the bank's segments,
the demonstrations do not say which is right.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmark.diagnose.ranking import segments
from benchmark.diagnose.subject import NotApplicable, Steps, Subject

TITLE = "What the demonstrations leave open: how often a reward sides with A"
WEIGHTS = {"A": (0.9, 0.1), "B": (0.6, 0.4)}  # of progress and of smoothness


def smoothness(steps: Steps) -> np.ndarray:
    return -np.square(np.diff(steps.acts, axis=0, prepend=steps.acts[:1])).sum(1)


def examine(subject: Subject, rng: np.random.Generator) -> pd.DataFrame:
    bank = subject.bank
    progress, smooth = (
        np.concatenate([segments(x) for x in each])
        for each in ([s.rewards for s in bank], [smoothness(s) for s in bank])
    )
    scores = {}
    for name, weights in WEIGHTS.items():
        parts = [(x - x.mean()) / (x.std() + 1e-9) for x in (progress, smooth)]
        scores[name] = weights[0] * parts[0] + weights[1] * parts[1]
    i, j = np.triu_indices(len(progress), 1)
    prefers_a, prefers_b = (np.sign(x[i] - x[j]) for x in scores.values())
    open_pairs = prefers_a * prefers_b < 0
    if not open_pairs.any():
        raise NotApplicable("A and B agree on every pair of the bank's segments")
    table = {}
    for name, reward in subject.rewards.items():
        paid = np.concatenate([segments(s.paid(reward)) for s in bank]).round(6)
        agree = np.sign(paid[i] - paid[j]) * prefers_a
        table[name] = {"sides with A": (0.5 + 0.5 * agree[open_pairs]).mean()}
    frame = pd.DataFrame.from_dict(table, orient="index")
    frame.attrs["note"] = f"A and B disagree on {open_pairs.sum()} of {len(i)} pairs"
    return frame
