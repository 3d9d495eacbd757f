"""Runs as jobs of a cluster: submitit's executor of this machine, and a real Slurm."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark import cluster, launch, runs, task
from conftest import ROOT

OPTIONS = cluster.Options(minutes=10)


def jobs_with(script: str, results: Path, n: int = 1) -> list[launch.Job]:
    """Jobs that run `script` instead of a worker, in the folder of the run."""
    seeds = tuple(range(1, n + 1))
    config = launch.Config("gail", envs=("Hopper-v4",), seeds=seeds, results=results)
    jobs = launch.make_jobs(launch.runs_of(config, []), results)
    for job in jobs:
        job.command = ["sh", "-c", f"cd {job.folder}; {script}"]
    return jobs


def queue_of(results: Path, slots: int = 9) -> cluster.Queue:
    return cluster.Queue("local", results, OPTIONS, slots)


def run(jobs: list[launch.Job], results: Path) -> None:
    assert launch.run_jobs(jobs, launch.Config(results=results), queue_of(results))


def wait_for(test, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ------------------------------------------------------------------------------------- the launcher
def test_runs_are_submitted_and_a_failed_one_is_a_line(launcher, tmp_path, capsys):
    script = 'case $PWD in *seed1) echo "error: no demonstrations"; exit 1;; esac'
    jobs = jobs_with(script, tmp_path, n=2)
    run(jobs, tmp_path)
    assert [job.state for job in jobs] == ["failed", "done"]
    assert "Hopper-v4 seed 1: submitted" in capsys.readouterr().out
    assert jobs[0].failure().startswith("failed: Hopper-v4 seed 1: error: no demonstrations")


def test_a_closed_launcher_finds_its_jobs_again(tmp_path):
    script = "while [ ! -e ../go ]; do sleep 0.1; done"
    first = queue_of(tmp_path)
    jobs = jobs_with(script, tmp_path, n=2)
    first.submit(jobs)
    wait_for(lambda: all(job.ticket.status.exists() for job in jobs))

    again = jobs_with(script, tmp_path, n=3)
    second = queue_of(tmp_path)
    second.attach(again)
    assert [job.state for job in again] == ["submitted", "submitted", "waiting"]
    assert [job.ticket.id for job in again[:2]] == [job.ticket.id for job in jobs]
    second.poll(again[:2])
    assert [job.state for job in again] == ["running", "running", "waiting"]
    (jobs[0].folder.parent / "go").touch()
    assert launch.run_jobs(again, launch.Config(results=tmp_path), second)
    assert [job.state for job in again] == ["done"] * 3
    assert [job.ticket.id for job in again[:2]] == [job.ticket.id for job in jobs]


def test_a_killed_worker_and_a_job_that_vanished_are_failures(tmp_path):
    jobs = jobs_with("sleep 60", tmp_path, n=2)
    queue = queue_of(tmp_path)
    queue.submit(jobs)
    wait_for(lambda: all(cluster.read_status(job.ticket).get("pid") for job in jobs))
    pids = [cluster.read_status(job.ticket)["pid"] for job in jobs]
    os.kill(pids[0], signal.SIGKILL)
    # The second one's job, as a cluster does it: nobody is left to note how it ended.
    controller = int(jobs[1].ticket.id)
    tasks = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    for pid in (controller, *map(int, tasks), pids[1]):
        os.kill(pid, signal.SIGKILL)
    assert launch.run_jobs(jobs, launch.Config(results=tmp_path), queue)
    assert [job.state for job in jobs] == ["failed", "failed"]
    assert "killed by signal 9" in jobs[0].failure()
    assert "ended by the cluster without a result" in jobs[1].failure()


def test_a_submitted_run_without_rows_is_killed_if_asked(tmp_path):
    (job,) = jobs_with("exec sleep 60", tmp_path)
    config = launch.Config(results=tmp_path, stall_minutes=0.02)
    start = time.monotonic()
    assert launch.run_jobs([job], config, queue_of(tmp_path))
    assert time.monotonic() - start < 30
    assert "no row of metrics for 0.02 minutes, killed" in job.failure()
    wait_for(lambda: cluster.read_status(job.ticket) == {"pid": None, "code": -9})


def test_a_finished_run_is_not_submitted(tmp_path):
    (job,) = jobs_with("exit 0", tmp_path)
    job.folder.mkdir(parents=True)
    (job.folder / "result.json").write_text("{}")
    run([job], tmp_path)  # the run itself compares it with what is asked for, here
    assert job.state == "done"
    assert job.ticket is None


def test_a_finished_run_to_overwrite_is_submitted_as_one_to_be_trained(tmp_path):
    (job,) = jobs_with("[ ! -e result.json ]", tmp_path)
    job.args = replace(job.args, overwrite=True)
    job.folder.mkdir(parents=True)
    (job.folder / "result.json").write_text("{}")
    run([job], tmp_path)
    assert job.state == "done"
    assert job.ticket is not None


def test_only_runs_with_checkpoints_are_requeued_at_their_time_limit(tmp_path, monkeypatch):
    jobs = jobs_with("exit 0", tmp_path, n=2)
    jobs[0].run = replace(jobs[0].run, method="imitation-gail")
    queue = queue_of(tmp_path)
    submitted = []

    def submit_tasks(tasks, submission, timeouts):
        submitted.append(([task.log for task in tasks], timeouts))
        return ["1"] * len(tasks)

    monkeypatch.setattr(queue, "submit_tasks", submit_tasks)
    while waiting := [job for job in jobs if job.ticket is None]:
        queue.submit(waiting)
    assert submitted == [([jobs[0].log], 0), ([jobs[1].log], cluster.MAX_TIMEOUTS)]


def test_states_of_the_queue_are_those_of_the_runs(tmp_path):
    (job,) = jobs_with("exit 0", tmp_path)
    queue = cluster.Queue("slurm", tmp_path, OPTIONS, 1)
    (tmp_path / ".cluster" / "irl-a").mkdir()
    job.ticket = cluster.Ticket("slurm", "irl-a", "7_0", 0, tmp_path / ".cluster")
    noted = task.Task([], job.log, job.ticket.status)
    seen = []
    for status, state in [
        (None, "PENDING"),
        ((123, None), "RUNNING"),
        ((123, os.EX_TEMPFAIL), "RUNNING"),
        ((None, None), "COMPLETING"),  # requeued
        ((None, None), "PENDING"),
        ((124, None), "RUNNING"),
        ((124, None), None),  # not listed: for a while it may be the list that is wrong
        ((None, 0), None),
    ]:
        if status:
            noted.write_status(*status)
        queue.update(job, state)
        seen.append(job.state)
    states = ["submitted", "running", "held", "held", "submitted", "running", "running", "done"]
    assert seen == states


def test_the_list_of_slurms_jobs_is_read_by_name_and_id(tmp_path, monkeypatch):
    def fake(words: str) -> None:
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{words}\n")
        (tmp_path / "squeue").chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    queue = cluster.Queue("slurm", tmp_path, OPTIONS, 1)
    fake("echo 'irl-a|7_0|RUNNING'; echo 'other|job|7_1|PENDING'")
    assert queue.listed([]) == {("irl-a", "7_0"): "RUNNING", ("other|job", "7_1"): "PENDING"}
    fake("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert queue.listed([]) is None
    assert "Unable to contact" in queue.problem


def test_no_pickle_that_was_there_before_is_read(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/owned",)

    planted = tmp_path / ".cluster" / "irl-planted"
    planted.mkdir(parents=True)
    for name in ("1_submitted.pkl", "1_0_result.pkl", "0.json"):
        (planted / name).write_bytes(pickle.dumps(Hostile()))
    entry = '{"cluster": "local", "submission": "irl-planted", "id": "1", "task": 0}'
    text = '{"jobs": {"custom/Hopper-v4/seed1": ' + entry + "}}"
    (tmp_path / ".cluster" / "jobs.json").write_text(text)
    (job,) = jobs_with("exit 0", tmp_path)
    queue = queue_of(tmp_path)
    queue.attach([job])
    assert job.ticket is None
    assert launch.run_jobs([job], launch.Config(results=tmp_path), queue)
    assert job.ticket.submission != "irl-planted"
    assert not (tmp_path / "owned").exists()


BAD_LISTS = (
    "{", "[]", '{"jobs": 3}', '{"jobs": {"a": {"id": "1"}}}',
    '{"jobs": {"a": {"cluster": "local", "submission": "../..", "id": "1", "task": 0}}}',
)  # fmt: skip


@pytest.mark.parametrize("text", BAD_LISTS)
def test_a_damaged_list_of_jobs_is_one_line(text, launcher, tmp_path):
    (tmp_path / ".cluster").mkdir()
    (tmp_path / ".cluster" / "jobs.json").write_text(text)
    said = launcher("--cluster", "local", "--envs", "Hopper-v4")
    assert "jobs.json: not the launcher's list of jobs" in said
    assert "\n" not in said


def test_a_folder_of_jobs_that_points_elsewhere_is_refused(launcher, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".cluster").symlink_to(tmp_path / "elsewhere")
    assert ".cluster: expected a folder of" in launcher("--cluster", "local")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_without_slurm_it_says_so(launcher, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    said = launcher("--cluster", "slurm", "--envs", "Hopper-v4", "--seeds", "1")
    assert said.startswith("error: --cluster slurm: ")
    assert "srun" in said


# ----------------------------------------------------------------------------------- inside the job
@pytest.fixture
def handlers():
    """The signals' handlers, as they were."""
    old = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, old)


