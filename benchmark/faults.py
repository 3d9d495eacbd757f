"""What a run survives: real runs, broken on purpose, then resumed and compared with a whole one.

    python -m benchmark.faults                      # an hour; data/faults.json, README's block
    python -m benchmark.faults --only kill disk     # parts of it; the figures of the others stay
    python -m benchmark.faults --kills 10 --full-disks 5 --out /tmp/faults.json        # a look

The runs are short ones of the method on Hopper, with a checkpoint after every round, made by the
launcher's worker (benchmark/resume.py) in a forked process; `launcher` starts the commands.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from tqdm import tqdm

import custom_irl as irl
from benchmark import checkpoint, resume, runs, tables

JSON = runs.PUBLISHED / "faults.json"
README = irl.ROOT / "benchmark" / "README.md"
FLAGS = ("--env", "Hopper-v4", "--seed", "1", "--total-timesteps", "768", "--num-envs", "2")
FLAGS += ("--num-steps", "64", "--update-epochs", "1", "--num-minibatches", "8")
FLAGS += ("--demo-episodes", "2", "--n-irl-updates-per-round", "1")
LIMIT = 120  # seconds after which a short run counts as hanging
PHASES = {  # a run is in one from the call of this function until that of another
    (runs, "open_folder"): "origin.json",
    (irl, "start_training"): "start",
    (checkpoint, "load"): "reading a checkpoint",
    (irl, "collect_rollout"): "training",
    (irl, "write_metrics"): "metrics.csv",
    (checkpoint, "save"): "writing a checkpoint",
    (irl, "evaluate"): "evaluation",
    (irl, "save_weights"): "weights",
    (runs, "remove_checkpoint"): "removing the checkpoint",
}
WRITES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


@dataclass(frozen=True)
class Config:
    only: tuple[str, ...] = ()
    """parts: kill, disk, folder, signals, checkpoints, launcher, cost; default: all"""
    kills: int = 200
    """moments at which a run is killed"""
    full_disks: int = 50
    """moments at which the disk gets full"""
    repeats: int = 10
    """of what has no moment: pairs on one folder, each signal"""
    seed: int = 0
    """of the moments"""
    out: Path = JSON
    """the figures; the block in benchmark/README.md is written from data/faults.json alone"""


# ---------------------------------------------------------------------------------- forked workers
class Worker:
    """A forked process that runs the worker in `folder`; standard error goes to a file.

    Its memory page `seen`, shared with this process, holds the phase it is in and the number of
    file operations in its folder so far. `at_write`: called in the process before operation
    `n_write`. `prepare`: called in it at the start.
    """

    def __init__(
        self,
        folder: Path,
        n_write: int = 0,
        at_write: Callable[[], None] | None = None,
        prepare: Callable[[], None] | None = None,
        flags: tuple[str, ...] = (),
    ):
        self.folder = folder
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (of both processes)
        self.seen = mmap.mmap(-1, mmap.PAGESIZE)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self.run(n_write, at_write, prepare, flags)

    def run(self, n_write, at_write, prepare, flags) -> None:
        """The child: never returns."""
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(self.errors.fileno(), 2)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            for (module, name), phase in PHASES.items():
                setattr(module, name, self.noting(phase, getattr(module, name)))
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
            sys.addaudithook(self.counting(n_write, at_write))
            shorten()
            if prepare:
                prepare()
            sys.argv = ["resume", "custom", *FLAGS, *flags, "--out", str(self.folder)]
            runs.command_line(resume.main)
            code = 0
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
            if not isinstance(stopped.code, int):
                print(stopped.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def noting(self, phase: str, function: Callable) -> Callable:
        def noted(*args, **kwargs):
            self.seen[8:40] = phase.encode().ljust(32)
            return function(*args, **kwargs)

        return noted

    def counting(self, n_write: int, at_write: Callable[[], None] | None) -> Callable:
        count = 0

        def hook(event: str, args: tuple) -> None:
            nonlocal count
            if event in WRITES and str(args[0]).startswith(str(self.folder)):
                count += 1
                self.seen[:8] = count.to_bytes(8, "little")
                if count == n_write and at_write:
                    at_write()

        return hook

    @property
    def phase(self) -> str:
        return self.seen[8:40].rstrip(b" \0").decode() or "start"

    @property
    def writes(self) -> int:
        return int.from_bytes(self.seen[:8], "little")

    def wait(self, limit: float = LIMIT) -> int:
        """The exit code, negative for a signal; a worker that hangs is killed and has code -9."""
        end = time.monotonic() + limit
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                end = float("inf")
            time.sleep(0.002)

    def wait_for(self, phase: str) -> None:
        end = time.monotonic() + LIMIT
        while self.phase != phase and time.monotonic() < end:
            time.sleep(0.002)

    def said(self) -> list[str]:
        """Standard error of a worker that has ended."""
        self.errors.seek(0)
        return self.errors.read().splitlines()


class Short(irl.IRLAlgorithm):
    """The method with BC, its evaluation and policy improvement within 6 rounds."""

    hyperparameters = replace(
        irl.IRLAlgorithm.hyperparameters,
        bc_rounds=2,
        bc_steps=5,
        bc_eval_rounds=1,
        target_refreshes=2,
        value_steps=5,
    )


def shorten() -> None:
    """In a worker: the short method, and a checkpoint after every round."""
    irl.IRLAlgorithm.hyperparameters = Short.hyperparameters
    resume.CHECKPOINT_SECONDS = 0
    resume.CHECKPOINT_SHARE = float("inf")
    runs.git = lambda *words: ""


# ------------------------------------------------------------------------------------- comparisons
class Whole:
    """An uninterrupted run, what others have to be equal to."""

    def __init__(self, scratch: Path):
        self.folder = scratch / "whole" / "run"
        start = time.monotonic()
        worker = Worker(self.folder)
        if worker.wait() != 0:
            raise irl.UserError(f"{self.folder}: the run failed: {worker.said()}")
        self.seconds = time.monotonic() - start
        self.writes = worker.writes
        self.result = self.read_result(self.folder)
        self.rows = self.read_rows(self.folder)

    @staticmethod
    def read_result(folder: Path) -> dict:
        result = json.loads((folder / "result.json").read_text())
        timing = ("id", "date", "seconds", "steps_per_second")
        return {key: value for key, value in result.items() if key not in timing}

    @staticmethod
    def read_rows(folder: Path) -> list[dict]:
        frame = pd.read_csv(folder / "metrics.csv", dtype=str, keep_default_na=False)
        return frame.drop(columns="steps_per_second").to_dict("records")

    def problems(self, folder: Path, finished: bool) -> list[str]:
        """What in `folder` is half-written or differs; `finished`: whether it has to be whole."""
        found = []
        if (folder / "result.json").exists():
            if self.read_result(folder) != self.result:
                found.append("result.json differs")
            for name in ("policy.pt", "reward_net.pt"):
                ours, theirs = (
                    torch.load(at / name, weights_only=True) for at in (folder, self.folder)
                )
                if any(not torch.equal(ours[key], theirs[key]) for key in theirs):
                    found.append(f"{name} differs")
        elif finished:
            found.append("result.json is missing")
        if (folder / "metrics.csv").exists():
            rows = self.read_rows(folder)
            shared = [{k: v for k, v in row.items() if k in rows[0]} for row in self.rows]
            if rows != shared[: len(rows)] or (finished and rows != self.rows):
                found.append("metrics.csv differs")
        if (folder / runs.CHECKPOINT).exists():
            content = checkpoint.read_signed(folder / runs.CHECKPOINT, "")
            pieces = [folder / runs.PIECES / name for name in content["pieces"]]
            if any(not p.exists() or irl.sha256(p) != p.name for p in pieces):
                found.append("a piece of the checkpoint is missing or damaged")
        if finished:
            left = {path.name for path in folder.iterdir()}
            left -= {path.name for path in self.folder.iterdir()}
            found += [f"{name} was left" for name in left]
        return found

    def resumed(self, folder: Path) -> list[str]:
        """Finishes the run in `folder`; what differs then."""
        worker = Worker(folder)
        code = worker.wait()
        if code != 0:
            return [f"resuming ended with {code}: {' | '.join(worker.said()[-2:])}"]
        return self.problems(folder, finished=True)


def one_line(worker: Worker, code: int, expected: int, *words: str) -> list[str]:
    """Problems unless the worker ended with `expected` and one line that has all `words`."""
    said = worker.said()
    if code != expected or len(said) != 1 or not all(word in said[0] for word in words):
        return [f"ended with {code}, expected {expected} and {words}: {' | '.join(said[-3:])}"]
    return []


def contents(folder: Path) -> dict[str, str]:
    """The files of a run and their hashes, without the lock."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != irl.LOCK]
    return {str(path.relative_to(folder)): irl.sha256(path) for path in files}


