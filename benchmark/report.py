"""Writes the tables and figures of the runs below results/.

    python -m benchmark.report              # summary.csv, summary.md, curves-ENV.png, returns.png
    python -m benchmark.report --publish    # also the benchmark's own runs into benchmark/data/
    python -m benchmark.report --blocks     # only README's tables again, from benchmark/data/

Every number comes from a result.json that a run wrote, or from the committed rows of such files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import custom_irl as irl
from benchmark import runs, tables
from benchmark.diagnose import outputs

OURS, OTHERS = "#d1242f", "#8c959f"
PANEL_TITLES = {
    "dense": "50 episodes, every transition",
    "scarce": "20 episodes, every 20th transition",
    "tiny": "4 episodes, every 20th transition",
    "one": "1 episode, every 20th transition",
}


@dataclass(frozen=True)
class Config:
    results: Path = runs.RESULTS
    """folder with the runs"""
    publish: bool = False
    """merge full runs of committed code into benchmark/data/results.csv; write figure and blocks"""
    blocks: bool = False
    """write nothing but the published tables and figure again, from benchmark/data/results.csv"""


# ----------------------------------------------------------------------------------------- figures
def color_of(name: str) -> str:
    return OURS if tables.is_ours(name) else OTHERS


def draw_returns(frame: pd.DataFrame, path: Path, most: int = 8) -> None:
    """Normalised final returns: a line of dots for each row, one dot per seed, a bar at the mean.

    One column per environment, one row of plots per panel. Rows, at most `most`, are sorted by
    mean.
    """
    frame = frame[frame["normalized_return"].notna() & ~frame["method"].isin(tables.CONTROLS)]
    panels = [panel for panel in runs.PANELS.values() if panel in set(frame["panel"])]
    panels = [panel for panel in panels if len(tables.of_panel(frame, panel))]
    envs = [env for env in runs.ENVS if env in set(frame["env"])]
    if not panels or not envs:
        return
    size = (3.1 * len(envs) + 1.6, 2.2 * len(panels) + 0.4)
    figure = Figure(size, layout="constrained")
    axes = figure.subplots(len(panels), len(envs), sharex=True, squeeze=False)
    for ax, env in zip(axes[0], envs):
        ax.set_title(env, fontsize=11)
    for row, panel in zip(axes, panels):
        of_panel = tables.named(tables.of_panel(frame, panel))
        names = tables.best_names(of_panel, most)[::-1]
        for ax, env in zip(row, envs):
            draw_dots(ax, of_panel[of_panel["env"] == env], names)
            ax.set_yticks(range(len(names)), names if ax is row[0] else [""] * len(names))
            for label, name in zip(ax.get_yticklabels(), names):
                label.set_color(color_of(name) if tables.is_ours(name) else "#57606a")
        row[0].set_ylabel(panel, fontsize=11)
    for ax in axes[-1]:
        ax.set_xlabel("normalised return")
    runs.save_figure(figure, path, dpi=130)


def draw_dots(ax: Axes, frame: pd.DataFrame, names: list[str]) -> None:
    for y, name in enumerate(names):
        scores = frame.loc[frame["name"] == name, "normalized_return"]
        if scores.empty:
            continue
        ax.plot(scores, [y] * len(scores), "o", color=color_of(name), markersize=4, alpha=0.8)
        ax.plot([scores.mean()] * 2, [y - 0.3, y + 0.3], color=color_of(name), linewidth=2.5)
    ax.axvline(1, color="#1f2328", linewidth=0.8, linestyle="--")
    ax.axvline(0, color="#d0d7de", linewidth=0.8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0, labelsize=9)


def draw_curves(frame: pd.DataFrame, folder: Path) -> None:
    """curves-ENV.png: true return of training episodes, a thick line for a mean, thin for seeds."""
    curves = tables.read_curves(frame)
    for env, of_env in tables.named(curves).groupby("env"):
        names = tables.best_names(frame[frame["env"] == env])
        figure = Figure((7.5, 4.2), layout="constrained")
        ax = figure.subplots()
        for i, name in enumerate(names):
            group = of_env[of_env["name"] == name]
            if group.empty:
                continue
            draw_curve(ax, group, name, i / max(1, len(names) - 1))
        if card := tables.card_of(frame, env):
            expert = card["expert"]["demos"]["return_mean"]
            ax.axhline(expert, color="#1f2328", linestyle="--", linewidth=1, label="expert")
        title = f"{env}: training episodes, with exploration noise"
        ax.set(title=title, xlabel="environment steps", ylabel="true return")
        ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1e3:g}k")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        runs.save_figure(figure, folder / f"curves-{env}.png", dpi=130)


def draw_curve(ax: Axes, group: pd.DataFrame, name: str, place: float) -> None:
    """`place`: 0 for the best row, 1 for the worst; it sets the shade of grey."""
    color = OURS if tables.is_ours(name) else str(0.35 + 0.4 * place)
    seeds = [one.set_index("steps")["true_return"] for _, one in group.groupby("id")]
    for seed in seeds:
        ax.plot(seed.index, seed, color=color, alpha=0.3, linewidth=0.8)
    mean = tables.mean_curve(seeds)
    ax.plot(mean.index, mean, color=color, linewidth=2, label=name)


# -------------------------------------------------------------------------------------------- text
def summary(frame: pd.DataFrame) -> str:
    text = (
        "# Results\n\nEvaluation return of the final policy in 10 deterministic episodes: mean ±"
        " sample standard deviation over seeds, in brackets normalised (0: random policy, 1:"
        " expert) where the demonstrations have a card.\n\n"
    )
    if frame["labels"].str.contains("quick").any():
        text += "Rows with -quick in their name are a short look, not results.\n\n"
    text += panel_tables(frame)
    text += "### Every seed\n\n" + tables.seeds_table(frame)
    if set(frame["env"]) & set(runs.ENVS):
        text += "\n## Published numbers, from other demonstrations\n\n"
        text += "Not comparable with the rows above: their demonstrations are not public.\n\n"
        text += tables.leaderboard_table()
    return text


def panel_tables(frame: pd.DataFrame) -> str:
    """For each panel that has runs its tables: rows are compared within a panel alone."""
    text = ""
    for panel in dict.fromkeys([*PANEL_TITLES, *frame["panel"]]):
        if len(rows := tables.of_panel(frame, panel)):
            title = f"{panel}: {PANEL_TITLES[panel]}" if panel in PANEL_TITLES else panel
            text += f"**{title}**\n\n"
            text += f"{tables.headline_table(rows)}{tables.aggregate_table(rows)}\n"
    return text


def panels_block(published: pd.DataFrame) -> str:
    text = panel_tables(published)
    frame = published[~published["method"].isin(tables.CONTROLS)]
    cores = ", ".join(f"{n} on an {cpu}" for cpu, n in frame["cpu"].value_counts().items())
    return text + (
        f"{len(frame)} runs of as many environment steps as their row says, one core each: {cores};"
        f" MuJoCo {frame['mujoco'].mode()[0]}.\n"
    )


def fuzz_block() -> str:
    """The figures that tests/fuzz_demos.py left."""
    found = runs.read_json(runs.PUBLISHED / "fuzz.json")
    outcomes = ("read", "refused")
    rows = [
        [name, *(str(counts.get(outcome, 0)) for outcome in outcomes)]
        for name, counts in found["formats"].items()
    ]
    return tables.markdown_table(["format", "read", "refused with one line"], rows) + (
        f"\n{found['files']} files (seed {found['seed']}), {len(found['failures'])} failures;"
        f" slowest {found['slowest_seconds']:.1f} s, peak memory"
        f" {found['peak_memory_mb']:.0f} MB.\n"
    )


def blocks() -> dict[tuple[Path, str], str]:
    """The generated blocks of the documents, by file and name, from the committed files alone."""
    published = tables.read_published()
    own = published[~published["method"].isin(tables.CONTROLS)]
    return {
        (irl.ROOT / "README.md", "results"): tables.readme_table(published),
        (irl.ROOT / "benchmark" / "README.md", "panels"): panels_block(published),
        (irl.ROOT / "benchmark" / "README.md", "cleanil"): tables.cleanil_table(published),
        (irl.ROOT / "benchmark" / "README.md", "seeds"): tables.seeds_table(own),
        (irl.ROOT / "benchmark" / "README.md", "rewards"): outputs.published_table(
            pd.read_csv(runs.PUBLISHED / "rewards.csv")
        ),
        (irl.ROOT / "benchmark" / "README.md", "fuzz"): fuzz_block(),
        (irl.ROOT / "demos" / "README.md", "cards"): tables.cards_table(),
    }


def write_blocks() -> None:
    for (path, name), text in blocks().items():
        tables.write_block(path, name, text)
    published = tables.read_published()
    rows = {(name, variant) for names, variant in tables.HEADLINE.values() for name in names}
    shown = [row in rows for row in zip(published["method"], published["variant"])]
    draw_returns(published[shown], runs.PUBLISHED / "returns.png", most=len(published))


# ----------------------------------------------------------------------------------------- publish
def control_rows() -> pd.DataFrame:
    """The expert's and the random policy's returns, from the cards of the demonstrations."""
    rows = []
    for env in runs.ENVS:
        card = tables.project_card(env)
        for method, which in (("expert", card["expert"]["demos"]), ("random", card["random"])):
            rows.append({
                "method": method, "variant": "full", "panel": "dense", "labels": "", "env": env,
                "seed": 0, "steps": 0, **dict.fromkeys(tables.AMOUNTS_USED, 0),
                "eval_return_mean": which["return_mean"],
                "eval_return_std": which["return_std"],
                "normalized_return": irl.normalized(which["return_mean"], card),
                "date": card["date"], "mujoco": card["versions"]["mujoco"],
            })  # fmt: skip
    return pd.DataFrame(rows, columns=tables.COLUMNS)


def official(frame: pd.DataFrame) -> pd.DataFrame:
    """The benchmark's own runs: its seeds, full budget, committed code, no label of another kind.

    Trainers of other libraries, which are slower, may have a smaller budget; their rows say so.
    """
    own = f"reward-only|{tables.FRESH}|{'|'.join(runs.PANELS.values())}"
    plain = tables.has_only(frame, own)
    smaller = tables.has_only(frame, rf"{own}|\d+-steps")
    theirs = frame["method"].str.startswith(runs.OTHER_LIBRARIES)
    seeds = tables.own_seed(frame["seed"], frame["variant"]).isin(runs.SEEDS + runs.FRESH_SEEDS)
    ablation = frame["method"].str.startswith("ablation-")
    benchmark = frame["env"].isin(runs.ENVS) & seeds & ~ablation
    return frame[(plain | (smaller & theirs)) & benchmark & frame["git_clean"]]


def publish(frame: pd.DataFrame) -> None:
    fresh = official(frame)
    if others := len(frame) - len(fresh):
        why = "other seeds or settings, or no clean commit"
        print(f"not published: {others} of {len(frame)} runs ({why})")
    if fresh.empty:
        expected = "expected full runs of a committed, clean tree"
        raise irl.UserError(f"results: no run to publish; {expected}")
    both = pd.concat([fresh, control_rows()])
    tables.merge_published(runs.PUBLISHED / "results.csv", both)
    write_blocks()


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Waits until no other process is in this block with `folder`: launchers may end together."""
    import fcntl  # POSIX only

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # NFS locks no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which releases the lock


def main(config: Config | None = None) -> None:
    config = config or Config()
    if config.blocks and config.publish:
        raise irl.UserError("--blocks and --publish: expected one; --publish writes the blocks too")
    if config.blocks:
        write_blocks()
        return
    with one_at_a_time(config.results):
        frame = tables.read_runs(config.results)
        if frame.empty:
            expected = "expected at least one finished run"
            raise irl.UserError(f"{config.results}: no result.json below it; {expected}")
        write_report(frame, config)


def write_report(frame: pd.DataFrame, config: Config) -> None:
    with irl.replacing(config.results / "summary.csv") as temporary:
        frame.drop(columns="folder").to_csv(temporary, index=False)
    text = summary(frame)
    irl.write_text(config.results / "summary.md", text)
    draw_curves(frame, config.results)
    draw_returns(frame, config.results / "returns.png")
    if config.publish:
        publish(frame)
    print(text)
    print(f"written to {config.results}: summary.md, summary.csv and figures")


if __name__ == "__main__":
    runs.command_line(lambda: main(tyro.cli(Config, description=__doc__)))
