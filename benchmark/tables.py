"""Finished runs as tables and statistics: result.json and origin.json in, Markdown out.

from benchmark.tables import headline_table, read_runs
print(headline_table(read_runs(Path("results"))))
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, mannwhitneyu, trim_mean

import custom_irl as irl
from benchmark import runs
from benchmark.runs import ENVS

KEY = ["method", "variant", "panel", "labels", "env", "seed"]
AMOUNTS_USED = ("expert_transitions", "mixed_transitions", "expert_queries")  # and "steps"
COLUMNS = [
    *KEY, "steps", *AMOUNTS_USED, "eval_return_mean", "eval_return_std", "normalized_return",
    "sampled_return_mean", "steps_per_second", "minutes", "date", "git_commit", "git_clean",
    "mujoco", "cpu",
]  # fmt: skip
NUMBERS = ("eval_return_mean", "eval_return_std", "steps_per_second")
CONTROLS = ("expert", "random")  # rows of results.csv that no run wrote: from the cards
FRESH = "fresh-seeds"  # label of runs of FRESH_SEEDS: a row of their own


# -------------------------------------------------------------------------------------------- runs
def read_runs(results: Path) -> pd.DataFrame:
    """A row for each result.json below `results`: COLUMNS and the run's id, demonstrations, code
    and folder.

    A run that is there twice, as in a backup, counts once, and a line says so. A result.json
    without a schema is of another program, as of `python -m mbirl`, and no row.

    Raises:
        UserError: naming a result.json that no run of this version wrote.
    """
    paths = sorted(results.rglob("result.json"))
    rows = [read_row(path.parent) for path in paths if "schema" in runs.read_json(path)]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "id", "demos_sha256", "code", "folder"])
    for _, copies in frame[frame.duplicated("id", keep=False)].groupby("id"):
        first, *others = copies["folder"]
        print(f"{', '.join(others)}: the run in {first} again; counted once")
    frame = frame.drop_duplicates("id")
    for _, twice in frame[frame.duplicated(KEY, keep=False)].groupby(KEY):
        print(f"{', '.join(twice['folder'])}: different runs of one row and seed; all count")
    for _, row in frame.groupby(KEY[:-1]):  # of all seeds
        for column, what in (("demos_sha256", "demonstrations"), ("code", "code or settings")):
            if row[column].nunique() > 1:
                print(f"{', '.join(row['folder'])}: one row, but different {what}")
    frame = frame.astype({"normalized_return": float, "git_clean": bool})
    return frame.sort_values(KEY, ignore_index=True)


def read_row(folder: Path) -> dict:
    result = runs.read_result(folder)
    path = folder / "origin.json"
    origin = runs.read_json(path) if path.exists() else {}
    try:
        config = result["config"]
        labels = runs.labels_of(config, origin.get("quick", False))
        labels += runs.changed(result["method"], result.get("hyperparameters", {}))
        row = {
            **{key: result[key] for key in ("method", "env", "seed", "steps", "date", "id")},
            **{key: result[key] for key in (*NUMBERS, "normalized_return")},
            **amounts_used(result),
            "variant": runs.variant_of(result["method"], config),
            "panel": runs.panel_of(config),
            "labels": " ".join(labels),
            "sampled_return_mean": result["evaluation"]["sampled"]["mean"],
            "minutes": sum(result["seconds"].values()) / 60,
            "git_commit": origin.get("git_commit") or "",
            "git_clean": origin.get("git_clean") is True,
            "mujoco": result["versions"]["mujoco"],
            "cpu": origin.get("hardware", {}).get("cpu", ""),
            "demos_sha256": result.get("demos", {}).get("sha256"),  # None without demonstrations
            "code": code_of(result, origin),
            "folder": str(folder),
        }
        check_row(row)
        if own_seed(row["seed"], row["variant"]) in runs.FRESH_SEEDS:
            row["labels"] = " ".join([*labels, FRESH])
        return row
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{error!r}; expected a result.json that a run wrote"
        raise irl.UserError(f"{folder / 'result.json'}: {problem}") from None


def code_of(result: dict, origin: dict) -> str:
    """The hashes of a run's source files, as far as they are known, and its hyperparameters."""
    files = origin.get("identity", {}).get("code", {})
    return json.dumps([files, result.get("hyperparameters", {})], sort_keys=True)


