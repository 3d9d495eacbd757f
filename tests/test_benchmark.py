"""run_all.sh and its launcher: which runs, with which words, and what happens to them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import custom_irl as irl
from benchmark import launch, resume, runs, study
from conftest import ROOT

RESULT = {"schema": 2}


def jobs_of(config: launch.Config, flags: list[str] | None = None) -> list[launch.Job]:
    return launch.make_jobs(launch.runs_of(config, flags or []), config.results)


REFUSED = [
    ("--dry-run --minutes 5", "--minutes: expected --cluster"),
    ("--cluster local --partition main", "--partition: expected --cluster slurm"),
    ("--cluster local --minutes 2", "--minutes 2: expected 5 or more"),
    ("--no-policy-access=False", "Unrecognized options: False"),
    ("--stall-minutes 0", "--stall-minutes 0.0: expected more than 0"),
    ("--study nowhere.toml", "nowhere.toml: not readable as TOML"),
    ("--study benchmark/studies/trial.toml --method gail", "--study and method: expected one"),
    ("--study benchmark/studies/trial.toml --gamma 0.9", "--study and gamma: expected one"),
    ("--env Hopper-v4", "--envs"),
    ("--seed=3", "--seeds"),
    ("--no-such-flag", "no-such-flag"),
    ("--num-steps 0", "--num-steps 0: expected an integer from 1"),
    ("--method magic", "imitation-gail"),
    ("--envs Hoper-v4", "--env Hoper-v4"),
    ("--jobs 0", "at least one"),
    ("--learner sb3", "--frozen or --true-reward"),
    ("--frozen --true-reward", "one of them"),
    ("--frozen", "seed42/result.json: no such file"),
    ("--frozen --method imitation-gail", "method imitation-gail"),
    ("--quick --total_timesteps 4096", "one of them"),
    ("--quick --method imitation-gail", "of its own loop"),
    ("--panel tiny --demo-episodes 3", "--demo-episodes"),
    ("--demos nowhere.hdf5", "nowhere.hdf5: no such file"),
    ("--learner sb3 --true-reward --gamma 0.9", "--gamma: not read by --learner sb3"),
    ("--learner sac --frozen --clip_coef=0.1", "--clip-coef: not read by --learner sac"),
    ("--method imitation-bc --update-epochs 1", "--update-epochs: not read by --method"),
    ("--method iqlearn --total-timesteps 4096", "--total-timesteps: not read by --method"),
    ("--diagnose --true-reward", "--diagnose: expected a run that saves a reward"),
    ("--diagnose --method imitation-bc", "--diagnose: expected a run that saves a reward"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[words for words, _ in REFUSED])
def test_bad_flags_are_refused_before_anything_is_written(
    words, message, launcher, tmp_path, capsys
):
    said = launcher(*words.split())
    assert message in f"{said}{capsys.readouterr().err}"
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------- jobs
def test_the_default_is_three_environments_and_three_seeds_of_both_variants():
    jobs = jobs_of(launch.Config())
    wanted = {
        (env, seed, 1_000_000, reward_only)
        for env in runs.ENVS
        for seed in runs.SEEDS
        for reward_only in (False, True)
    }
    args = [job.args for job in jobs]
    assert {(a.env, a.seed, a.total_timesteps, a.no_policy_access) for a in args} == wanted
    assert len({job.folder for job in jobs}) == 18
    assert len(jobs_of(launch.Config(method="gail"))) == 9


@pytest.mark.parametrize("variant", ["full", "reward-only"])
def test_one_variant_can_be_asked_for(variant):
    jobs = jobs_of(launch.Config(variants=(variant,)))
    assert [job.run.variant for job in jobs] == [variant] * 9


@pytest.mark.parametrize(
    ("other", "flags"),
    [({"frozen": True}, []), ({}, ["--true_reward"]), ({"quick": True}, ["--no-policy-access"])],
)
def test_variants_are_said_once(other, flags):
    config = launch.Config(variants=("full",), **other)
    with pytest.raises(irl.UserError, match=r"--variants and --.*: expected one of them"):
        launch.runs_of(config, flags)


def test_a_quick_look_is_one_short_run_an_environment_and_marked():
    jobs = jobs_of(launch.Config(quick=True))
    assert [(job.args.env, job.args.seed) for job in jobs] == [(env, 42) for env in runs.ENVS]
    for job in jobs:
        assert job.args.total_timesteps == runs.QUICK_TIMESTEPS
        assert "--quick" in job.command
        assert job.folder.parts[-3] == "custom-quick"
    assert "not a result" in launch.live_table(jobs).title


@pytest.mark.parametrize("n", [5, 10**6])
def test_a_quick_look_shortens_the_method_and_never_lengthens_it(n):
    class Method(irl.IRLAlgorithm):
        hyperparameters = irl.Hyperparameters(bc_steps=n)

    resume.shorten(Method)
    assert Method.hyperparameters.bc_steps == min(n, resume.QUICK["bc_steps"])


@pytest.mark.parametrize(("amount", "panel"), runs.PANELS.items())
def test_panels_say_how_much_of_the_demonstrations_a_run_gets(amount, panel):
    jobs = jobs_of(launch.Config(panel=panel), ["--no-policy-access"])
    assert {(job.args.demo_episodes, job.args.demo_subsample) for job in jobs} == {amount}
    label = "custom-reward-only" if panel == "dense" else f"custom-reward-only-{panel}"
    assert {job.folder.parts[-3] for job in jobs} == {label}


@pytest.mark.parametrize("learner", study.LEARNERS)
def test_a_frozen_reward_is_trained_on_with_the_next_seed_and_the_labels_of_its_run(
    learner, tmp_path
):
    flags = ["--no-policy-access", "--total-timesteps", "4096"]
    config = {"envs": ("Hopper-v4",), "seeds": (1,), "panel": "tiny", "results": tmp_path}
    (trained,) = jobs_of(launch.Config(**config), flags)
    trained.folder.mkdir(parents=True)
    (trained.folder / "result.json").write_text(json.dumps(RESULT))
    (job,) = jobs_of(launch.Config(**config, frozen=True, learner=learner), flags)
    assert str(trained.folder) in job.command
    assert job.args.seed == 2
    labels = runs.labels_of(irl.config_of(job.args))
    assert labels == runs.labels_of(irl.config_of(trained.args))
    method = "custom-frozen" if learner == "loop" else f"{learner}-custom-frozen"
    assert job.folder == runs.folder_of(tmp_path, method, labels, "Hopper-v4", 2)


def test_the_oracle_of_either_learner_has_a_folder_of_its_own():
    names = []
    for learner in study.LEARNERS:
        config = launch.Config(envs=("Hopper-v4",), seeds=(1,), learner=learner)
        (job,) = jobs_of(config, ["--true-reward"])
        assert "--true-reward" in job.command
        names.append(job.folder.parts[-3])
    assert names == ["oracle", "sb3-oracle", "sac-oracle-300000-steps"]


def test_sac_has_a_budget_of_its_own_and_the_reward_it_learns_from_another(tmp_path):
    config = {"envs": ("Hopper-v4",), "seeds": (1,), "results": tmp_path}
    (trained,) = jobs_of(launch.Config(**config, variants=("full",)), [])
    trained.folder.mkdir(parents=True)
    (trained.folder / "result.json").write_text(json.dumps(RESULT))
    (job,) = jobs_of(launch.Config(**config, frozen=True, learner="sac"), [])
    assert (trained.args.total_timesteps, job.args.total_timesteps) == (1_000_000, 300_000)
    assert job.command[-4:-2] == ["--total-timesteps", "300000"]
    assert job.folder.parts[-3] == "sac-custom-frozen-300000-steps"


def test_runs_whose_reward_can_be_loaded_are_examined_and_the_others_named(
    tmp_path, monkeypatch, capsys
):
    jobs = []
    for method in ("custom", "iqlearn", "ibc", "imitation-gail"):
        config = launch.Config(method, envs=("Hopper-v4",), seeds=(1,), variants=("full",))
        jobs += jobs_of(config)
    commands = []
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda words, **_: commands.append(words) or done)
    assert launch.examine(jobs, tmp_path / "rewards.md")
    folders = [word for word in commands[0] if word.endswith("seed1")]
    assert folders == [str(job.folder) for job in jobs[:2]]
    said = "not examined, as no reward can be loaded: ibc, imitation-gail"
    assert capsys.readouterr().out.strip() == said
    assert launch.examine(jobs[2:], tmp_path / "rewards.md")
    assert len(commands) == 1


def test_demonstrations_of_another_format_are_converted_once(tmp_path, monkeypatch, capsys):
    states = np.random.default_rng(0).normal(size=(2, 11, 11)).astype(np.float32)  # two episodes
    obs, next_obs = states[:, :-1].reshape(20, 11), states[:, 1:].reshape(20, 11)
    acts = np.zeros((20, 3), np.float32)
    dones = np.arange(20) % 10 == 9
    source = tmp_path / "mine.npz"
    np.savez(source, obs=obs, acts=acts, next_obs=next_obs, dones=dones)
    results = tmp_path / "results"
    config = launch.Config(envs=("Hopper-v4",), seeds=(1, 2), results=results)
    flags = ["--demos", str(source), "--demo-episodes", "1"]
    jobs = jobs_of(config, flags)
    (converted,) = (results / "demos").glob("*.npz")
    notes = capsys.readouterr().out
    assert len(notes.splitlines()) > 1
    assert {job.args.demos for job in jobs} == {converted}
    tensors = irl.load_demos(converted, 11, 3, episodes=1, subsample=1).tensors
    np.testing.assert_array_equal(tensors["next_obs"], next_obs[:10])

    written = converted.stat().st_mtime_ns
    again = jobs_of(config, ["--demos", str(converted), "--demo-episodes", "1"])
    assert again[0].args.demos == converted
    jobs_of(config, flags)
    assert capsys.readouterr().out == notes
    assert converted.stat().st_mtime_ns == written
    monkeypatch.setattr(launch, "READERS", launch.READERS[1:])  # as if these had changed
    content = converted.read_bytes()
    jobs_of(config, flags)
    assert converted.stat().st_mtime_ns > written
    assert converted.read_bytes() == content  # so that finished runs stay those of this file
    np.savez(source, obs=obs + 2, acts=acts, next_obs=next_obs + 2, dones=dones)
    assert jobs_of(config, flags)[0].args.demos != converted


# ------------------------------------------------------------------------------------------ running
def test_a_stopped_launch_continues_and_skips_what_is_finished(launcher, tmp_path):
    words = ["--method", "constant", "--envs", "Hopper-v4", "--seeds", "1", "2", "--jobs", "1"]
    words += ["--total-timesteps", "12288", "--update-epochs", "1"]
    runs_of_label = tmp_path / "constant-12288-steps-update-epochs-1" / "Hopper-v4"
    first, second = runs_of_label / "seed1", runs_of_label / "seed2"
    line = [sys.executable, "-m", "benchmark.launch", "--results", str(tmp_path), *words]
    process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE)
    while not (second / "metrics.csv").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)  # as a closed terminal does
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert b"the same command continues" in said
    assert (second / "checkpoint.json").exists()
    assert not (second / "result.json").exists()
    finished = (first / "result.json").stat().st_mtime_ns

    assert launcher(*words) == 0
    assert (first / "result.json").stat().st_mtime_ns == finished
    assert runs.read_result(second)["steps"] == 12288
    assert "stopped" in (second / "log.txt").read_text()  # this log is of both launches
    assert not (second / "checkpoint.json").exists()
    assert (tmp_path / "summary.md").exists()


ENDINGS = {
    "sys.exit('error: no demonstrations')": "error: no demonstrations",
    "os.kill(os.getpid(), 9)": "killed by signal 9",
}


@pytest.mark.parametrize("code", ENDINGS)
def test_a_failed_run_is_one_line_with_its_reason_and_its_log(
    code, launcher, monkeypatch, tmp_path, capsys
):
    script = f"import os, sys; print('begun'); {code}"
    monkeypatch.setattr(launch, "program", lambda run, trained: ["-c", script])
    assert launcher("--variants", "full", "--envs", "Hopper-v4", "--seeds", "1") == 1
    (line,) = capsys.readouterr().err.splitlines()
    log = tmp_path / "custom" / "Hopper-v4" / "seed1" / "log.txt"
    assert line.startswith("failed: Hopper-v4 seed 1: ")
    assert ENDINGS[code] in line
    assert str(log) in line
    assert log.exists()


def jobs_with(script: str, monkeypatch, results: Path, n: int = 1) -> list[launch.Job]:
    """Jobs that run `script`, in which FOLDER is the run's."""
    seeds = tuple(range(1, n + 1))
    jobs = jobs_of(launch.Config("gail", envs=("Hopper-v4",), seeds=seeds, results=results))
    for job in jobs:
        job.command = [sys.executable, "-c", script.replace("FOLDER", repr(str(job.folder)))]
    return jobs


