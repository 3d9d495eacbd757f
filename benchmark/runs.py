"""Which run is it, which folder is its own, is it done, where does it come from.

Names what custom_irl.py computes: methods, panels, labels, folders and origin.json. It imports
nothing of ours but custom_irl.py; the modules of the methods are imported when one is asked for.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import torch
import torch.nn as nn

import custom_irl as irl
from custom_irl import Held
from demos.formats import DemoError

RESULTS = irl.ROOT / "results"
PUBLISHED = irl.ROOT / "benchmark" / "data"
ENVS = ("HalfCheetah-v4", "Hopper-v4", "Walker2d-v4")
SEEDS = (42, 123, 456)
FRESH_SEEDS = tuple(range(101, 111))  # for one run each of the frozen method
PANELS = {(50, 1): "dense", (20, 20): "scarce", (4, 20): "tiny", (1, 20): "one"}
QUICK_TIMESTEPS = 40_960
CHECKPOINT = "checkpoint.json"  # in a run's folder while it is not finished: what PIECES hold
PIECES = "checkpoint"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
TRY_LATER = 75  # exit code of a run whose folder is held: EX_TEMPFAIL of sysexits.h


@dataclass(frozen=True)
class Method:
    """A method under the contract: the module and the names of its two classes."""

    module: str
    reward: str
    algorithm: str

    def classes(self) -> tuple[type, type]:
        module = importlib.import_module(self.module)
        return getattr(module, self.reward), getattr(module, self.algorithm)


@dataclass(frozen=True)
class Trainer:
    """A method with a training loop of its own: `python -m MODULE [--online] FLAGS`.

    Its hyperparameters are the module's dataclass `Config`; the launcher runs the defaults.
    """

    module: str
    online: bool = False
    reward: str = ""  # class of the reward network, if a run saves one
    policy: str = "baselines.offpolicy"  # module of make_policy(dims, hyperparameters)

    @property
    def words(self) -> list[str]:
        return ["-m", self.module, *(["--online"] if self.online else [])]

    def classes(self) -> tuple[type, type]:
        """The reward network's class and `Config`; UserError if it has no reward network."""
        module = importlib.import_module(self.module)
        if not self.reward:
            raise irl.UserError(f"{self.module}: its method saves no reward network")
        return getattr(module, self.reward), module.Config

    def defaults(self) -> dict:
        config = importlib.import_module(self.module).Config
        return as_json(asdict(config(online=True) if self.online else config()))

    def make_policy(self, result: dict) -> nn.Module:
        module = importlib.import_module(self.policy)
        return module.make_policy(result["dims"], result["hyperparameters"])


METHODS = {
    "custom": Method("custom_irl", "RewardNetwork", "IRLAlgorithm"),
    "gail": Method("baselines.gail", "GAILDiscriminator", "GAIL"),
    "gail-v2": Method("baselines.gail_v2", "GAILDiscriminatorV2", "GAILV2"),
    "airl": Method("baselines.airl", "AIRLReward", "AIRL"),
    "airl-v2": Method("baselines.airl_v2", "AIRLRewardV2", "AIRLV2"),
    "bc": Method("baselines.bc", "NoReward", "BC"),
    "constant": Method("baselines.constant", "ConstantReward", "Constant"),
    "untrained": Method("baselines.untrained", "AIRLReward", "Untrained"),
}
TRAINERS = {
    "ibc": Trainer("baselines.ibc"),
    "iqlearn": Trainer("baselines.iqlearn", reward="ImplicitReward"),
    "iqlearn-online": Trainer("baselines.iqlearn", online=True, reward="ImplicitReward"),
    "recoil": Trainer("baselines.recoil"),
    "recoil-online": Trainer("baselines.recoil", online=True),
    "gail-sac": Trainer("baselines.gail_sac", reward="GAILReward"),
    "omlirl": Trainer("baselines.omlirl", reward="RewardNetwork"),
    "rmirl": Trainer("baselines.rmirl", reward="RewardNetwork"),
    "dagger": Trainer("baselines.dagger", policy="baselines.dagger"),
}
PEERS = ("bc", "gail", "airl")  # of imitation: baselines/imitation_peers.py
OTHER_LIBRARIES = ("imitation-", "sb3-", "sac-")  # how the names of methods begin that are theirs


