"""Runs as jobs of a cluster, by submitit: an array of Slurm, or processes of this machine.

    bash run_all.sh --cluster slurm --partition main --minutes 120

RESULTS/.cluster/jobs.json says which run is which job. Each submission has a new folder beside it,
with submitit's pickles, the jobs' own output and the status of each run. A pickle is read by
nothing but the job that it was written for.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import submitit

import custom_irl as irl
from benchmark.task import Task

POLL_SECONDS = {"slurm": 10, "local": 0.5}
GONE_SECONDS = 20  # that a job may be in no list, and its status unseen, before it counts as lost
SIGNAL_SECONDS = 120  # before a time limit that a job is told of it
MAX_TIMEOUTS = 50  # of one run with checkpoints
MAX_ARRAY = 1000  # Slurm's MaxArraySize is 1001 by default


@dataclass(frozen=True)
class Options:
    minutes: int
    partition: str | None = None
    account: str | None = None
    array_parallelism: int = 256


@dataclass
class Ticket:
    """Where a run is in the queue."""

    cluster: str
    submission: str  # the submission's folder and the job's name
    id: str  # Slurm's job id, or the pid of submitit's controller
    task: int  # the run's place in the submission
    folder: Path  # RESULTS/.cluster
    gone_since: float | None = None

    @property
    def status(self) -> Path:
        return self.folder / self.submission / f"{self.task}.json"

    @property
    def log(self) -> Path:
        """What the job itself has written, which matters if it did not reach the run."""
        return self.folder / self.submission / f"{self.id}_0_log.err"


class Queue:
    """The jobs of one folder of results.

    Raises:
        UserError: for a cluster that is not there, and a folder of somebody else's.
    """

    def __init__(self, cluster: str, results: Path, options: Options, jobs_here: int):
        self.cluster = cluster
        self.results = results.absolute()
        self.folder = self.results / ".cluster"
        self.options = options
        self.slots = jobs_here  # of --cluster local
        self.problem = ""  # why the list of jobs is not known, if it is not
        self.next_poll = 0.0
        self.active = 0
        if cluster == "local" and not Path("/proc/self/cmdline").exists():
            raise irl.UserError("--cluster local: expected Linux")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.folder.is_symlink() or self.folder.stat().st_uid != os.getuid():
            raise irl.UserError(f"{self.folder}: expected a folder of {getpass.getuser()}'s own")
        self.folder.chmod(0o700)  # nobody else can put a pickle in the place of a job's

    # ---- jobs.json
    def read_tickets(self) -> dict[str, Ticket]:
        """By the run's folder, relative to the results."""
        path = self.folder / "jobs.json"
        if not path.exists():
            return {}
        try:
            tickets = {}
            for run, entry in json.loads(path.read_text())["jobs"].items():
                ticket = Ticket(**{**entry, "task": int(entry["task"])}, folder=self.folder)
                words = (ticket.cluster, ticket.submission, ticket.id)
                if not all(re.fullmatch(r"[\w-]+", word) for word in words):
                    raise ValueError(f"names {words}")
                tickets[run] = ticket
            return tickets
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"not the launcher's list of jobs ({error!r}); remove it to submit anew"
            raise irl.UserError(f"{path}: {problem}") from None

    def write_tickets(self, tickets: dict[str, Ticket]) -> None:
        keys = ("cluster", "submission", "id", "task")
        jobs = {run: {key: asdict(t)[key] for key in keys} for run, t in tickets.items()}
        text = json.dumps({"schema": 1, "jobs": jobs}, indent=1) + "\n"
        irl.write_text(self.folder / "jobs.json", text)

    def name_of(self, job) -> str:
        return str(job.folder.relative_to(self.results))

    def attach(self, jobs: list) -> None:
        """Finds those that an earlier launcher has submitted and that are still in the queue."""
        tickets = self.read_tickets()
        if not tickets:
            return
        listed = self.listed(list(tickets.values()))
        if listed is None:
            raise irl.UserError(f"--cluster {self.cluster}: {self.problem}")
        for job in jobs:
            ticket = tickets.get(self.name_of(job))
            if ticket and ticket.cluster == self.cluster and key_of(ticket) in listed:
                job.ticket = ticket
                job.state = "submitted"

    # ---- submitting
    def submit(self, jobs: list) -> None:
        """Submits as many of the jobs as there is room for, as one array.

        Runs with checkpoints and runs without are not of one array: the next call submits the rest.
        """
        room = MAX_ARRAY if self.cluster == "slurm" else self.slots - self.active
        jobs = jobs[: max(0, room)]
        if not jobs:
            return
        resumable = jobs[0].run.under_contract
        jobs = [job for job in jobs if job.run.under_contract == resumable]
        for job in jobs:
            job.forget_result()
        submission = Path(tempfile.mkdtemp(prefix="irl-", dir=self.folder))
        tasks = [Task(job.command, job.log, submission / f"{i}.json") for i, job in enumerate(jobs)]
        ids = self.submit_tasks(tasks, submission, MAX_TIMEOUTS if resumable else 0)
        tickets = self.read_tickets()
        for i, (job, job_id) in enumerate(zip(jobs, ids)):
            job.ticket = Ticket(self.cluster, submission.name, job_id, i, self.folder)
            job.state = "submitted"
            tickets[self.name_of(job)] = job.ticket
        self.write_tickets(tickets)
        self.active += len(jobs)
        self.next_poll = 0.0

    def submit_tasks(self, tasks: list[Task], submission: Path, timeouts: int) -> list[str]:
        """The ids of their jobs, which are requeued after so many `timeouts`."""
        retries = {f"{self.cluster}_max_num_timeout": timeouts}
        parameters = {
            "name": submission.name,
            "timeout_min": self.options.minutes,
            "cpus_per_task": 1,
            "slurm_partition": self.options.partition,
            "slurm_account": self.options.account,
            "slurm_array_parallelism": self.options.array_parallelism,
            "slurm_signal_delay_s": SIGNAL_SECONDS,
        }
        try:
            executor = submitit.AutoExecutor(submission, cluster=self.cluster, **retries)
            executor.update_parameters(**parameters)
            with contextlib.chdir(irl.ROOT), ignoring_the_terminal():
                return [job.job_id for job in executor.submit_array(tasks)]
        except (RuntimeError, OSError) as error:  # no Slurm, or what sbatch says
            reason = " ".join(str(error).split())
            raise irl.UserError(f"--cluster {self.cluster}: {reason}") from None

    # ---- polling
    def listed(self, tickets: list[Ticket]) -> dict[tuple[str, str], str] | None:
        """The state of each job in the queue; None, and a problem, if that cannot be known."""
        if self.cluster == "local":
            alive = [ticket for ticket in tickets if is_alive(ticket)]
            return {key_of(t): "RUNNING" if t.status.exists() else "PENDING" for t in alive}
        words = ["squeue", "--me", "--noheader", "--array", "--format=%j|%i|%T"]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            self.problem = f"squeue: {error}"
            return None
        if done.returncode:
            self.problem = f"squeue: {' '.join(done.stderr.split())}"
            return None
        self.problem = ""
        rows = [line.rsplit("|", 2) for line in done.stdout.splitlines()]
        return {(name, job_id): state for name, job_id, state in rows}

    def poll(self, jobs: list) -> None:
        """Brings the states of submitted jobs up to date."""
        self.active = len(jobs)
        if time.monotonic() < self.next_poll or not jobs:
            return
        self.next_poll = time.monotonic() + POLL_SECONDS[self.cluster]
        listed = self.listed([job.ticket for job in jobs])
        for job in jobs if listed is not None else []:
            self.update(job, listed.get(key_of(job.ticket)))
        self.active = sum(job.state not in ("done", "failed") for job in jobs)

    def update(self, job, state: str | None) -> None:
        """`state`: in the queue; None if it is not there any more."""
        job.code = read_status(job.ticket).get("code")
        was = job.state
        if job.code == 0:
            job.state = "done"
        elif state is None:
            now = time.monotonic()
            job.ticket.gone_since = job.ticket.gone_since or now
            lost = now - job.ticket.gone_since > GONE_SECONDS
            if job.code is not None or lost or self.cluster == "local":
                job.state = "failed"
                job.problem = "" if job.code else "ended by the cluster without a result"
        else:
            job.ticket.gone_since = None
            if state == "RUNNING":
                job.state = "held" if job.code == os.EX_TEMPFAIL else "running"
            elif state != "COMPLETING":
                job.state = "submitted"
        if job.state == "running" != was:
            job.metrics_at = time.monotonic()

    def kill(self, job) -> None:
        """Ends a job at once, a worker that does not answer included."""
        if self.cluster == "slurm":
            subprocess.run(["scancel", job.ticket.id], capture_output=True)
            return
        pid = read_status(job.ticket).get("pid")
        if type(pid) is int and is_alive(job.ticket):  # its job then ends by itself
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def key_of(ticket: Ticket) -> tuple[str, str]:
    """Ids are used again, after years or by another cluster; with the name they are not."""
    return ticket.submission, ticket.id


def read_status(ticket: Ticket) -> dict:
    try:
        status = json.loads(ticket.status.read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def is_alive(ticket: Ticket) -> bool:
    """Whether submitit's controller of that submission runs on this machine."""
    try:
        words = Path("/proc", ticket.id, "cmdline").read_bytes()
    except OSError:
        return False
    return ticket.submission.encode() in words


@contextlib.contextmanager
def ignoring_the_terminal():
    """What is started meanwhile outlives Ctrl-C and the end of the terminal."""
    old = {}
    for signum in (signal.SIGINT, signal.SIGHUP):
        old[signum] = signal.signal(signum, signal.SIG_IGN)
    try:
        yield
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
