"""Two rewards that the demonstrations cannot tell apart, and which one the learned reward takes.

Progress is the true reward of a segment; smoothness is minus the sum of the squared changes between
its actions. Both are standardised over the bank. A weighs them 0.9 to 0.1, B 0.6 to 0.4. Both put
the expert's segments above most others; where A and B disagree on a pair of the bank's segments,
the demonstrations do not say which is right.
"""

import numpy as np
import pandas as pd

from benchmark.diagnose.ranking import agreement, paid_segments, segments
from benchmark.diagnose.subject import NotApplicable, Subject
from benchmark.diagnose.table import frame

TITLE = "What the demonstrations leave open: how often a reward sides with A"


def smoothness(acts: np.ndarray) -> np.ndarray:
    """(T,), each action against the one before."""
    return -np.square(np.diff(acts, axis=0, prepend=acts[:1])).sum(1)


def standardised(pieces: list[np.ndarray]) -> np.ndarray:
    x = np.concatenate(pieces)
    return (x - x.mean()) / (x.std() + 1e-9)


def examine(subject: Subject, rng: np.random.Generator) -> pd.DataFrame:
    bank = subject.bank
    progress = standardised([segments(episode.rewards) for episode in bank])
    smooth = standardised([segments(smoothness(episode.acts)) for episode in bank])
    a = 0.9 * progress + 0.1 * smooth
    b = 0.6 * progress + 0.4 * smooth
    i, j = np.triu_indices(len(a), 1)
    is_open = np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) < 0
    if not is_open.any():
        raise NotApplicable("A and B agree on every pair of the bank's segments")
    table = {}
    for name, reward in subject.rewards.items():
        learned = np.concatenate(paid_segments(reward, bank))
        table[name] = {"sides with A": agreement(learned, a, (i[is_open], j[is_open]))}
    return frame(table, f"A and B disagree on {is_open.sum()} of {len(i)} pairs")
