"""Runs a method on every environment and seed, or a study from a file; then the report.

    python -m benchmark.launch                  # what `bash run_all.sh` calls: both variants
    python -m benchmark.launch --quick          # one short run an environment: a look, not a result
    python -m benchmark.launch --method gail    # a baseline, imitation-gail or ablation-no-value
    python -m benchmark.launch --envs Hopper-v4 --seeds 1 2 --variants reward-only
    python -m benchmark.launch --frozen         # then: fresh policies on the rewards of those runs
    python -m benchmark.launch --diagnose       # and an examination of those rewards
    python -m benchmark.launch --study benchmark/studies/ten-seeds.toml --dry-run
    python -m benchmark.launch --cluster slurm --partition main --minutes 120

Flags that are not its own go to custom_irl.py. Finished runs are skipped, with --overwrite trained
again. Ctrl-C, SIGTERM and a closed terminal stop the runs of this machine; jobs of a cluster stay.
The same command continues from there: runs of the loop from a checkpoint, others from the start.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.live import Live
from rich.table import Table

import custom_irl as irl
from benchmark import cluster, report, runs, study
from benchmark.task import HELD_UNTIL
from demos import arrow, columns, formats, hdf5, transitions

# Flags that say which runs, and that --study therefore excludes.
OF_A_RUN = ("method", "panel", "envs", "variants", "seeds", "quick", "frozen", "learner")
QUIET_MINUTES = 10  # without a new row of metrics before a run is named
READERS = (formats, arrow, columns, hdf5, transitions)  # the modules that convert demonstrations
HELD_SECONDS = 30  # before a run that another process holds is tried again


@dataclass(frozen=True)
class Config:
    method: str = "custom"
    """a method of runs.py, imitation-bc, -gail or -airl, or ablation-NAME"""
    panel: Literal["dense", "scarce", "tiny", "one"] = "dense"
    """demonstrations of a run: 50 episodes; 20, 4 or 1, and of those every 20th transition"""
    envs: tuple[str, ...] = runs.ENVS
    """environments"""
    variants: tuple[Literal["full", "reward-only"], ...] | None = None
    """with policy access (full), or PPO on rewards alone; default: both of custom, else full"""
    seeds: tuple[int, ...] | None = None
    """seeds; default: 42 123 456, with --quick 42 (for reporting: tune on others)"""
    quick: bool = False
    """a look of minutes: fewer steps and a shorter method; marked as quick, never a result"""
    frozen: bool = False
    """train fresh policies, each of the next seed, on the reward of this command's runs"""
    learner: Literal["loop", "sb3", "sac"] = "loop"
    """what trains with --frozen or --true-reward: the benchmark's PPO, or stable-baselines3's PPO
    (sb3) or SAC (sac; 300,000 steps by default)"""
    study: Path | None = None
    """a file that says which runs instead, as benchmark/studies/*.toml"""
    dry_run: bool = False
    """print the runs, which of them exist, and an estimate of core hours; start nothing"""
    diagnose: bool = False
    """then examine the rewards of those runs (benchmark.diagnose --fast) into RESULTS/rewards.md"""
    results: Path = runs.RESULTS
    """folder of all runs and of the report"""
    jobs: int = runs.CORES
    """number of runs at once on this machine; default: the number of cores"""
    stall_minutes: float | None = None
    """kill a run that writes no row of metrics for so long; default: name it after 10"""
    cluster: Literal["slurm", "local"] | None = None
    """submit the runs as jobs by submitit: an array of Slurm, or processes of this machine"""
    partition: str | None = None
    """with --cluster slurm: the partition"""
    account: str | None = None
    """with --cluster slurm: the account"""
    minutes: int = 240
    """with --cluster: time limit of a job, which then is requeued and continues if its run has
    checkpoints, and fails if not"""
    array_parallelism: int = 256
    """with --cluster slurm: number of an array's jobs at once"""


