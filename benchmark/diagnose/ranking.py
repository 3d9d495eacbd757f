"""How the reward ranks behaviour of mixed quality that it never saw, against the true reward."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from benchmark.diagnose.subject import Steps, Subject
from benchmark.load import Reward

TITLE = "Ranking held-out behaviour"
SEGMENT = 100  # steps; segments of one length cannot be told apart by length
RESAMPLES = 200


def segments(values: np.ndarray) -> np.ndarray:
    """Sums over the consecutive whole SEGMENT-step pieces of an episode."""
    n = len(values) // SEGMENT
    return values[: n * SEGMENT].reshape(n, SEGMENT).sum(1)


def paid_segments(reward: Reward, bank: list[Steps]) -> list[np.ndarray]:
    """Rounded, so that rewards which are equal but for the last bits rank nothing."""
    return [segments(steps.paid(reward)).round(6) for steps in bank]


def correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray | None = None) -> float:
    """Spearman's, without what `given` explains of either's ranks; 0 where one is constant."""
    x, y = (rankdata(v) - (len(v) + 1) / 2 for v in (x, y))
    if given is not None:
        z = rankdata(given) - (len(given) + 1) / 2
        x, y = (v - z * (v @ z) / max(z @ z, 1e-12) for v in (x, y))
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 1e-9 else 0.0


def preference_accuracy(learned: np.ndarray, true: np.ndarray) -> float:
    """How often the learned reward prefers what the true one prefers, over all pairs; ties half."""
    i, j = np.triu_indices(len(true), 1)
    differ = true[i] != true[j]
    agree = np.sign(learned[i] - learned[j]) * np.sign(true[i] - true[j])
    return float((0.5 + 0.5 * agree[differ]).mean())


def examine(subject: Subject, rng: np.random.Generator) -> pd.DataFrame:
    """Spearman's correlation with the true reward, over episodes and over segments of one length.

    The interval of "segments": 95 %, bootstrap over the bank's episodes. The row "untrained":
    median and range of networks with other random weights.
    """
    bank = subject.bank
    lengths = np.array([len(steps) for steps in bank])
    true_returns = np.array([steps.rewards.sum() for steps in bank])
    true_pieces = [segments(steps.rewards) for steps in bank]
    true = np.concatenate(true_pieces)
    resamples = rng.integers(len(bank), size=(RESAMPLES, len(bank)))
    table = {}
    for name, reward in subject.rewards.items():
        returns = np.array([steps.paid(reward).sum().round(6) for steps in bank])
        pieces = paid_segments(reward, bank)
        learned = np.concatenate(pieces)
        drawn = [
            correlation(*(np.concatenate([x[i] for i in rows]) for x in (pieces, true_pieces)))
            for rows in resamples
        ]
        table[name] = {
            "episodes": correlation(returns, true_returns),
            "episodes, length given": correlation(returns, true_returns, lengths),
            "segments": correlation(learned, true),
            "segments low": np.quantile(drawn, 0.025),
            "segments high": np.quantile(drawn, 0.975),
            "preferences": preference_accuracy(learned, true),
        }
    others = [np.concatenate(paid_segments(reward, bank)) for reward in subject.untrained]
    ranks = [correlation(paid, true) for paid in others]
    low, median, high = np.quantile(ranks, (0, 0.5, 1))
    table["untrained"] |= {"segments": median, "segments low": low, "segments high": high}
    return pd.DataFrame.from_dict(table, orient="index")
