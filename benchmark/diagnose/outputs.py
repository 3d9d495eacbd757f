"""What an examination leaves: diagnosis.json, diagnosis.md and a figure for each table.

Three loops over the tables. A column "x" with columns "x low" and "x high" is a number with its
interval.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

import custom_irl as irl
from benchmark import runs
from benchmark.diagnose.labels import Label, Tables
from benchmark.diagnose.steps import ABOVE
from benchmark.diagnose.subject import NotApplicable, Subject
from benchmark.tables import block_marks, markdown_table, write_block

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt

BLOCK = "rewards"  # between its marks stands the overview in a document
HEADLINES = {  # column of the overview: examination, column of its table, rows
    "ranking / untrained": ("ranking", "segments", ("learned", "untrained")),
    "distance / constant": ("distance", "mixed", ("learned", "constant")),
    "expert above own / truly": ("steps", ABOVE, ("learned", "true")),
    "fresh by loop / constant / true": ("retraining", "loop", ("learned", "constant", "true")),
    "fresh by sb3 / constant / true": ("retraining", "sb3", ("learned", "constant", "true")),
}
APPLIES = {True: "yes", False: "no", None: "unknown"}


def number(x: float | None) -> str:
    if x is None or np.isnan(x):
        return ""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.2f}"


def columns(table: pd.DataFrame) -> list[str]:
    """The columns that are not bounds of an interval."""
    return [c for c in table if not c.endswith((" low", " high"))]


def with_interval(table: pd.DataFrame, row: str, column: str) -> str:
    text = number(table.loc[row, column])
    if not text or f"{column} low" not in table or np.isnan(table.loc[row, f"{column} low"]):
        return text
    low, high = (number(table.loc[row, f"{column} {end}"]) for end in ("low", "high"))
    return f"{text} [{low}, {high}]"


def verdict(labels: list[Label]) -> str:
    """One sentence that says where to look."""
    applies = [label for label in labels if label.applies]
    unknown = ", ".join(label.name for label in labels if label.applies is None)
    rest = f" Unknown: {unknown}." if unknown else ""
    if not applies:
        return f"No failure found.{rest}"
    stages = ", ".join(dict.fromkeys(label.stage for label in applies))
    return f"{', '.join(label.name for label in applies)}: look at {stages}.{rest}"


def as_json(subject: Subject, titles: dict[str, str], tables: Tables, labels: list[Label]) -> dict:
    result = subject.result
    examinations = {}
    for name, table in tables.items():
        if isinstance(table, NotApplicable):
            examinations[name] = {"title": titles[name], "not_applicable": str(table)}
        else:
            rows = json.loads(table.to_json(orient="index", double_precision=15))
            note = table.attrs.get("note", "")
            examinations[name] = {"title": titles[name], "note": note, "table": rows}
    keys = ("id", "method", "env", "seed", "steps", "eval_return_mean", "normalized_return")
    run = {key: result.get(key) for key in keys}
    run["variant"] = runs.variant_of(result["method"], result["config"])
    run["panel"] = runs.panel_of(result["config"])
    return {
        "schema": 2,
        "folder": str(subject.folder),
        "run": run,
        "seed": subject.seed,
        "examinations": examinations,
        "labels": [asdict(label) for label in labels],
        "verdict": verdict(labels),
    }


def as_markdown(
    subject: Subject, titles: dict[str, str], tables: Tables, labels: list[Label]
) -> str:
    text = f"# {subject.folder}\n\n**{verdict(labels)}**\n"
    for name, table in tables.items():
        text += f"\n## {titles[name]}\n\n"
        if isinstance(table, NotApplicable):
            text += f"Not applicable: {table}.\n"
            continue
        shown = columns(table)
        rows = [
            [row, *(with_interval(table, row, column) for column in shown)] for row in table.index
        ]
        text += markdown_table(["", *shown], rows)
        if table.attrs.get("note"):
            text += f"\n{table.attrs['note']}.\n"
    rows = [[x.name, APPLIES[x.applies], x.evidence, x.stage, x.definition] for x in labels]
    header = ["", "applies", "compared", "stage", "definition"]
    return f"{text}\n## Failure labels\n\n{markdown_table(header, rows)}"


def draw(title: str, table: pd.DataFrame, path: Path) -> None:
    """A group of bars for each row, with intervals where there are some."""
    shown = columns(table)
    errors = np.zeros((len(shown), 2, len(table)))
    for i, column in enumerate(shown):
        if f"{column} low" in table:
            errors[i, 0] = (table[column] - table[f"{column} low"]).clip(lower=0)
            errors[i, 1] = (table[f"{column} high"] - table[column]).clip(lower=0)
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    bars = {"width": 0.8, "error_kw": {"elinewidth": 0.8}}
    table[shown].plot.bar(ax=axes, title=title, yerr=np.nan_to_num(errors), legend=False, **bars)
    axes.tick_params(axis="x", rotation=20 if len(table) < 8 else 60)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with irl.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


def write(subject: Subject, titles: dict[str, str], tables: Tables, labels: list[Label]) -> dict:
    """Writes the three outputs into the run's folder; returns what diagnosis.json holds."""
    found = as_json(subject, titles, tables, labels)
    irl.write_text(subject.folder / "diagnosis.json", json.dumps(found, indent=2) + "\n")
    text = as_markdown(subject, titles, tables, labels)
    irl.write_text(subject.folder / "diagnosis.md", text)
    for name, table in tables.items():
        path = subject.folder / f"diagnosis-{name}.png"
        path.unlink(missing_ok=True)
        if not isinstance(table, NotApplicable):
            draw(titles[name], table, path)
    return found


# ---------------------------------------------------------------------------------------- overview
def read_diagnosis(folder: Path) -> dict:
    path = folder / "diagnosis.json"
    if not path.is_file():
        raise irl.UserError(f"{path}: no such file; expected a run that was examined before")
    found = runs.read_json(path)
    if found.get("schema") != 2:
        raise irl.UserError(f"{path}: schema {found.get('schema')}; expected 2, examine it again")
    return found


def overview(all_found: list[dict]) -> str:
    """A Markdown table with a row a run: HEADLINES, controls beside them, and the failures."""
    rows = []
    for found in all_found:
        run = found["run"]
        row = [f"{run['method']} {run['env']}", number(run["normalized_return"])]
        for examination, column, names in HEADLINES.values():
            table = found["examinations"][examination].get("table", {})
            row.append(" / ".join(number(table.get(name, {}).get(column)) or "-" for name in names))
        failures = [label["name"] for label in found["labels"] if label["applies"]]
        rows.append([*row, ", ".join(failures) or "none"])
    return markdown_table(["run", "policy, normalised", *HEADLINES, "failures"], rows)


def write_table(path: Path, table: str) -> None:
    """The overview as a file of its own, or as the block "rewards" of a file that has its marks."""
    if path.is_file() and block_marks(BLOCK)[0] in path.read_text():
        write_block(path, BLOCK, table)
    else:
        irl.write_text(path, table)
