"""What each part of the method is worth: the method without it, and each part alone.

    bash run_all.sh --method ablation-no-value --envs Hopper-v4 --seeds 1 2 3 --update-epochs 1
    python -m benchmark.ablations --publish    # results/ into data/ablations.csv, figure, METHOD.md
    python -m benchmark.ablations --blocks     # METHOD.md's tables anew from data/ablations.csv

With policy access PPO is paid 0 and its gradient is exactly 0, so that one epoch does what ten do
(--update-epochs 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
import torch.nn as nn
import tyro
from matplotlib.figure import Figure, SubFigure

import custom_irl as irl
from benchmark import runs, tables
from custom_irl import IRLAlgorithm, PolicyImprovement, RewardNetwork

__all__ = ["ABLATIONS", "RewardNetwork"]  # runs.method_named takes the latter from here

TABLE = runs.PUBLISHED / "ablations.csv"
METHOD_PAGE = irl.ROOT / "benchmark" / "METHOD.md"
DEFAULTS = IRLAlgorithm.hyperparameters
NO_LAMBDA_RETURNS = {"td_lambda": 0.0}
NO_GRADIENT_PENALTY = {"gradient_penalty": 0.0}
NO_BC_TERM = {"bc_coef": 0.0}
NO_BC = {"bc_steps": 0, **NO_BC_TERM}


# ------------------------------------------------------------------------------ policy improvement
class UngatedQ(PolicyImprovement):
    """Q moves the actor where the BC actors agree, too."""

    def q_weight(self, disagreement):
        return torch.ones_like(disagreement)


class ConstantValue(PolicyImprovement):
    """The value of every next state is the constant potential of the final reward."""

    def target_value(self, obs):
        terminal_cost = self.reward_net.hyperparameters.terminal_cost
        return torch.full((len(obs),), terminal_cost, device=obs.device)


class ConstantValueUngatedQ(ConstantValue, UngatedQ):
    pass


class UnitBCScale(PolicyImprovement):
    """However good the BC actor is, the actor is held to it equally and learns equally fast."""

    def estimate_bc_scale(self):
        return 1.0


class NotAveraged(PolicyImprovement):
    """The policy is the actor itself, not its average."""

    def prepare_rollout_policy(self, round_):
        super().prepare_rollout_policy(round_)
        if round_ > self.hp.bc_rounds + self.hp.bc_eval_rounds:
            irl.polyak_update(self.policy.actor_mean, self.actor, tau=1.0)


# --------------------------------------------------------------------------------------- ablations
class Full(IRLAlgorithm):
    """Nothing is left out."""


class NoTermination(IRLAlgorithm):
    """p is 0 everywhere: a termination only ends the sum of rewards."""

    def __init__(self, reward_net, *rest):
        super().__init__(reward_net, *rest)
        nn.init.zeros_(reward_net.termination_net[-1].weight)
        nn.init.constant_(reward_net.termination_net[-1].bias, -20.0)

    def termination_step(self):
        return {}


class NoValue(IRLAlgorithm):
    """Q is the reward of one step plus the constant potential of a state that is not terminal."""

    hyperparameters = replace(DEFAULTS, **NO_LAMBDA_RETURNS)
    policy_improvement_cls = ConstantValue


class OneStep(IRLAlgorithm):
    """Q is fitted to one-step targets alone."""

    hyperparameters = replace(DEFAULTS, **NO_LAMBDA_RETURNS)


class NoGradientPenalty(IRLAlgorithm):
    hyperparameters = replace(DEFAULTS, **NO_GRADIENT_PENALTY)


class NoBC(IRLAlgorithm):
    """The actor starts from 0. Both BC actors are untrained: their outputs are 0 and agree."""

    hyperparameters = replace(DEFAULTS, **NO_BC)
    policy_improvement_cls = UngatedQ


class NoBCTerm(IRLAlgorithm):
    """The actor starts as the BC actor and climbs Q everywhere, without any other term."""

    hyperparameters = replace(DEFAULTS, **NO_BC_TERM)
    policy_improvement_cls = UngatedQ


class FixedBCScale(IRLAlgorithm):
    policy_improvement_cls = UnitBCScale


class Ungated(IRLAlgorithm):
    policy_improvement_cls = UngatedQ


class NoUncertaintyPenalty(IRLAlgorithm):
    hyperparameters = replace(DEFAULTS, uncertainty_penalty=0.0)


class UniformRows(IRLAlgorithm):
    """The actor's batches are drawn uniformly: the floor outweighs any disagreement."""

    hyperparameters = replace(DEFAULTS, sampling_floor=1e9)


class NoAverage(IRLAlgorithm):
    policy_improvement_cls = NotAveraged


class OnlyTermination(IRLAlgorithm):
    """From scratch on a critic without penalty and a constant potential that terminations cost."""

    hyperparameters = replace(DEFAULTS, **NO_LAMBDA_RETURNS, **NO_GRADIENT_PENALTY, **NO_BC)
    policy_improvement_cls = ConstantValueUngatedQ


class OnlyValue(NoTermination):
    """From scratch on a critic without penalty; Q takes no end for a termination."""

    hyperparameters = replace(DEFAULTS, **NO_GRADIENT_PENALTY, **NO_BC)
    policy_improvement_cls = UngatedQ


class OnlyGradientPenalty(NoTermination):
    """From scratch on the critic's score of single steps."""

    hyperparameters = replace(DEFAULTS, **NO_LAMBDA_RETURNS, **NO_BC)
    policy_improvement_cls = ConstantValueUngatedQ


class OnlyBC(IRLAlgorithm):
    """The BC actor is never moved."""

    hyperparameters = replace(DEFAULTS, actor_steps_per_refresh=0)


