"""report.py --html: the page's numbers are the CSV's, and a real browser opens it without errors or a network."""

import re
import shutil
import subprocess

import pandas as pd
import pytest

import report
from benchmark import page
from conftest import command

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def results(tiny_run, tmp_path_factory):
    """A results folder with a run (and a copy of it as a second seed) and the page that the command writes of it."""
    folder = tmp_path_factory.mktemp("results")
    for seed in ("1", "2"):
        copy = shutil.copytree(tiny_run[0], folder / "custom-4096-steps" / "Hopper-v4" / f"seed{seed}")
        text = (copy / "result.json").read_text()
        (copy / "result.json").write_text(text.replace('"seed": 1', f'"seed": {seed}'))
    done = command("report.py", "--results", folder, "--html")
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    return folder


def rows_of(html: str) -> dict[str, list[str]]:
    """The tables' rows by their first cell."""
    found = {}
    for row in re.findall("<tr>(.*?)</tr>", html, flags=re.S):
        first, *others = (re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?</td>", row, flags=re.S) or [""])
        found.setdefault(first, others)
    return found


def test_the_numbers_on_the_page_are_those_of_the_csv(results):
    html, runs = (results / "report.html").read_text(), pd.read_csv(results / "summary.csv")
    headline, *_ = re.findall('<div class="headline".*?</table>', html, flags=re.S)
    scores, share = runs["eval_return_mean"], runs["normalized_return"]
    mean = f"{scores.mean():.0f} ± {scores.std():.0f} ({share.mean():.2f}), 2 runs"
    assert rows_of(headline)["custom-4096-steps"] == ["", mean, ""]
    (every_seed,) = re.findall("every seed</summary>.*?</table>", html, flags=re.S)
    cells = rows_of(every_seed)["custom-4096-steps"]
    assert cells[2] == ", ".join(f"{s}: {r:.0f}" for s, r in zip(runs["seed"], scores))
    assert cells[3] == f"{share.mean():.3f}"
    assert all(commit in html for commit in runs["git_commit"].dropna())


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; .ci/run installs it where apt can")
def test_a_browser_opens_it_without_errors_and_draws_the_charts(results):
    words = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--window-size=1200,900",
    ]
    words += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*words, (results / "report.html").as_uri()], capture_output=True, text=True, timeout=120)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert done.returncode == 0 and console == []
    assert done.stdout.count('class="main-svg"') >= 2 and "return of each seed" in done.stdout
    points = re.findall(r'<g class="trace bars".*?</g></g>', done.stdout, flags=re.S)
    assert len(points) >= 1  # a bar for the one row there is


def test_the_page_loads_nothing_from_elsewhere(results):
    outside = re.sub("<script>.*?</script>", "", (results / "report.html").read_text(), flags=re.S)
    assert not re.search(r'(src|href)="(?!#|data:)', outside)


def test_of_each_row_the_middle_seed_is_filmed():
    runs = pd.DataFrame({
        "method": "m", "labels": ["", "", "", "", "x"], "env": ["a", "a", "a", "b", "a"], "seed": range(5),
        "steps": [9, 9, 9, 9, 9], "eval_return_mean": [3.0, 1.0, 2.0, 5.0, 0.0],
    })  # fmt: skip
    assert sorted(page.middle_runs(runs)["seed"]) == [2, 3, 4]
    assert page.middle_runs(runs[:0]).empty and page.middle_runs(runs[:2])["seed"].item() == 1


def test_films_stand_in_the_page(results, tmp_path):
    folder = results / "custom-4096-steps" / "Hopper-v4" / "seed1"
    (folder / "watch.mp4").write_bytes(b"film")
    found = page.films(page.middle_runs(report.read_runs(results)))
    (folder / "watch.mp4").unlink()
    assert [film["data"] for film in found] == ["ZmlsbQ=="] and "seed 1" in found[0]["text"]


def test_a_run_that_cannot_be_filmed_is_named_and_the_others_go_on(tmp_path, capsys):
    page.make_films(pd.DataFrame({"folder": [str(tmp_path / "one"), str(tmp_path / "two")]}))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("no film: ")]
    assert len(lines) == 2 and "one" in lines[0] and "two" in lines[1]
