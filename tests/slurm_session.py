"""The session that tests/slurm.sh has with its cluster: six runs, each with a fate of its own.

python tests/slurm_session.py FOLDER    # where squeue and sbatch work
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUDY = """
methods = ["constant"]
environments = ["Hopper-v4"]
seeds = [1, 2, 3, 4, 5, 6]
flags = ["--total-timesteps", "20480", "--update-epochs", "1"]
"""
START = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - START:5.1f} s  {text}", flush=True)


def wait_for(what: str, test: Callable[[], object], seconds: float = 150) -> object:
    """The first true value of `test`."""
    deadline = time.monotonic() + seconds
    while not (value := test()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.2)
    return value


class Session:
    def __init__(self, folder: Path):
        self.results = folder / "results"
        self.study = folder / "six.toml"
        self.study.write_text(STUDY)
        label = "constant-20480-steps-update-epochs-1"
        self.launcher = None
        self.runs = {i: self.results / label / "Hopper-v4" / f"seed{i}" for i in range(1, 7)}

    def launch(self) -> subprocess.Popen:
        """The launcher's command line, as a process."""
        words = ["-m", "benchmark.launch", "--study", self.study, "--results", self.results]
        words += ["--cluster", "slurm", "--partition", "main", "--minutes", "30"]
        line = [sys.executable, *map(str, words)]
        pipe = subprocess.PIPE
        self.launcher = subprocess.Popen(line, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
        return self.launcher

    def tickets(self) -> dict:
        path = self.results / ".cluster" / "jobs.json"
        jobs = json.loads(path.read_text())["jobs"] if path.exists() else {}
        return {int(run.rsplit("seed", 1)[1]): entry for run, entry in jobs.items()}

    def status(self, seed: int) -> dict:
        entry = self.tickets()[seed]
        path = self.results / ".cluster" / entry["submission"] / f"{entry['task']}.json"
        return json.loads(path.read_text())

    def has_begun(self, seed: int) -> bool:
        return (self.runs[seed] / "metrics.csv").exists()

    def finished(self) -> list[int]:
        return [seed for seed, folder in self.runs.items() if (folder / "result.json").exists()]

    def log(self, seed: int) -> str:
        return (self.runs[seed] / "log.txt").read_text()


def run(*words: str) -> None:
    subprocess.run(words, check=True)


def play(session: Session) -> None:
    launcher = session.launch()
    tickets = wait_for("six jobs", lambda: (t := session.tickets()) and len(t) == 6 and t)
    say(f"submitted: jobs {', '.join(entry['id'] for entry in tickets.values())}")

    left = {
        1: ("cancelled", lambda: run("scancel", tickets[1]["id"])),
        2: ("worker killed", lambda: os.kill(session.status(2)["pid"], signal.SIGKILL)),
        3: ("requeued", lambda: run("scontrol", "requeue", tickets[3]["id"])),
        4: ("preempted", lambda: run("scancel", "--signal=USR2", tickets[4]["id"])),
    }
    while left:
        seed = wait_for("a run", lambda: next((i for i in left if session.has_begun(i)), None))
        name, action = left.pop(seed)
        assert seed not in session.finished(), f"seed {seed} was finished before it was {name}"
        action()
        say(f"seed {seed}: {name}")

    _, err = launcher.communicate(timeout=240)
    say(f"launcher exits with {launcher.returncode}:\n{err.strip()}")
    assert launcher.returncode == 1
    assert len(err.splitlines()) == 2
    assert "seed 2: killed by signal 9" in err
    assert session.tickets() == tickets
    assert session.finished() == [3, 4, 5, 6]
    for seed in (3, 4):
        assert session.log(seed).count("stopped; the same command continues") == 1, seed

    launcher = session.launch()
    wait_for("a new submission", lambda: session.tickets() != tickets)
    second = session.tickets()
    assert [i for i in second if second[i] != tickets[i]] == [1, 2]
    say("called again: submits the two that failed")
    launcher.send_signal(signal.SIGHUP)
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 130, err
    assert "2 submitted runs go on" in err, err
    say(f"its terminal is closed: {err.strip()}")

    launcher = session.launch()
    _, err = launcher.communicate(timeout=240)
    say(f"and a third time, exits with {launcher.returncode}")
    assert launcher.returncode == 0, err
    assert session.tickets() == second, "a run was submitted twice"
    assert session.finished() == [1, 2, 3, 4, 5, 6]
    with (session.results / "summary.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert sorted(int(row["seed"]) for row in rows) == [1, 2, 3, 4, 5, 6]
    assert {row["steps"] for row in rows} == {"20480"}
    queue = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True)
    assert queue.stdout == ""
    say("six results, one report, an empty queue")


def main() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the launcher's, also where this is under nohup
    session = Session(Path(sys.argv[1]))
    try:
        play(session)
    finally:
        if session.launcher and session.launcher.poll() is None:
            session.launcher.kill()


if __name__ == "__main__":
    main()
