"""Runs custom_irl.py for every environment and seed, as many at once as there are cores, then writes the report.

    python -m benchmark.launch                    # what `bash run_all.sh` calls
    python -m benchmark.launch --method gail      # the same for one of baselines/
    python -m benchmark.launch --envs Hopper-v4 --seeds 1 2 --no-policy-access
    python -m benchmark.launch --frozen           # afterwards: fresh policies on the rewards those runs ended with
    python -m benchmark.launch --diagnose         # and an examination of those rewards

Flags that are not its own go to custom_irl.py.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.live import Live
from rich.table import Table

import custom_irl
import report
from benchmark.ablations import ABLATIONS

OWN_FLAGS = ("--env", "--seed", "--out")
METHODS = (
    {"custom": ["custom_irl.py"]}
    | {name: ["-m", f"baselines.{name}"] for name in ("gail", "airl", "bc", "constant", "untrained")}
    | {f"imitation-{name}": ["-m", "benchmark.peers", name] for name in ("bc", "gail", "airl")}
    | {f"ablation-{name}": ["-m", "benchmark.ablations", name] for name in ABLATIONS}
)


@dataclass(frozen=True)
class Config:
    method: str = "custom"
    """one of METHODS: the EDITABLE region of custom_irl.py or that with a part left out, a module of baselines/, or one
    of imitation's trainers"""
    panel: Literal["dense", "scarce", "tiny", "one"] = "dense"
    """how much of the demonstrations a run gets: 50 episodes; 20, 4 or 1 and of those every 20th transition"""
    envs: tuple[str, ...] = ("HalfCheetah-v4", "Hopper-v4", "Walker2d-v4")
    """environments"""
    seeds: tuple[int, ...] = (42, 123, 456)
    """seeds; the benchmark's own are for reporting, tune on others"""
    frozen: bool = False
    """train fresh policies, of the next seed each, on the rewards that the finished runs of this command ended with"""
    learner: Literal["loop", "sb3"] = "loop"
    """what trains on --frozen rewards or the --true-reward: the benchmark's own PPO, or benchmark/retrain.py"""
    diagnose: bool = False
    """afterwards examine the rewards those runs ended with (diagnose.py --fast); the table is RESULTS/rewards.md"""
    results: Path = custom_irl.ROOT / "results"
    """folder of all runs and of the report"""
    jobs: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    """runs at once"""


@dataclass
class Job:
    """One run: a command, the folder it writes to, and the process while it lasts."""

    args: custom_irl.Args
    command: list[str]
    folder: Path
    process: subprocess.Popen | None = None
    state: str = "waiting"
    row: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.args.env} seed {self.args.seed}"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # A session of its own: Ctrl-C reaches the launcher alone, which then stops the runs in an orderly way.
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command, cwd=custom_irl.ROOT, stdout=log, stderr=log, start_new_session=True
            )
        self.state = "running"

    def poll(self) -> None:
        """Takes up what the run has written, and whether it has ended."""
        self.row = last_metrics(self.folder / "metrics.csv") or self.row
        if self.process is not None and (code := self.process.poll()) is not None:
            self.state, self.process = ("done" if code == 0 else "failed"), None

    def last_words(self) -> str:
        lines = self.log.read_text().strip().splitlines()
        return lines[-1] if lines else "no output"


def last_metrics(path: Path) -> dict:
    """The last row of a metrics.csv, with the last return that stands in it; {} before the first row."""
    if not path.exists():
        return {}
    with path.open(newline="") as f:
        rows = list(csv.DictReader(f))
    returns = [row["true_return"] for row in rows if row["true_return"]]
    return {**rows[-1], "true_return": returns[-1] if returns else ""} if rows else {}


