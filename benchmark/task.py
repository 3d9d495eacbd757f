"""What a job of a cluster calls: a run's worker, in a process that is stopped with a checkpoint.

submitit reads a Task from a pickle that benchmark/cluster.py wrote. The job imports nothing of ours
but this file, so that beside its worker it needs little memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from submitit.helpers import DelayedSubmission

ROOT = Path(__file__).resolve().parent.parent
# Seconds after which a run that was held, or stopped by a signal, is tried again.
RETRIES = {os.EX_TEMPFAIL: 30, 130: 120, -signal.SIGTERM: 120}
HELD_UNTIL = 60  # seconds after which a run that was held before runs for certain
STOP_SECONDS = 60  # for the end of a round and a checkpoint


@dataclass
class Task:
    command: list[str]
    log: Path  # of the run
    status: Path  # JSON: the worker's pid while there is one, and the last exit code

    def __post_init__(self):
        self.process = None
        self.terminated = False

    def __call__(self) -> None:
        # Slurm's SIGTERM reaches the worker, too, which stops with a checkpoint. After that comes
        # SIGKILL or submitit's SIGUSR2, or nothing.
        signal.signal(signal.SIGTERM, self.note_terminated)
        code = self.run_worker(None)
        while code in RETRIES:
            time.sleep(RETRIES[code])
            code = self.run_worker(code)
        if code:
            raise RuntimeError(f"exit code {code}, see {self.log}")

    def run_worker(self, last_code: int | None) -> int:
        """Runs it to its end; the exit code. `last_code`: that of the attempt before."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.terminated = False
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                preexec_fn=ignore_preemption,
                # Slurm kills by process group; without it the group may be the terminal's.
                start_new_session="SLURM_JOB_ID" not in os.environ,
            )
        self.write_status(self.process.pid, last_code)
        start = time.monotonic()
        while not has_ended(self.process.pid):
            if last_code is not None and time.monotonic() - start > HELD_UNTIL:
                last_code = None
                self.write_status(self.process.pid, None)
            time.sleep(0.2)
        code = self.process.wait()
        self.write_status(None, code)
        return code

    def write_status(self, pid: int | None, code: int | None) -> None:
        temporary = self.status.with_suffix(".tmp")
        temporary.write_text(json.dumps({"pid": pid, "code": code}) + "\n")
        os.replace(temporary, self.status)

    def note_terminated(self, signum, frame) -> None:
        self.terminated = True

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit at SIGUSR2 (preemption, time limit), before it requeues the job."""
        process = self.process
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if process is not None and not has_ended(process.pid):
                if not self.terminated:  # a second signal would interrupt the checkpoint
                    os.kill(process.pid, signal.SIGTERM)
                deadline = time.monotonic() + STOP_SECONDS
                while not has_ended(process.pid) and time.monotonic() < deadline:
                    time.sleep(0.1)
                os.kill(process.pid, signal.SIGKILL)
        self.write_status(None, None)
        return DelayedSubmission(Task(self.command, self.log, self.status))


def ignore_preemption() -> None:
    """In the worker: SIGUSR2 is sent to all processes of a job, and meant for submitit's."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def has_ended(pid: int) -> bool:
    """Of a child, left to be waited for. Popen's own methods lock: not from a signal's handler."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
