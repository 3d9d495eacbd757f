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
flags = ["--total-timesteps", "40960", "--update-epochs", "1"]
"""
START = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - START:5.1f} s  {text}", flush=True)


def wait_for(what: str, test: Callable[[], object], seconds: float = 90) -> object:
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
        label = "constant-40960-steps-update-epochs-1"
        self.runs = {i: self.results / label / "Hopper-v4" / f"seed{i}" for i in range(1, 7)}

    def launch(self) -> subprocess.Popen:
        words = ["-m", "benchmark.launch", "--study", self.study, "--results", self.results]
        words += ["--cluster", "slurm", "--partition", "main", "--minutes", "30"]
        line = [sys.executable, *map(str, words)]
        pipe = subprocess.PIPE
        return subprocess.Popen(line, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)

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


def main() -> None:
    session = Session(Path(sys.argv[1]))
    launcher = session.launch()
    tickets = wait_for("six jobs", lambda: (t := session.tickets()) and len(t) == 6 and t)
    say(f"submitted: jobs {', '.join(entry['id'] for entry in tickets.values())}")

    fates = {
        1: ("cancelled", lambda: run("scancel", tickets[1]["id"])),
        2: ("worker killed", lambda: os.kill(session.status(2)["pid"], signal.SIGKILL)),
        3: ("requeued", lambda: run("scontrol", "requeue", tickets[3]["id"])),
        4: ("preempted", lambda: run("scancel", "--signal=USR2", tickets[4]["id"])),
    }
    left = dict(fates)
    while left:
        seed = wait_for("a run", lambda: next((i for i in left if session.has_begun(i)), None))
        name, action = left.pop(seed)
        assert seed not in session.finished(), f"seed {seed} was finished before it was {name}"
        action()
        say(f"seed {seed}: {name}")

    launcher.send_signal(signal.SIGHUP)
    _, err = launcher.communicate(timeout=30)
    assert launcher.returncode == 130, err
    assert "submitted runs go on" in err, err
    say(f"launcher closed: {err.strip()}")

    launcher = session.launch()
    out, err = launcher.communicate(timeout=150)
    say(f"called again, exits with {launcher.returncode}: {err.strip()}")
    assert {i: session.tickets()[i]["id"] for i in (3, 4, 5, 6)} == {
        i: tickets[i]["id"] for i in (3, 4, 5, 6)
    }, "a job was submitted twice"
    for seed in (3, 4):
        assert session.log(seed).count("stopped; the same command continues") == 1, seed
    assert {3, 4, 5, 6} <= set(session.finished()), session.finished()

    # Cancelled and killed runs had failed for the first launcher or for the second. A third time
    # does nothing but what is left.
    if launcher.returncode:
        launcher = session.launch()
        out, err = launcher.communicate(timeout=150)
        say(f"and again, exits with {launcher.returncode}")
    assert launcher.returncode == 0, err
    assert session.finished() == [1, 2, 3, 4, 5, 6]
    with (session.results / "summary.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert sorted(int(row["seed"]) for row in rows) == [1, 2, 3, 4, 5, 6]
    assert {row["steps"] for row in rows} == {"40960"}
    queue = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True)
    assert queue.stdout == ""
    say("six results, one report, an empty queue")


if __name__ == "__main__":
    main()