# ------------------------------------------------------------------------------------------- parts
def kill(config: Config, whole: Whole, scratch: Path, rng: np.random.Generator) -> dict:
    """SIGKILL: half of them after a random time, half before a random file operation.

    A resumed run is killed again with probability 1/2.
    """
    phases = Counter()
    found = []
    with tqdm(total=config.kills, desc="kill -9", disable=None) as bar:
        while phases.total() < config.kills:
            folder = scratch / f"kill{phases.total()}" / "run"
            again = True
            while again and phases.total() < config.kills:
                worker = kill_somewhere(folder, whole, rng)
                code = worker.wait()
                if code != -signal.SIGKILL:  # it ended before
                    found += [] if code == 0 else [f"ended with {code}: {worker.said()[-1:]}"]
                    break
                phases[worker.phase] += 1
                bar.update()
                found += whole.problems(folder, finished=False)
                again = rng.random() < 0.5
            found += whole.resumed(folder)
            shutil.rmtree(folder.parent)
    return {"kills": phases.total(), "phases": dict(sorted(phases.items())), "problems": found}


def kill_somewhere(folder: Path, whole: Whole, rng: np.random.Generator) -> Worker:
    if rng.random() < 0.5:
        n_write = int(rng.integers(1, whole.writes + 1))
        return Worker(folder, n_write, lambda: os.kill(os.getpid(), signal.SIGKILL))
    worker = Worker(folder)
    time.sleep(rng.uniform(0, whole.seconds))
    os.kill(worker.pid, signal.SIGKILL)  # has not been waited for, so the process is this one
    return worker


