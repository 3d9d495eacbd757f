"""Failure labels: whether each applies, what was compared, and the stage to look at.

A label is a function of the run and of the tables of the examinations. Its docstring is its
definition. It returns whether it applies and the numbers that were compared, or raises
NotApplicable where the control is not known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmark import runs
from benchmark.diagnose.ranking import correlation
from benchmark.diagnose.steps import ABOVE
from benchmark.diagnose.subject import NotApplicable, Subject

Tables = dict[str, pd.DataFrame | NotApplicable]
Finding = tuple[bool, str]


@dataclass(frozen=True)
class Label:
    name: str
    stage: str  # policy optimisation, reward or evaluation
    definition: str
    applies: bool | None  # None: unknown
    evidence: str


def table_of(tables: Tables, name: str) -> pd.DataFrame:
    table = tables[name]
    if isinstance(table, NotApplicable):
        raise table
    return table


def interval(row: pd.Series, column: str) -> str:
    return f"{row[column]:.2f} [{row[f'{column} low']:.2f}, {row[f'{column} high']:.2f}]"


# ------------------------------------------------------------------------------ policy optimisation
def early_termination(subject: Subject, tables: Tables) -> Finding:
    """Half of its episodes end before half the length of the expert's median episode."""
    own = np.median(subject.result["evaluation"]["deterministic"]["lengths"])
    expert = np.median(np.bincount(subject.expert_steps.episode))
    return own < 0.5 * expert, f"median {own:.0f} steps, the expert's {expert:.0f}"


def policy_collapse(subject: Subject, tables: Tables) -> Finding:
    """Training and evaluation end having lost more than half of what training had gained at its
    best, and more than the noise of 20 rollouts (two standard deviations)."""
    returns = training_curve(subject, "true_return")
    smooth = returns.rolling(20, min_periods=1).mean()
    noise = (returns - smooth).std()
    first, best = smooth.iloc[0], smooth.max()
    last = max(smooth.iloc[-1], subject.result["eval_return_mean"])
    lost = best - last
    evidence = f"first {first:.0f}, best {best:.0f}, at the end {last:.0f}, noise {noise:.0f}"
    return lost > max(0.5 * (best - first), 2 * noise), evidence


def non_finite(subject: Subject, tables: Tables) -> Finding:
    """An infinite number in metrics.csv, or an evaluation return that is not finite."""
    numbers = subject.metrics.select_dtypes("number").to_numpy()
    broken = int(np.isinf(numbers).sum())
    broken += int(not np.isfinite(subject.result["eval_return_mean"]))
    return broken > 0, f"{broken} numbers"


# ------------------------------------------------------------------------------------------- reward
def training_curve(subject: Subject, column: str) -> pd.Series:
    if column not in subject.metrics or len(values := subject.metrics[column].dropna()) < 10:
        raise NotApplicable(f"metrics.csv has fewer than 10 values of {column}")
    return values


