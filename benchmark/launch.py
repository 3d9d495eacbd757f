"""Runs a method on every environment and seed, as many runs at once as cores; then the report.

    python -m benchmark.launch                  # what `bash run_all.sh` calls
    python -m benchmark.launch --quick          # one short run an environment: a look, not a result
    python -m benchmark.launch --method gail    # a baseline, imitation-gail or ablation-no-value
    python -m benchmark.launch --envs Hopper-v4 --seeds 1 2 --no-policy-access
    python -m benchmark.launch --frozen         # then: fresh policies on the rewards of those runs
    python -m benchmark.launch --diagnose       # and an examination of those rewards

Flags that are not its own go to custom_irl.py. Finished runs are skipped. Ctrl-C and SIGTERM stop
the runs with a checkpoint; the same command continues from there.
"""

from __future__ import annotations

import csv
import hashlib
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

import custom_irl as irl
from benchmark import report, runs
from benchmark.ablations import ABLATIONS
from demos import formats

METHODS = (
    *runs.METHODS,
    *runs.TRAINERS,
    *(f"imitation-{name}" for name in runs.PEERS),
    *(f"ablation-{name}" for name in ABLATIONS),
)
OWN_FLAGS = {"--env": "--envs", "--seed": "--seeds", "--out": "--results"}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Config:
    method: str = "custom"
    """a method of runs.py, imitation-bc, -gail or -airl, or ablation-NAME"""
    panel: Literal["dense", "scarce", "tiny", "one"] = "dense"
    """demonstrations of a run: 50 episodes; 20, 4 or 1, and of those every 20th transition"""
    envs: tuple[str, ...] = runs.ENVS
    """environments"""
    seeds: tuple[int, ...] | None = None
    """seeds; default: 42 123 456, with --quick 42 (for reporting: tune on others)"""
    quick: bool = False
    """a look of minutes: fewer steps and a shorter method; marked as quick, never a result"""
    frozen: bool = False
    """train fresh policies, each of the next seed, on the rewards of this command's runs"""
    learner: Literal["loop", "sb3"] = "loop"
    """what trains with --frozen or --true-reward: the benchmark's PPO, or benchmark/retrain.py"""
    diagnose: bool = False
    """then examine the rewards of those runs (benchmark.diagnose --fast) into RESULTS/rewards.md"""
    results: Path = runs.RESULTS
    """folder of all runs and of the report"""
    jobs: int = CORES
    """number of runs at once; default: the number of cores"""


