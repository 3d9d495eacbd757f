"""Runs a method as the launcher does: like custom_irl.py, but resumable.

    python -m benchmark.resume custom --env Hopper-v4 --out results/custom/Hopper-v4/seed1
    python -m benchmark.resume frozen RUN_DIR --env Hopper-v4 --seed 2

The first words are a method of runs.py, or `frozen` and the folder of a finished run; flags go to
custom_irl.py. SIGINT, SIGTERM and SIGHUP end the round and write a checkpoint; the same command
continues from it with the same numbers, bit for bit on one machine. Exit codes: 0 finished, 1 error
(one line), 75 another process trains in the folder, 130 stopped.
"""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import custom_irl as irl
from benchmark import checkpoint, runs

STOPPED = 130  # exit code
CHECKPOINT_SECONDS = 60  # between two of them, or more
CHECKPOINT_SHARE = 0.01  # of a run's time that checkpoints may take
QUICK = {"bc_steps": 200, "target_refreshes": 0}  # hyperparameters of --quick


class ReplayableVectorEnv(irl.VectorEnv):
    """A VectorEnv that keeps, for each copy, its generator at the last reset and the actions since.

    Replaying these restores what environments do not expose as well: MuJoCo's `qacc_warmstart`, the
    time limit's counter.
    """

    def __init__(self, args: irl.Args):
        self.history: list[tuple[dict, list[np.ndarray]]] = [({}, []) for _ in range(args.num_envs)]
        super().__init__(args)

    def reset(self, i: int) -> None:
        generator = self.envs[i].unwrapped.np_random.bit_generator.state
        self.history[i] = (generator, [])
        super().reset(i)

    def step(self, actions: np.ndarray):
        clipped = np.clip(actions, self.action_space.low, self.action_space.high)
        for (_, past), action in zip(self.history, clipped):
            past.append(action)  # before the step: a reset within it starts a new list
        return super().step(actions)

    def restore(self, history: list[tuple[dict, list[np.ndarray]]]) -> None:
        """Brings every copy to the state that another one's `history` describes."""
        for i, (generator, actions) in enumerate(history):
            self.envs[i].unwrapped.np_random.bit_generator.state = generator
            self.reset(i)
            for action in actions:
                self.obs[i] = self.envs[i].step(action)[0]
            self.history[i][1].extend(actions)


# ------------------------------------------------------------------------------------ after a round
def shorten(algorithm_cls: type) -> None:
    """Fewer gradient steps of behaviour cloning and none of Q, for --quick. result.json says so."""
    if hasattr(algorithm_cls, "hyperparameters"):
        full = algorithm_cls.hyperparameters
        fewer = {name: min(n, getattr(full, name)) for name, n in QUICK.items()}
        algorithm_cls.hyperparameters = replace(full, **fewer)


class Stopped(Exception):
    """A signal stopped the run after a checkpoint."""


class AfterRound:
    """The launcher's part of a round: metrics.csv, checkpoints, signals."""

    def __init__(self, folder: Path, identity: dict, envs: ReplayableVectorEnv, signals: list[int]):
        self.folder = folder
        self.identity = identity
        self.envs = envs
        self.signals = signals
        self.last = time.monotonic()
        self.cost = 0.0  # seconds of the last checkpoint

    def __call__(self, training: irl.Training) -> None:
        with training.timed("logging"):
            irl.write_metrics(self.folder / "metrics.csv", training.rows)
            waited = time.monotonic() - self.last
            if waited > max(CHECKPOINT_SECONDS, self.cost / CHECKPOINT_SHARE):
                self.checkpoint(training)
        if self.signals:
            self.checkpoint(training)
            raise Stopped

    def checkpoint(self, training: irl.Training) -> None:
        start = time.monotonic()
        checkpoint.save(self.folder, self.identity, training, self.envs)
        self.last = time.monotonic()
        self.cost = self.last - start


