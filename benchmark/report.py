"""Turns the runs under results/ into results/summary.csv, results/summary.md and a learning curve an environment.

    python report.py              # what run_all.sh calls at its end
    python report.py --html       # also results/report.html, one page for a browser; --films adds films to it
    python report.py --publish    # also: the runs that are the benchmark's own into benchmark/, README's table anew

Every number comes from a result.json that a run wrote; runs of another budget, panel or variant are rows of their own.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import tyro
from scipy.stats import bootstrap, mannwhitneyu, trim_mean

from custom_irl import PANELS, ROOT, UserError, load_card, normalized, replacing

matplotlib.use("Agg")  # nothing here needs a screen
import matplotlib.pyplot as plt

ENVS = ("HalfCheetah-v4", "Hopper-v4", "Walker2d-v4")
COLUMNS = (
    "method", "variant", "panel", "labels", "env", "seed", "steps", "eval_return_mean", "eval_return_std",
    "normalized_return", "sampled_return_mean", "steps_per_second", "minutes",
    "date", "git_commit", "git_clean", "mujoco", "cpu",
)  # fmt: skip
CONTROLS = ("expert", "random")  # rows of results.csv that no run wrote: they come from the demonstrations' cards
KEY = ["method", "variant", "panel", "labels", "env", "seed"]
BEGIN, END = "<!-- written by report.py -->", "<!-- end -->"


@dataclass(frozen=True)
class Config:
    results: Path = ROOT / "results"
    """folder with the runs"""
    publish: bool = False
    """merge full runs of committed code into benchmark/results.csv, redraw its curves, rewrite README's table"""
    html: bool = False
    """also write RESULTS/report.html, a page for a browser"""
    films: bool = False
    """with --html: film the middle seed of every row that has no film yet (benchmark/watch.py says what that needs)"""


# --------------------------------------------------------------------------------------------------------------- rows


def read_runs(results: Path) -> pd.DataFrame:
    """A row for each result.json below `results`: COLUMNS and the run's folder; UserError for a broken one."""
    rows = []
    for path in sorted(results.rglob("result.json")):
        try:
            r = json.loads(path.read_text())
            row = {key: r[key] for key in COLUMNS if key in r} | {
                "labels": " ".join(r["labels"]),
                "sampled_return_mean": r["evaluation"]["sampled"]["mean"],
                "minutes": sum(r["seconds"].values()) / 60,
                "mujoco": r["versions"]["mujoco"],
                "cpu": r["hardware"]["cpu"],
            }
            rows.append({**{key: row[key] for key in COLUMNS}, "folder": str(path.parent)})
        except (ValueError, KeyError) as error:
            raise UserError(f"{path}: {error!r}; expected a result.json that custom_irl.py wrote") from None
    return pd.DataFrame(rows, columns=[*COLUMNS, "folder"]).sort_values(KEY, ignore_index=True)


def row_name(run: pd.Series) -> str:
    return "-".join([run["method"], *run["labels"].split()])


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def read_block(path: Path) -> str:
    return path.read_text().partition(BEGIN)[2].partition(END)[0].strip()


def write_block(path: Path, block: str) -> None:
    """Replaces what stands between BEGIN and END in a file."""
    before, _, rest = path.read_text().partition(BEGIN)
    write_text(path, f"{before}{BEGIN}\n{block}{END}{rest.partition(END)[2]}")


def write_cards_table() -> None:
    write_block(ROOT / "demos" / "README.md", cards_table())


# ------------------------------------------------------------------------------------------------------------- tables


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def headline_table(runs: pd.DataFrame) -> str:
    """method x environment: mean ± sample standard deviation over seeds (normalised), and expert and random policy."""
    cards = {env: load_card(ROOT / "demos" / f"{env}.npz") for env in ENVS}
    expert = [
        "expert (demonstrations)",
        *(f"{c['expert']['demos']['return_mean']:.0f}" if c else "" for c in cards.values()),
    ]
    random = ["random policy", *(f"{c['random']['return_mean']:.0f}" if c else "" for c in cards.values())]
    rows = []
    for name, group in runs.groupby(runs.apply(row_name, axis=1), sort=True):
        cells = []
        for env in ENVS:
            scores = group.loc[group["env"] == env, "eval_return_mean"]
            share = normalized(scores.mean(), cards[env])
            cell = f"{scores.mean():.0f} ± {scores.std():.0f} ({share:.2f})" if len(scores) else ""
            cells.append({1: f"{scores.mean():.0f} ({share:.2f}), 1 run", 2: f"{cell}, 2 runs"}.get(len(scores), cell))
        rows.append([f"**{name}**", *cells])
    return markdown_table(["final policy", *ENVS], [expert, *rows, random])