ABLATIONS = {
    "full": Full,
    "no-termination": NoTermination,
    "no-value": NoValue,
    "one-step": OneStep,
    "no-gradient-penalty": NoGradientPenalty,
    "no-bc": NoBC,
    "no-bc-term": NoBCTerm,
    "fixed-bc-scale": FixedBCScale,
    "ungated-q": Ungated,
    "no-uncertainty-penalty": NoUncertaintyPenalty,
    "uniform-rows": UniformRows,
    "no-average": NoAverage,
    "only-termination": OnlyTermination,
    "only-value": OnlyValue,
    "only-gradient-penalty": OnlyGradientPenalty,
    "only-bc": OnlyBC,
}


# ------------------------------------------------------------------------------- table and figure
@dataclass(frozen=True)
class Config:
    publish: bool = False
    """merge the ablations' runs of committed code into data/ablations.csv; then --blocks"""
    blocks: bool = False
    """rewrite METHOD.md's tables and data/ablations.png from data/ablations.csv"""
    results: Path = runs.RESULTS
    """folder with the runs"""


def publish(results: Path, path: Path) -> None:
    """Merges the runs below `results` into the table at `path`, in place of the same ones of the
    same commit there.

    Raises:
        UserError: if there is no run of an ablation, of a clean commit and not a quick look.
    """
    found = tables.read_runs(results)
    found = found[found["method"].str.startswith("ablation-") & found["git_clean"]]
    panels = "|".join(runs.PANELS.values())
    found = found[tables.has_only(found, rf"\d+-steps|update-epochs-1|{panels}")]
    if found.empty:
        raise irl.UserError(f"{results}: no run of an ablation of a committed, clean tree")
    tables.merge_published(path, found, ["git_commit", *tables.KEY])


def by_commit(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The runs of each commit, the newest first: only those of one commit can be compared."""
    parts = [part for _, part in table.groupby("git_commit")]
    return sorted(parts, key=lambda part: part["date"].min(), reverse=True)


def cells_of(table: pd.DataFrame) -> list[tuple[tuple, pd.DataFrame]]:
    """The runs by panel, environment and number of steps."""
    return list(table.sort_values("seed").groupby(["panel", "env", "steps"]))


def names_of(table: pd.DataFrame) -> list[str]:
    """The ablations that there is a run of, in the order of `ABLATIONS`."""
    return [name for name in ABLATIONS if f"ablation-{name}" in set(table["method"])]


def scores_of(table: pd.DataFrame, name: str) -> pd.Series:
    return table.loc[table["method"] == f"ablation-{name}", "normalized_return"].dropna()


def markdown(table: pd.DataFrame) -> str:
    """A table a commit: a row an ablation, a column a panel, environment and number of steps, the
    mean normalised return (that of every seed).
    """
    return "\n".join(commit_markdown(part) for part in by_commit(table))


def commit_markdown(table: pd.DataFrame) -> str:
    cells = cells_of(table)
    header = [f"{env}, {panel}, {steps:,} steps" for (panel, env, steps), _ in cells]
    rows = []
    for name in names_of(table):
        row = [name]
        for _, cell in cells:
            scores = scores_of(cell, name)
            seeds = ", ".join(f"{score:.2f}" for score in scores)
            row.append(f"{scores.mean():.2f} ({seeds})" if seeds else "")
        rows.append(row)
    return tables.markdown_table([f"commit {tables.commits(table)}", *header], rows)


def draw(table: pd.DataFrame, path: Path) -> None:
    """A row of axes a commit: bars of the means, a dot for every seed."""
    parts = by_commit(table)
    lengths = [len(names_of(part)) for part in parts]
    width = max(len(cells_of(part)) for part in parts)
    heights = [1.8 + 0.17 * length for length in lengths]
    figure = Figure((1 + 3 * width, sum(heights)), layout="constrained")
    rows = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)
    low = min(0, table["normalized_return"].min())
    for part, row in zip(parts, rows[:, 0]):
        draw_commit(part, row, width, low)
    runs.save_figure(figure, path)


def draw_commit(table: pd.DataFrame, figure: SubFigure, width: int, low: float) -> None:
    """`width` axes, the first ones used; `low` is the least return that is shown."""
    figure.suptitle(f"commit {tables.commits(table)}", fontsize="medium")
    axes = figure.subplots(1, width, sharey=True, squeeze=False)[0]
    names = list(reversed(names_of(table)))
    cells = cells_of(table)
    for ax in axes[len(cells) :]:
        ax.remove()
    for ax, ((panel, env, steps), cell) in zip(axes, cells):
        for y, name in enumerate(names):
            scores = scores_of(cell, name)
            ax.barh(y, scores.mean(), color="lightsteelblue")
            ax.plot(scores, [y] * len(scores), "k.", markersize=5)
        ax.set_title(f"{env}, {panel}\n{steps:,} steps")
        ax.set_xlabel("normalised return")
        ax.set_xlim(low, 1.05)
        ax.set_yticks(range(len(names)), names)
        ax.spines[["top", "right"]].set_visible(False)


def write_blocks(path: Path, page: Path) -> None:
    """The runs at `path` as a figure beside them and as the block `ablations` of `page`."""
    table = tables.read_published(path)
    tables.write_block(page, "ablations", markdown(table))
    draw(table, path.with_suffix(".png"))


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    if not (config.publish or config.blocks):
        raise irl.UserError("expected --publish or --blocks")
    if config.publish:
        publish(config.results, TABLE)
    write_blocks(TABLE, METHOD_PAGE)


if __name__ == "__main__":
    runs.command_line(main)