# --------------------------------------------------------------------------------------------- jobs
@dataclass
class Job:
    """One run: a command, the folder it writes to, and its process while it is running."""

    args: irl.Args
    command: list[str]
    folder: Path
    process: subprocess.Popen | None = None
    state: str = "waiting"  # then running, then done or failed
    metrics: dict = field(default_factory=dict)  # the last row of metrics.csv

    @property
    def name(self) -> str:
        return f"{self.args.env} seed {self.args.seed}"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # In a session of its own: Ctrl-C reaches the launcher alone, which then stops the runs.
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, cwd=irl.ROOT, stdout=log, stderr=log, start_new_session=True
            )
        self.state = "running"

    def poll(self) -> None:
        """Reads what the run has written, and whether it has ended."""
        self.metrics = last_metrics(self.folder / "metrics.csv") or self.metrics
        code = self.process.poll()
        if code is not None:
            self.state = "done" if code == 0 else "failed"

    def failure(self) -> str:
        """One line: which run, the last line it wrote, and the file with all of them."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        code = self.process.returncode
        how = f"killed by signal {-code}; " if code < 0 else ""
        return f"failed: {self.name}: {how}{lines[-1] if lines else 'no output'} (log: {self.log})"


def last_metrics(path: Path) -> dict:
    """The last row of a metrics.csv, with the last return in it; {} before the first row."""
    if not path.exists():
        return {}
    with path.open(newline="") as f:
        rows = list(csv.DictReader(f))
    if not rows:
        return {}
    returns = [row["true_return"] for row in rows if row.get("true_return")]
    return {**rows[-1], "true_return": returns[-1] if returns else ""}


def check(config: Config, flags: list[str]) -> None:
    """UserError for what cannot be combined."""
    given = {flag.split("=")[0].replace("_", "-") for flag in flags}
    for flag, own in OWN_FLAGS.items():
        if flag in given:
            raise irl.UserError(f"{flag}: set by the launcher itself; expected {own}")
    if config.method not in METHODS:
        raise irl.UserError(f"--method {config.method}: expected one of {', '.join(METHODS)}")
    if config.jobs < 1 or not config.envs or config.seeds == ():
        raise irl.UserError("--jobs, --envs and --seeds: expected at least one of each")
    if config.panel != "dense" and given & {"--demo-episodes", "--demo-subsample"}:
        raise irl.UserError("--panel: sets --demo-episodes and --demo-subsample; expected one way")
    true_reward = "--true-reward" in given
    if config.frozen and true_reward:
        raise irl.UserError("--frozen and --true-reward: expected one of them")
    if config.learner == "sb3" and not (config.frozen or true_reward):
        raise irl.UserError("--learner sb3: learns no reward; expected --frozen or --true-reward")
    if config.method in runs.TRAINERS and true_reward:
        raise irl.UserError(f"--true-reward: not with --method {config.method}")
    if config.quick and "--total-timesteps" in given:
        raise irl.UserError("--quick: sets --total-timesteps; expected one of them")
    own_loop = config.method in runs.TRAINERS or config.method.startswith("imitation-")
    if config.quick and (config.learner == "sb3" or own_loop):
        raise irl.UserError("--quick: not with --learner sb3 and not for a method of its own loop")


def own_demos(path: Path, results: Path) -> Path:
    """The demonstrations at `path` as this project's .npz: converted, once, if they are not."""
    if formats.format_of(path) == "irl":
        return path.absolute()
    destination = results.absolute() / "demos" / f"{path.stem}-{digest(path)[:8]}.npz"
    if not destination.exists():
        for note in formats.to_own_npz(path, destination):
            print(note)
    print(f"{path}: converted, {destination}")
    return destination


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder."""
    if path.is_file():
        return irl.sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [f"{file.relative_to(path)} {irl.sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def make_jobs(config: Config, flags: list[str]) -> list[Job]:
    """A job for each seed and environment.

    Raises:
        UserError, DemoError, SystemExit: for flags that cannot be used.
    """
    check(config, flags)
    if config.panel != "dense":
        episodes, subsample = next(k for k, name in runs.PANELS.items() if name == config.panel)
        flags = [*flags, "--demo-episodes", str(episodes), "--demo-subsample", str(subsample)]
    if config.quick:
        flags = [*flags, "--total-timesteps", str(runs.QUICK_TIMESTEPS)]
    demos = irl.parse_args(flags).demos
    if demos is not None:
        flags = [*flags, "--demos", str(own_demos(demos, config.results))]
    seeds = config.seeds or (runs.SEEDS[:1] if config.quick else runs.SEEDS)
    return [
        make_job(config, env, seed, flags)
        for seed in dict.fromkeys(seeds)
        for env in dict.fromkeys(config.envs)
    ]


def make_job(config: Config, env: str, seed: int, flags: list[str]) -> Job:
    args = irl.parse_args(["--env", env, "--seed", str(seed), *flags])
    irl.env_dims(args)  # an environment that cannot be made fails here
    labels = runs.labels_of(irl.config_of(args), config.quick)
    method = "oracle" if args.true_reward else config.method
    trained = None
    if config.frozen:
        runs.method_named(method)
        trained = runs.folder_of(config.results, method, labels, env, seed).absolute()
        runs.read_result(trained)
        method = f"{method}-frozen"
        seed += 1
        args = irl.parse_args(["--env", env, "--seed", str(seed), *flags])
    if config.learner == "sb3":
        method = f"sb3-{method}"
    folder = runs.folder_of(config.results, method, labels, env, seed).absolute()
    words = ["--env", env, "--seed", str(seed), *flags, "--out", str(folder)]
    return Job(args, [sys.executable, *program(config, trained), *words], folder)


def program(config: Config, trained: Path | None) -> list[str]:
    """The module that runs a job, with its own words. `trained`: the run whose reward is used."""
    if config.learner == "sb3":
        reward = [] if trained is None else ["--reward", str(trained)]
        return ["-m", "benchmark.retrain", *reward]
    if config.method.startswith("imitation-"):
        return ["-m", "baselines.imitation_peers", config.method.removeprefix("imitation-")]
    if config.method in runs.TRAINERS and trained is None:
        return runs.TRAINERS[config.method].words
    what = [config.method] if trained is None else ["frozen", str(trained)]
    return ["-m", "benchmark.resume", *what, *(["--quick"] if config.quick else [])]


# ------------------------------------------------------------------------------------------ running
def live_table(jobs: list[Job], quick: bool) -> Table:
    table = Table(title="QUICK LOOK, not a result" if quick else None)
    for column in ("environment", "seed", "state", "steps", "steps/s", "time left", "last return"):
        table.add_column(column, justify="left" if column in ("environment", "state") else "right")
    for job in jobs:
        steps = int(job.metrics.get("steps", 0))
        speed = float(job.metrics.get("steps_per_second", 0)) if job.state == "running" else 0.0
        left = ""
        if speed:
            seconds = int((job.args.num_rounds * job.args.batch_size - steps) / speed)
            left = f"{seconds // 60}:{seconds % 60:02d}"
        last_return = job.metrics.get("true_return")
        table.add_row(
            job.args.env,
            str(job.args.seed),
            job.state,
            f"{steps:,}" if steps else "",
            f"{speed:.0f}" if speed else "",
            left,
            f"{float(last_return):.0f}" if last_return else "",
        )
    return table


def interrupt(signum, frame) -> None:
    raise KeyboardInterrupt


def run_jobs(jobs: list[Job], n_parallel: int, quick: bool, console: Console) -> None:
    """Runs all jobs. SIGINT and SIGTERM stop them: they end their round and write a checkpoint."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores SIGINT
        signal.signal(signum, interrupt)
    live = Live(console=console, refresh_per_second=2) if console.is_terminal else None
    try:
        if live:
            live.start()
        while any(job.state in ("waiting", "running") for job in jobs):
            for line in advance(jobs, n_parallel):
                if not live:
                    print(line, flush=True)
            if live:
                live.update(live_table(jobs, quick))
            time.sleep(0.5)
    finally:
        if live:
            live.stop()
        stop(jobs)