# --------------------------------------------------------------------------------------------- jobs
@dataclass
class Job:
    """One run: a command, the folder it writes to, and its process or its place in a queue.

    States: waiting; submitted and running; held by another process, to be tried again; done or
    failed.
    """

    run: study.Run
    method: str  # as its folder's name begins
    args: irl.Args
    command: list[str]
    folder: Path
    name: str
    needs: Job | None = None  # the run whose reward is learned from, if it is one of these
    state: str = "waiting"
    code: int | None = None  # what its process has exited with
    problem: str = ""  # why it has failed, if not by itself
    process: subprocess.Popen | None = None
    ticket: cluster.Ticket | None = None
    started: float = 0.0  # of its process, time.monotonic()
    metrics: dict = field(default_factory=dict)  # the last row of metrics.csv
    metrics_version: tuple = ()
    metrics_at: float = 0.0  # when there was a new row, time.monotonic()
    quiet: bool = False  # no new row for QUIET_MINUTES

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def finished_before(self) -> bool:
        """There is a result, which the run itself compares with what is asked for."""
        return (self.folder / "result.json").exists() and not self.args.overwrite

    @property
    def quiet_minutes(self) -> float:
        """Minutes without a new row of metrics, of a run that writes them as it goes."""
        if self.state != "running" or not self.run.under_contract:
            return 0.0
        return (time.monotonic() - self.metrics_at) / 60

    def forget_result(self) -> None:
        """Before its first start: with --overwrite a finished run becomes one to be trained.

        Not left to the run, which may be started again by a queue or after it was held: it then
        has to keep what it has trained.
        """
        if self.args.overwrite:
            # Where another process holds the folder its run goes on, and counts as this one.
            with suppress(irl.UserError), runs.locked(self.folder):
                if (self.folder / "result.json").exists():
                    (self.folder / "origin.json").unlink(missing_ok=True)
                    (self.folder / "result.json").unlink()

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.state == "waiting":
            self.forget_result()
        # In a session of its own: Ctrl-C reaches the launcher alone, which then stops the runs.
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, cwd=irl.ROOT, stdout=log, stderr=log, start_new_session=True
            )
        self.started = time.monotonic()
        if self.state != "held":
            self.state = "running"
            self.metrics_at = self.started

    def poll(self) -> None:
        """Sees whether its process has ended."""
        self.code = self.process.poll()
        age = time.monotonic() - self.started
        if self.code is None:
            if self.state == "held" and age > HELD_UNTIL:
                self.state = "running"
                self.metrics_at = time.monotonic()
            return
        self.process = None
        if self.code == os.EX_TEMPFAIL:
            self.state = "held"
        else:
            self.state = "done" if self.code == 0 else "failed"

    def read_metrics(self) -> None:
        path = self.folder / "metrics.csv"
        try:
            stat = path.stat()
            version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if version == self.metrics_version:
                return
            self.metrics = last_metrics(path) or self.metrics
        except FileNotFoundError:  # not yet, or just removed by a new start
            return
        self.metrics_version = version
        self.metrics_at = time.monotonic()

    def failure(self) -> str:
        """One line: which run, why or the last line it wrote, and the file with all of them."""
        log = self.log if self.log.exists() or not self.ticket else self.ticket.log
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        how = f"{self.problem}; " if self.problem else ""
        if self.code is not None and self.code < 0:
            how = f"killed by signal {-self.code}; "
        return f"failed: {self.name}: {how}{lines[-1] if lines else 'no output'} (log: {log})"


def last_metrics(path: Path) -> dict:
    """The last row of a metrics.csv, with the last return in it; {} before the first row."""
    with path.open(newline="") as f:
        rows = list(csv.DictReader(f))
    if not rows:
        return {}
    returns = [row["true_return"] for row in rows if row.get("true_return")]
    return {**rows[-1], "true_return": returns[-1] if returns else ""}


