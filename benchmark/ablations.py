"""What each part of the method is worth: the method without it, and each part alone.

python -m benchmark.ablations no-clone --env Hopper-v4 --total-timesteps 300000
bash run_all.sh --method ablation-no-clone --envs Hopper-v4 Walker2d-v4 --seeds 1 2 3 --update-epochs 1
python -m benchmark.ablations --publish    # into benchmark/ablations.csv and .png and METHOD.md's table

In all of them PPO is paid 0, and its gradient is 0, exactly. So one epoch does what ten do; only the random numbers are
others. It hardly saves time any more, as `update_policy` leaves the gradient out, but the rows there are were made so.
"""

import sys
from pathlib import Path

import matplotlib
import pandas as pd
import torch
import torch.nn as nn

import report
from custom_irl import ROOT, IRLAlgorithm, RewardNetwork, UserError, main, replacing

matplotlib.use("Agg")  # nothing here needs a screen
import matplotlib.pyplot as plt


class Full(IRLAlgorithm):
    """Nothing is left out."""


class NoTermination(IRLAlgorithm):
    """p is 0 everywhere: an end is an end of the rollout and costs nothing."""

    def __init__(self, reward_net, *rest):
        super().__init__(reward_net, *rest)
        nn.init.zeros_(reward_net.end_logit[-1].weight), nn.init.constant_(reward_net.end_logit[-1].bias, -20.0)

    def end_step(self):
        return {}


class NoValue(IRLAlgorithm):
    """A constant potential, as in the exported reward: Q is the reward of one step, and what living on is worth."""

    decay = 0.0

    def slow_value(self, obs):
        return torch.full((len(obs),), self.reward_net.c, device=self.device)


class OneStep(IRLAlgorithm):
    """Q learns from one step at a time."""

    decay = 0.0


class NoGradientPenalty(IRLAlgorithm):
    gradient_penalty = 0.0


class NoDoubtCost(IRLAlgorithm):
    doubt_cost = 0.0


class HeardEverywhere(IRLAlgorithm):
    """Q pulls at the policy where there is no doubt, too."""

    def heard(self, doubt):
        return torch.ones_like(doubt)


class NoLoyalty(HeardEverywhere):
    """It does not stay the clone anywhere."""

    loyalty = 0.0


class NoWorth(IRLAlgorithm):
    """It leaves a clone as good as the expert as fast as any other."""

    def clones_worth(self):
        return 1.0


class EvenRows(IRLAlgorithm):
    """It learns as much where there is no doubt."""

    evenly = 1e9


class NoClone(NoLoyalty):
    """Starts from scratch. Both clones do nothing, so there is no doubt."""

    clone_steps = 0


class NoAverage(IRLAlgorithm):
    """Who learns acts."""

    def move(self, actor, other, strength=1.0, way=1.0):
        super().move(actor, other, strength)


class OnlyCloning(IRLAlgorithm):
    """The clone is never moved: what the demonstrations alone are worth."""

    policy_steps = 0


class OnlyTermination(NoValue, NoGradientPenalty, NoClone):
    """From scratch on a plain critic and a constant potential that an end costs."""


class OnlyValue(NoTermination, NoGradientPenalty, NoClone):
    """From scratch on a plain critic; Q knows no end."""


class OnlyGradientPenalty(NoTermination, NoValue, NoClone):
    """From scratch on the critic's score as it is."""


ABLATIONS = {
    "full": Full, "no-termination": NoTermination, "no-value": NoValue, "one-step": OneStep,
    "no-gradient-penalty": NoGradientPenalty, "no-clone": NoClone, "no-loyalty": NoLoyalty,
    "no-worth": NoWorth, "heard-everywhere": HeardEverywhere, "no-doubt-cost": NoDoubtCost, "even-rows": EvenRows,
    "no-average": NoAverage, "only-termination": OnlyTermination, "only-value": OnlyValue,
    "only-gradient-penalty": OnlyGradientPenalty, "only-cloning": OnlyCloning,
}  # fmt: skip


def publish(results: Path, folder: Path) -> None:
    """Merges the runs into ablations.csv and puts that into METHOD.md's table and ablations.png."""
    runs = report.read_runs(results)
    runs = runs[runs["method"].str.startswith("ablation-") & runs["git_clean"]]
    runs = runs[~runs["labels"].str.contains("quick")].drop(columns="folder")
    if runs.empty:
        raise UserError(f"{results}: no run of an ablation; expected some of a committed, clean tree")
    runs = report.merge_published(folder / "ablations.csv", runs, report.KEY)
    report.write_block(folder / "METHOD.md", table(runs))
    draw(runs, folder / "ablations.png")


def table(runs: pd.DataFrame) -> str:
    """A row an ablation, a column each panel, environment and length: mean normalised return (that of every seed).
    The commits say which rows may be compared.
    """
    cells = list(runs.sort_values("seed").groupby(["panel", "env", "steps"]))
    header = ["", *(f"{env}, {panel}, {steps:,} steps" for (panel, env, steps), _ in cells), "commit"]
    rows = []
    for name in ABLATIONS:
        scores = [cell.loc[cell["method"] == f"ablation-{name}", "normalized_return"] for _, cell in cells]
        means = (f"{x.mean():.2f} ({', '.join(f'{y:.2f}' for y in x)})" if len(x) else "" for x in scores)
        rows.append([name, *means, report.commits(runs[runs["method"] == f"ablation-{name}"])])
    return report.markdown_table(header, rows)


def draw(runs: pd.DataFrame, path: Path) -> None:
    """The same as bars, every seed a dot."""
    cells = list(runs.groupby(["panel", "env", "steps"]))
    figure, axes = plt.subplots(1, len(cells), figsize=(1 + 3 * len(cells), 4), sharey=True, layout="constrained")
    low = min(0, runs["normalized_return"].min())
    for ax, ((panel, env, steps), cell) in zip([axes] if len(cells) == 1 else axes, cells):
        for y, name in enumerate(reversed(ABLATIONS)):
            scores = cell.loc[cell["method"] == f"ablation-{name}", "normalized_return"]
            ax.barh(y, scores.mean(), color="lightsteelblue")
            ax.plot(scores, [y] * len(scores), "k.", markersize=5)
        ax.set(title=f"{env}, {panel}\n{steps:,} steps", xlabel="normalised return", xlim=(low, 1.05))
        ax.set_yticks(range(len(ABLATIONS)), list(reversed(ABLATIONS)))
        ax.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name == "--publish":
        try:
            publish(ROOT / "results", ROOT / "benchmark")
        except UserError as error:
            sys.exit(f"error: {error}")
    elif name in ABLATIONS:
        del sys.argv[1]
        main(RewardNetwork, ABLATIONS[name], method=f"ablation-{name}")
    else:
        sys.exit(f"error: python -m benchmark.ablations NAME [flags]; NAME is --publish or {', '.join(ABLATIONS)}")
