"""The report as one page that needs no server and no network: tables, curves to hover over, films, every run's origin.

    python report.py --html              # results/report.html of the runs below results/
    python report.py --html --films      # also films the middle seed of every row that has no film yet

It shows what summary.md says, by the same functions, and beside it what only a screen can.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import jinja2
import pandas as pd
import plotly.graph_objects as go
from markdown import markdown
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots
from tqdm import tqdm

import report
from custom_irl import PANELS, ROOT, UserError, load_card

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b", "#9467bd", "#bcbd22")


def table(text: str) -> str:
    """A Markdown table as HTML that scrolls on its own where the screen is narrow."""
    return f'<div class="wide">{markdown(text, extensions=["tables"])}</div>'


def figure_html(figure: go.Figure, height: int) -> str:
    figure.update_layout(
        height=height, margin={"l": 8, "r": 8, "t": 30, "b": 8}, template="none", hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": -40 / height, "yanchor": "top"},
    )  # fmt: skip
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.2)", automargin=True)
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.2)", automargin=True)
    options = {"responsive": True, "displayModeBar": False}
    return figure.to_html(full_html=False, include_plotlyjs=False, config=options)


def bars(runs: pd.DataFrame, colors: dict[str, str]) -> str:
    """Normalised return: a bar is a row's mean, a dot a seed; the expert is the line at 1."""
    figure = go.Figure()
    for env in report.ENVS:
        of_env = runs[runs["env"] == env]
        means = of_env.groupby("name")["normalized_return"].mean()
        figure.add_bar(
            x=[[env] * len(means), list(means.index)], y=means, marker_color=[colors[name] for name in means.index],
            hovertemplate="%{x}<br>mean %{y:.3f}<extra></extra>", opacity=0.75,
        )  # fmt: skip
        figure.add_scatter(
            x=[of_env["env"], of_env["name"]], y=of_env["normalized_return"], mode="markers",
            marker={"color": "rgba(128,128,128,0.9)", "size": 7, "line": {"width": 1, "color": "white"}},
            customdata=of_env[["seed", "eval_return_mean"]],
            hovertemplate="%{x}<br>seed %{customdata[0]}: %{y:.3f} (%{customdata[1]:.0f})<extra></extra>",
        )  # fmt: skip
    figure.add_hline(y=1, line_dash="dash", line_color="gray")
    figure.update_layout(showlegend=False, barmode="overlay", yaxis_title="normalised return")
    return figure_html(figure, 320 + 7 * max(map(len, colors)))  # the names may stand upright below the bars


def curves(points: pd.DataFrame, colors: dict[str, str]) -> str:
    """True return of training episodes over steps: a row's mean thick, its seeds thin."""
    envs = [env for env in report.ENVS if env in set(points["env"])]
    figure = make_subplots(rows=len(envs), cols=1, subplot_titles=envs, vertical_spacing=0.09)
    shown, told = set(), "<br>%{x:,} steps: %{y:.0f}<extra></extra>"
    for row, env in enumerate(envs, start=1):
        for name, group in points[points["env"] == env].groupby("name"):
            seeds = {seed: one.set_index("steps")["true_return"] for seed, one in group.groupby("seed")}
            style = {"legendgroup": name, "mode": "lines"}
            for seed, line in seeds.items():
                figure.add_scatter(
                    x=line.index, y=line, line={"color": colors[name], "width": 1}, opacity=0.35, showlegend=False,
                    hovertemplate=f"{name}, seed {seed}{told}", row=row, col=1, **style,
                )  # fmt: skip
            mean = report.mean_curve(list(seeds.values()))
            figure.add_scatter(
                x=mean.index, y=mean, line={"color": colors[name], "width": 3}, name=name, showlegend=name not in shown,
                hovertemplate=f"{name}, mean of {len(seeds)}{told}", row=row, col=1, **style,
            )  # fmt: skip
            shown.add(name)
        if card := load_card(ROOT / "demos" / f"{env}.npz"):
            expert = card["expert"]["demos"]["return_mean"]
            figure.add_hline(y=expert, line_dash="dash", line_color="gray", row=row, col=1)
    return figure_html(figure, 320 * len(envs) + 60)


