"""What each part of the method is worth: the method without it, and each part alone.

python -m benchmark.ablations no-clone --env Hopper-v4 --total-timesteps 300000
bash run_all.sh --method ablation-no-clone --envs Hopper-v4 Walker2d-v4 --seeds 1 2 3 --update-epochs 1
python -m benchmark.ablations --publish    # into benchmark/ablations.csv and .png and METHOD.md's table

In all of them PPO is paid 0, and its gradient is 0, exactly. So one epoch does what ten do, in half the time; only the
random numbers are others.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
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
    """A constant potential, as in the exported reward, instead of the value of g."""

    value_steps = 0

    def __init__(self, reward_net, *rest):
        super().__init__(reward_net, *rest)
        nn.init.constant_(reward_net.value[-1].bias, reward_net.c / reward_net.value_scale)


class NoGradientPenalty(IRLAlgorithm):
    gradient_penalty = 0.0


class NoClone(IRLAlgorithm):
    """Starts from scratch; the expert's actions still count in every step."""

    clone_steps = 0


class NoExpertActions(IRLAlgorithm):
    """Does not stay the expert where the expert goes. (The clone is made as ever.)"""

    expert_weight = 0.0


class NoQ(IRLAlgorithm):
    """Only what turned out better in the last rollout moves it."""

    q_weight = 0.0


class NoBetter(IRLAlgorithm):
    """Only Q moves it."""

    better_weight = 0.0


class OneStep(IRLAlgorithm):
    """Q and V learn from one step at a time."""

    decay = 0.0


class NoAverage(IRLAlgorithm):
    """The policy that learns is the one that acts."""

    average = 1.0


class AlwaysQ(IRLAlgorithm):
    """Q moves it to the end, and nothing is averaged, as far from the expert."""

    near = np.inf


class NoFinals(IRLAlgorithm):
    """It learns to the end, and is what it then is."""

    finals = 0.0


class OnlyCloning(IRLAlgorithm):
    """The clone is never moved: what the demonstrations alone are worth."""

    policy_steps = 0


class OnlyTermination(NoValue, NoGradientPenalty, NoClone, NoExpertActions):
    """From scratch on a plain critic and a constant potential that an end costs."""


class OnlyValue(NoTermination, NoGradientPenalty, NoClone, NoExpertActions):
    """From scratch on a plain critic; V knows no end."""


class OnlyGradientPenalty(NoTermination, NoValue, NoClone, NoExpertActions):
    """From scratch on the critic's score as it is."""


class OnlyExpertActions(NoTermination, NoValue, NoGradientPenalty, NoClone):
    """From scratch, the expert's actions in every step, on a plain critic's score."""


ABLATIONS = {
    "full": Full, "no-termination": NoTermination, "no-value": NoValue, "no-gradient-penalty": NoGradientPenalty,
    "no-clone": NoClone, "no-expert-actions": NoExpertActions, "no-q": NoQ, "no-better": NoBetter,
    "one-step": OneStep, "no-average": NoAverage, "always-q": AlwaysQ, "no-finals": NoFinals,
    "only-termination": OnlyTermination, "only-value": OnlyValue, "only-gradient-penalty": OnlyGradientPenalty,
    "only-cloning": OnlyCloning, "only-expert-actions": OnlyExpertActions,
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
    """A row an ablation, a column each panel, environment and length: mean normalised return (that of every seed)."""
    cells = list(runs.sort_values("seed").groupby(["panel", "env", "steps"]))
    header = ["", *(f"{env}, {panel}, {steps:,} steps" for (panel, env, steps), _ in cells)]
    rows = []
    for name in ABLATIONS:
        scores = [cell.loc[cell["method"] == f"ablation-{name}", "normalized_return"] for _, cell in cells]
        rows.append([name, *(f"{x.mean():.2f} ({', '.join(f'{y:.2f}' for y in x)})" if len(x) else "" for x in scores)])
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
