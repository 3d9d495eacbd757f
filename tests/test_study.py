"""Studies: files that say which runs, what they cost, and how runs wait for one another."""

import json
from pathlib import Path

import pandas as pd
import pytest

import custom_irl as irl
from benchmark import launch, runs, study, tables
from conftest import ROOT

STUDIES = ROOT / "benchmark" / "studies"
NOT_RUN = {  # of the published table's rows: "Known gaps" in benchmark/README.md
    "sb3-custom-frozen/Hopper-v4/seed457",
}


def jobs_of(path: Path, results: Path) -> list[launch.Job]:
    return launch.make_jobs(study.read_study(path), results)


def folders(jobs: list[launch.Job], results: Path) -> list[str]:
    return [str(job.folder.relative_to(results)) for job in jobs]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_published_table_is_a_study(tmp_path):
    published = tables.read_published()
    published = published[~published["method"].isin(tables.CONTROLS)]
    rows = {
        str(runs.folder_of(Path(), row.method, row.labels.split(), row.env, row.seed))
        for row in published.itertuples()
    }
    assert len(rows) == len(published)
    of_study = folders(jobs_of(STUDIES / "published.toml", tmp_path), tmp_path)
    assert len(of_study) == len(set(of_study))
    assert set(of_study) - NOT_RUN == rows


def test_ten_seeds_are_ten_of_each(tmp_path):
    jobs = jobs_of(STUDIES / "ten-seeds.toml", tmp_path)
    counts = pd.Series([str(job.folder.parent.relative_to(tmp_path)) for job in jobs])
    assert set(counts.value_counts()) == {10}
    assert "custom-reward-only/Hopper-v4" in set(counts)


def test_a_file_and_the_same_flags_give_the_same_jobs(tmp_path):
    config = launch.Config(
        method="gail", panel="tiny", envs=("Hopper-v4",), seeds=(1, 2), results=tmp_path
    )
    flags = ["--no-policy-access", "--gamma", "0.9"]
    text = """
        seeds = [1, 2]
        [[runs]]
        methods = ["gail"]
        panels = ["tiny"]
        environments = ["Hopper-v4"]
        variants = ["reward-only"]
        flags = ["--gamma", "0.9"]
    """
    by_flags = launch.make_jobs(launch.runs_of(config, flags), tmp_path)
    by_file = jobs_of(write(tmp_path / "same.toml", text), tmp_path)
    assert by_file == by_flags
    assert folders(by_file, tmp_path)[0] == "gail-reward-only-tiny-gamma-0.9/Hopper-v4/seed1"