def own_seed(seed, variant):
    """Seeds of runs; where the reward was frozen, of the run that learned it: one less."""
    return seed - (variant == "frozen")


def amounts_used(result: dict) -> dict[str, int]:
    """What a run learned from, beside environment steps."""
    expert = result.get("demos", {}).get("transitions", 0)  # of results without "data"
    used = {"expert_transitions": expert, **result.get("data", {})}
    return {key: used.get(key, 0) for key in AMOUNTS_USED}


def check_row(row: dict) -> None:
    """ValueError naming the key for what cannot stand in a table."""
    numbers = [*NUMBERS, "sampled_return_mean"]
    if row["normalized_return"] is not None:
        numbers.append("normalized_return")
    for key in numbers:
        if not isinstance(row[key], int | float) or not np.isfinite(row[key]):
            raise ValueError(f"{key}: {row[key]!r}, expected a finite number")
    kinds = dict.fromkeys(("seed", "steps", *AMOUNTS_USED), int)
    for key, kind in (kinds | dict.fromkeys(("method", "env", "date", "id"), str)).items():
        if not isinstance(row[key], kind):
            raise ValueError(f"{key}: {row[key]!r}, expected {kind.__name__}")


def read_published(path: Path = runs.PUBLISHED / "results.csv") -> pd.DataFrame:
    frame = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS)
    return frame.assign(labels=frame["labels"].fillna("").astype(str))


def merge_published(path: Path, fresh: pd.DataFrame, key: Sequence[str] = KEY) -> pd.DataFrame:
    """Puts `fresh` into a file of published runs, in place of its rows of the same runs: those
    with the same values in the columns `key`, which the file is sorted by.

    Raises:
        UserError: if two of `fresh`, with different ids, are the same run.
    """
    key = list(key)
    twice = fresh[fresh.duplicated(key, keep=False)]
    if len(twice):
        problem = "runs of the same method, environment and seed; expected one of them"
        raise irl.UserError(f"{', '.join(twice['folder'].astype(str))}: {problem}")
    if path.exists():
        both = pd.concat([read_published(path), fresh[COLUMNS]])
        fresh = both[~both[key].astype(str).duplicated(keep="last")]
    with irl.replacing(path) as temporary:
        fresh[COLUMNS].sort_values(key).to_csv(temporary, index=False)
    return read_published(path)


def has_only(frame: pd.DataFrame, labels: str) -> pd.Series:
    """Whether each row has no label but those that the regular expression `labels` matches."""
    return frame["labels"].str.fullmatch(f"(?:(?:{labels}) ?)*")


def row_name(run: pd.Series) -> str:
    return "-".join([run["method"], *run["labels"].split()])


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """With a column `name`: method and labels."""
    return frame.assign(name=[row_name(run) for _, run in frame.iterrows()])


def of_panel(frame: pd.DataFrame, panel: str) -> pd.DataFrame:
    """The rows of one panel, with its name taken out of their labels."""
    frame = frame[(frame["panel"] == panel) & ~frame["method"].isin(CONTROLS)]
    labels = [" ".join(x for x in words.split() if x != panel) for words in frame["labels"]]
    return frame.assign(labels=labels)


def environments(frame: pd.DataFrame) -> list[str]:
    """The benchmark's environments, where there is a run in one, then all others."""
    found = set(frame["env"])
    others = sorted(found - set(ENVS))
    return [*(ENVS if found & set(ENVS) or not others else ()), *others]


def project_card(env: str) -> dict | None:
    """The card of this project's demonstrations."""
    card, _ = irl.load_card(irl.ROOT / "demos" / f"{env}.npz", env)
    return card


def card_of(frame: pd.DataFrame, env: str) -> dict | None:
    """The card of this project's demonstrations, if a run in `env` is normalised by it.

    Runs of own demonstrations are not: their expert is another one.
    """
    card = project_card(env)
    of_env = frame[frame["env"] == env]
    if card is None:
        return None
    own = of_env["eval_return_mean"].map(lambda score: irl.normalized(score, card))
    return card if np.isclose(own.astype(float), of_env["normalized_return"]).any() else None