def make_jobs(config: Config, flags: list[str]) -> list[Job]:
    """A job for each seed and environment; UserError for flags custom_irl.py does not take."""
    for flag in flags:
        if flag.split("=")[0] in OWN_FLAGS:
            raise custom_irl.UserError(f"{flag}: set by run_all.sh itself; expected --envs or --seeds, or a single run")
    if config.method not in METHODS:
        raise custom_irl.UserError(f"--method {config.method}: expected one of {', '.join(METHODS)}")
    if config.panel != "dense":
        episodes, subsample = next(amount for amount, name in custom_irl.PANELS.items() if name == config.panel)
        flags = [*flags, "--demo-episodes", str(episodes), "--demo-subsample", str(subsample)]
    program, prefix = METHODS[config.method], ""
    if config.learner == "sb3":
        program, prefix = ["-m", "benchmark.retrain"], "sb3-"
    jobs = []
    for seed in config.seeds:
        for env in config.envs:
            flags_of_run = ["--env", env, "--seed", str(seed), *flags]
            args = custom_irl.parse_args(flags_of_run)
            if config.learner == "sb3" and not (config.frozen or args.true_reward):
                raise custom_irl.UserError("--learner sb3: learns no reward; expected --frozen or --true-reward too")
            if config.frozen:
                trained = args.folder(config.method, config.results).absolute()
                flags_of_run += ["--seed", str(seed + 1), "--frozen-reward", str(trained)]
                args = custom_irl.inherit_labels(custom_irl.parse_args(flags_of_run), config.method)
            method = "oracle" if args.true_reward else config.method
            folder = args.folder(prefix + method, config.results)
            command = [sys.executable, *program, *flags_of_run, "--out", str(folder.absolute())]
            jobs.append(Job(args, command, folder))
    return jobs


def overview(jobs: list[Job]) -> Table:
    table = Table(title="QUICK LOOK, not a result" if jobs[0].args.quick else None)
    for column in ("environment", "seed", "state", "steps", "steps/s", "time left", "last return"):
        table.add_column(column, justify="left" if column in ("environment", "state") else "right")
    for job in jobs:
        steps, speed = int(job.row.get("steps", 0)), float(job.row.get("steps_per_second", 0))
        left = (job.args.num_rounds * job.args.batch_size - steps) / speed if speed and job.state == "running" else None
        table.add_row(
            job.args.env,
            str(job.args.seed),
            job.state,
            f"{steps:,}" if steps else "",
            f"{speed:.0f}" if job.state == "running" and speed else "",
            f"{int(left) // 60}:{int(left) % 60:02d}" if left is not None else "",
            f"{float(job.row['true_return']):.0f}" if job.row.get("true_return") else "",
        )
    return table


def run_jobs(jobs: list[Job], n_parallel: int, console: Console) -> None:
    """Runs all jobs. On Ctrl-C or SIGTERM the children end their round, write a checkpoint and stop."""

    def interrupt(signum, frame):
        raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background job starts out ignoring it
        signal.signal(signum, interrupt)
    live = Live(overview(jobs), console=console, refresh_per_second=2) if console.is_terminal else None
    try:
        if live:
            live.start()
        while any(job.state in ("waiting", "running") for job in jobs):
            before = {job.name: job.state for job in jobs}
            for job in jobs:
                if job.state == "running":
                    job.poll()
            running = sum(job.state == "running" for job in jobs)
            for job in [job for job in jobs if job.state == "waiting"][: n_parallel - running]:
                job.start()
            if live:
                live.update(overview(jobs))
            else:
                for job in jobs:
                    if job.state != before[job.name]:
                        print(f"{job.name}: {job.state}", flush=True)
            time.sleep(0.5)
    except KeyboardInterrupt:
        for job in jobs:
            if job.process is not None:
                job.process.terminate()
        for job in jobs:
            if job.process is not None:
                job.process.wait()
        raise
    finally:
        if live:
            live.stop()


def examine(folders: list[Path], table: Path) -> None:
    """diagnose.py on finished runs; it says itself which it cannot examine."""
    program = [sys.executable, custom_irl.ROOT / "diagnose.py"]
    subprocess.run([*program, *folders, "--fast", "--table", table], cwd=custom_irl.ROOT)


def main() -> None:
    try:
        config, flags = tyro.cli(Config, description=__doc__, return_unknown_args=True)
        jobs = make_jobs(config, flags)
        run_jobs(jobs, config.jobs, Console())
    except custom_irl.UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the checkpoints", file=sys.stderr)
        sys.exit(130)
    if any(job.state == "done" for job in jobs):
        report.main(report.Config(results=config.results))
    if config.diagnose:
        examine([job.folder for job in jobs if job.state == "done"], config.results / "rewards.md")
    failed = [job for job in jobs if job.state == "failed"]
    for job in failed:
        print(f"failed: {job.name}: {job.last_words()} (all of it in {job.log})", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
