"""What the reward pays the expert, the run's own policy, stillness and random actions."""

import numpy as np
import pandas as pd

from benchmark.diagnose.subject import Subject, paid
from benchmark.diagnose.table import bootstrapped, frame, prefers

TITLE = "Reward a step"
ABOVE = "expert above own policy"
BLOCK = 100  # steps: consecutive ones are not independent
RESAMPLES = 500


def blocks(x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, range(BLOCK, len(x), BLOCK))


def block_preferences(expert: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(blocks, blocks): how often a step of an expert's block is paid more; ties count half."""
    return np.array([[prefers(a[:, None], b) for b in blocks(own)] for a in blocks(expert)])


def examine(subject: Subject, rng: np.random.Generator) -> pd.DataFrame:
    """Means, and how often a step of the expert is paid more than one of the run's own policy.

    The interval: bootstrap over blocks of 100 steps.
    """
    table = {}
    for name, reward in {**subject.rewards, "true": None}.items():
        each = {who: np.concatenate(paid(reward, x)) for who, x in subject.played.items()}
        table[name] = {who: x.mean() for who, x in each.items()}
        if np.isfinite(table[name].get("expert", np.nan)):
            rates = block_preferences(each["expert"], each["own policy"])
            resampled = [
                rates[np.ix_(*(rng.integers(n, size=n) for n in rates.shape))].mean()
                for _ in range(RESAMPLES)
            ]
            table[name] |= bootstrapped(ABOVE, rates.mean(), resampled)
    return frame(table)