HELD_ONCE = """
import pathlib, sys
mark = pathlib.Path(FOLDER, "held")
held = not mark.exists()
mark.touch()
sys.exit(75 if held else 0)
"""


def test_a_run_that_another_process_holds_is_tried_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(launch, "HELD_SECONDS", 0.1)
    jobs = jobs_with(HELD_ONCE, monkeypatch, tmp_path)
    assert launch.run_jobs(jobs, launch.Config(results=tmp_path), None)
    states = [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()]
    assert states == ["running", "held", "done"]


TRAINED_ONCE = """
import pathlib, sys
result = pathlib.Path(FOLDER, "result.json")
trained = not result.exists()
if trained:
    result.write_text("new")
sys.exit(75 if trained else 0)
"""


@pytest.mark.parametrize("overwrite", [True, False])
def test_to_overwrite_trains_a_finished_run_again_but_once(
    overwrite, monkeypatch, tmp_path, capsys
):
    """Also if it is started a second time, here after it was held."""
    monkeypatch.setattr(launch, "HELD_SECONDS", 0.1)
    (job,) = jobs_with(TRAINED_ONCE, monkeypatch, tmp_path)
    job.args = replace(job.args, overwrite=overwrite)
    job.folder.mkdir(parents=True)
    (job.folder / "result.json").write_text("old")
    launch.print_plan([job], tmp_path)
    assert ("  finished" in capsys.readouterr().out) != overwrite
    assert launch.run_jobs([job], launch.Config(results=tmp_path), None)
    assert job.state == "done"
    assert (job.folder / "result.json").read_text() == ("new" if overwrite else "old")