def commits(runs: pd.DataFrame) -> str:
    """The commits of these runs, short (*: and changes on top)."""
    return ", ".join((runs["git_commit"].str[:7] + runs["git_clean"].map({True: "", False: " *"})).unique())


def seeds_table(runs: pd.DataFrame) -> str:
    """A row for each method and environment: every seed, the worst one, speed, commits."""
    rows = []
    for (name, env), group in runs.groupby([runs.apply(row_name, axis=1), "env"], sort=True):
        group = group.sort_values("seed")
        worst = group.loc[group["eval_return_mean"].idxmin()]
        rows.append([
            name, env, str(len(group)),
            ", ".join(f"{s}: {r:.0f}" for s, r in zip(group["seed"], group["eval_return_mean"])),
            f"{group['normalized_return'].mean():.3f}",
            f"{worst['eval_return_mean']:.0f} (seed {worst['seed']})",
            f"{group['minutes'].mean():.1f}",
            f"{group['steps_per_second'].mean():.0f}",
            commits(group),
        ])  # fmt: skip
    header = ["method", "environment", "runs", "return of each seed", "normalised mean", "worst", "minutes", "steps/s"]
    return markdown_table([*header, "commit"], rows)


def interquartile_mean(*scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half of all scores (Agarwal et al. 2021, arXiv 2108.13264); an array for each environment."""
    return trim_mean(np.concatenate(scores, axis=axis), 0.25, axis=axis)


def probability_of_improvement(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """P(a run of ours scores above one of theirs), ties half; the mean over environments (Agarwal et al. 2021)."""
    return float(np.mean([mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in zip(ours, theirs)]))


def aggregate_table(runs: pd.DataFrame) -> str:
    """Interquartile mean with its interval, and how often `custom` wins: methods with two runs or more everywhere."""
    scores = {}
    for name, group in runs.groupby(runs.apply(row_name, axis=1), sort=True):
        by_env = [group.loc[group["env"] == env, "normalized_return"].to_numpy(float) for env in ENVS]
        if all(len(x) > 1 for x in by_env):
            scores[name] = by_env
    rows = []
    for name, theirs in scores.items():
        # scipy resamples each environment's runs on their own, which is the stratified bootstrap.
        drawn = bootstrap(theirs, interquartile_mean, n_resamples=2000, method="percentile", rng=0)
        low, high = drawn.confidence_interval
        wins = "" if name == "custom" else f"{probability_of_improvement(scores.get('custom', theirs), theirs):.2f}"
        row = [name, str(sum(map(len, theirs))), f"{interquartile_mean(*theirs):.3f} [{low:.3f}, {high:.3f}]"]
        rows.append([*row, wins] if "custom" in scores else row)
    header = ["over environments, normalised", "runs", "interquartile mean [95 % interval]", "P(custom above it)"]
    return "\n" + markdown_table(header[: len(rows[0])], rows) if rows else ""


def cards_table() -> str:
    """The demonstrations' cards as a table."""
    rows = []
    for env in ENVS:
        if (card := load_card(ROOT / "demos" / f"{env}.npz")) is None:
            continue
        row = [env]
        for which in (card["expert"]["demos"], card["expert"]["fresh"]):
            row += [f"{which['return_mean']:.0f} ± {which['return_std']:.0f}", f"{which['return_min']:.0f}"]
        rows.append([*row, f"{card['random']['return_mean']:.1f}"])
    return markdown_table(["", "recorded episodes", "minimum", "fresh episodes", "minimum", "random policy"], rows)


def leaderboard_table() -> str:
    """The published numbers, from other demonstrations: a yardstick, never compared for better or worse."""
    board = pd.read_csv(ROOT / "benchmark" / "leaderboard.csv")
    rows = []
    for _, r in board.iterrows():
        scores = (r["halfcheetah_v4"], r["hopper_v4"], r["walker2d_v4"])
        rows.append(
            [
                f"{r['method']} ({r['kind']})",
                r["source"],
                str(r["seed"]),
                *("" if pd.isna(x) else f"{x:.0f}" for x in scores),
            ]
        )
    return markdown_table(["published, other demonstrations", "source", "seed", *ENVS], rows)


def summary(runs: pd.DataFrame) -> str:
    quick = runs["labels"].str.contains("quick")
    text = (
        "# Results\n\nEvaluation return of the final policy in 10 deterministic episodes: mean ± sample standard"
        " deviation over seeds, in brackets normalised (0 is the random policy, 1 the expert).\n\n"
    )
    if quick.any():
        text += "Rows ending in -quick are a two-minute look, not results.\n\n"
    return (
        text + headline_table(runs) + aggregate_table(runs)
        + "\n### Every seed\n\n" + seeds_table(runs)
        + "\n## Published numbers, from other demonstrations\n\n"
        + "Not comparable with the rows above: their demonstrations are not public.\n\n" + leaderboard_table()
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- curves


def read_curves(runs: pd.DataFrame) -> pd.DataFrame:
    """About 100 points a run: KEY, steps, and the mean true return of the training episodes of the last 20 rollouts."""
    curves, columns = [], [*KEY, "steps", "true_return"]
    for run in runs[runs["steps"] > 0].to_dict("records"):  # imitation's BC takes no steps
        metrics = pd.read_csv(Path(run["folder"]) / "metrics.csv")[["steps", "true_return"]].dropna()
        metrics["true_return"] = metrics["true_return"].rolling(20, min_periods=1).mean().round(1)
        every = max(1, len(metrics) // 100)
        curves.append(metrics.iloc[every - 1 :: every].assign(**{key: run[key] for key in KEY}))
    return pd.concat(curves)[columns] if curves else pd.DataFrame(columns=columns)


def mean_curve(curves: list[pd.Series]) -> pd.Series:
    """The mean of curves over steps, from where all have begun to where the first ends; linear between points."""
    table = pd.concat(curves, axis=1).sort_index().interpolate(method="index", limit_area="inside")
    return table.mean(axis=1, skipna=False).dropna()


def draw_curves(curves: pd.DataFrame, folder: Path) -> None:
    """curves-ENV.png: the true return of training episodes, every seed a thin line, a method's mean a thick one."""
    colors = plt.get_cmap("tab20").colors
    names = sorted({row_name(run) for _, run in curves.drop_duplicates(KEY).iterrows()})
    for env, of_env in curves.groupby("env"):
        figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        for name, group in of_env.groupby(of_env.apply(row_name, axis=1)):
            color = colors[names.index(name) % len(colors)]
            seeds = [points.set_index("steps")["true_return"] for _, points in group.groupby("seed")]
            for seed in seeds:
                axes.plot(seed.index, seed, color=color, alpha=0.35, linewidth=1)
            mean = mean_curve(seeds)
            axes.plot(mean.index, mean, color=color, linewidth=2, label=f"{name} ({len(seeds)} seeds)")
        if card := load_card(ROOT / "demos" / f"{env}.npz"):
            axes.axhline(card["expert"]["demos"]["return_mean"], color="black", linestyle="--", label="expert")
            axes.axhline(card["random"]["return_mean"], color="gray", linestyle=":", label="random policy")
        axes.set(title=env, xlabel="environment steps", ylabel="true return (sampled actions, last 20 rollouts)")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        with replacing(folder / f"curves-{env}.png") as temporary:
            figure.savefig(temporary, dpi=130, format="png")
        plt.close(figure)


# ------------------------------------------------------------------------------------------------------------ publish


def of_panel(runs: pd.DataFrame, panel: str) -> pd.DataFrame:
    """The rows of one panel, named without it."""
    runs = runs[(runs["panel"] == panel) & ~runs["method"].isin(CONTROLS)]
    return runs.assign(labels=[" ".join(x for x in labels.split() if x != panel) for labels in runs["labels"]])


def readme_block(published: pd.DataFrame) -> str:
    """What stands between BEGIN and END in README, made of benchmark/results.csv alone."""
    text = ""
    for (episodes, subsample), panel in PANELS.items():
        if len(runs := of_panel(published, panel)):
            every = "every transition" if subsample == 1 else f"every {subsample}th transition"
            text += f"**{panel}: {episodes} episode{'s' * (episodes > 1)}, {every}**\n\n"
            text += f"{headline_table(runs)}{aggregate_table(runs)}\n"
    runs = published[~published["method"].isin(CONTROLS)]
    custom = runs[(runs["method"] == "custom") & (runs["variant"] == "full") & (runs["panel"] == "dense")]
    cores = ", ".join(f"{n} of an {cpu}" for cpu, n in runs["cpu"].value_counts().items())
    return text + (
        f"{len(runs)} runs of {runs['steps'].max():,} steps unless their name says otherwise (behavioural cloning by"
        f" imitation takes none), one core each ({cores}), MuJoCo {runs['mujoco'].mode()[0]}. The"
        f" {len(custom)} of `custom`, dense, took {custom['minutes'].sum():.0f} minutes in all."
        " Every seed: [benchmark/README.md](benchmark/README.md); every run and its commit:"
        " [benchmark/results.csv](benchmark/results.csv).\n"
    )


def seeds_block(published: pd.DataFrame) -> str:
    return seeds_table(published[~published["method"].isin(CONTROLS)])


def control_rows() -> pd.DataFrame:
    """The expert's and the random policy's returns as rows of results.csv, from the demonstrations' cards."""
    rows = []
    for env in ENVS:
        card = load_card(ROOT / "demos" / f"{env}.npz")
        for method, which in (("expert", card["expert"]["demos"]), ("random", card["random"])):
            score = {"eval_return_mean": which["return_mean"], "eval_return_std": which["return_std"]}
            names = {"method": method, "variant": "full", "panel": "dense", "labels": "", "env": env, "seed": 0}
            origin = {"date": card["date"], "mujoco": card["versions"]["mujoco"]}
            share = {"normalized_return": normalized(which["return_mean"], card), "steps": 0}
            rows.append(names | score | share | origin)
    return pd.DataFrame(rows, columns=COLUMNS)


def read_published(path: Path = ROOT / "benchmark" / "results.csv") -> pd.DataFrame:
    frame = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS)
    return frame.assign(labels=frame["labels"].fillna("").astype(str))


def merge_published(path: Path, fresh: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    """Puts `fresh` into a file of published runs in place of what it holds of the same ones."""
    runs = set(fresh[KEY].astype(str).agg("|".join, axis=1))
    if path.exists():
        old = read_published(path)
        fresh = pd.concat([old[~old[KEY].astype(str).agg("|".join, axis=1).isin(runs)], fresh])
    with replacing(path) as temporary:
        fresh.sort_values(order).to_csv(temporary, index=False)
    return read_published(path)


def publish(runs: pd.DataFrame) -> None:
    """Merges the benchmark's own runs (no quick look, full budget, committed code) into benchmark/ and README.

    Trainers of other libraries, which are slower, may have a smaller budget; their rows then say so.
    """
    own = {"reward-only", "frozen", *PANELS.values()}
    shorter = runs["method"].str.startswith(("imitation-", "sb3-")) & ~runs["labels"].str.contains("quick")
    official = runs["labels"].map(lambda labels: set(labels.split()) <= own) | shorter
    fresh = runs[official & runs["git_clean"]]
    if fresh.empty:
        raise UserError("results/: no run to publish; expected full 1M-step runs of a committed, clean tree")
    folder = ROOT / "benchmark"
    published = merge_published(folder / "results.csv", pd.concat([fresh[list(COLUMNS)], control_rows()]), KEY)
    curves = merge_published(folder / "curves.csv", read_curves(fresh), [*KEY, "steps"])
    draw_curves(curves[(curves["panel"] == "dense") & (curves["variant"] == "full")], folder)
    write_block(ROOT / "README.md", readme_block(published))
    write_block(folder / "README.md", seeds_block(published))


def main(config: Config | None = None) -> None:
    config = config or Config()
    runs = read_runs(config.results)
    if runs.empty:
        raise UserError(f"{config.results}: no result.json below it; expected at least one finished run")
    with replacing(config.results / "summary.csv") as temporary:
        runs.drop(columns="folder").to_csv(temporary, index=False)
    write_text(config.results / "summary.md", text := summary(runs))
    draw_curves(read_curves(runs), config.results)
    if config.publish:
        publish(runs)
    if config.html:
        from benchmark.page import write_page  # plotly, which nothing else needs

        write_page(runs, config.results / "report.html", config.films)
    print(text)
    page = ", report.html" if config.html else ""
    print(f"written to {config.results}: summary.md, summary.csv, curves-*.png{page}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
