"""How the reward ranks behaviour of mixed quality that it never saw, against the true reward."""

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from benchmark.diagnose.subject import Subject, paid
from benchmark.diagnose.table import bootstrapped, frame, median_and_range, prefers
from benchmark.load import Reward
from demos.formats import Episode

TITLE = "Ranking held-out behaviour"
SEGMENT = 100  # steps; segments of one length cannot be told apart by length
RESAMPLES = 200

Pairs = tuple[np.ndarray, np.ndarray]  # rows i and rows j


def segments(values: np.ndarray) -> np.ndarray:
    """Sums over an episode's consecutive whole SEGMENT-step pieces."""
    n = len(values) // SEGMENT
    return values[: n * SEGMENT].reshape(n, SEGMENT).sum(1)


def paid_segments(reward: Reward, bank: list[Episode]) -> list[np.ndarray]:
    """Of each episode; rounded, so that rewards which differ in the last bits rank nothing."""
    return [segments(x).round(6) for x in paid(reward, bank)]


def correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray | None = None) -> float:
    """Spearman's, without what `given` explains of either's ranks; 0 where one is constant."""
    x, y = (rankdata(v) - (len(v) + 1) / 2 for v in (x, y))
    if given is not None:
        z = rankdata(given) - (len(given) + 1) / 2
        x, y = (v - z * (v @ z) / max(z @ z, 1e-12) for v in (x, y))
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 1e-9 else 0.0


def agreement(x: np.ndarray, y: np.ndarray, pairs: Pairs) -> float:
    """How often x prefers what y prefers, of pairs where y prefers one; ties of x count half."""
    i, j = pairs
    return prefers((x[i] - x[j]) * np.sign(y[i] - y[j]), 0.0)


def examine(subject: Subject, rng: np.random.Generator) -> pd.DataFrame:
    """Spearman's correlation with the true reward, over episodes and over segments of one length.

    The interval of "segments": bootstrap over the bank's episodes. The row "untrained": median and
    range of networks with other random weights.
    """
    bank = subject.bank
    lengths = np.array([len(episode.acts) for episode in bank])
    true_returns = np.array([episode.rewards.sum() for episode in bank])
    true_pieces = [segments(episode.rewards) for episode in bank]
    true = np.concatenate(true_pieces)
    i, j = np.triu_indices(len(true), 1)
    differ = true[i] != true[j]
    resamples = rng.integers(len(bank), size=(RESAMPLES, len(bank)))
    table = {}
    for name, reward in subject.rewards.items():
        returns = np.array([x.sum().round(6) for x in paid(reward, bank)])
        pieces = paid_segments(reward, bank)
        learned = np.concatenate(pieces)
        resampled = [
            correlation(*(np.concatenate([x[k] for k in rows]) for x in (pieces, true_pieces)))
            for rows in resamples
        ]
        table[name] = {
            "episodes": correlation(returns, true_returns),
            "episodes, length given": correlation(returns, true_returns, lengths),
            **bootstrapped("segments", correlation(learned, true), resampled),
            "preferences": agreement(learned, true, (i[differ], j[differ])),
        }
    others = [np.concatenate(paid_segments(reward, bank)) for reward in subject.untrained]
    table["untrained"] |= median_and_range("segments", [correlation(x, true) for x in others])
    return frame(table)
