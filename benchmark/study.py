"""Which runs a study is: a flat list of Run, made from the launcher's flags or from a file.

    bash run_all.sh --study benchmark/studies/ten-seeds.toml --dry-run

A file in TOML has the keys of DEFAULTS. Those at its top count for all of its [[runs]] tables; each
table is every combination of its methods, panels, variants, seeds and environments.
"""

from __future__ import annotations

import itertools
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import custom_irl as irl
from benchmark import runs, tables
from benchmark.ablations import ABLATIONS

METHODS = (
    *runs.METHODS,
    *runs.TRAINERS,
    *(f"imitation-{name}" for name in runs.PEERS),
    *(f"ablation-{name}" for name in ABLATIONS),
)
VARIANTS = {  # the flags of custom_irl.py that each is
    "full": (),
    "reward-only": ("--no-policy-access",),
    "true-reward": ("--true-reward",),
    # A fresh policy of the next seed, on the reward of the run it is named after; with
    # --no-policy-access on that of the reward-only run.
    "frozen": (),
}
DEFAULTS = {
    "methods": ["custom"],
    "panels": ["dense"],
    "variants": ["full"],
    "environments": list(runs.ENVS),
    "seeds": list(runs.SEEDS),
    "learner": "loop",
    "quick": False,
    "flags": [],
}
LEARNERS = ("loop", "sb3", "sac")  # what trains on a frozen or the true reward
LEARNER_STEPS = {"sac": 300_000}  # where a learner's budget is not custom_irl.py's own
CHOICES = {
    "methods": METHODS,
    "panels": tuple(runs.PANELS.values()),
    "variants": tuple(VARIANTS),
    "learner": LEARNERS,
}
SET_BY_A_RUN = {  # flags of custom_irl.py, and what says the same of a run
    "--env": "envs",
    "--seed": "seeds",
    "--out": "results",
}
SET_BY_A_FILE = {
    **SET_BY_A_RUN,
    "--env": "environments",
    "--no-policy-access": 'variants = ["reward-only"]',
    "--true-reward": 'variants = ["true-reward"]',
}


@dataclass(frozen=True)
class Run:
    """One run, by what sets it apart."""

    method: str
    panel: str
    variant: str
    seed: int  # with "frozen" that of the run whose reward is learned from
    env: str
    learner: str = "loop"
    quick: bool = False
    flags: tuple[str, ...] = ()  # for custom_irl.py, besides those of panel, variant and quick

    @property
    def words(self) -> list[str]:
        """All flags for custom_irl.py but --env, --seed and --out."""
        words = [*self.flags, *VARIANTS[self.variant]]
        if self.panel != "dense":
            episodes, subsample = next(k for k, name in runs.PANELS.items() if name == self.panel)
            words += ["--demo-episodes", str(episodes), "--demo-subsample", str(subsample)]
        if self.quick:
            words += ["--total-timesteps", str(runs.QUICK_TIMESTEPS)]
        return words

    @property
    def under_contract(self) -> bool:
        """Trained by custom_irl.py's loop: with rows of metrics while it runs, and checkpoints."""
        own_loop = self.method in runs.TRAINERS or self.method.startswith("imitation-")
        return self.learner == "loop" and (self.variant == "frozen" or not own_loop)

    @property
    def saves_reward(self) -> bool:
        """Leaves a policy and a reward that benchmark/load.py loads."""
        trainer = runs.TRAINERS.get(self.method)
        own_reward = trainer is not None and bool(trainer.reward)
        return self.variant != "true-reward" and (self.under_contract or own_reward)


def check_flags(run: Run) -> None:
    """UserError for a flag of custom_irl.py's that the run's trainer does not read."""
    if run.learner != "loop":
        read = runs.RETRAIN_READS + (runs.OF_A_REWARD if run.variant == "frozen" else ())
        runs.refuse_unread(run.words, read, f"--learner {run.learner}")
    elif run.variant != "frozen" and run.method in (*runs.TRAINERS, "imitation-bc"):
        runs.refuse_unread(run.words, runs.OFFLINE_READS, f"--method {run.method}")