def advance(jobs: list[Job], n_parallel: int) -> list[str]:
    """Polls the running jobs and starts as many as there is room for; a line for each change."""
    before = [job.state for job in jobs]
    running = [job for job in jobs if job.state == "running"]
    for job in running:
        job.poll()
    room = n_parallel - sum(job.state == "running" for job in running)
    for job in [job for job in jobs if job.state == "waiting"][:room]:
        job.start()
    return [f"{job.name}: {job.state}" for job, old in zip(jobs, before) if job.state != old]


def stop(jobs: list[Job]) -> None:
    """Asks the running jobs to stop, and waits until they have."""
    running = [job for job in jobs if job.state == "running"]
    for job in running:
        job.process.terminate()
    for job in running:
        job.process.wait()


def examine(folders: list[Path], table: Path) -> bool:
    """Examines finished runs with benchmark.diagnose; whether that worked."""
    words = ["-m", "benchmark.diagnose", *map(str, folders), "--fast", "--table", str(table)]
    return subprocess.run([sys.executable, *words], cwd=irl.ROOT).returncode == 0


def main() -> None:
    config, flags = tyro.cli(Config, description=__doc__, return_unknown_args=True)
    jobs = make_jobs(config, flags)
    try:
        run_jobs(jobs, config.jobs, config.quick, Console())
    except KeyboardInterrupt:
        print("stopped; the same command continues from the checkpoints", file=sys.stderr)
        sys.exit(130)
    done = [job.folder for job in jobs if job.state == "done"]
    failed = [job for job in jobs if job.state == "failed"]
    failures = bool(failed)
    try:
        if done:
            report.main(report.Config(results=config.results))
        if done and config.diagnose:
            failures |= not examine(done, config.results.absolute() / "rewards.md")
    finally:
        for job in failed:
            print(job.failure(), file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    runs.command_line(main)
