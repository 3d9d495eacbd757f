"""Failure labels: whether each applies, what was compared, and the stage to look at.

A label is a function of the run and of the tables of the examinations. Its docstring is its
definition. It returns whether it applies and the numbers that were compared, or raises
NotApplicable where the control is not known.
"""

import numpy as np
import pandas as pd

from benchmark import runs
from benchmark.diagnose.ranking import correlation
from benchmark.diagnose.steps import ABOVE
from benchmark.diagnose.subject import NotApplicable, Subject
from benchmark.diagnose.table import cell, columns, table_of
from benchmark.tables import read_published

Examinations = dict[str, dict]  # by name, as diagnosis.json holds them
Finding = tuple[bool, str]


# ------------------------------------------------------------------------------ policy optimisation
def training_curve(subject: Subject, column: str) -> pd.Series:
    values = subject.metrics.get(column, pd.Series(dtype=float)).dropna()
    if len(values) < 10:
        raise NotApplicable(f"metrics.csv has fewer than 10 values of {column}")
    return values


def early_termination(subject: Subject, found: Examinations) -> Finding:
    """Half of its episodes end before half the length of the expert's median episode."""
    own = np.median(subject.result["evaluation"]["deterministic"]["lengths"])
    expert = np.median([len(episode.acts) for episode in subject.expert_episodes])
    return own < 0.5 * expert, f"median {own:.0f} steps, the expert's {expert:.0f}"


def policy_collapse(subject: Subject, found: Examinations) -> Finding:
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


def non_finite(subject: Subject, found: Examinations) -> Finding:
    """An infinite number in metrics.csv, or an evaluation return that is not finite."""
    numbers = subject.metrics.select_dtypes("number").to_numpy()
    broken = np.isinf(numbers).sum() + (not np.isfinite(subject.result["eval_return_mean"]))
    return broken > 0, f"{broken} numbers"