def stop_signals() -> list[int]:
    """SIGINT, SIGTERM and, unless it is ignored as under nohup, SIGHUP of a closed terminal."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP])]


def note_signals() -> list[int]:
    """Signals that stop join the list returned; a second one interrupts at once."""
    received = []

    def note(signum, frame):
        received.append(signum)
        signal.signal(signum, signal.default_int_handler)

    for signum in stop_signals():
        signal.signal(signum, note)
    return received


def interrupt_at_once() -> None:
    for signum in stop_signals():
        signal.signal(signum, signal.default_int_handler)


# --------------------------------------------------------------------------------------------- runs
def run(
    reward_cls: type,
    algorithm_cls: type,
    args: irl.Args,
    method: str,
    quick: bool = False,
    signals: list[int] | None = None,
    frozen_reward: Path | None = None,
) -> dict | None:
    """As custom_irl.run, resumable, in the folder `args.out`; None if a signal stopped it.

    A finished run of the same identity is read and not repeated. `frozen_reward` is the folder of
    the run whose reward the classes hold, if they do.

    Raises:
        UserError: as custom_irl.run, and for a folder with another run in it.
    """
    signals = [] if signals is None else signals
    method = "oracle" if args.true_reward else method
    torch.set_num_threads(1)
    irl.seed_everything(args.seed)
    demos = irl.prepare_demos(args, algorithm_cls)
    envs = ReplayableVectorEnv(args)
    identity = runs.identity_of(args, method, (reward_cls, algorithm_cls), frozen_reward)
    checkpoint.signing_key()  # fails now if it cannot be kept
    with runs.locked(args.out):
        result = runs.open_folder(args.out, identity, quick, args.overwrite)
        if result is None:
            if (args.out / runs.CHECKPOINT).exists():
                training = checkpoint.load(args.out, identity, envs)
            else:
                training = irl.start_training(reward_cls, algorithm_cls, args, envs, demos.tensors)
            keep = AfterRound(args.out, identity, envs, signals)
            try:
                irl.train(training, envs, args, f"{method} {args.env} seed {args.seed}", keep)
            except Stopped:
                return None
            interrupt_at_once()
            try:
                result = irl.save_run(args.out, training, args, method, demos)
            except KeyboardInterrupt:
                keep.checkpoint(training)
                return None
        runs.remove_checkpoint(args.out)
        return result


def main() -> None:
    quick = "--quick" in sys.argv[1:]
    words = [word for word in sys.argv[1:] if word != "--quick"]
    if words[:1] in (["-h"], ["--help"]):
        print(f"{__doc__}\nFlags: python custom_irl.py --help")
        return
    if not words:
        raise irl.UserError(f"expected a method: frozen RUN_DIR, {', '.join(runs.METHODS)}")
    frozen_reward = None
    if words[0] == "frozen":
        from baselines.frozen import frozen

        if len(words) < 2:
            raise irl.UserError("frozen: expected the folder of a finished run")
        frozen_reward = Path(words[1])
        args = irl.parse_args(words[2:])
        reward_cls, algorithm_cls, method = frozen(frozen_reward, args)
    else:
        method = words[0]
        args = irl.parse_args(words[1:])
        if method in runs.TRAINERS:
            own = " ".join(runs.TRAINERS[method].words)
            raise irl.UserError(f"{method}: has a loop of its own; expected python {own}")
        reward_cls, algorithm_cls = runs.method_named(method).classes()
    if quick:
        shorten(algorithm_cls)
    if args.out is None:
        raise irl.UserError("--out: expected the folder of the run")
    result = run(reward_cls, algorithm_cls, args, method, quick, note_signals(), frozen_reward)
    if result is None:
        print("stopped; the same command continues from the checkpoint", file=sys.stderr)
        sys.exit(STOPPED)
    irl.print_result(result)


if __name__ == "__main__":
    runs.command_line(main)
