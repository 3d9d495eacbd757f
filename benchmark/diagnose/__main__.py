"""Is the reward real?  Examines the reward a run ended with, beside controls.

    python -m benchmark.diagnose results/custom/Hopper-v4/seed42 --fast    # about a minute
    python -m benchmark.diagnose results/custom/Hopper-v4/seed42           # also trains policies
    python -m benchmark.diagnose results/*/Hopper-v4/seed42 --fast --table rewards.md
    python -m benchmark.diagnose results/*/Hopper-v4/seed42 --table rewards.csv --table-only

Each examination is a module with TITLE and `examine(subject, rng)`, which returns a table. Failure
labels compare the learned reward with controls. Written into RUN_DIR: diagnosis.json, diagnosis.md
and a figure for each table. The environment's true reward is used, for evaluation alone.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from tqdm import tqdm

import custom_irl as irl
from benchmark import runs
from benchmark.diagnose import (
    ambiguity,
    counterfactuals,
    distance,
    outputs,
    perturbed,
    ranking,
    retraining,
    steps,
)
from benchmark.diagnose.labels import judge
from benchmark.diagnose.subject import NotApplicable, Subject
from benchmark.diagnose.table import as_json

EXAMINATIONS = (steps, ranking, distance, counterfactuals, ambiguity, perturbed, retraining)


@dataclass(frozen=True)
class Config:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """folders of finished runs"""
    table: Path | None = None
    """file for a table with a row a run: CSV if its name ends so, else Markdown"""
    table_only: bool = False
    """examine nothing: tabulate what earlier examinations left in the folders"""
    seed: int = 0
    """seed of the examination"""
    fast: bool = False
    """train no fresh policies; finished runs on this reward are read all the same"""
    retrain_steps: int = 200_000
    """environment steps of each fresh policy"""
    jobs: int = runs.CORES
    """fresh policies trained at once"""


def diagnose(subject: Subject) -> dict:
    """Examines a run; what diagnosis.json holds of it."""
    examinations = {}
    bar = tqdm(EXAMINATIONS, desc=f"examining {subject.folder}", disable=None)
    for number, module in enumerate(bar):
        rng = np.random.default_rng([subject.seed, number])
        try:
            found = as_json(module.examine(subject, rng))
        except NotApplicable as reason:
            found = {"not_applicable": str(reason)}
        name = module.__name__.rpartition(".")[2]
        examinations[name] = {"title": module.TITLE, **found}
    result = subject.result
    keys = ("id", "method", "env", "seed", "steps", "eval_return_mean", "normalized_return")
    run = {
        **{key: result.get(key) for key in keys},
        "variant": runs.variant_of(result["method"], result["config"]),
        "panel": runs.panel_of(result["config"]),
    }
    labels = judge(subject, examinations)
    return {
        "schema": outputs.SCHEMA,
        "folder": str(subject.folder),
        "run": run,
        "seed": subject.seed,
        "examinations": examinations,
        "labels": labels,
        "verdict": outputs.verdict(labels),
    }


def diagnose_all(config: Config) -> list[dict]:
    """Examines each run, leaves what was found in its folder and prints the failures."""
    retrain_steps = 0 if config.fast else config.retrain_steps
    subjects = [Subject(f, config.seed, retrain_steps, config.jobs) for f in config.runs]
    all_found = []
    for subject in subjects:
        found = diagnose(subject)
        outputs.write(subject.folder, found)
        print(f"{subject.folder}: {found['verdict']}")
        for label in found["labels"]:
            if label["applies"]:
                print(f"  {label['name']}: {label['definition']} {label['evidence']}")
        all_found.append(found)
    return all_found


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    torch.set_num_threads(1)
    if not config.runs:
        raise irl.UserError("expected the folder of a finished run")
    if config.seed < 0:
        raise irl.UserError(f"--seed {config.seed}: expected 0 or more")
    if config.jobs < 1:
        raise irl.UserError(f"--jobs {config.jobs}: expected 1 or more")
    if config.table_only and config.table is None:
        raise irl.UserError("--table-only: expected --table FILE too")
    if config.table_only:
        all_found = [outputs.read_diagnosis(folder) for folder in config.runs]
    else:
        all_found = diagnose_all(config)
    if config.table is not None:
        outputs.write_table(config.table, outputs.overview(all_found))


if __name__ == "__main__":
    runs.command_line(main)