# ------------------------------------------------------------------------------------------- reward
def reward_hacking(subject: Subject, found: Examinations) -> Finding:
    """In the last third of training the learned return rises and the true one falls (Spearman's
    correlation with time above 0.3 and below -0.3)."""
    if training_curve(subject, "learned_return").nunique() <= 1:
        raise NotApplicable("PPO was paid a constant")
    trends = []
    for column in ("learned_return", "true_return"):
        values = training_curve(subject, column).to_numpy()
        values = values[len(values) * 2 // 3 :]
        trends.append(correlation(np.arange(len(values)), values))
    learned, true = trends
    return learned > 0.3 and true < -0.3, f"learned {learned:+.2f}, true {true:+.2f}"


def expert_above_own(found: Examinations) -> pd.DataFrame:
    """The table "steps", where it has that column."""
    table = table_of(found["steps"])
    if ABOVE not in table:
        raise NotApplicable("the expert's steps are not known")
    return table


def discriminator_saturated(subject: Subject, found: Examinations) -> Finding:
    """It pays nearly every step of the expert (0.99) more than one of a policy below 0.9 of it, and
    an untrained network does not tell the two apart like that."""
    score = subject.result["normalized_return"]
    if score is None:
        raise NotApplicable("the run has no normalised return")
    above = expert_above_own(found)[ABOVE]
    untrained = max(above["untrained"], 1 - above["untrained"])
    evidence = f"{above['learned']:.3f} of pairs, untrained {untrained:.3f}, policy at {score:.2f}"
    return above["learned"] > 0.99 >= untrained and score < 0.9, evidence


def stale_reward(subject: Subject, found: Examinations) -> Finding:
    """It pays the run's own policy more than the expert (interval below 0.5 by a margin of 0.05),
    and more often than the true reward does, where that is known."""
    table = expert_above_own(found)
    high = table.loc["learned", f"{ABOVE} high"]
    true = table.loc["true", ABOVE]
    known = "unknown" if np.isnan(true) else f"{true:.2f}"
    pairs = cell(table, "learned", ABOVE)
    evidence = f"the expert is paid more in {pairs} of pairs, truly in {known}"
    return high < 0.45 and not high >= true, evidence


def with_controls(table: pd.DataFrame, column: str) -> str:
    learned, untrained = (cell(table, row, column) for row in ("learned", "untrained"))
    return f"{learned}, constant {table.loc['constant', column]:.2f}, untrained {untrained}"


def survival_only(subject: Subject, found: Examinations) -> Finding:
    """It ranks segments of equal length no better than a constant (95 % interval), or than the best
    of several untrained networks."""
    table = table_of(found["ranking"])
    above_constant = table.loc["learned", "segments low"] > table.loc["constant", "segments"]
    above_untrained = table.loc["learned", "segments"] > table.loc["untrained", "segments high"]
    evidence = f"Spearman {with_controls(table, 'segments')}"
    return not (above_constant and above_untrained), evidence


def distant_reward(subject: Subject, found: Examinations) -> Finding:
    """On mixed behaviour, without its shaping, it is no nearer to the true reward (95 % interval)
    than a constant, or than the median of several untrained networks."""
    table = table_of(found["distance"])
    nearest = table.loc[["constant", "untrained"], "mixed"].min()
    return table.loc["learned", "mixed high"] >= nearest, with_controls(table, "mixed")


def fails_retraining(subject: Subject, found: Examinations) -> Finding:
    """Fresh policies return less than half way from the best control to the true reward, by every
    learner whose runs on the true reward are all above the control."""
    table = table_of(found["retraining"]).reindex(["learned", "constant", "untrained", "true"])
    below = []
    evidence = []
    for learner in columns(table):
        learned, true = table.loc[["learned", "true"], learner]
        control = table.loc[["constant", "untrained"], learner].max()
        evidence.append(f"{learner}: {learned:.0f}, control {control:.0f}, true {true:.0f}")
        if table.loc["true", f"{learner} low"] > control:
            below.append(learned < (control + true) / 2)
    if not below:
        reason = "no learner tells the true reward from a control"
        raise NotApplicable(f"{reason} ({'; '.join(evidence)})")
    return all(below), "; ".join(evidence)


# --------------------------------------------------------------------------------------- evaluation
def bc_returns(subject: Subject) -> pd.Series:
    """Mean returns of behaviour cloning on the same demonstrations, published here; by method."""
    if not subject.has_shipped_demos:
        raise NotApplicable("no behaviour cloning of these demonstrations is published")
    published = read_published()
    same = published["method"].isin(["bc", "imitation-bc"]) & (published["env"] == subject.env_id)
    same &= published["panel"] == runs.panel_of(subject.result["config"])
    if not same.any():
        raise NotApplicable("no behaviour cloning of this amount of demonstrations is published")
    return published[same].groupby("method")["eval_return_mean"].mean()


def worse_than_bc(subject: Subject, found: Examinations) -> Finding:
    """It returns less than the best published behaviour cloning of the same demonstrations (margin:
    2 %, and two standard errors of its own episodes)."""
    by_method = bc_returns(subject)
    bc = by_method.max()
    own = np.array(subject.result["evaluation"]["deterministic"]["returns"])
    margin = 0.02 * abs(bc) + 2 * own.std() / np.sqrt(len(own))
    evidence = f"{own.mean():.0f}, {by_method.idxmax()} {bc:.0f} - {margin:.0f}"
    return own.mean() < bc - margin, evidence


STAGES = {
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


def judge(subject: Subject, found: Examinations) -> list[dict]:
    """What diagnosis.json says of each label; `applies` is None where that is unknown."""
    labels = []
    for compare, stage in STAGES.items():
        try:
            applies, evidence = compare(subject, found)
            applies = bool(applies)
        except NotApplicable as reason:
            applies = None
            evidence = str(reason)
        definition = " ".join(compare.__doc__.split())
        label = {"name": compare.__name__, "stage": stage, "definition": definition}
        labels.append({**label, "applies": applies, "evidence": evidence})
    return labels