class SmallDisk:
    """A folder whose disk can be filled: a tmpfs of 64 MB, or without the right to mount a limit
    on the size of files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
        self.mounted = subprocess.run(words, capture_output=True).returncode == 0
        self.filler = folder / "filler"

    def fill(self, leaving: int) -> None:
        """In a worker: leaves so many bytes on the disk, or allows files of so many."""
        if self.mounted:
            status = os.statvfs(self.folder)
            size = max(1, status.f_bavail * status.f_frsize - leaving)
            with self.filler.open("wb") as f:
                os.posix_fallocate(f.fileno(), 0, size)
        else:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (leaving, resource.RLIM_INFINITY))

    def empty(self) -> None:
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)


def disk(config: Config, whole: Whole, scratch: Path, rng: np.random.Generator) -> dict:
    """The disk gets full before a random file operation, but for up to 4 MB; then there is room."""
    small = SmallDisk(scratch / "disk")
    phases = Counter()
    found = []
    folder = small.folder / "run" / "run"
    reason = "No space left" if small.mounted else "File too large"
    try:
        with tqdm(total=config.full_disks, desc="full disk", disable=None) as bar:
            while phases.total() < config.full_disks:
                leaving = int(rng.integers(0, 2**22) if rng.random() < 0.5 else 0)
                n_write = int(rng.integers(1, whole.writes + 1))
                worker = Worker(folder, n_write, lambda room=leaving: small.fill(room))
                code = worker.wait()
                if code != 0:
                    found += one_line(worker, code, 1, str(folder), reason)
                    found += whole.problems(folder, finished=False)
                    phases[worker.phase] += 1
                    bar.update()
                small.filler.unlink(missing_ok=True)
                found += whole.resumed(folder)
                small.empty()
    finally:
        small.close()
    how = "tmpfs of 64 MB" if small.mounted else "RLIMIT_FSIZE"
    return {
        "how": how,
        "full": phases.total(),
        "phases": dict(sorted(phases.items())),
        "problems": found,
    }


def folder(config: Config, whole: Whole, scratch: Path, rng: np.random.Generator) -> dict:
    """Two workers on one folder; one that hangs; a lock that another host left."""
    found = []
    for i in tqdm(range(config.repeats), desc="two on one folder", disable=None):
        shared = scratch / f"pair{i}" / "run"
        pair = [Worker(shared), Worker(shared)]
        codes = [worker.wait() for worker in pair]
        if sorted(codes) != [0, runs.TRY_LATER]:
            found.append(f"two workers ended with {codes}")
            continue
        first, second = (pair[codes.index(code)] for code in (0, runs.TRY_LATER))
        holder = f"process {first.pid} on host {os.uname().nodename}"
        found += one_line(second, runs.TRY_LATER, runs.TRY_LATER, holder)
        found += whole.problems(shared, finished=True)
    hung = scratch / "hung" / "run"
    worker = Worker(hung)
    worker.wait_for("evaluation")
    os.kill(worker.pid, signal.SIGSTOP)
    second = Worker(hung)
    found += one_line(second, second.wait(), runs.TRY_LATER, f"process {worker.pid} on host")
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    (hung / irl.LOCK).write_text("elsewhere 1 another-boot - 0\n")
    before = contents(hung)
    third = Worker(hung)
    found += one_line(third, third.wait(), 1, "process 1 on host elsewhere", "remove")
    found += [] if contents(hung) == before else ["files changed beside another host's lock"]
    (hung / irl.LOCK).unlink()
    found += whole.resumed(hung)
    return {"pairs": config.repeats, "problems": found}


def signals(config: Config, whole: Whole, scratch: Path, rng: np.random.Generator) -> dict:
    """SIGTERM, SIGINT and SIGHUP after a random time; a clock that jumps back all the time."""
    found = []
    counts = Counter()
    for i in tqdm(range(3 * config.repeats), desc="signals", disable=None):
        name = ("SIGTERM", "SIGINT", "SIGHUP")[i % 3]
        stopped = scratch / f"signal{i}" / "run"
        worker = Worker(stopped)
        worker.wait_for("training")
        time.sleep(rng.uniform(0, 0.7 * whole.seconds))
        os.kill(worker.pid, getattr(signal, name))
        code = worker.wait()
        if code != 0:
            counts[name] += 1
            found += one_line(worker, code, resume.STOPPED, "the same command continues")
            found += whole.problems(stopped, finished=False)
        found += whole.resumed(stopped)
    back = scratch / "clock" / "run"
    code = Worker(back, prepare=turn_clock_back).wait()
    found += whole.problems(back, finished=True) if code == 0 else [f"clock: ended with {code}"]
    return {"signals": dict(counts), "problems": found}


def turn_clock_back() -> None:
    """In a worker: every reading of the wall clock is an hour before the last."""
    now = time.time()

    def earlier() -> float:
        nonlocal now
        now -= 3600
        return now

    time.time = earlier


def checkpoints(config: Config, whole: Whole, scratch: Path, rng: np.random.Generator) -> dict:
    """Checkpoints that must not be read: one line, and no file changes."""
    stopped = scratch / "stopped" / "run"
    worker = Worker(stopped)
    worker.wait_for("writing a checkpoint")
    os.kill(worker.pid, signal.SIGTERM)
    worker.wait()

    def other_home() -> None:
        os.environ["XDG_STATE_HOME"] = str(scratch / "home")

    said = {}
    found = []
    for name, (change, flags) in DAMAGE.items():
        copy = scratch / name.replace(" ", "-") / "run"
        shutil.copytree(stopped, copy)
        change(copy)
        before = contents(copy)
        worker = Worker(copy, prepare=other_home if name == OTHER_USER else None, flags=flags)
        found += one_line(worker, worker.wait(), 1, str(copy))
        found += [] if contents(copy) == before else [f"{name}: files changed"]
        said[name] = worker.said()[-1].replace(str(copy), "RUN")
    found += whole.resumed(stopped)
    return {"refused": said, "problems": found}


def edit_head(**changes) -> Callable[[Path], None]:
    """Writes checkpoint.json anew, signed, with other values."""

    def change(copy: Path) -> None:
        path = copy / runs.CHECKPOINT
        checkpoint.write_signed(path, {**checkpoint.read_signed(path, ""), **changes})

    return change


def truncate(pattern: str) -> Callable[[Path], None]:
    def change(copy: Path) -> None:
        path = max(copy.glob(pattern), key=lambda p: p.stat().st_size)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return change


def swap_piece(copy: Path) -> None:
    """A piece that a stranger made, under a name of its own in an edited checkpoint.json."""
    path = copy / runs.CHECKPOINT
    content = json.loads(path.read_text())
    content["pieces"][-1] = "0" * 64
    path.write_text(json.dumps(content))


OTHER_USER = "another user's signature"
DAMAGE = {
    "checkpoint.json truncated": (truncate(runs.CHECKPOINT), ()),
    "a piece truncated": (truncate(f"{runs.PIECES}/*"), ()),
    "a piece missing": (lambda copy: min((copy / runs.PIECES).iterdir()).unlink(), ()),
    "another version": (edit_head(schema=0), ()),
    "another configuration": (edit_head(identity={}), ()),
    "other flags": (lambda copy: None, ("--irl-lr", "0.001")),
    "checkpoint.json edited": (swap_piece, ()),
    OTHER_USER: (lambda copy: None, ()),
    "no origin.json": (lambda copy: (copy / "origin.json").unlink(), ()),
}


def launcher(config: Config, whole: Whole, scratch: Path, rng: np.random.Generator) -> dict:
    """SIGKILL of a launcher, whose run goes on; two more launchers beside it; one afterwards."""
    results = scratch / "results"
    words = [sys.executable, "-m", "benchmark.launch", "--envs", "Hopper-v4", "--seeds", "1"]
    words += ["--results", str(results), "--jobs", "1", "--no-policy-access"]
    words += ["--total-timesteps", "40960", "--demo-episodes", "2"]

    def start() -> subprocess.Popen:
        pipe = subprocess.PIPE
        return subprocess.Popen(words, cwd=irl.ROOT, stdout=pipe, stderr=pipe, text=True)

    def wait_for(name: str) -> None:
        end = time.monotonic() + LIMIT
        while not list(results.rglob(name)) and time.monotonic() < end:
            time.sleep(0.05)

    found = []
    first = start()
    wait_for("metrics.csv")
    first.kill()  # its worker goes on
    first.communicate()
    second, third = start(), start()
    said = [process.communicate(timeout=300) for process in (second, third)]
    logs = [path.read_text() for path in results.rglob("log.txt")]
    held = logs[0].count("held by process")
    for process, (_, errors) in zip((second, third), said):
        if process.returncode != 0:
            found.append(f"a launcher beside the run ended with {process.returncode}: {errors}")
    if len(logs) != 1 or held < 2:
        found.append(f"held {held} times: {said}")
    wait_for("result.json")
    fourth = start()
    _, errors = fourth.communicate(timeout=300)
    if fourth.returncode != 0 or len(list(results.rglob("result.json"))) != 1:
        found.append(f"the last launcher ended with {fourth.returncode}: {errors}")
    return {"launchers": 4, "held": held, "problems": found}


def cost(config: Config, whole: Whole, scratch: Path, rng: np.random.Generator) -> dict:
    """Bytes and seconds of the checkpoints of a run of full length on HalfCheetah.

    The method's objects with a replay that grows by random rows to 999,424, at the speed of the
    published runs: checkpoints after 60 seconds, or 100 times what the last one cost.
    """
    frame = tables.chosen(tables.read_published(), "custom", "full", "dense")
    run_seconds = 60 * float(frame.loc[frame["env"] == "HalfCheetah-v4", "minutes"].mean())
    args = irl.Args(env="HalfCheetah-v4")
    irl.seed_everything(0)
    envs = resume.ReplayableVectorEnv(args)
    dims = (envs.obs_dim, envs.action_dim)
    demos = irl.load_demos(args.demos_path, *dims, args.demo_episodes, args.demo_subsample)
    training = irl.start_training(irl.RewardNetwork, Short, args, envs, demos.tensors)
    irl.train(training, envs, replace(args, total_timesteps=7 * args.batch_size), "cost")
    replay, improvement = training.algorithm.replay, training.algorithm.improvement
    now = 0.0  # seconds of the run
    sizes, seconds = [], [0.0]
    with tqdm(total=round(run_seconds), desc="checkpoints", disable=None) as bar:
        while True:
            now += max(resume.CHECKPOINT_SECONDS, seconds[-1] / resume.CHECKPOINT_SHARE)
            if now > run_seconds:
                break
            n = int(now / run_seconds * args.num_rounds) * args.batch_size - replay.n_policy
            obs, next_obs = torch.randn(2, n, envs.obs_dim)
            replay.add(obs, torch.randn(n, envs.action_dim), next_obs, torch.zeros(n).bool())
            improvement.query_bc_actors()
            start = time.monotonic()
            sizes.append(checkpoint.save(scratch / "cost", {}, training, envs))
            seconds.append(time.monotonic() - start)
            bar.update(round(now) - bar.n)
    files = [path for path in (scratch / "cost").rglob("*") if path.is_file()]
    start = time.monotonic()
    checkpoint.load(scratch / "cost", {}, envs)
    return {
        "transitions": replay.n_policy,
        "checkpoints": len(sizes),
        "largest_mb": round(max(sizes) / 1e6, 1),
        "mean_mb": round(float(np.mean(sizes)) / 1e6, 1),
        "folder_mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
        "longest_seconds": round(max(seconds), 2),
        "reading_seconds": round(time.monotonic() - start, 2),
        "run_minutes": round(run_seconds / 60, 1),
        "share": round(sum(seconds) / run_seconds, 5),
        "problems": [],
    }


PARTS = {part.__name__: part for part in (kill, disk, folder, signals, checkpoints, launcher, cost)}


# ----------------------------------------------------------------------------------------- figures
def measure(config: Config) -> dict:
    """The figures of `config.only`, beside those that `config.out` has of the other parts."""
    if unknown := set(config.only) - set(PARTS):
        raise irl.UserError(f"--only {min(unknown)}: expected some of {', '.join(PARTS)}")
    figures = runs.read_json(config.out) if config.out.exists() else {}
    torch.set_num_threads(1)
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # imports what forks need not, then
    with tempfile.TemporaryDirectory() as folder:
        whole = Whole(Path(folder))
        for name in config.only or PARTS:
            start = time.monotonic()
            scratch = Path(folder) / name
            scratch.mkdir()
            rng = np.random.default_rng([config.seed, *name.encode()])
            part = PARTS[name](config, whole, scratch, rng)
            seconds = round(time.monotonic() - start)
            figures[name] = {**part, "seed": config.seed, "seconds": seconds}
            irl.write_text(config.out, json.dumps(figures, indent=2) + "\n")
    return figures


def block(figures: dict) -> str:
    """The figures as a table and two sentences."""
    kill, disk, folder = (figures[name] for name in ("kill", "disk", "folder"))
    signals, launcher, cost = (figures[name] for name in ("signals", "launcher", "cost"))
    names = ", ".join(f"{name} {n}" for name, n in signals["signals"].items())
    equal = "resumed, equal to a whole run"
    refused = figures["checkpoints"]["refused"]
    listed = ", ".join(refused)
    rows = [
        ["`kill -9` at a random time or file operation", f"{kill['kills']}", equal],
        [
            f"disk full ({disk['how']})",
            f"{disk['full']}",
            f"one line with the file's name; {equal}",
        ],
        [f"stopped by {names}", f"{sum(signals['signals'].values())}", f"checkpoint; {equal}"],
        ["a clock that jumps back an hour at every reading", "1", "equal to a whole run"],
        ["two runs started on one folder", f"{folder['pairs']}", "one trains, one says who does"],
        ["a run beside one that hangs, then `kill -9` of that", "1", f"says who hangs; {equal}"],
        ["a lock left by another host", "1", "refused in one line"],
        ["a launcher killed; others beside the run it left", f"{launcher['launchers']}", "one run"],
        [f"a checkpoint with {listed}", f"{len(refused)}", "one line, and no file changes"],
    ]
    problems = sum(len(part["problems"]) for part in figures.values())
    phases = Counter(kill["phases"]) + Counter(disk["phases"])
    struck = ", ".join(f"{name} {n}" for name, n in phases.most_common())
    return (
        tables.markdown_table(["what happens to a run", "times", "what it does"], rows)
        + f"\n{problems} problems. Kills and full disks struck during: {struck}.\n\n"
        f"The {cost['checkpoints']} checkpoints of a run of full length on HalfCheetah: at most "
        f"{cost['largest_mb']} MB written and {cost['longest_seconds']} s each (mean "
        f"{cost['mean_mb']} MB), {100 * cost['share']:.2f} % of the {cost['run_minutes']} minutes; "
        f"the folder holds {cost['folder_mb']} MB at the end, until the run is finished."
    )


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    figures = measure(config)
    problems = [f"{name}: {line}" for name, part in figures.items() for line in part["problems"]]
    if config.out == JSON and set(figures) == set(PARTS):
        tables.write_block(README, "faults", block(figures))
    print(json.dumps(figures, indent=2))
    sys.exit("\n".join(problems) or 0)


if __name__ == "__main__":
    runs.command_line(main)