# ---------------------------------------------------------------------------------------- Markdown
def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def block_marks(name: str) -> tuple[str, str]:
    return f"<!-- begin: {name} -->", f"<!-- end: {name} -->"


def read_block(path: Path, name: str) -> str:
    """What stands between a file's marks for `name`."""
    begin, end = block_marks(name)
    text = path.read_text()
    if begin not in text or end not in text:
        raise irl.UserError(f"{path}: no block {name}; expected the lines {begin} and {end}")
    return text.partition(begin)[2].partition(end)[0].strip()


def write_block(path: Path, name: str, block: str) -> None:
    read_block(path, name)  # raises if there is none
    begin, end = block_marks(name)
    before, _, rest = path.read_text().partition(begin)
    irl.write_text(path, f"{before}{begin}\n{block.strip()}\n{end}{rest.partition(end)[2]}")


# ------------------------------------------------------------------------------------------ tables
def score_cell(scores: pd.DataFrame) -> str:
    """mean ± sample standard deviation over seeds (normalised), of the runs of one cell."""
    if scores.empty:
        return ""
    returns, shares = scores["eval_return_mean"], scores["normalized_return"]
    spread = f" ± {returns.std():.0f}" if len(returns) > 1 else ""
    share = f" ({shares.mean():.2f})" if shares.notna().all() else ""
    few = "" if len(returns) > 2 else f", {len(returns)} run" + "s" * (len(returns) > 1)
    return f"{returns.mean():.0f}{spread}{share}{few}"


def headline_table(frame: pd.DataFrame) -> str:
    """method x environment, and the expert and the random policy where they normalise a run.

    The last columns say what each row learned from.
    """
    envs = environments(frame)
    cards = [card_of(frame, env) for env in envs]
    experts = [f"{c['expert']['demos']['return_mean']:.0f}" if c else "" for c in cards]
    randoms = [f"{c['random']['return_mean']:.0f}" if c else "" for c in cards]
    rows = []
    for name, group in named(frame).groupby("name"):
        cells = [score_cell(group[group["env"] == env]) for env in envs]
        rows.append([f"**{name}**", *cells, *amount_cells(group)])
    none = ["", "", ""]
    above = [["expert (this project's demonstrations)", *experts, *none]] if any(experts) else []
    below = [["random policy", *randoms, *none]] if any(randoms) else []
    header = ["final policy", *envs, "demonstrated transitions", "mixed", "environment steps"]
    return markdown_table(header, [*above, *rows, *below])


def amount_cells(runs_of_row: pd.DataFrame) -> list[str]:
    """Demonstrated transitions (and those that an expert was asked for), mixed ones, steps."""
    demonstrated = amount(runs_of_row["expert_transitions"])
    if runs_of_row["expert_queries"].any():
        demonstrated += f" and {amount(runs_of_row['expert_queries'])} asked for"
    return [demonstrated, amount(runs_of_row["mixed_transitions"]), amount(runs_of_row["steps"])]


def amount(numbers: pd.Series) -> str:
    """One number, or the range of several."""
    low, high = numbers.min(), numbers.max()
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


def commits(frame: pd.DataFrame) -> str:
    """The commits of these runs, short (*: and changes on top)."""
    marks = frame["git_clean"].map({True: "", False: "*"})
    return ", ".join((frame["git_commit"].fillna("").str[:7] + marks).unique())


def seeds_table(frame: pd.DataFrame) -> str:
    """A row for each method and environment: every seed, the worst one, speed, commits."""
    rows = []
    for (name, env), group in named(frame).groupby(["name", "env"]):
        group = group.sort_values("seed")
        worst = group.loc[group["eval_return_mean"].idxmin()]
        share = group["normalized_return"].mean()
        pairs = zip(group["seed"], group["eval_return_mean"])
        rows.append([
            name,
            env,
            ", ".join(f"{seed}: {score:.0f}" for seed, score in pairs),
            "" if np.isnan(share) else f"{share:.3f}",
            f"{worst['eval_return_mean']:.0f} (seed {worst['seed']})",
            f"{group['minutes'].mean():.1f}",
            f"{group['steps_per_second'].mean():.0f}",
            commits(group),
        ])  # fmt: skip
    header = ["method", "environment", "return of each seed", "normalised mean", "worst"]
    return markdown_table([*header, "minutes", "steps/s", "commit"], rows)