def method_named(name: str) -> Method | Trainer:
    """A method by its name, ablations included; UserError for another name."""
    if name.startswith("ablation-"):
        ablation = importlib.import_module("benchmark.ablations").ABLATIONS.get(name[9:])
        if ablation is not None:
            return Method("benchmark.ablations", "RewardNetwork", ablation.__name__)
    methods = METHODS | TRAINERS
    if name not in methods:
        raise irl.UserError(f"method {name}: expected one of {', '.join(methods)}")
    return methods[name]


# ------------------------------------------------------------------------------------------- flags
OF_DEMOS = ("--demos", "--demo-episodes", "--demo-subsample")
OF_A_RUN = ("--env", "--seed", "--max-episode-steps", "--out", "--overwrite")
# Of custom_irl.py's flags, those that trainers with a loop of their own read.
OFFLINE_READS = (*OF_A_RUN, *OF_DEMOS)
RETRAIN_READS = (*OF_A_RUN, "--true-reward", "--total-timesteps", "--num-envs", "--num-steps")
# Of a run on a frozen reward these say which reward it is: they name its folder, too.
OF_A_REWARD = (*OF_DEMOS, "--no-policy-access")
OF_A_REWARD += ("--irl-lr", "--irl-batch-size", "--n-irl-updates-per-round")


def names_of(flags: Sequence[str]) -> list[str]:
    """The flags among the words of a command line, with dashes."""
    return [flag.split("=")[0].replace("_", "-") for flag in flags if flag.startswith("--")]


def refuse_unread(flags: Sequence[str], read: Sequence[str], trainer: str) -> None:
    """UserError for a flag of custom_irl.py's that is not among those that a trainer reads."""
    for flag in names_of(flags):
        if flag not in read:
            raise irl.UserError(f"{flag}: not read by {trainer}; expected some of {' '.join(read)}")


# ------------------------------------------------------------------------------- names and folders
def panel_of(config: dict) -> str:
    amount = (config["demo_episodes"], config["demo_subsample"])
    return PANELS.get(amount, f"{amount[0]}x{amount[1]}")


def labels_of(config: dict, quick: bool = False) -> list[str]:
    """What sets a run apart from the benchmark's own, from the `config` of its result.json.

    The report never mixes runs of different labels.
    """
    defaults = {field.name: field.default for field in fields(irl.Args)}
    steps, panel = config["total_timesteps"], panel_of(config)
    labels = ["quick"] if quick else []
    if not quick and steps != defaults["total_timesteps"]:
        labels.append(f"{steps}-steps")
    if config["no_policy_access"]:
        labels.append("reward-only")
    if panel != "dense":
        labels.append(panel)
    named = ("env", "seed", "total_timesteps", "no_policy_access", "true_reward")
    named += ("demo_episodes", "demo_subsample")
    for key, default in defaults.items():
        value = config.get(key, default)
        if key not in named and value != default:
            value = Path(value).stem if key == "demos" else value
            labels.append(f"{key}-{value}".replace("_", "-"))
    return labels


def changed(method: str, hyperparameters: dict) -> list[str]:
    """Labels of those of a trainer's hyperparameters that are not its defaults."""
    if method not in TRAINERS:
        return []
    defaults = TRAINERS[method].defaults()
    return [
        f"{key}-{value}".replace("_", "-").replace(" ", "")
        for key, value in hyperparameters.items()
        if value != defaults.get(key)
    ]


def variant_of(method: str, config: dict) -> str:
    if method.endswith("-frozen"):
        return "frozen"
    return "reward-only" if config["no_policy_access"] else "full"


def folder_of(results: Path, method: str, labels: list[str], env: str, seed: int) -> Path:
    return results / "-".join([method, *labels]) / env / f"seed{seed}"


