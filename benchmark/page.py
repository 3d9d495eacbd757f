"""The runs below a folder as one HTML page that needs no server and no network.

    python -m benchmark.page                # results/report.html
    python -m benchmark.page --films        # also films a seed of every row that has no film yet

The tables are those of benchmark/report.py. Beside them: returns and curves to hover over, films,
and every run's configuration, versions, code and machine.
"""

from __future__ import annotations

import base64
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd
import plotly.graph_objects as go
import tyro
from markdown import markdown
from plotly.offline import get_plotlyjs
from tqdm import tqdm

import custom_irl as irl
from benchmark import runs, tables
from benchmark.diagnose import outputs

OURS = "#e8590c"
MUTED = ("#7089a8", "#b09a5b", "#6fa07a", "#b57f99", "#8c80bd", "#4f9fa6", "#9c8474")
DASHES = {"full": "solid", "reward-only": "dot", "frozen": "dash"}
EXPERT_LINE = {"color": "gray", "dash": "dash", "width": 1.5}


@dataclass(frozen=True)
class Config:
    results: Path = runs.RESULTS
    """folder with the runs; report.html is written into it"""
    films: bool = False
    """film the middle seed of every row that has no film yet (see benchmark/watch.py)"""


# ---------------------------------------------------------------------------------------- figures
def table(text: str) -> str:
    """A Markdown table as HTML that scrolls on its own where the screen is narrow."""
    return f'<div class="wide">{markdown(text, extensions=["tables"])}</div>' if text else ""


def expert_return(of_env: pd.DataFrame) -> float | None:
    """The expert's, if a run of these is normalised by the card of the project's demonstrations."""
    card = tables.card_of(of_env, of_env["env"].iloc[0])
    return None if card is None else card["expert"]["demos"]["return_mean"]


def bars(of_env: pd.DataFrame) -> go.Figure:
    """Final return of one environment: a bar is a row's mean, a dot a seed."""
    names = tables.best_names(of_env)[::-1]  # drawn from the bottom
    shown = of_env[of_env["name"].isin(names)]
    means = shown.groupby("name")["eval_return_mean"].mean()[names]
    figure = go.Figure()
    figure.add_bar(
        orientation="h",
        y=names,
        x=means,
        marker_color=[OURS if tables.is_ours(name) else MUTED[0] for name in names],
        hovertemplate="%{y}<br>mean %{x:.0f}<extra></extra>",
    )
    figure.add_scatter(
        y=shown["name"],
        x=shown["eval_return_mean"],
        mode="markers",
        marker={"color": "white", "size": 6, "line": {"width": 1.5, "color": "#444"}},
        customdata=shown["seed"],
        hovertemplate="%{y}<br>seed %{customdata}: %{x:.0f}<extra></extra>",
    )
    expert = expert_return(of_env)
    if expert is not None:
        figure.add_vline(x=expert, line=EXPERT_LINE)
    figure.update_yaxes(
        tickvals=names, ticktext=[wrap(name) for name in names], showgrid=False, ticksuffix=" "
    )
    figure.update_layout(showlegend=False, height=80 + 34 * len(names))
    return figure


def wrap(name: str) -> str:
    """A long name in two lines, parted at the hyphen nearest to its middle."""
    hyphens = [i for i, letter in enumerate(name) if letter == "-"]
    if len(name) < 18 or not hyphens:
        return name
    at = min(hyphens, key=lambda i: abs(i - len(name) / 2))
    return f"{name[: at + 1]}<br>{name[at + 1 :]}"


def curves(of_env: pd.DataFrame, points: pd.DataFrame) -> go.Figure:
    """True return of one environment's training episodes over steps: the mean over seeds."""
    figure = go.Figure()
    muted = itertools.cycle(MUTED)
    for name in tables.best_names(of_env):
        variant = of_env.loc[of_env["name"] == name, "variant"].iloc[0]
        ours = tables.is_ours(name)
        line = {"color": OURS, "width": 3.5} if ours else {"color": next(muted)}
        line["dash"] = DASHES[variant]
        seeds = points[points["name"] == name].groupby("id")
        if not len(seeds):
            continue
        mean = tables.mean_curve([one.set_index("steps")["true_return"] for _, one in seeds])
        told = f"{name}, mean of {len(seeds)}<br>%{{x:,}} steps: %{{y:.0f}}<extra></extra>"
        figure.add_scatter(
            x=mean.index, y=mean, mode="lines", name=name, line=line, hovertemplate=told
        )
    expert = expert_return(of_env)
    if expert is not None:
        figure.add_hline(y=expert, line=EXPERT_LINE)
    figure.update_layout(
        height=400 + 22 * len(figure.data),
        showlegend=True,
        legend={"orientation": "h", "y": -0.1, "yanchor": "top", "entrywidth": 180},
    )
    return figure


