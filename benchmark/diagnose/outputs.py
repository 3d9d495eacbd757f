"""What an examination leaves: diagnosis.json, and from it diagnosis.md and a figure for each table.

The overview of several is a table with a row a run.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import custom_irl as irl
from benchmark import runs
from benchmark.diagnose.steps import ABOVE
from benchmark.diagnose.table import cell, columns, number, table_of
from benchmark.tables import markdown_table

SCHEMA = 2  # of diagnosis.json
HEADLINES = {  # of the overview: examination, column of its table, rows
    "ranking / untrained": ("ranking", "segments", ("learned", "untrained")),
    "distance / constant": ("distance", "mixed", ("learned", "constant")),
    "expert above own / truly": ("steps", ABOVE, ("learned", "true")),
    "fresh by loop / constant / true": ("retraining", "loop", ("learned", "constant", "true")),
    "fresh by sb3 / constant / true": ("retraining", "sb3", ("learned", "constant", "true")),
    "fresh by sac / constant / true": ("retraining", "sac", ("learned", "constant", "true")),
}
APPLIES = {True: "yes", False: "no", None: "unknown"}


def verdict(labels: list[dict]) -> str:
    """One sentence that says where to look."""
    applies = [label for label in labels if label["applies"]]
    unknown = ", ".join(label["name"] for label in labels if label["applies"] is None)
    rest = f" Unknown: {unknown}." if unknown else ""
    if not applies:
        return f"No failure found.{rest}"
    stages = ", ".join(dict.fromkeys(label["stage"] for label in applies))
    return f"{', '.join(label['name'] for label in applies)}: look at {stages}.{rest}"


# ------------------------------------------------------------------------------------- of one run
def as_markdown(found: dict) -> str:
    text = f"# {found['folder']}\n\n**{found['verdict']}**\n"
    for examination in found["examinations"].values():
        text += f"\n## {examination['title']}\n\n"
        if "not_applicable" in examination:
            text += f"Not applicable: {examination['not_applicable']}.\n"
            continue
        table = table_of(examination)
        shown = columns(table)
        rows = [[row, *(cell(table, row, column) for column in shown)] for row in table.index]
        text += markdown_table(["", *shown], rows)
        if examination["note"]:
            text += f"\n{examination['note']}.\n"
    header = ["", "applies", "compared", "stage", "definition"]
    rows = [
        [x["name"], APPLIES[x["applies"]], x["evidence"], x["stage"], x["definition"]]
        for x in found["labels"]
    ]
    return f"{text}\n## Failure labels\n\n{markdown_table(header, rows)}"


def draw(title: str, table: pd.DataFrame, path: Path) -> None:
    """A group of bars for each row, with intervals where there are some."""
    shown = columns(table)
    below = [table[c] - table.get(f"{c} low", table[c]) for c in shown]
    above = [table.get(f"{c} high", table[c]) - table[c] for c in shown]
    errors = np.nan_to_num(np.stack([below, above], axis=1)).clip(min=0)  # (columns, 2, rows)
    figure = Figure((8, 4), layout="constrained")
    axes = figure.subplots()
    bars = {"width": 0.8, "error_kw": {"elinewidth": 0.8}}
    table[shown].plot.bar(ax=axes, title=title, yerr=errors, legend=False, **bars)
    axes.tick_params(axis="x", rotation=20 if len(table) < 8 else 60)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    runs.save_figure(figure, path)


def write(folder: Path, found: dict) -> None:
    irl.write_text(folder / "diagnosis.json", json.dumps(found, indent=2) + "\n")
    irl.write_text(folder / "diagnosis.md", as_markdown(found))
    for name, examination in found["examinations"].items():
        path = folder / f"diagnosis-{name}.png"
        path.unlink(missing_ok=True)
        if "table" in examination:
            draw(examination["title"], table_of(examination), path)


# ---------------------------------------------------------------------------------------- overview
def read_diagnosis(folder: Path) -> dict:
    return runs.read_schema(folder / "diagnosis.json", SCHEMA, "a run that was examined before")


def overview(all_found: list[dict]) -> pd.DataFrame:
    """A row a run: HEADLINES, a column for each of their rows, and the failures."""
    rows = []
    for found in all_found:
        keys = ("method", "variant", "panel", "env", "seed", "normalized_return")
        row = {key: found["run"][key] for key in keys}
        for headline, (examination, column, names) in HEADLINES.items():
            table = found["examinations"][examination].get("table", {})
            for name in names:
                row[f"{headline}: {name}"] = table.get(name, {}).get(column)
        row["failures"] = " ".join(x["name"] for x in found["labels"] if x["applies"])
        rows.append(row)
    return pd.DataFrame(rows)


def mean_cell(numbers: pd.Series) -> str:
    """The mean, and of how many if not of all; "-" where nothing was measured."""
    numbers = numbers.astype(float)
    few = f" ({numbers.count()} of {len(numbers)})" if 0 < numbers.count() < len(numbers) else ""
    return f"{number(numbers.mean()) or '-'}{few}"


def headline_cells(frame: pd.DataFrame) -> list[str]:
    """The means over the rows of each of HEADLINES."""
    return [
        " / ".join(mean_cell(frame[f"{headline}: {name}"]) for name in names)
        for headline, (_, _, names) in HEADLINES.items()
    ]


def overview_table(frame: pd.DataFrame) -> str:
    """The overview as Markdown."""
    rows = []
    for i, run in frame.iterrows():
        name = " ".join([run["method"], *sorted({run["variant"]} - {"full"})])
        row = [f"{name} {run['env']} {run['seed']}", number(run["normalized_return"])]
        row += headline_cells(frame.loc[[i]])
        rows.append([*row, run["failures"].replace(" ", ", ") or "none"])
    return markdown_table(["run", "policy, normalised", *HEADLINES, "failures"], rows)


def published_table(frame: pd.DataFrame) -> str:
    """Means over the seeds of each environment and variant, and in how many of them a failure."""
    rows = []
    frame = frame.fillna({"failures": ""})
    if len(frame[["method", "panel"]].drop_duplicates()) > 1:
        raise irl.UserError("rewards.csv: of several methods or panels; expected one")
    for (variant, env), of_seeds in frame.groupby(["variant", "env"]):
        failures = of_seeds["failures"].str.split().explode().value_counts()
        labels = [f"{label} {n}/{len(of_seeds)}" for label, n in sorted(failures.items())]
        row = [f"{variant}, {env}", mean_cell(of_seeds["normalized_return"])]
        rows.append([*row, *headline_cells(of_seeds), ", ".join(labels) or "none"])
    measured = [i for i in range(len(rows[0])) if any(set(row[i]) - set("- /") for row in rows)]
    header = ["reward of", "policy, normalised", *HEADLINES, "failures"]
    header, *rows = ([row[i] for i in measured] for row in [header, *rows])
    return markdown_table(header, rows)


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """The overview as CSV or, under any other ending, as Markdown."""
    csv = path.suffix == ".csv"
    irl.write_text(path, frame.to_csv(index=False) if csv else overview_table(frame))