def interquartile_mean(*scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half of all scores; one array per environment (arXiv 2108.13264)."""
    return trim_mean(np.concatenate(scores, axis=axis), 0.25, axis=axis)


def iqm_interval(scores: list[np.ndarray]) -> tuple[float, float, float]:
    """Interquartile mean and its 95 % stratified bootstrap interval: scipy resamples each array.

    Of two scores or more in each array.
    """
    method = {"n_resamples": 2000, "method": "percentile", "rng": 0}
    interval = bootstrap(scores, interquartile_mean, **method).confidence_interval
    return float(interquartile_mean(*scores)), float(interval.low), float(interval.high)


def probability_of_improvement(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """P(a run of ours scores above one of theirs), ties half, mean over environments."""
    pairs = zip(ours, theirs)
    return float(np.mean([mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in pairs]))


def scores_by_env(frame: pd.DataFrame) -> list[np.ndarray]:
    """Normalised returns in each of the benchmark's environments; [] if one has none."""
    scores = [
        frame.loc[frame["env"] == env, "normalized_return"].dropna().to_numpy(float) for env in ENVS
    ]
    return scores if all(len(x) for x in scores) else []


def aggregate_table(frame: pd.DataFrame) -> str:
    """Interquartile mean with its interval, and how often `custom` scores above a row.

    Of the rows with two runs or more in each of the benchmark's environments.
    """
    scores = {name: scores_by_env(group) for name, group in named(frame).groupby("name")}
    scores = {name: x for name, x in scores.items() if x and min(map(len, x)) > 1}
    ours = scores.get("custom")
    rows = []
    for name, theirs in scores.items():
        mean, low, high = iqm_interval(theirs)
        row = [name, str(sum(map(len, theirs))), f"{mean:.3f} [{low:.3f}, {high:.3f}]"]
        if ours:
            wins = "" if name == "custom" else f"{probability_of_improvement(ours, theirs):.2f}"
            row.append(wins)
        rows.append(row)
    if not rows:
        return ""
    header = ["over environments, normalised", "runs", "interquartile mean [95 % interval]"]
    header += ["P(custom above it)"] if ours else []
    return "\n" + markdown_table(header, rows)


def cards_table() -> str:
    """The cards of this project's demonstrations."""
    rows = []
    for env in ENVS:
        card = project_card(env)
        row = [env]
        for which in (card["expert"]["demos"], card["expert"]["fresh"]):
            spread = f"{which['return_mean']:.0f} ± {which['return_std']:.0f}"
            row += [spread, f"{which['return_min']:.0f}"]
        rows.append([*row, f"{card['random']['return_mean']:.1f}"])
    header = ["", "recorded episodes", "minimum", "fresh episodes", "minimum", "random policy"]
    return markdown_table(header, rows)


def leaderboard_table() -> str:
    """The published numbers. From other demonstrations, so never compared for better or worse."""
    board = pd.read_csv(runs.PUBLISHED / "leaderboard.csv")
    rows = []
    for _, r in board.iterrows():
        scores = (r["halfcheetah_v4"], r["hopper_v4"], r["walker2d_v4"])
        cells = ["" if pd.isna(x) else f"{x:.0f}" for x in scores]
        rows.append([f"{r['method']} ({r['kind']})", r["source"], str(r["seed"]), *cells])
    return markdown_table(["published, other demonstrations", "source", "seed", *ENVS], rows)


def cleanil_table(published: pd.DataFrame) -> str:
    """CleanIL's methods: normalised returns here, beside those that CleanIL publishes.

    Theirs: one seed, other demonstrations (D4RL's), other sizes and budgets.
    """
    theirs = pd.read_csv(runs.PUBLISHED / "cleanil.csv", index_col="method")
    rows = []
    for name in [*theirs.index, "iqlearn-online", "dagger"]:
        frame = chosen(published, name, "full", "dense")
        cells = [share_cell(frame[frame["env"] == env]) for env in ENVS]
        minutes = f"{frame['minutes'].median():.0f}" if len(frame) else ""
        there = [""] * 4
        if name in theirs.index:
            known = theirs.loc[name]
            there = [*(f"{known[e] / 100:.2f}" for e in ENVS), known["steps"]]
        rows.append([name, *cells, minutes, *there])
    short = [env.split("-")[0] for env in ENVS]
    header = ["", *short, "minutes", *(f"CleanIL: {env}" for env in short), "CleanIL's budget"]
    return markdown_table(header, rows)


def share_cell(frame: pd.DataFrame) -> str:
    """Mean and lowest normalised return of the runs of one cell."""
    scores = frame["normalized_return"]
    return f"{scores.mean():.2f} ({scores.min():.2f})" if len(scores) else "not run"


# --------------------------------------------------------------------------- README's only table
HEADLINE = {  # row of README's table: methods, of which a cell shows the best one; variant
    "**custom, with policy access**": (("custom",), "full"),
    "**custom, reward only**": (("custom",), "reward-only"),
    "behaviour cloning": (("bc",), "full"),
    "IQ-Learn, offline": (("iqlearn",), "full"),
    "AIRL": (("airl", "airl-v2"), "full"),
    "GAIL": (("gail", "gail-v2"), "full"),
    "PPO on the true reward": (("oracle",), "full"),
}
AMOUNTS = {"dense": "50 episodes", "scarce": "1,000", "tiny": "200", "one": "50 transitions"}


def chosen(published: pd.DataFrame, method: str, variant: str, panel: str) -> pd.DataFrame:
    """The runs of a method in one of the HEADLINE's cells; the oracle uses no demonstrations.

    Of the fresh seeds alone where all have been run in each environment, else of SEEDS.
    """
    rows = published[(published["method"] == method) & (published["variant"] == variant)]
    plain = rows[rows["panel"] == ("dense" if method == "oracle" else panel)]
    own = plain[has_only(plain, f"reward-only|{FRESH}|{panel}")]
    fresh = own["seed"].isin(runs.FRESH_SEEDS)
    complete = own[fresh].groupby("env")["seed"].nunique().reindex(ENVS) == len(runs.FRESH_SEEDS)
    return own[fresh] if complete.all() else own[~fresh]


def intervals(
    published: pd.DataFrame, methods: tuple[str, ...], variant: str, panel: str
) -> dict[str, tuple[float, float, float]]:
    """Interquartile mean and its interval of those of the methods that have run all seeds."""
    scores = {name: scores_by_env(chosen(published, name, variant, panel)) for name in methods}
    complete = {k: x for k, x in scores.items() if x and min(map(len, x)) >= len(runs.SEEDS)}
    return {name: iqm_interval(x) for name, x in complete.items()}


def readme_table(published: pd.DataFrame) -> str:
    """Interquartile mean [interval] of each row and amount of demonstrations, and what it hides."""
    rows, missing, worst, versions, fresh = [], [], [], [], []
    for title, (methods, variant) in HEADLINE.items():
        cells = []
        for panel, amount in AMOUNTS.items():
            found = intervals(published, methods, variant, panel)
            if not found:
                cells.append("—")
                missing.append(f"{title.strip('*')} with {amount}")
                continue
            method = max(found, key=found.get)
            mean, low, high = found[method]
            cells.append(f"{mean:.2f} [{low:.2f}, {high:.2f}]")
            frame = chosen(published, method, variant, panel)
            if frame["seed"].isin(runs.FRESH_SEEDS).all():
                fresh.append(f"{title.strip('*')} with {amount}")
            if method == "custom":
                lowest = frame.loc[frame["normalized_return"].idxmin()]
                worst.append((amount, variant, lowest))
            if len(found) > 1:
                versions.append(f"`{method}` with {amount}")
        rows.append([title, *cells])
    table = markdown_table(["final policy", *AMOUNTS.values()], rows)
    return table + "\n" + readme_notes(published, missing, worst, versions, fresh)


def readme_notes(
    published: pd.DataFrame,
    missing: list[str],
    worst: list[tuple],
    versions: list[str],
    fresh: list[str],
) -> str:
    """Under the table: what a number is, command and time, the worst runs, which of two versions of
    a baseline is shown, which cells are of the ten fresh seeds, what is not run yet.
    """
    names = {"full": "with policy access", "reward-only": "reward only"}
    custom = pd.concat(chosen(published, "custom", variant, "dense") for variant in names)
    hidden = [
        f"{run['normalized_return']:.2f} ({run['env'].split('-')[0]}, seed {run['seed']}, "
        f"{amount}, {names[variant]})"
        for amount, variant, run in worst
    ]
    minutes = custom["minutes"].sum()
    study = "bash run_all.sh --study benchmark/studies/ten-seeds.toml"
    of_study = dict.fromkeys(custom["seed"].isin(runs.FRESH_SEEDS))
    commands = [f"`{study if own else 'bash run_all.sh'}`" for own in of_study]
    lines = [
        f"Interquartile mean [95 % interval] of the normalised return (0: random policy, 1: expert)"
        f" over {', '.join(ENVS)} and {len(runs.SEEDS)} seeds: final policy, 10 deterministic"
        " episodes. PPO on the true reward uses no demonstrations.",
        f"{' and '.join(commands)} make{'s' * (len(commands) < 2)} the first column of both"
        f" `custom` rows: {len(custom)} runs, {minutes:.0f} minutes of one core in all.",
        f"The worst runs that these means hide: {'; '.join(hidden)}.",
    ]
    if versions:
        lines.append(f"The better one, where two versions have been run: {', '.join(versions)}.")
    if fresh:
        seeds = f"{runs.FRESH_SEEDS[0]} to {runs.FRESH_SEEDS[-1]}"
        lines.append(f"Seeds {seeds} instead, on which nothing was tuned: {'; '.join(fresh)}.")
    if missing:
        lines.append(f"Not run yet: {'; '.join(missing)}.")
    return "\n".join(f"- {line}" for line in lines)


# ------------------------------------------------------------------------------------------ curves
def read_metrics(path: Path) -> pd.DataFrame:
    """steps and true_return of the rollouts in which an episode ended."""
    try:
        metrics = pd.read_csv(path, usecols=["steps", "true_return"], dtype=float)
    except ValueError as error:  # pandas' own errors are ValueErrors
        problem = "expected columns steps and true_return of numbers"
        raise irl.UserError(f"{path}: {problem} ({str(error).splitlines()[0]})") from None
    return metrics.dropna().astype({"steps": int})


def read_curves(frame: pd.DataFrame) -> pd.DataFrame:
    """About 100 points a run: mean true return of the training episodes of the last 20 rollouts."""
    of_run = [*KEY, "id"]
    columns = [*of_run, "steps", "true_return"]
    # Not of a run without environment steps, nor of one whose actions are partly the expert's.
    drawn = frame[(frame["steps"] > 0) & (frame["expert_queries"] == 0)]
    curves = []
    for run in drawn.to_dict("records"):
        metrics = read_metrics(Path(run["folder"]) / "metrics.csv")
        smooth = metrics["true_return"].rolling(20, min_periods=1).mean().round(1)
        every = max(1, len(metrics) // 100)
        points = metrics.assign(true_return=smooth).iloc[every - 1 :: every]
        curves.append(points.assign(**{key: run[key] for key in of_run}))
    return pd.concat(curves)[columns] if curves else pd.DataFrame(columns=columns)


def mean_curve(curves: list[pd.Series]) -> pd.Series:
    """The mean of curves over steps, where all have begun and none has ended; linear between."""
    table = pd.concat(curves, axis=1).sort_index()
    table = table.interpolate(method="index", limit_area="inside")
    return table.mean(axis=1, skipna=False).dropna()


def best_names(frame: pd.DataFrame, most: int = 8) -> list[str]:
    """Row names by mean return, best first: at most `most`, rows of `custom` before all others."""
    column = "normalized_return" if frame["normalized_return"].notna().all() else "eval_return_mean"
    order = named(frame).groupby("name")[column].mean().sort_values(ascending=False).index
    ours = [name for name in order if is_ours(name)]
    kept = (ours + [name for name in order if name not in ours])[:most]
    return [name for name in order if name in kept]


def is_ours(name: str) -> bool:
    return name == "custom" or name.startswith("custom-")