def figure_html(figure: go.Figure, title: str) -> str:
    figure.update_layout(
        title={"text": title, "font_size": 15, "x": 0.01},
        margin={"l": 8, "r": 12, "t": 36, "b": 8},
        template="none",
        hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font_size=12,
    )
    grid = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.6)"}
    figure.update_xaxes(automargin=True, **grid)
    figure.update_yaxes(automargin=True, **grid)
    options = {"responsive": True, "displayModeBar": False}
    return figure.to_html(full_html=False, include_plotlyjs=False, config=options)


# --------------------------------------------------------------------------------------- sections
def panels(found: pd.DataFrame) -> list[dict]:
    """For each panel that has runs: its name, tables and figures."""
    points = tables.read_curves(found)
    sections = []
    for panel in dict.fromkeys([*runs.PANELS.values(), *found["panel"]]):
        of_panel = tables.of_panel(found, panel)
        if of_panel.empty:
            continue
        rows = tables.named(of_panel)
        points_of_panel = tables.named(tables.of_panel(points, panel))
        bar_charts = []
        line_charts = []
        for env in tables.environments(rows):
            of_env = rows[rows["env"] == env]
            if of_env.empty:
                continue
            bar_charts.append(figure_html(bars(of_env), env))
            of_env_points = points_of_panel[points_of_panel["env"] == env]
            if not of_env_points.empty:
                line_charts.append(figure_html(curves(of_env, of_env_points), env))
        sections.append(
            {
                "name": panel,
                "headline": table(tables.headline_table(of_panel)),
                "aggregate": table(tables.aggregate_table(of_panel)),
                "seeds": table(tables.seeds_table(of_panel)),
                "bars": bar_charts,
                "curves": line_charts,
            }
        )
    return sections


def middle_runs(found: pd.DataFrame) -> pd.DataFrame:
    """Of each row and environment the run with the median return, the lower of two."""
    ordered = found.sort_values("eval_return_mean")
    groups = ordered.groupby(["method", "labels", "env"], sort=True)
    middle = [group.index[(len(group) - 1) // 2] for _, group in groups]
    return found.loc[middle]


def make_films(found: pd.DataFrame) -> None:
    """A film of each of these runs that has none; says why where none can be made."""
    from benchmark.watch import Config as Film
    from benchmark.watch import watch  # chooses how MuJoCo draws when imported

    missing = [Path(run) for run in found["folder"] if not (Path(run) / "watch.mp4").is_file()]
    for folder in tqdm(missing, desc="films", disable=None):
        try:
            watch(Film(runs=(folder,)))
        except irl.UserError as error:
            print(f"no film: {error}", file=sys.stderr)


def title(run: pd.Series) -> str:
    return (
        f"{tables.row_name(run)}, {run['env']}, seed {run['seed']}: {run['eval_return_mean']:.1f}"
    )


def films(found: pd.DataFrame) -> list[dict[str, str]]:
    there = []
    for _, run in found.iterrows():
        path = Path(run["folder"]) / "watch.mp4"
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            there.append({"text": title(run), "data": data})
    return there


def diagnoses(found: pd.DataFrame) -> str:
    """The overview of the runs that `python -m benchmark.diagnose` has examined; "" if none."""
    examined = [Path(f) for f in found["folder"] if (Path(f) / "diagnosis.json").is_file()]
    there = [outputs.read_diagnosis(folder) for folder in examined]
    return table(outputs.overview_table(outputs.overview(there))) if there else ""


def origins(found: pd.DataFrame) -> list[dict[str, str]]:
    """Configuration, versions, code and machine of every run."""
    there = []
    for _, run in found.iterrows():
        folder = Path(run["folder"])
        result = runs.read_result(folder)
        keys = ("id", "config", "hyperparameters", "demos", "versions", "seconds", "date")
        origin = {key: result.get(key) for key in keys}
        if (folder / "origin.json").is_file():
            written = runs.read_json(folder / "origin.json")
            origin |= {key: written.get(key) for key in ("git_commit", "git_clean", "hardware")}
        there.append({"text": title(run), "json": json.dumps(origin, indent=2)})
    return there


# ------------------------------------------------------------------------------------------- page
def write_page(results: Path, film: bool = False) -> Path:
    """Writes report.html of the runs below `results`; returns its path."""
    found = tables.read_runs(results)
    if found.empty:
        raise irl.UserError(f"{results}: no result.json below it; expected at least one run")
    middle = middle_runs(found)
    if film:
        make_films(middle)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html").render(
        plotly=get_plotlyjs(),
        ours=OURS,
        panels=panels(found),
        diagnoses=diagnoses(found),
        films=films(middle),
        leaderboard=table(tables.leaderboard_table()),
        origins=origins(found),
        quick=bool(found["labels"].str.contains("quick").any()),
        last=found["date"].max()[:10],
    )
    path = results / "report.html"
    irl.write_text(path, page)
    return path


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    print(write_page(config.results, config.films))


if __name__ == "__main__":
    runs.command_line(main)