def check(config: Config, flags: list[str]) -> None:
    """UserError for what cannot be combined."""
    for flag in set(runs.names_of(flags)) & set(study.SET_BY_A_RUN):
        own = study.SET_BY_A_RUN[flag]
        raise irl.UserError(f"{flag}: set by the launcher itself; expected --{own}")
    if config.jobs < 1 or not config.envs or () in (config.seeds, config.variants):
        raise irl.UserError("--jobs, --envs, --seeds, --variants: expected at least one of each")
    if config.minutes < 5:  # a job is told of its limit two minutes before
        raise irl.UserError(f"--minutes {config.minutes}: expected 5 or more")
    if config.array_parallelism < 1:
        raise irl.UserError(f"--array-parallelism {config.array_parallelism}: expected 1 or more")
    if config.stall_minutes is not None and not config.stall_minutes > 0:
        raise irl.UserError(f"--stall-minutes {config.stall_minutes}: expected more than 0")
    changed = {f.name for f in fields(Config) if getattr(config, f.name) != f.default}
    for name in changed & {"partition", "account", "array_parallelism"}:
        if config.cluster != "slurm":
            raise irl.UserError(f"--{name.replace('_', '-')}: expected --cluster slurm")
    if "minutes" in changed and config.cluster is None:
        raise irl.UserError("--minutes: expected --cluster slurm or local")
    if config.study is not None and (others := [*(changed & set(OF_A_RUN)), *flags]):
        expected = "the file alone says which runs"
        raise irl.UserError(f"--study and {others[0].lstrip('-')}: expected one; {expected}")


def variants_of(config: Config, flags: list[str]) -> list[str]:
    """The variants of study.py that the flags ask for; without any, both of a whole `custom`."""
    given = set(runs.names_of(flags))
    asked = [name for name in ("true-reward", "reward-only") if given & set(study.VARIANTS[name])]
    if config.frozen:
        asked = ["frozen"]
    if config.variants and asked:
        other = "--frozen" if config.frozen else study.VARIANTS[asked[0]][0]
        raise irl.UserError(f"--variants and {other}: expected one of them")
    if config.variants:
        return list(config.variants)
    if asked:
        return asked[:1]
    both = config.method == "custom" and not config.quick
    return ["full", "reward-only"] if both else ["full"]


def runs_of(config: Config, flags: list[str]) -> list[study.Run]:
    """The runs that a study's file or the flags ask for.

    Raises:
        UserError: for flags, or keys of the file, that cannot be used.
    """
    check(config, flags)
    if config.study is not None:
        return study.read_study(config.study)
    variants = variants_of(config, flags)
    if not config.frozen:
        of_variants = study.VARIANTS.values()
        flags = [flag for flag in flags if (flag.replace("_", "-"),) not in of_variants]
    group = {
        "methods": [config.method],
        "panels": [config.panel],
        "variants": variants,
        "environments": config.envs,
        "seeds": config.seeds or (runs.SEEDS[:1] if config.quick else runs.SEEDS),
        "learner": config.learner,
        "quick": config.quick,
        "flags": flags,
    }
    return study.expand(group)


