"""An examination's table: its numbers, intervals and text.

A number of column "x" has its interval in the columns "x low" and "x high".
"""

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd

from benchmark.diagnose.subject import NotApplicable


def prefers(real: np.ndarray, other: np.ndarray | float) -> float:
    """How often the first is more, over all pairs; ties count half, NaN where one is unknown."""
    return float((0.5 + 0.5 * np.sign(real - other)).mean(dtype=float))


def with_interval(column: str, value: float, low: float, high: float) -> dict[str, float]:
    return {column: value, f"{column} low": low, f"{column} high": high}


def bootstrapped(column: str, value: float, resampled: Sequence[float]) -> dict[str, float]:
    """The interval of 95 %."""
    return with_interval(column, value, *np.quantile(resampled, (0.025, 0.975)))


def median_and_range(column: str, values: Sequence[float]) -> dict[str, float]:
    low, median, high = np.quantile(values, (0, 0.5, 1))
    return with_interval(column, median, low, high)


def frame(rows: dict[str, dict[str, float]], note: str = "") -> pd.DataFrame:
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.attrs["note"] = note
    return table


def as_json(table: pd.DataFrame) -> dict:
    """What diagnosis.json holds of an examination. NaN is null."""
    rows = json.loads(table.to_json(orient="index", double_precision=15))
    return {"note": table.attrs["note"], "table": rows}


def table_of(examination: dict) -> pd.DataFrame:
    """The table again; NotApplicable where there is none."""
    if "not_applicable" in examination:
        raise NotApplicable(examination["not_applicable"])
    return pd.DataFrame.from_dict(examination["table"], orient="index", dtype=float)


def columns(table: pd.DataFrame) -> list[str]:
    """Those that are not bounds of an interval."""
    return [c for c in table if not c.endswith((" low", " high"))]


def number(x: float | None) -> str:
    if x is None or np.isnan(x):
        return ""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.2f}"


def cell(table: pd.DataFrame, row: str, column: str) -> str:
    """The number in words: x [low, high]."""
    bounds = [number(table[c][row]) for c in (f"{column} low", f"{column} high") if c in table]
    value = number(table[column][row])
    return f"{value} [{', '.join(bounds)}]" if any(bounds) else value