# ------------------------------------------------------------------------------------------ origin
def git(*words: str) -> str:
    command = ["git", "-C", str(irl.ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def hardware() -> dict:
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def modules_of(classes: Sequence[type]) -> set[str]:
    """The files of the classes' modules, and of those of baselines/ that these take things from."""
    found = set()
    waiting = {c.__module__ for c in classes}
    while waiting:
        found |= waiting
        values = [value for name in waiting for value in vars(sys.modules[name]).values()]
        names = {getattr(x, "__module__", None) or getattr(x, "__name__", None) for x in values}
        waiting = {x for x in names if isinstance(x, str) and x.startswith("baselines.")} - found
    return {sys.modules[name].__file__ for name in found}


def identity_of(
    args: irl.Args, method: str, classes: Sequence[type], frozen_reward: Path | None = None
) -> dict[str, dict]:
    """All that has to be equal for two runs to give the same numbers."""
    files = {Path(file) for file in (irl.__file__, *modules_of(classes))}
    uses_demos = not args.true_reward and getattr(classes[1], "needs_demos", True)
    reward = irl.sha256(frozen_reward / "reward_net.pt") if frozen_reward else None
    return {
        "config": {"method": method, **irl.config_of(args)},
        "demos": {"sha256": irl.sha256(args.demos_path) if uses_demos else None},
        "frozen_reward": {"sha256": reward},
        "code": {file.name: irl.sha256(file) for file in sorted(files)},
        "versions": irl.versions(),
    }


@dataclass(frozen=True)
class Holder:
    """Who holds a folder, as its lock says; "-" for what there is not."""

    host: str = "-"
    pid: str = "-"
    boot: str = "-"  # one for each start of a machine; the containers on it share it
    job: str = "-"  # Slurm's
    restarts: str = "0"  # of that job

    @classmethod
    def of_this_process(cls) -> Holder:
        boot = Path("/proc/sys/kernel/random/boot_id")
        job, restarts = (os.environ.get(f"SLURM_{x}") for x in ("JOB_ID", "RESTART_COUNT"))
        boot_id = boot.read_text().strip() if boot.exists() else "-"
        return cls(socket.gethostname(), str(os.getpid()), boot_id, job or "-", restarts or "0")

    @classmethod
    def parse(cls, text: str) -> Holder:
        words = text.split()
        return cls(*words) if len(words) == len(fields(cls)) else cls()

    def is_gone_for(self, other: Holder) -> bool:
        """Whether it has certainly ended, now that `other` has got the kernel's lock."""
        same_machine = self.host in ("-", other.host) or self.boot == other.boot != "-"
        requeued = self.job == other.job != "-" and self.restarts != other.restarts
        return same_machine or requeued


def locked(folder: Path) -> AbstractContextManager[None]:
    """Keeps `folder` for this process until the end of the block.

    The kernel holds the lock and releases it when the process dies, however it dies. NFS since
    Linux 2.6.12 and Lustre mounted with `flock` do so across hosts; elsewhere a lock may be seen on
    its own host alone. Therefore the file also says who holds it and is emptied at the end, and one
    that another host left filled is respected, unless Slurm has started that very job again.

    Raises:
        Held: if another process holds it.
        UserError: if a process of another host held it and did not end properly.
    """
    here = Holder.of_this_process()

    def check(left: str) -> None:
        there = Holder.parse(left)
        if not there.is_gone_for(here):
            who = f"process {there.pid} on host {there.host}"
            problem = f"{who} did not end properly, or still trains in it"
            raise irl.UserError(f"{folder}: {problem}; once it is gone remove {folder / irl.LOCK}")

    return irl.locked(folder, " ".join(astuple(here)), check)


def remove_checkpoint(folder: Path) -> None:
    (folder / CHECKPOINT).unlink(missing_ok=True)  # first: it is never there without its pieces
    shutil.rmtree(folder / PIECES, ignore_errors=True)


def open_folder(folder: Path, identity: dict, quick: bool, overwrite: bool) -> dict | None:
    """Writes the origin.json of a new run; returns the result of a finished one.

    Raises:
        UserError: if the folder holds another run and `overwrite` is not set.
    """
    path, result = folder / "origin.json", folder / "result.json"
    if path.exists():
        changed = changes(path, identity, quick)
        if not changed and not result.exists():
            return None
        if not changed:
            there = read_json(result)
            if {"method": there.get("method"), **there.get("config", {})} == identity["config"]:
                return there
            changed = ["result.json"]  # a single command has written into this folder since
        what = f"another run ({', '.join(changed)} differ)"
    elif result.exists() or (folder / CHECKPOINT).exists():
        what = "a run without origin.json, as of a single command"
    else:
        what = ""
    if what and not overwrite and (result.exists() or (folder / CHECKPOINT).exists()):
        raise irl.UserError(f"{folder}: {what}; --overwrite it or change --out")
    result.unlink(missing_ok=True)
    remove_checkpoint(folder)
    for pattern in ("metrics.csv", "diagnosis*", "watch.mp4"):
        for path_ in folder.glob(pattern):
            path_.unlink()
    commit = git("rev-parse", "HEAD")
    origin = {
        "schema": 1,
        "quick": quick,
        "git_commit": commit,
        "git_clean": bool(commit) and not git("status", "--porcelain"),
        "hardware": hardware(),
        "identity": identity,
    }
    irl.write_text(path, json.dumps(origin, indent=2) + "\n")
    return None


def as_json(value: dict) -> dict:
    """As it reads back from a JSON file: tuples are lists."""
    return json.loads(json.dumps(value))


def changes(path: Path, identity: dict, quick: bool) -> list[str]:
    """What the origin.json at `path` states otherwise."""
    origin = read_json(path)
    there = origin.get("identity")
    if not isinstance(there, dict) or not all(isinstance(v, dict) for v in there.values()):
        raise irl.UserError(f"{path}: key 'identity' is missing or wrong; expected an object")
    changed = ["quick"] if origin.get("quick") != quick else []
    return changed + [
        f"{part} {key}"
        for part, values in identity.items()
        for key, value in values.items()
        if there.get(part, {}).get(key) != value
    ]


def read_json(path: Path) -> dict:
    """A JSON object; UserError naming the file if it is not one."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise irl.UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise irl.UserError(f"{path}: expected a JSON object")
    return value


def read_result(folder: Path) -> dict:
    """The result.json of the finished run in `folder`.

    Raises:
        UserError: if there is none, or it is not of this version.
    """
    return read_schema(folder / "result.json", 2, "the folder of a finished run")


def read_schema(path: Path, schema: int, what: str) -> dict:
    """A JSON object of that schema; UserError naming the file if there is none."""
    if not path.is_file():
        raise irl.UserError(f"{path}: no such file; expected {what}")
    content = read_json(path)
    if content.get("schema") != schema:
        raise irl.UserError(f"{path}: schema {content.get('schema')}; expected {schema}")
    return content


def run_trainer(
    train: Callable[[irl.Args, irl.Demos], irl.Training],
    args: irl.Args,
    method: str,
    classes: Sequence[type],
    frozen_reward: Path | None = None,
    more_identity: dict[str, dict] | None = None,
) -> dict:
    """A trainer with a loop of its own: `train(args, demos)`, with the folder and files of any run.

    `train` returns policy, rows and seconds. The policy has `actor_mean` and `actor_logstd`, which
    evaluation needs. `classes`: their files identify the code; `needs_demos` of the second says
    whether demonstrations are read. `more_identity`: parts, with keys, of what else identifies the
    run. Not resumable.
    """
    torch.set_num_threads(1)
    irl.seed_everything(args.seed)
    demos = irl.prepare_demos(args, classes[1])
    identity = identity_of(args, method, classes, frozen_reward) | (more_identity or {})
    with locked(args.out):
        result = open_folder(args.out, identity, quick=False, overwrite=args.overwrite)
        if result is not None:
            return result
        training = train(args, demos)
        return irl.save_run(args.out, training, args, method, demos)


def save_figure(figure, path: Path, dpi: int = 120) -> None:
    """A figure of matplotlib's as a PNG, in one step."""
    with irl.replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


# ---------------------------------------------------------------------------------- command lines
def command_line(main: Callable[[], None]) -> None:
    """The end of every command's file: `if __name__ == "__main__": command_line(main)`.

    Prints errors that the caller can correct as one line, and exits with 1 (75: try later).
    """
    try:
        main()
    except Held as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(TRY_LATER)
    except (irl.UserError, DemoError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)
