"""Tables and figures of MBIRL, and README's block between the marker comments.

The first command measures, in results/mbirl/compare/; the second copies what README shows to
mbirl/data/ and writes README; the third writes README from the committed files alone:

    python -m mbirl --compare --visual
    python -m mbirl.report results/mbirl/compare
    python -m mbirl.report
"""

import shutil
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from custom_irl import replacing

HERE = Path(__file__).resolve().parent
MARKERS = ("<!-- table: python -m mbirl.report -->", "<!-- end of table -->")
COLOURS = {"weighted": "tab:orange", "timedep": "tab:blue", "rbf": "tab:green"}
CURVES = ["updates", "train_loss_ratio", "test_loss_ratio"]
GROUP = ["cost", "method", "detach_state", "visual"]
HEADER = "| cost | learned by | L_IRL, cm² | over doing nothing | goal distance | seconds | seeds |"


def flat(results: list[dict]) -> pd.DataFrame:
    """Results of runs as rows; failure labels are joined by spaces."""
    return pd.DataFrame([{**r, "failures": " ".join(r["failures"])} for r in results])


def label(method: str, detach_state: bool, visual: bool) -> str:
    words = {"mbirl": "MBIRL", "apprenticeship": "apprenticeship learning", "none": "nothing"}[
        method
    ]
    words += ", state detached (code behind the published figure)" if detach_state else ""
    return words + (", detected keypoints" if visual else "")


def span(values: pd.Series, digits: int) -> str:
    """Mean and range over seeds."""
    return f"{values.mean():.{digits}f} ({values.min():.{digits}f} to {values.max():.{digits}f})"


def verdicts(frame: pd.DataFrame) -> list[str]:
    """The bars of the comparison, each with its mean over seeds and how many seeds meet it."""

    def by_cost(method: str) -> dict[str, pd.DataFrame]:
        rows = frame[(frame.method == method) & ~frame.detach_state & ~frame.visual]
        return {cost: group for cost, group in rows.set_index("seed").groupby("cost")}

    of = by_cost("mbirl")
    others = by_cost("apprenticeship")
    default = by_cost("none")["default"]
    rows = ["| target | mean | seeds that meet it | the mean |", "|---|---|---|---|"]

    def judge(text: str, values: pd.Series, bar: float) -> None:
        seeds = f"{(values <= bar).sum()} of {len(values)}"
        rows.append(f"| {text} | {values.mean():.3f} | {seeds} | {mark(values.mean() <= bar)} |")

    for cost, bar in (("weighted", 0.20), ("timedep", 0.15), ("rbf", 0.10)):
        text = f"{cost}: L_IRL over that of doing nothing at most {bar:.2f}"
        judge(text, of[cost].test_loss_ratio, bar)
    for cost in of:
        judge(f"{cost}: goal distance at most 0.15", of[cost].test_goal_ratio, 0.15)
    ratio = {cost: rows.test_loss_ratio for cost, rows in of.items()}
    ordered = (ratio["rbf"] < ratio["timedep"]) & (ratio["timedep"] <= ratio["weighted"])
    text = "rbf better than timedep, and that no worse than weighted, on 4 of 5 seeds"
    met = mark(ordered.sum() >= 0.8 * len(ordered))
    rows.append(f"| {text} | | {ordered.sum()} of {len(ordered)} | {met} |")
    for cost, own in of.items():
        text = f"{cost}: L_IRL over that of the default cost below 1"
        judge(text, own.test_loss / default.test_loss, 1.0)
        text = f"{cost}: L_IRL over that of apprenticeship learning below 1"
        judge(text, own.test_loss / others[cost].test_loss, 1.0)
    seen = frame[frame.visual].set_index("seed")
    if len(seen):
        error = seen.keypoint_error_median_px.iloc[0]
        rows.append(
            f"| median keypoint error at most 1.5 pixels | {error:.2f} | | {mark(error <= 1.5)} |"
        )
        text = "detected keypoints: L_IRL at most 2 times that of true keypoints"
        judge(text, seen.test_loss / of["rbf"].test_loss, 2.0)
        minutes = seen.visual_seconds.iloc[0] / 60
        text = "visual stage: at most 30 minutes"
        rows.append(f"| {text} | {minutes:.1f} | | {mark(minutes <= 30)} |")
    return rows


def mark(met: bool) -> str:
    return "met" if met else "missed"


def table(frame: pd.DataFrame) -> str:
    """Markdown: the means over seeds (and ranges) on test demonstrations, and the targets."""
    first = frame.drop_duplicates("seed")
    lines = [HEADER, "|---|---|---|---|---|---|---|"]
    nothing = span(first.test_loss_nothing, 0)
    lines.append(f"| none | doing nothing | {nothing} | 1 | 1 | | {len(first)} |")
    for key, rows in frame.groupby(GROUP, sort=False):
        cells = [key[0], label(*key[1:]), span(rows.test_loss, 0), span(rows.test_loss_ratio, 3)]
        cells += [span(rows.test_goal_ratio, 3), f"{rows.seconds.mean():.0f}", str(len(rows))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *verdicts(frame)])


def draw_losses(folder: Path) -> None:
    """losses.png from curves.csv: L_IRL over updates of the cost, train and test, three costs."""
    curves = pd.read_csv(folder / "curves.csv")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for axis, split in zip(axes, ("train", "test")):
        for cost, colour in COLOURS.items():
            for suffix, style in (("", "-"), ("-detached", ":")):
                name = cost + suffix
                chosen = curves[curves["name"] == name]
                rows = chosen.groupby("updates")[f"{split}_loss_ratio"]
                text = cost + (", state detached" if suffix else "")
                axis.plot(rows.mean(), style, color=colour, label=text)
                if not suffix:
                    axis.fill_between(
                        rows.mean().index, rows.min(), rows.max(), color=colour, alpha=0.2, lw=0
                    )
        axis.axhline(1, color="grey", lw=0.8)
        axis.set(title=f"{split} demonstrations", xlabel="updates of the cost", yscale="log")
    axes[0].set_ylabel("L_IRL over that of doing nothing")
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    with replacing(folder / "losses.png") as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def readme_block() -> str:
    """What README holds between the markers."""
    return "\n" + table(pd.read_csv(HERE / "data" / "compare.csv")) + "\n"


def adopt(folder: Path) -> None:
    """Copies a comparison's table, curves, figure and film to mbirl/data."""
    film = folder / "runs" / "rbf" / "seed10" / "film.gif"
    for file in (*(folder / name for name in ("compare.csv", "curves.csv", "losses.png")), film):
        with replacing(HERE / "data" / file.name) as temporary:
            shutil.copyfile(file, temporary)


def write_readme() -> None:
    """Rewrites README's block; everything else stays."""
    path = HERE / "README.md"
    before, rest = path.read_text().split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    with replacing(path) as temporary:
        temporary.write_text(before + MARKERS[0] + readme_block() + MARKERS[1] + after)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        adopt(Path(argument))
    write_readme()