def panels(runs: pd.DataFrame) -> list[dict[str, str]]:
    """For each panel there is: its name, tables and figures."""
    points, found = report.read_curves(runs), []
    for name in dict.fromkeys([*PANELS.values(), *runs["panel"]]):
        if (of_panel := report.of_panel(runs, name)).empty:
            continue
        of_panel = of_panel.assign(name=of_panel.apply(report.row_name, axis=1))
        colors = {row: COLORS[i % len(COLORS)] for i, row in enumerate(sorted(set(of_panel["name"])))}
        lines = report.of_panel(points, name)
        in_table = of_panel[of_panel["env"].isin(report.ENVS)]
        found.append({
            "name": name,
            "headline": table(report.headline_table(of_panel)),
            "aggregate": table(report.aggregate_table(of_panel)),
            "seeds": table(report.seeds_table(of_panel)),
            "bars": bars(in_table, colors) if len(in_table) else "",
            "curves": curves(lines.assign(name=lines.apply(report.row_name, axis=1)), colors) if len(lines) else "",
        })  # fmt: skip
    return found


def middle_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Of each row and environment the run with the median return, the lower of two."""
    ordered = runs[runs["steps"] > 0].sort_values("eval_return_mean")  # imitation's BC takes none, and has no film
    groups = ordered.groupby(["method", "labels", "env"])
    return pd.concat([group.iloc[[(len(group) - 1) // 2]] for _, group in groups]) if len(ordered) else ordered


def make_films(runs: pd.DataFrame) -> None:
    """A film of each of `runs` that has none; why not, where none can be made (imitation's policies are not ours)."""
    from benchmark.watch import Config, watch  # chooses how MuJoCo draws when imported

    missing = [Path(folder) for folder in runs["folder"] if not (Path(folder) / "watch.mp4").is_file()]
    for folder in tqdm(missing, desc="films", disable=None):
        try:
            watch(Config(run=folder))
        except UserError as error:
            tqdm.write(f"no film: {error}", file=sys.stderr)


def title(run: pd.Series) -> str:
    return f"{report.row_name(run)}, {run['env']}, seed {run['seed']}: {run['eval_return_mean']:.1f}"


def films(runs: pd.DataFrame) -> list[dict[str, str]]:
    found = []
    for _, run in runs.iterrows():
        path = Path(run["folder"]) / "watch.mp4"
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            found.append({"text": title(run), "data": data})
    return found


def diagnoses(runs: pd.DataFrame) -> str:
    """diagnose.py's overview of the runs it has examined, as a table; '' if there is none."""
    from diagnose import overview

    paths = [Path(folder) / "diagnosis.json" for folder in runs["folder"]]
    found = [json.loads(path.read_text()) for path in paths if path.is_file()]
    return table(overview(found)) if found else ""


def origins(runs: pd.DataFrame) -> list[dict[str, str]]:
    """Configuration, versions, code and machine of every run."""
    found = []
    for _, run in runs.iterrows():
        result = json.loads((Path(run["folder"]) / "result.json").read_text())
        keys = ("config", "demos", "versions", "hardware", "code_sha256", "git_commit", "git_clean", "date", "seconds")
        found.append({"text": title(run), "json": json.dumps({key: result.get(key) for key in keys}, indent=2)})
    return found


def write_page(runs: pd.DataFrame, path: Path, film: bool) -> None:
    """Writes the page of `runs` (see report.read_runs) to `path`."""
    middle = middle_runs(runs)
    if film:
        make_films(middle)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(
        "page.html"
    )
    page = template.render(
        plotly=get_plotlyjs(),
        panels=panels(runs),
        diagnoses=diagnoses(runs),
        films=films(middle),
        leaderboard=table(report.leaderboard_table()),
        origins=origins(runs),
        n_runs=len(runs),
        quick=bool(runs["labels"].str.contains("quick").any()),
        last=runs["date"].max()[:10],
    )
    report.write_text(path, page)