def task_of(script: str, folder: Path) -> task.Task:
    return task.Task(["sh", "-c", script], folder / "run" / "log.txt", folder / "status.json")


@pytest.mark.parametrize("code", [75, 130])
def test_a_job_waits_while_its_run_is_held_or_stopped(code, tmp_path, monkeypatch, handlers):
    monkeypatch.setitem(task.RETRIES, code, 0.1)
    script = f"cd {tmp_path}; [ -e mark ] && exit 0; touch mark; exit {code}"
    task_of(script, tmp_path)()
    assert '"code": 0' in (tmp_path / "status.json").read_text()


def test_a_job_fails_with_its_run(tmp_path, handlers):
    with pytest.raises(RuntimeError, match=r"exit code 3, see .*log\.txt"):
        task_of("echo reason; exit 3", tmp_path)()
    assert (tmp_path / "run" / "log.txt").read_text() == "reason\n"


WORKER = """
import pathlib, signal, sys, time
received = []
signal.signal(signal.SIGTERM, lambda *_: received.append(1))
print("begun", flush=True)
while not received:
    time.sleep(0.02)
time.sleep(0.3)
print(f"saved after {len(received)}", flush=True)
sys.exit(130)
"""


@pytest.mark.parametrize("told_before", [False, True])
def test_preemption_waits_for_the_checkpoint_and_gives_the_same_task_again(told_before, tmp_path):
    first = task_of("", tmp_path)
    first.command = [sys.executable, "-c", WORKER]
    thread = threading.Thread(target=first.run_worker, args=(None,))
    thread.start()
    wait_for(lambda: first.log.exists() and "begun" in first.log.read_text())
    wait_for(lambda: first.process)  # its thread may set it after the worker's line
    os.kill(first.process.pid, signal.SIGUSR2)  # Slurm sends it to every process of the job
    if told_before:  # and SIGTERM, in a preemption
        os.kill(first.process.pid, signal.SIGTERM)
        first.note_terminated(signal.SIGTERM, None)
    again = first.checkpoint()
    assert first.log.read_text() == "begun\nsaved after 1\n"
    assert again.function == first
    assert again.function.process is None
    thread.join()


# -------------------------------------------------------------------------------------------- whole
def test_a_study_by_submitit_on_this_machine(launcher, tmp_path):
    words = ["--cluster", "local", "--method", "constant", "--envs", "Hopper-v4", "--seeds", "1"]
    words += ["--total-timesteps", "2048", "--update-epochs", "1"]
    assert launcher(*words) == 0
    (result,) = tmp_path.rglob("result.json")
    assert runs.read_result(result.parent)["steps"] == 2048
    assert (tmp_path / "summary.md").exists()


@pytest.mark.slurm
def test_a_study_on_a_real_slurm():
    done = subprocess.run(["bash", "tests/slurm.sh"], cwd=ROOT, capture_output=True, text=True)
    said = f"{done.stdout}{done.stderr}".strip()
    if done.returncode == 77:
        pytest.skip(said.splitlines()[-1])
    assert done.returncode == 0, said