def test_what_a_stopped_launch_says_is_true_of_its_runs():
    jobs = []
    for method in ("gail", "imitation-gail"):
        jobs += jobs_of(launch.Config(method, envs=("Hopper-v4",), seeds=(1,)))
    jobs[0].state = jobs[1].state = "running"
    assert launch.stopped(jobs[:1]) == "stopped; the same command continues from the checkpoints"
    assert launch.stopped(jobs).endswith(", but 1 runs without checkpoints begin anew")
    (again,) = jobs_of(launch.Config("gail", envs=("Hopper-v4",), seeds=(1,)), ["--overwrite"])
    assert "the same command without --overwrite continues" in launch.stopped([again])


def test_a_run_without_new_rows_is_named_and_killed_if_asked(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(launch, "QUIET_MINUTES", 0.005)
    config = launch.Config(results=tmp_path, stall_minutes=0.02)
    jobs = jobs_with("import time; time.sleep(60)", monkeypatch, tmp_path)
    start = time.monotonic()
    assert launch.run_jobs(jobs, config, None)
    assert 1.2 < time.monotonic() - start < 30
    assert "Hopper-v4 seed 1: no row for 0 minutes" in capsys.readouterr().out
    assert jobs[0].state == "failed"
    assert "no row of metrics for 0.02 minutes, killed" in jobs[0].failure()


def test_new_rows_keep_a_run_alive(monkeypatch, tmp_path):
    script = (
        "import pathlib, time\n"
        "for i in range(15):\n"
        "    text = 'steps\\n' + '1\\n' * i\n"
        "    pathlib.Path(FOLDER, 'metrics.csv').write_text(text)\n"
        "    time.sleep(0.2)\n"
    )
    config = launch.Config(results=tmp_path, stall_minutes=0.03)  # the run takes 3 s
    jobs = jobs_with(script, monkeypatch, tmp_path)
    assert launch.run_jobs(jobs, config, None)
    assert jobs[0].state == "done"
    assert jobs[0].metrics["steps"] == "1"


def test_only_rows_that_are_written_as_a_run_goes_are_missed():
    (ours,) = jobs_of(launch.Config("gail", envs=("Hopper-v4",), seeds=(1,)))
    peer_config = launch.Config(method="imitation-bc", envs=("Hopper-v4",), seeds=(1,))
    (peer,) = jobs_of(peer_config)
    for job in (ours, peer):
        job.state = "running"
        job.metrics_at = time.monotonic() - 3600
    launch.advance([ours, peer], launch.Config(), None)
    assert ours.quiet_minutes == pytest.approx(60, abs=0.1)
    assert peer.quiet_minutes == 0
    assert "no row for 60 min" in list(launch.live_table([ours, peer]).columns[1].cells)


def test_a_closed_terminal_stops_the_launcher_but_not_under_nohup():
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with launch.noting_signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with launch.noting_signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert received == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_long_list_shows_first_what_needs_attention():
    jobs = jobs_of(launch.Config("gail"))
    jobs[7].state = "failed"
    jobs[8].state = jobs[6].state = "running"
    jobs[6].quiet = True
    table = launch.live_table(jobs, rows=4)
    first, *others = table.columns[1].cells
    assert first.startswith("no row for")
    assert others == ["failed", "running", "waiting"]
    assert table.caption == "4 of 9 runs: 1 failed, 2 running, 6 waiting"


# --------------------------------------------------------------------------------------- run_all.sh
def run_all(folder: Path, python: str) -> subprocess.CompletedProcess:
    """run_all.sh in `folder`, with `python` as the text of a shell script that is PYTHON."""
    (folder / "python").write_text(f"#!/bin/sh\n{python}\n")
    (folder / "python").chmod(0o755)
    env = {**os.environ, "PYTHON": str(folder / "python")}
    line = ["bash", "run_all.sh", "--quick"]
    return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path) -> Path:
    for name in ("run_all.sh", "requirements.txt", ".constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


OLD_PYTHON = 'if [ "$1" = --version ]; then echo Python 3.9.1; else exit 1; fi'
UNUSABLE = {
    OLD_PYTHON: "Python 3.9.1 is not supported",
    'case "$2" in *ensurepip*) exit 1;; esac': "has no venv module; install it first",
}


@pytest.mark.parametrize("python", UNUSABLE)
def test_run_all_says_when_python_cannot_be_used(python, checkout):
    done = run_all(checkout, python)
    assert done.returncode == 1
    assert UNUSABLE[python] in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (checkout / ".venv").exists()


def test_run_all_installs_anew_when_a_requirement_or_a_constraint_has_changed(checkout):
    make_venv = f"""case "$*" in *" venv "*)
        mkdir -p .venv/bin
        cp {checkout}/python .venv/bin/python;;
    esac
    echo "$*" >>calls.txt"""

    def calls() -> list[str]:
        (checkout / "calls.txt").unlink(missing_ok=True)
        assert run_all(checkout, make_venv).returncode == 0
        return (checkout / "calls.txt").read_text().splitlines()

    launched = "-m benchmark.launch --quick"
    assert any("pip install" in call for call in calls())
    assert calls() == [launched]
    for name in ("requirements.txt", ".constraints.txt"):
        with (checkout / name).open("a") as f:
            f.write("# newer\n")
        assert any("pip install" in call for call in calls())
        assert calls() == [launched]