def check(run: Run) -> None:
    """UserError for what cannot be combined."""
    given = {*runs.names_of(run.flags), *VARIANTS[run.variant]}
    if run.method not in METHODS:
        raise irl.UserError(f"--method {run.method}: expected one of {', '.join(METHODS)}")
    if run.panel != "dense" and given & {"--demo-episodes", "--demo-subsample"}:
        raise irl.UserError("--panel: sets --demo-episodes and --demo-subsample; expected one way")
    if run.variant == "frozen" and "--true-reward" in given:
        raise irl.UserError("--frozen and --true-reward: expected one of them")
    if run.variant == "frozen":
        runs.method_named(run.method)
    own_loop = run.method in runs.TRAINERS or run.method.startswith("imitation-")
    if own_loop and run.variant in ("true-reward", "reward-only"):
        raise irl.UserError(f"--method {run.method}: not with variant {run.variant}")
    if run.learner != "loop" and run.variant not in ("frozen", "true-reward"):
        problem = "learns no reward; expected --frozen or --true-reward"
        raise irl.UserError(f"--learner {run.learner}: {problem}")
    if run.quick and "--total-timesteps" in given:
        raise irl.UserError("--quick: sets --total-timesteps; expected one of them")
    if run.quick and not run.under_contract:
        raise irl.UserError(
            "--quick: not with another --learner than loop and not for a method of its own loop"
        )
    check_flags(run)


def expand(group: dict) -> list[Run]:
    """Every combination of a group's values, each once, checked.

    Raises:
        UserError: for values that cannot be combined.
    """
    keys = ("methods", "panels", "variants", "seeds", "environments")
    rest = (group["learner"], group["quick"], tuple(group["flags"]))
    combinations = itertools.product(*(group[key] for key in keys))
    found = dict.fromkeys(Run(*one, *rest) for one in combinations)
    for run in found:
        check(run)
    return list(found)


# -------------------------------------------------------------------------------------------- files
def read_study(path: Path) -> list[Run]:
    """The runs of a study's file, each once.

    Raises:
        UserError: naming file and key.
    """
    try:
        text = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise irl.UserError(f"{path}: not readable as TOML ({error})") from None
    tables_ = text.pop("runs", [{}])
    if not isinstance(tables_, list) or not tables_ or not all(type(x) is dict for x in tables_):
        raise irl.UserError(f"{path}: key 'runs': expected tables, [[runs]]")
    check_keys(text, str(path))
    found = []
    for i, table in enumerate(tables_, start=1):
        where = f"{path}: [[runs]] {i}"
        check_keys(table, where)
        try:
            found += expand({**DEFAULTS, **text, **table})
        except irl.UserError as error:
            raise irl.UserError(f"{where}: {error}") from None
    return list(dict.fromkeys(found))


def check_keys(table: dict, where: str) -> None:
    """UserError for a key that is unknown, or whose value is not what stands for one."""
    for key, value in table.items():
        if key not in DEFAULTS:
            expected = f"expected {', '.join(DEFAULTS)}"
            raise irl.UserError(f"{where}: key '{key}': unknown; {expected}")
        default = DEFAULTS[key]
        if type(value) is not type(default):
            raise irl.UserError(f"{where}: key '{key}': {value!r}, expected as in {default!r}")
        values = value if isinstance(value, list) else [value]
        if not values and key != "flags":
            raise irl.UserError(f"{where}: key '{key}': expected at least one")
        for one in values:
            check_value(key, one, f"{where}: key '{key}': {one!r}")
    of_a_reward = {"--no-policy-access"} if table.get("variants") == ["frozen"] else set()
    for flag in set(runs.names_of(table.get("flags", []))) & set(SET_BY_A_FILE) - of_a_reward:
        raise irl.UserError(f"{where}: key 'flags': {flag}; expected {SET_BY_A_FILE[flag]}")


def check_value(key: str, value: object, where: str) -> None:
    kind = {"seeds": int, "quick": bool}.get(key, str)
    if type(value) is not kind or (kind is int and value < 0):
        expected = {int: "a seed, 0 or more", bool: "true or false", str: "a string"}[kind]
        raise irl.UserError(f"{where}, expected {expected}")
    if key in CHOICES and value not in CHOICES[key]:
        raise irl.UserError(f"{where}, expected one of {', '.join(CHOICES[key])}")


# --------------------------------------------------------------------------------------------- cost
def committed_runs() -> pd.DataFrame:
    """The rows of results.csv and ablations.csv, whose speeds are known."""
    files = [runs.PUBLISHED / name for name in ("results.csv", "ablations.csv")]
    frame = pd.concat([tables.read_published(file) for file in files], ignore_index=True)
    return frame[frame["minutes"] > 0]


def core_hours(
    committed: pd.DataFrame, method: str, variant: str, panel: str, steps: int
) -> float | None:
    """Of one run, from the median speed of the committed runs of its kind, of its panel if there
    are such; None without any. Where the flags do not say how many steps are taken, their minutes.
    """
    rows = committed[(committed["method"] == method) & (committed["variant"] == variant)]
    if rows.empty:
        return None
    if (of_panel := rows[rows["panel"] == panel]).size:
        rows = of_panel
    speed = rows["steps_per_second"].median()
    if speed == 0 or method in runs.TRAINERS:
        return rows["minutes"].median() / 60
    return steps / speed / 3600
