"""run_all.sh's launcher and the report, as a user meets them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

import custom_irl as irl
import report
from benchmark import launch
from conftest import ROOT, command

TINY = ("--envs", "Hopper-v4", "--seeds", "1", "2", "--total-timesteps", "10240")


def test_launcher_runs_reports_skips_and_resumes(tmp_path):
    words = ("-m", "benchmark.launch", "--method", "airl", *TINY, "--results", tmp_path)
    process = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while not list(tmp_path.rglob("metrics.csv")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)  # Ctrl-C in the middle of the first runs
    process.communicate(timeout=180)
    assert process.returncode == 130 and list(tmp_path.rglob("training.pt")) and not list(tmp_path.rglob("result.json"))

    done = command(*words)
    assert done.returncode == 0, done.stderr
    results = sorted(tmp_path.rglob("result.json"))
    label = tmp_path / "airl-10240-steps" / "Hopper-v4"
    assert results == [label / "seed1" / "result.json", label / "seed2" / "result.json"]
    summary = pd.read_csv(tmp_path / "summary.csv")
    for row, path in zip(summary.itertuples(), results):
        assert row.eval_return_mean == json.loads(path.read_text())["eval_return_mean"]
    assert matplotlib.image.imread(tmp_path / "curves-Hopper-v4.png").std() > 0.01

    stamps = [path.stat().st_mtime_ns for path in results]
    assert command(*words).returncode == 0
    assert [path.stat().st_mtime_ns for path in results] == stamps  # finished runs are not run again


def test_launcher_names_the_runs_that_failed(tmp_path):
    done = command("-m", "benchmark.launch", *TINY, "--results", tmp_path, "--demo-episodes", "99")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Hopper-v4 seed 1: " in done.stderr and "expected at least 99" in done.stderr


@pytest.mark.parametrize(
    "flags", [["--env", "Hopper-v4"], ["--no-such-flag"], ["--num-steps", "0"], ["--method", "magic"]]
)
def test_launcher_refuses_bad_flags_before_it_starts(flags, tmp_path):
    done = command("-m", "benchmark.launch", "--results", tmp_path, *flags)
    assert done.returncode != 0 and "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_the_default_is_three_environments_and_three_seeds():
    jobs = launch.make_jobs(launch.Config(), [])
    runs = {(job.args.env, job.args.seed, job.args.total_timesteps) for job in jobs}
    assert runs == {(env, seed, 1_000_000) for env in report.ENVS for seed in (42, 123, 456)}
    assert len({job.folder for job in jobs}) == 9


@pytest.mark.parametrize(("panel", "amount"), [("scarce", (20, 20)), ("tiny", (4, 20)), ("one", (1, 20))])
def test_panels_say_how_much_of_the_demonstrations_a_run_gets(panel, amount):
    jobs = launch.make_jobs(launch.Config(panel=panel), ["--no-policy-access"])
    assert {(job.args.demo_episodes, job.args.demo_subsample) for job in jobs} == {amount}
    assert all(job.folder.parts[-3] == f"custom-reward-only-{panel}" for job in jobs)


def test_frozen_rewards_train_policies_of_other_seeds(tiny_run, tmp_path):
    """Of the runs that the same command without --frozen leaves; one that is missing is named."""
    flags, trained = ["--total-timesteps", "4096"], tmp_path / "custom-4096-steps" / "Hopper-v4" / "seed1"
    config = launch.Config(envs=("Hopper-v4",), seeds=(1,), frozen=True, results=tmp_path)
    with pytest.raises(irl.UserError, match=r"seed1/checkpoint/config\.json: no such file"):
        launch.make_jobs(config, flags)
    shutil.copytree(tiny_run[0], trained)
    words = ("--envs", "Hopper-v4", "--seeds", "1", "--frozen", "--diagnose", "--results", tmp_path)
    done = command("-m", "benchmark.launch", *words, *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "custom-4096-steps-frozen" / "Hopper-v4" / "seed2" / "result.json").read_text())
    assert result["variant"] == "frozen" and result["seed"] == 2
    assert result["frozen_reward"]["sha256"] == irl.sha256(trained / "checkpoint" / "reward_net.pt")
    assert "| custom Hopper-v4 |" in (tmp_path / "rewards.md").read_text()


def test_a_quick_look_is_marked_everywhere(tmp_path, capsys):
    jobs = launch.make_jobs(launch.Config(results=tmp_path), ["--quick"])
    assert {job.args.num_rounds * job.args.batch_size for job in jobs} == {20_480}
    assert all("custom-quick" in str(job.folder) for job in jobs)
    assert "QUICK" in launch.overview(jobs).title
    args = irl.Args(quick=True, out=tmp_path / "custom-quick" / "Hopper-v4" / "seed1")
    assert irl.run(irl.RewardNetwork, irl.IRLAlgorithm, args, "custom")["labels"] == ["quick"]
    report.main(report.Config(results=tmp_path))
    assert "custom-quick" in (text := capsys.readouterr().out) and "not results" in text
    with pytest.raises(irl.UserError, match="no run to publish"):
        report.publish(report.read_runs(tmp_path))


def test_summary_shows_expert_random_every_seed_and_the_published_board(tiny_run, tmp_path):
    folder, result, _ = tiny_run
    shutil.copytree(folder, tmp_path / "custom-4096-steps" / "Hopper-v4" / "seed1")
    report.main(report.Config(results=tmp_path))
    text = (tmp_path / "summary.md").read_text()
    card = irl.load_card(ROOT / "demos" / "Hopper-v4.npz")
    for number in (card["expert"]["demos"]["return_mean"], card["random"]["return_mean"]):
        assert f"{number:.0f}" in text
    assert f"1: {result['eval_return_mean']:.0f}" in text and f"{result['eval_return_mean']:.0f} (seed 1)" in text
    assert f"| {result['git_commit'][:7]}{'' if result['git_clean'] else ' *'} |" in text
    assert "other demonstrations" in text and "qwen3.6-plus" in text


def test_statistics_over_environments_on_cases_with_known_answers():
    low, high = [np.array([0.0, 0.1, 0.2])] * 3, [np.array([0.8, 0.9, 1.0])] * 3
    assert report.interquartile_mean(np.array([0.0, 1, 2, 3]), np.array([4.0, 5, 6, 100])) == np.mean([2, 3, 4, 5])
    assert report.probability_of_improvement(high, low) == 1 and report.probability_of_improvement(low, high) == 0
    assert report.probability_of_improvement(low, low) == 0.5
    rows = [
        dict(method=m, labels="", env=env, seed=i, normalized_return=x)
        for m, scores in (("custom", high), ("bad", low))
        for env, per_env in zip(report.ENVS, scores)
        for i, x in enumerate(per_env)
    ]
    lines = report.aggregate_table(pd.DataFrame(rows)).splitlines()
    custom, bad = (next(line for line in lines if line.startswith(f"| {m}")) for m in ("custom", "bad"))
    assert custom.startswith("| custom | 9 | 0.900 [0.8") and bad.endswith("] | 1.00 |")


def test_mean_curve_of_seeds_whose_episodes_end_at_different_steps():
    mean = report.mean_curve([pd.Series([0.0, 4.0], index=[0, 4]), pd.Series([2.0, 6.0, 6.0], index=[1, 3, 4])])
    assert list(mean.index) == [1, 3, 4] and list(mean) == [1.5, 4.5, 5.0]


def test_report_names_a_broken_result(tmp_path):
    (tmp_path / "result.json").write_text('{"schema": 1}')
    done = command("report.py", "--results", tmp_path)
    assert done.returncode == 1 and "result.json" in done.stderr and len(done.stderr.splitlines()) == 1
    (tmp_path / "result.json").unlink()
    assert "expected at least one finished run" in command("report.py", "--results", tmp_path).stderr


def test_readme_table_is_what_the_committed_runs_say():
    published = report.read_published()
    assert report.read_block(ROOT / "README.md") == report.readme_block(published).strip()
    assert report.read_block(ROOT / "benchmark" / "README.md") == report.seeds_block(published).strip()
    assert report.read_block(ROOT / "demos" / "README.md") == report.cards_table().strip()


def test_published_runs_are_full_runs_of_clean_code():
    runs = report.read_published()
    runs = runs[~runs["method"].isin(report.CONTROLS)]
    peers = runs["method"].str.startswith("imitation-")
    assert (runs.loc[~peers, "steps"] == 999_424).all() and set(runs.loc[peers, "steps"]) <= {0, 299_008, 999_424}
    assert (runs["git_clean"].astype(str) == "True").all()
    assert (runs["git_commit"].str.len() == 40).all()


def test_run_all_says_when_python_cannot_be_used(tmp_path):
    """With a Python of the wrong version, one clear line and nothing installed."""
    shutil.copy(ROOT / "run_all.sh", tmp_path), shutil.copy(ROOT / "requirements.txt", tmp_path)
    fake = tmp_path / "python"
    for script, message in (
        ('if [ "$1" = --version ]; then echo Python 3.9.1; else exit 1; fi', "Python 3.9.1 is not supported"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "has no venv module; install it first"),
    ):
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        env = {**os.environ, "PYTHON": str(fake)}
        done = subprocess.run(["bash", "run_all.sh"], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1
        assert not (tmp_path / ".venv").exists()