def own_demos(path: Path, results: Path) -> Path:
    """The demonstrations at `path` as this project's .npz: converted, if they are not, and again
    only after a change of the file or of what reads it.
    """
    if formats.format_of(path) == "irl" and set(formats.npz_shapes(path)) <= formats.OWN_KEYS:
        return path.absolute()
    destination = results.absolute() / "demos" / f"{path.stem}-{digest(path)[:8]}.npz"
    record = destination.with_suffix(".notes.txt")  # the readers' SHA-256, then their notes
    readers = hashlib.sha256("".join(irl.sha256(Path(m.__file__)) for m in READERS).encode())
    lines = record.read_text().splitlines() if record.exists() and destination.exists() else []
    if lines[:1] != [readers.hexdigest()]:
        lines = [readers.hexdigest(), *formats.to_own_npz(path, destination)]
        irl.write_text(record, "\n".join(lines) + "\n")
    for line in [*lines[1:], f"{path}: converted, {destination}"]:
        print(line)
    return destination


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder."""
    if path.is_file():
        return irl.sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [f"{file.relative_to(path)} {irl.sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def make_jobs(wanted: list[study.Run], results: Path) -> list[Job]:
    """A job for each run.

    Raises:
        UserError, DemoError, SystemExit: for runs that cannot be made.
    """

    @functools.cache
    def flags_of(words: tuple[str, ...]) -> list[str]:
        demos = irl.parse_args(words).demos
        return [*words, *([] if demos is None else ["--demos", str(own_demos(demos, results))])]

    jobs = {}
    trained = {}
    for run in wanted:
        job, reward = make_job(run, flags_of(tuple(run.words)), results)
        if job.folder in jobs:
            names = " and ".join(sorted({jobs[job.folder].run.method, run.method}))
            raise irl.UserError(f"{job.folder}: of two different runs ({names}); expected one")
        jobs[job.folder] = job
        trained[job.folder] = reward
    for folder, reward in trained.items():
        if reward in jobs:
            jobs[folder].needs = jobs[reward]
        elif reward is not None:
            runs.read_result(reward)
    if len({job.folder.parent.parent for job in jobs.values()}) > 1:
        for job in jobs.values():
            job.name = f"{job.folder.parent.parent.name} {job.name}"
    return list(jobs.values())


@functools.cache
def check_env(env: str, max_episode_steps: int | None) -> None:
    irl.make_env(env, max_episode_steps)


def make_job(run: study.Run, flags: list[str], results: Path) -> tuple[Job, Path | None]:
    """The job of a run, and the folder of the run whose reward it learns from, if it does."""
    args = irl.parse_args(["--env", run.env, "--seed", str(run.seed), *flags])
    check_env(args.env, args.max_episode_steps)  # one that cannot be made fails here
    labels = runs.labels_of(irl.config_of(args), run.quick)
    method = "oracle" if args.true_reward else run.method
    trained = None
    if run.variant == "frozen":
        trained = runs.folder_of(results, method, labels, run.env, run.seed).absolute()
        method = f"{method}-frozen"
        args = replace(args, seed=run.seed + 1)
    if run.learner != "loop":
        method = f"{run.learner}-{method}"
    if run.learner in study.LEARNER_STEPS and "--total-timesteps" not in runs.names_of(flags):
        args = replace(args, total_timesteps=study.LEARNER_STEPS[run.learner])
        flags = [*flags, "--total-timesteps", str(args.total_timesteps)]
        labels = runs.labels_of(irl.config_of(args))
    folder = runs.folder_of(results, method, labels, args.env, args.seed).absolute()
    words = ["--env", args.env, "--seed", str(args.seed), *flags, "--out", str(folder)]
    command = [sys.executable, *program(run, trained), *words]
    return Job(run, method, args, command, folder, f"{args.env} seed {args.seed}"), trained


def program(run: study.Run, trained: Path | None) -> list[str]:
    """The module that makes a run, with its own words. `trained`: the run whose reward is used."""
    if run.learner != "loop":
        reward = [] if trained is None else ["--reward", str(trained)]
        return ["-m", "benchmark.retrain", "--learner", run.learner, *reward]
    if run.method.startswith("imitation-"):
        return ["-m", "baselines.imitation_peers", run.method.removeprefix("imitation-")]
    if run.method in runs.TRAINERS and trained is None:
        return runs.TRAINERS[run.method].words
    what = [run.method] if trained is None else ["frozen", str(trained)]
    return ["-m", "benchmark.resume", *what, *(["--quick"] if run.quick else [])]


# ------------------------------------------------------------------------------------------ dry run
def print_plan(jobs: list[Job], results: Path) -> None:
    """Each run, whether it exists, and what the others will cost by committed speeds."""
    committed = study.committed_runs()
    hours = 0.0
    left = 0
    unknown = Counter()
    for job in jobs:
        done = job.finished_before
        print(f"{job.folder.relative_to(results.absolute())}{'  finished' if done else ''}")
        if done:
            continue
        left += 1
        variant = runs.variant_of(job.method, irl.config_of(job.args))
        steps = job.args.num_rounds * job.args.batch_size
        panel = runs.panel_of(irl.config_of(job.args))
        cost = study.core_hours(committed, job.method, variant, panel, steps)
        if cost is None:
            unknown[job.method if variant != "reward-only" else f"{job.method} {variant}"] += 1
        else:
            hours += cost
    finished = len(jobs) - left
    print(f"{len(jobs)} runs, {finished} finished, {left} left: about {hours:.1f} core hours")
    for name, n in unknown.items():
        print(f"not in that: {n} of {name}, of which no speed is committed")


# ------------------------------------------------------------------------------------------ running
SHOWN_FIRST = ("failed", "running", "held", "submitted", "waiting", "done")


def live_table(jobs: list[Job], rows: int | None = None, note: str = "") -> Table:
    """At most `rows` jobs, then those that need attention first; the counts of all states."""
    quick = any(job.run.quick for job in jobs)
    counts = Counter(job.state for job in jobs)
    caption = ", ".join(f"{counts[state]} {state}" for state in SHOWN_FIRST if counts[state])
    if rows is not None and len(jobs) > rows:
        jobs = sorted(jobs, key=lambda job: (not job.quiet, SHOWN_FIRST.index(job.state)))
        caption = f"{max(1, rows)} of {len(jobs)} runs: {caption}"
        jobs = jobs[: max(1, rows)]
    table = Table(title="QUICK LOOK, not a result" if quick else None)
    table.caption = f"{caption}; {note}" if note else caption
    for column in ("run", "state", "steps", "steps/s", "time left", "last return"):
        table.add_column(column, justify="left" if column in ("run", "state") else "right")
    for job in jobs:
        steps = int(job.metrics.get("steps", 0))
        speed = float(job.metrics.get("steps_per_second", 0)) if job.state == "running" else 0.0
        left = ""
        if speed:
            seconds = int((job.args.num_rounds * job.args.batch_size - steps) / speed)
            left = f"{seconds // 60}:{seconds % 60:02d}"
        last_return = job.metrics.get("true_return")
        table.add_row(
            job.name,
            f"no row for {job.quiet_minutes:.0f} min" if job.quiet else job.state,
            f"{steps:,}" if steps else "",
            f"{speed:.0f}" if speed else "",
            left,
            f"{float(last_return):.0f}" if last_return else "",
        )
    return table


@contextmanager
def noting_signals():
    """The signals that ask the launcher to stop, as a list that grows."""
    received = []
    old = {}
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        ignored = signal.getsignal(signum) == signal.SIG_IGN
        if signum == signal.SIGHUP and ignored:  # nohup
            continue
        # SIGINT too where it is ignored: a shell's background job.
        old[signum] = signal.signal(signum, lambda signum, frame: received.append(signum))
    try:
        yield received
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler or signal.SIG_DFL)


def run_jobs(jobs: list[Job], config: Config, queue: cluster.Queue | None) -> bool:
    """Runs all jobs; whether they have ended. If a signal came first, those here are stopped."""
    console = Console()
    live = Live(console=console, refresh_per_second=2) if console.is_terminal else None
    with noting_signals() as received:
        try:
            if live:
                live.start()
            while not received and any(job.state not in ("done", "failed") for job in jobs):
                for line in advance(jobs, config, queue):
                    if not live:
                        print(line, flush=True)
                if live:
                    note = queue.problem if queue else ""
                    live.update(live_table(jobs, console.height - 7, note))
                time.sleep(0.5)
        finally:
            stop(jobs, received)
            if live:
                live.stop()
    return not received


def advance(jobs: list[Job], config: Config, queue: cluster.Queue | None) -> list[str]:
    """Looks at the jobs and starts or submits what there is room for; a line for each change."""
    before = [(job.state, job.quiet) for job in jobs]
    old_problem = queue.problem if queue else ""
    for job in jobs:
        if job.process is not None:
            job.poll()
    if queue:
        queue.poll([job for job in jobs if job.ticket and job.state not in ("done", "failed")])
    for job, (state, _) in zip(jobs, before):
        if job.state in ("running", "held") or job.state == "done" != state:
            job.read_metrics()
        job.quiet = job.quiet_minutes > QUIET_MINUTES
        if config.stall_minutes is not None and job.quiet_minutes > config.stall_minutes:
            kill(job, queue, f"no row of metrics for {config.stall_minutes:g} minutes, killed")
        if job.state == "waiting" and job.needs and job.needs.state == "failed":
            job.state = "failed"
            job.problem = f"its reward is of a run that failed ({job.needs.name})"
    ready = [job for job in jobs if is_ready(job)]
    here = [job for job in ready if queue is None or job.finished_before]
    room = config.jobs - sum(job.process is not None for job in jobs)
    for job in here[: max(0, room)]:
        job.start()
    if queue:
        queue.submit([job for job in ready if job not in here])
    lines = [] if not queue or queue.problem in ("", old_problem) else [queue.problem]
    return lines + [
        f"{job.name}: {f'no row for {job.quiet_minutes:.0f} minutes' if job.quiet else job.state}"
        for job, old in zip(jobs, before)
        if (job.state, job.quiet) != old
    ]


def is_ready(job: Job) -> bool:
    """It can be started now."""
    if job.process is not None or job.ticket is not None:
        return False
    if job.state == "held":
        return time.monotonic() - job.started > HELD_SECONDS
    return job.state == "waiting" and (job.needs is None or job.needs.state == "done")


def kill(job: Job, queue: cluster.Queue | None, problem: str) -> None:
    """Ends a run at once, wherever it is."""
    if job.process is not None:
        os.killpg(job.process.pid, signal.SIGKILL)
        job.process.wait()
        job.process = None
    elif queue:
        queue.kill(job)
    job.state = "failed"
    job.quiet = False
    job.problem = problem


def stop(jobs: list[Job], received: list[int]) -> None:
    """Asks the runs of this machine to stop, and waits until they have.

    They end their round and write a checkpoint. A second Ctrl-C interrupts that, a third kills.
    """
    processes = [job.process for job in jobs if job.process is not None]
    ways = [subprocess.Popen.terminate, subprocess.Popen.terminate, subprocess.Popen.kill]
    interrupts = received.count(signal.SIGINT)
    sent = 0
    while any(process.poll() is None for process in processes):
        if sent <= received.count(signal.SIGINT) - interrupts and sent < len(ways):
            for process in processes:
                ways[sent](process)
            sent += 1
        time.sleep(0.1)


def examine(jobs: list[Job], table: Path) -> bool:
    """Examines the finished runs that save a reward, by benchmark.diagnose; whether that worked."""
    folders = [str(job.folder) for job in jobs if job.run.saves_reward]
    if left_out := {job.method for job in jobs if not job.run.saves_reward}:
        print(f"not examined, as no reward can be loaded: {', '.join(sorted(left_out))}")
    if not folders:
        return True
    words = ["-m", "benchmark.diagnose", *folders, "--fast", "--table", str(table)]
    return subprocess.run([sys.executable, *words], cwd=irl.ROOT).returncode == 0


def stopped(jobs: list[Job]) -> str:
    """What to say when a signal has stopped the launcher."""
    left = sum(job.state in ("submitted", "running", "held") for job in jobs if job.ticket)
    again = "the same command"
    if any(job.args.overwrite for job in jobs):  # with it, what is finished now would be forgotten
        again += " without --overwrite"
    if left:
        return f"stopped; {left} submitted runs go on, {again} shows them again"
    anew = sum(job.state == "running" and not job.run.under_contract for job in jobs)
    others = f", but {anew} runs without checkpoints begin anew" if anew else ""
    return f"stopped; {again} continues from the checkpoints{others}"


def main() -> None:
    config, flags = tyro.cli(Config, description=__doc__, return_unknown_args=True)
    wanted = runs_of(config, flags)
    if config.diagnose and not any(run.saves_reward for run in wanted):
        raise irl.UserError("--diagnose: expected a run that saves a reward that can be loaded")
    jobs = make_jobs(wanted, config.results)
    if config.dry_run:
        print_plan(jobs, config.results)
        return
    queue = None
    if config.cluster:
        options = cluster.Options(
            config.minutes, config.partition, config.account, config.array_parallelism
        )
        queue = cluster.Queue(config.cluster, config.results, options, config.jobs)
        queue.attach(jobs)
    if not run_jobs(jobs, config, queue):
        print(stopped(jobs), file=sys.stderr)
        sys.exit(130)
    done = [job for job in jobs if job.state == "done"]
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