REFUSED = {
    "method = ['gail']": "bad.toml: key 'method': unknown; expected methods, panels",
    "[[runs]]\n[[runs]]\nseed = 1": "bad.toml: [[runs]] 2: key 'seed': unknown",
    "seeds = 3": "bad.toml: key 'seeds': 3, expected as in [42, 123, 456]",
    "seeds = [true]": "bad.toml: key 'seeds': True, expected a seed",
    "seeds = [-1]": "key 'seeds': -1, expected a seed, 0 or more",
    "seeds = []": "key 'seeds': expected at least one",
    "quick = 1": "key 'quick': 1, expected as in False",
    "methods = ['magic']": "key 'methods': 'magic', expected one of custom",
    "panels = ['huge']": "key 'panels': 'huge', expected one of dense",
    "variants = ['detached']": "key 'variants': 'detached', expected one of full",
    "learner = 'dqn'": "key 'learner': 'dqn', expected one of loop, sb3, sac",
    "runs = 3": "key 'runs': expected tables, [[runs]]",
    "flags = ['--seed', '3']": "key 'flags': --seed; expected seeds",
    "flags = ['--true_reward']": "key 'flags': --true-reward; expected variants",
    "panels = ['tiny']\nflags = ['--demo-episodes', '3']": "[[runs]] 1: --panel: sets",
    "learner = 'sb3'": "[[runs]] 1: --learner sb3: learns no reward",
    "methods = ['imitation-bc']\nquick = true": "[[runs]] 1: --quick: not with",
    "methods = ['imitation-bc']\nvariants = ['frozen']": "[[runs]] 1: method imitation-bc",
    "environments = ['Hoper-v4']": "--env Hoper-v4",
    "methods = ['custom', 'gail']\nvariants = ['true-reward']": "two different runs (custom and",
    "variants = ['frozen']": "result.json: no such file; expected the folder of a finished run",
    "seeds = [": "bad.toml: not readable as TOML",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_bad_file_is_one_line(text, launcher, tmp_path):
    path = write(tmp_path / "bad.toml", text)
    said = launcher("--study", str(path), "--dry-run")
    assert REFUSED[text] in said
    assert "\n" not in said
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_that_are_no_text_are_one_line(launcher, tmp_path):
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    assert "bad.toml: not readable as TOML" in launcher("--study", str(tmp_path / "bad.toml"))


# --------------------------------------------------------------------------------------------- cost
def test_core_hours_are_steps_by_the_median_speed_of_the_committed_runs():
    rows = [("gail", "full", "dense", speed, 9.0) for speed in (1000.0, 2000.0, 50_000.0)]
    rows += [("gail", "full", "tiny", 4000.0, 9.0)]
    rows += [("imitation-bc", "full", "dense", 0.0, minutes) for minutes in (30.0, 60.0, 90.0)]
    rows += [("dagger", "full", "dense", 100.0, 6.0)]  # its own number of steps
    columns = ["method", "variant", "panel", "steps_per_second", "minutes"]
    committed = pd.DataFrame(rows, columns=columns)

    def hours(method: str, variant: str = "full", panel: str = "dense") -> float | None:
        return study.core_hours(committed, method, variant, panel, 7_200_000)

    assert hours("gail") == hours("gail", panel="scarce") * 1.5 == 1.0
    assert hours("gail", panel="tiny") == 0.5
    assert hours("imitation-bc") == 1.0
    assert hours("dagger") == 0.1
    assert hours("gail", "reward-only") is None


def test_a_dry_run_says_what_exists_and_what_is_not_known_and_writes_nothing(
    launcher, tmp_path, capsys
):
    text = "seeds = [1, 2]\nenvironments = ['Hopper-v4']\n"
    text += "[[runs]]\nmethods = ['gail', 'untrained']\n[[runs]]\nmethods = ['untrained']\n"
    text += "variants = ['reward-only']\n"
    path = write(tmp_path / "four.toml", text)
    done = tmp_path / "gail" / "Hopper-v4" / "seed2"
    done.mkdir(parents=True)
    (done / "result.json").write_text(json.dumps({"schema": 2}))
    before = sorted(tmp_path.rglob("*"))
    assert launcher("--study", str(path), "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "gail/Hopper-v4/seed1",
        "gail/Hopper-v4/seed2  finished",
        "untrained/Hopper-v4/seed1",
    ]
    committed = study.committed_runs()
    steps = irl.Args().num_rounds * irl.Args().batch_size
    hours = study.core_hours(committed, "gail", "full", "dense", steps)
    hours += 2 * study.core_hours(committed, "untrained", "full", "dense", steps)
    assert lines[-2] == f"6 runs, 1 finished, 5 left: about {hours:.1f} core hours"
    assert lines[-1].startswith("not in that: 2 of untrained reward-only")
    assert sorted(tmp_path.rglob("*")) == before


# ------------------------------------------------------------------------------------------ rewards
FROZEN = """
environments = ["Hopper-v4"]
seeds = [1]
[[runs]]
variants = ["frozen"]
[[runs]]
variants = ["full"]
"""


def test_the_frozen_reward_of_a_reward_only_run(tmp_path):
    """Whose label it has, as it has with the launcher's flags."""
    flags = 'flags = ["--no-policy-access"]\n'
    text = FROZEN.replace('"frozen"]\n', f'"frozen"]\n{flags}').replace("full", "reward-only")
    frozen, trained = jobs_of(write(tmp_path / "both.toml", text), tmp_path)
    assert frozen.needs is trained and "--no-policy-access" in frozen.command
    assert frozen.folder == tmp_path / "custom-frozen-reward-only" / "Hopper-v4" / "seed2"
    with pytest.raises(irl.UserError, match="--no-policy-access; expected variants = "):
        study.read_study(write(tmp_path / "full.toml", f"{flags}"))


@pytest.mark.parametrize("code", [0, 1])
def test_a_frozen_reward_waits_for_its_run(code, tmp_path, capsys):
    frozen, trained = jobs_of(write(tmp_path / "both.toml", FROZEN), tmp_path)
    assert frozen.needs is trained
    frozen.command = ["true"]
    trained.command = ["sh", "-c", f"sleep 0.5; exit {code}"]
    assert launch.run_jobs([frozen, trained], launch.Config(results=tmp_path, jobs=2), None)
    out = capsys.readouterr().out
    assert out.index(f"{trained.name}: running") < out.index(f"{frozen.name}: ")
    assert [job.state for job in (frozen, trained)] == (["failed"] * 2 if code else ["done"] * 2)
    if code:
        assert f"its reward is of a run that failed ({trained.name})" in frozen.failure()
        assert not frozen.log.exists()
