"""What the reward pays the expert, the run's own policy, stillness and random actions."""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmark.diagnose.subject import Subject

TITLE = "Reward a step"
ABOVE = "expert above own policy"
BLOCK = 100  # steps: consecutive ones are not independent
RESAMPLES = 500


def block_preferences(expert: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(blocks, blocks): how often a step of an expert's block is paid more; ties count half."""
    preferred = 0.5 + 0.5 * np.sign(expert[:, None] - own[None, :]).astype(np.float32)
    for axis, n in enumerate(preferred.shape):
        starts = np.arange(0, n, BLOCK)
        sizes = np.diff([*starts, n]).reshape([-1, 1] if axis == 0 else [1, -1])
        preferred = np.add.reduceat(preferred, starts, axis) / sizes
    return preferred


def examine(subject: Subject, rng: np.random.Generator) -> pd.DataFrame:
    """Means, and how often a step of the expert is paid more than one of the run's own policy.

    The interval: 95 %, bootstrap over blocks of 100 steps.
    """
    played = subject.played
    table = {}
    for name in [*subject.rewards, "true"]:
        paid = {
            who: steps.rewards if name == "true" else steps.paid(subject.rewards[name])
            for who, steps in played.items()
        }
        row = {who: x.mean() for who, x in paid.items()}
        if "expert" in paid and np.isfinite(row["expert"]):
            blocks = block_preferences(paid["expert"], paid["own policy"])
            drawn = [
                blocks[np.ix_(*(rng.integers(n, size=n) for n in blocks.shape))].mean()
                for _ in range(RESAMPLES)
            ]
            low, high = np.quantile(drawn, (0.025, 0.975))
            row |= {ABOVE: blocks.mean(), f"{ABOVE} low": low, f"{ABOVE} high": high}
        table[name] = row
    return pd.DataFrame.from_dict(table, orient="index")
