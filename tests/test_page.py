"""benchmark/page.py: its numbers, its order, and a browser that opens it without a network."""

import json
import re
import shutil
import subprocess

import pandas as pd
import pytest

import custom_irl as irl
from benchmark import page, tables

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.fixture(scope="module")
def results(tiny_run, tmp_path_factory):
    """A folder of runs: two seeds on Hopper, and one of an own environment without a card."""
    folder = tmp_path_factory.mktemp("results")
    for name, changes in {
        "a": {"seed": 1},
        "b": {"seed": 2, "eval_return_mean": 100.0},
        "c": {"env": "Mine-v0", "normalized_return": None, "eval_return_mean": 7.0},
    }.items():
        copy = shutil.copytree(tiny_run[0], folder / name)
        result = json.loads((copy / "result.json").read_text()) | {"id": name} | changes
        (copy / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture(scope="module")
def html(results):
    return page.write_page(results).read_text()


def outside_scripts(html: str) -> str:
    return re.sub("<script.*?</script>", "", html, flags=re.S)


def test_the_page_shows_the_tables_of_the_report(results, html):
    text = outside_scripts(html)
    found = tables.of_panel(tables.read_runs(results), "tiny")
    cells = [tables.score_cell(group) for _, group in found.groupby("env")]
    assert len(cells) == 2
    for cell in cells:
        assert f">{cell}</td>" in text
    for run in found.itertuples():
        assert f"{run.env}, seed {run.seed}: {run.eval_return_mean:.1f}" in text
    assert "nan" not in text.lower()


def test_the_page_loads_nothing_from_elsewhere(html):
    assert not re.search(r'(src|href)="(?!#|data:)', outside_scripts(html))


BROWSER = """<iframe src="report.html" style="width: 390px; height: 900px"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => setTimeout(() => {
  const page = frame.contentDocument;
  const bars = page.querySelectorAll(".bars path").length;
  document.body.append(`width ${page.documentElement.scrollWidth} bars ${bars}`);
}, 1000);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_a_browser_draws_it_without_errors_and_it_fits_a_phone(results, html):
    """On Hopper and on Mine a bar, of two; no console message; nothing wider than 390 pixels."""
    (results / "phone.html").write_text(BROWSER)
    words = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --dump-dom"
    words += " --allow-file-access-from-files --virtual-time-budget=6000"
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [CHROMIUM, *words.split(), offline, (results / "phone.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    width, bars = map(int, re.search(r"width (\d+) bars (\d+)", done.stdout).groups())
    assert width <= 390
    assert bars == 2


def runs_of_one_environment(n_others: int) -> pd.DataFrame:
    """`custom`, the worst, and others that are better and better."""
    rows = [{"method": "custom", "eval_return_mean": 1.0}]
    rows += [{"method": f"m{i}", "eval_return_mean": 10.0 + i} for i in range(n_others)]
    frame = pd.DataFrame(rows).assign(labels="", env="Mine-v0", seed=1, variant="full")
    return tables.named(frame.assign(normalized_return=float("nan")))


def test_ours_has_the_strong_colour_and_is_never_left_out():
    (bar, dots) = page.bars(runs_of_one_environment(12)).data
    colors = dict(zip(bar.y, bar.marker.color))
    assert len(colors) == 8
    assert list(bar.y)[::-1] == ["m11", "m10", "m9", "m8", "m7", "m6", "m5", "custom"]
    assert {name for name, color in colors.items() if color == page.OURS} == {"custom"}
    assert len(dots.x) == 8


def test_the_experts_line_stands_only_where_runs_are_normalised_by_its_card():
    runs = runs_of_one_environment(1).assign(env="Hopper-v4")
    assert page.expert_return(runs) is None
    card = tables.project_card("Hopper-v4")
    share = [irl.normalized(score, card) for score in runs["eval_return_mean"]]
    runs = runs.assign(normalized_return=share)
    assert page.expert_return(runs) == card["expert"]["demos"]["return_mean"]
    assert page.expert_return(runs_of_one_environment(1)) is None


def test_of_each_row_the_middle_seed_is_filmed():
    runs = pd.DataFrame({
        "method": "m", "labels": ["", "", "", "", "x"], "env": ["a", "a", "a", "b", "a"],
        "seed": range(5), "eval_return_mean": [3.0, 1.0, 2.0, 5.0, 0.0],
    })  # fmt: skip
    assert sorted(page.middle_runs(runs)["seed"]) == [2, 3, 4]
    assert page.middle_runs(runs[:2])["seed"].item() == 1


def test_films_stand_in_the_page(results):
    (results / "c" / "watch.mp4").write_bytes(b"film")
    (film,) = page.films(page.middle_runs(tables.read_runs(results)))
    (results / "c" / "watch.mp4").unlink()
    assert film["data"] == "ZmlsbQ=="
    assert "Mine-v0, seed 1" in film["text"]


def test_a_run_that_cannot_be_filmed_is_named_and_the_others_go_on(tmp_path, capsys):
    page.make_films(pd.DataFrame({"folder": [str(tmp_path / "one"), str(tmp_path / "two")]}))
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("no film: ")]
    assert len(lines) == 2
    assert "one" in lines[0]
    assert "two" in lines[1]


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(irl.UserError, match=r"no result\.json below it"):
        page.write_page(tmp_path)