def reward_hacking(subject: Subject, tables: Tables) -> Finding:
    """In the last third of training the learned return rises and the true one falls (Spearman's
    correlation with time above 0.3 and below -0.3)."""
    trends = []
    for column in ("learned_return", "true_return"):
        values = training_curve(subject, column).to_numpy()
        values = values[len(values) * 2 // 3 :]
        trends.append(correlation(np.arange(len(values)), values))
    learned, true = trends
    return learned > 0.3 and true < -0.3, f"learned {learned:+.2f}, true {true:+.2f}"


def discriminator_saturated(subject: Subject, tables: Tables) -> Finding:
    """It pays nearly every step of the expert (0.99) more than one of a policy below 0.9 of it, and
    an untrained network does not tell the two apart like that."""
    score = subject.result["normalized_return"]
    if score is None:
        raise NotApplicable("the run has no normalised return")
    above = table_of(tables, "steps").get(ABOVE)
    if above is None:
        raise NotApplicable("the expert's steps are not known")
    untrained = max(above["untrained"], 1 - above["untrained"])
    evidence = f"{above['learned']:.3f} of pairs, untrained {untrained:.3f}, policy at {score:.2f}"
    return above["learned"] > 0.99 >= untrained and score < 0.9, evidence


def stale_reward(subject: Subject, tables: Tables) -> Finding:
    """It pays the run's own policy more than the expert (interval below 0.5 by a margin of 0.05),
    and more often than the true reward does, where that is known."""
    table = table_of(tables, "steps")
    if ABOVE not in table:
        raise NotApplicable("the expert's steps are not known")
    learned, true = table.loc["learned"], table.loc["true", ABOVE]
    high = learned[f"{ABOVE} high"]
    known = "unknown" if np.isnan(true) else f"{true:.2f}"
    evidence = f"the expert is paid more in {interval(learned, ABOVE)} of pairs, truly in {known}"
    return high < 0.45 and not high >= true, evidence


def survival_only(subject: Subject, tables: Tables) -> Finding:
    """It ranks segments of equal length no better than a constant (95 % interval), or than the best
    of several untrained networks."""
    table = table_of(tables, "ranking")
    learned, untrained = table.loc["learned"], table.loc["untrained"]
    constant = table.loc["constant", "segments"]
    best = untrained["segments high"]
    evidence = (
        f"Spearman {interval(learned, 'segments')}, constant {constant:.2f}, "
        f"untrained {interval(untrained, 'segments')}"
    )
    better = learned["segments low"] > constant and learned["segments"] > best
    return not better, evidence


def distant_reward(subject: Subject, tables: Tables) -> Finding:
    """On mixed behaviour, without its shaping, it is no nearer to the true reward (95 % interval)
    than a constant, or than the median of several untrained networks."""
    table = table_of(tables, "distance")
    learned, untrained = table.loc["learned"], table.loc["untrained"]
    constant = table.loc["constant", "mixed"]
    evidence = (
        f"{interval(learned, 'mixed')}, constant {constant:.2f}, "
        f"untrained {interval(untrained, 'mixed')}"
    )
    return learned["mixed high"] >= min(constant, untrained["mixed"]), evidence


def fails_retraining(subject: Subject, tables: Tables) -> Finding:
    """Fresh policies return less than half way from the best control to the true reward, by every
    learner whose runs on the true reward are all above the control."""
    table = table_of(tables, "retraining")
    controls = table.index.intersection(["constant", "untrained"])
    below = []
    evidence = []
    for learner in (c for c in table if not c.endswith((" low", " high"))):
        control = table.loc[controls, learner].max() if len(controls) else np.nan
        true = table[learner].get("true", np.nan)
        learned = table.loc["learned", learner]
        evidence.append(f"{learner}: {learned:.0f}, control {control:.0f}, true {true:.0f}")
        if (
            len(controls)
            and "true" in table.index
            and table.loc["true", f"{learner} low"] > control
        ):
            below.append(learned < (control + true) / 2)
    if not below:
        raise NotApplicable(
            f"no learner tells the true reward from a control ({'; '.join(evidence)})"
        )
    return all(below), "; ".join(evidence)


# --------------------------------------------------------------------------------------- evaluation
def bc_returns(subject: Subject) -> pd.Series:
    """Mean returns of behaviour cloning on the same demonstrations, published here; by method."""
    config = subject.result["config"]
    if not subject.has_shipped_demos:
        raise NotApplicable("no behaviour cloning of these demonstrations is published")
    published = pd.read_csv(runs.PUBLISHED / "results.csv")
    same = published["method"].isin(["bc", "imitation-bc"]) & (published["env"] == subject.env_id)
    same &= published["panel"] == runs.panel_of(config)
    if not same.any():
        raise NotApplicable("no behaviour cloning of this amount of demonstrations is published")
    return published[same].groupby("method")["eval_return_mean"].mean()


def worse_than_bc(subject: Subject, tables: Tables) -> Finding:
    """It returns less than the best published behaviour cloning of the same demonstrations (margin:
    2 %, and two standard errors of its own episodes)."""
    by_method = bc_returns(subject)
    bc = by_method.max()
    own = np.array(subject.result["evaluation"]["deterministic"]["returns"])
    margin = 0.02 * abs(bc) + 2 * own.std() / np.sqrt(len(own))
    return (
        own.mean() < bc - margin,
        f"{own.mean():.0f}, {by_method.idxmax()} {bc:.0f} - {margin:.0f}",
    )


LABELS = {
    early_termination: "policy optimisation",
    reward_hacking: "reward",
    discriminator_saturated: "reward",
    policy_collapse: "policy optimisation",
    non_finite: "policy optimisation",
    worse_than_bc: "evaluation",
    survival_only: "reward",
    fails_retraining: "reward",
    distant_reward: "reward",
    stale_reward: "reward",
}


def judge(subject: Subject, tables: Tables) -> list[Label]:
    labels = []
    for compare, stage in LABELS.items():
        try:
            applies, evidence = compare(subject, tables)
            applies = bool(applies)
        except NotApplicable as reason:
            applies, evidence = None, str(reason)
        definition = " ".join(compare.__doc__.split())
        labels.append(Label(compare.__name__, stage, definition, applies, evidence))
    return labels
