"""Learn a cost for the Pusher arm from demonstrations of placing, and plan with it.

    python -m mbirl --cost rbf             # ground-truth keypoints: results/mbirl/rbf/seed1/
    python -m mbirl --cost rbf --visual    # keypoints detected in images; the same command resumes
    python -m mbirl --compare              # all costs, 5 seeds: results/mbirl/compare/
    python -m mbirl --compare --visual     # the same and, with detected keypoints, the RBF cost

A run's folder holds config.json, metrics.csv (a row an iteration), traces.csv (test plans), cost.pt
(state_dict), film.gif and result.json (final metrics, failure labels).
"""

import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
import tyro
from tqdm import tqdm

from custom_irl import UserError, replacing
from mbirl import keypoints, report, scene
from mbirl.costs import LEARNED, make_cost
from mbirl.demos import COLUMNS, DemoConfig, follow, place, read_demos
from mbirl.kinematics import PUSHER
from mbirl.planner import ArmModel, PlanConfig
from mbirl.train import METHODS, Task, TrainConfig, execute, irl_loss, train_cost

RESULTS = Path("results") / "mbirl"
SEEDS = (10, 11, 12, 13, 14)  # of --compare; everything was tuned on 1 to 9
# Of the inner loop under costs that nothing fits to it, chosen on seed 1 of 1e-3, 3e-4, 1e-4, 5e-5
# (`default` alone), 3e-5 and 1e-5 (likewise).
BASELINE_LR = {"default": 5e-5, "weighted": 1e-4, "timedep": 1e-3, "rbf": 1e-4}


@dataclass(frozen=True)
class Args:
    cost: str = "rbf"
    """default, weighted, timedep or rbf"""
    method: str = "mbirl"
    """mbirl, apprenticeship (feature matching) or none (the cost as initialised)"""
    seed: int = 1
    """seed of the demonstrations (tune on 1 to 9; --compare runs 10 to 14)"""
    visual: bool = False
    """detect keypoints in images, instead of taking the true ones"""
    compare: bool = False
    """all costs and baselines, 5 seeds"""
    demos: Path | None = None
    """demonstrations as CSV (mbirl/demos.py); default: drawn from the seed"""
    out: Path | None = None
    """folder of the results; default: results/mbirl/NAME/seedSEED"""
    quick: bool = False
    """a look, not a result: 3 iterations, and small visual training"""
    film: bool = True
    """draw film.gif, if this machine can render"""
    n_train: int = 3
    """demonstrations the cost is learned from"""
    n_test: int = 3
    """demonstrations it is tested on"""
    horizon: int = 10
    """states of a demonstration"""
    start: tuple[float, float, float, float, float, float, float] = DemoConfig.start
    """joints of the first state, radians"""
    plan: PlanConfig = field(default_factory=PlanConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    images: keypoints.VisualConfig = field(default_factory=keypoints.VisualConfig)

    def __post_init__(self):
        if self.cost not in ("default", *LEARNED):
            expected = ", ".join(("default", *LEARNED))
            raise UserError(f"--cost {self.cost}: expected one of {expected}")
        if self.method not in METHODS:
            raise UserError(f"--method {self.method}: expected one of {', '.join(METHODS)}")
        if self.cost == "default" and self.method == "apprenticeship":
            raise UserError("--cost default: expected --method none, it has no weights to learn")
        if self.plan.inner_steps < 1 or self.train.iterations < 1:
            raise UserError("--plan.inner-steps and --train.iterations: expected 1 or more")
        if not (0 < self.plan.inner_lr < math.inf and 0 < self.train.outer_lr < math.inf):
            raise UserError(
                "--plan.inner-lr and --train.outer-lr: expected more than 0, and finite"
            )

    @property
    def demo_config(self) -> DemoConfig:
        return DemoConfig(self.seed, self.n_train, self.n_test, self.horizon, self.start)

    @property
    def name(self) -> str:
        words = [self.cost]
        words += [self.method] * (self.method != "mbirl")
        words += ["detached"] * self.plan.detach_state + ["visual"] * self.visual
        return "-".join(words + ["quick"] * self.quick)

    @property
    def folder(self) -> Path:
        return self.out or RESULTS / self.name / f"seed{self.seed}"


def shortened(args: Args) -> Args:
    """The configuration of --quick."""
    images = replace(args.images, frames=200, detector_steps=20, dynamics_steps=20)
    return replace(args, train=replace(args.train, iterations=3), images=images)


def write_json(path: Path, value: dict) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")


def write_csv(path: Path, rows: pd.DataFrame) -> None:
    with replacing(path) as temporary:
        rows.to_csv(temporary, index=False, float_format="%.6g")


def make_task(args: Args) -> tuple[Task, dict]:
    """The task of a configuration, and the metrics of its visual stage, if any."""
    config = args.demo_config
    demos = place(config)
    if args.demos:
        demos = read_demos(args.demos, config)
    true = ArmModel(PUSHER)
    q0 = torch.tensor(args.start)
    if not args.visual:
        return Task(true, true, q0, demos, demos, args.n_train), {}
    folder = RESULTS / ("visual-quick" if args.quick else "visual")
    folder = folder / f"seed{args.images.visual_seed}"
    folder = args.out / "visual" if args.out else folder
    folder.mkdir(parents=True, exist_ok=True)  # before the training, which takes minutes
    detector, dynamics, metrics = keypoints.learn_model(PUSHER, args.start, args.images, folder)
    joints = torch.cat([follow(PUSHER, demo, args.start) for demo in demos])
    points = keypoints.detect(detector, scene.images(joints))
    seen = keypoints.to_cm(points).view(len(demos), args.horizon, -1)
    model = keypoints.VisualModel(PUSHER, dynamics, seen[0, 0])
    return Task(model, true, q0, seen, demos, args.n_train), metrics


def failures(result: dict) -> list[str]:
    """Labels of what went wrong in a run; none if nothing did."""
    numbers = [x for x in result.values() if isinstance(x, float)]
    checks = {
        "not-finite": not all(map(math.isfinite, numbers)),
        "worse-than-doing-nothing": result["test_loss_ratio"] >= 1,
        "goal-missed": result["test_goal_ratio"] > 0.15,
        "overfits": result["test_loss"] > 2 * result["train_loss"],
        "at-joint-limit": result["test_at_limit"] > 0.1,
        "keypoints-inaccurate": result.get("keypoint_error_median_px", 0) > 1.5,
    }
    return [label for label, applies in checks.items() if applies]


def trace(cost, task: Task, config: PlanConfig) -> tuple[pd.DataFrame, torch.Tensor]:
    """Keypoints and joints of all test plans as a table, and the first one's joints (T, n)."""
    tables = []
    paths = []
    for i in task.split("test"):
        z, q = execute(cost, task, i, config)
        columns = COLUMNS + [f"demo_{c}" for c in COLUMNS] + [f"q{j}" for j in range(q.shape[1])]
        table = pd.DataFrame(torch.cat((z, task.demos[i], q), 1).numpy(), columns=columns)
        table.insert(0, "t", range(len(z)))
        table.insert(0, "demo", i)
        tables.append(table)
        paths.append(q)
    return pd.concat(tables), paths[0]


def write_film(path: Path, args: Args, task: Task, q: torch.Tensor) -> str | None:
    """Draws the first test plan beside its demonstration; returns why not, if it cannot."""
    demo = task.demos[task.n_train]
    try:
        scene.film(path, {"demonstration": follow(PUSHER, demo, args.start), "plan": q}, demo)
    except UserError as error:
        return str(error)


def run(args: Args, prepared: tuple[Task, dict] | None = None) -> dict:
    """One run: learns the cost, writes the folder and returns the result."""
    began = time.monotonic()
    task, visual_metrics = prepared or make_task(args)
    args.folder.mkdir(parents=True, exist_ok=True)  # before the training, too
    cost = make_cost(args.cost, args.horizon, task.seen.shape[-1])
    method = "none" if args.cost == "default" else args.method
    rows = []
    with tqdm(total=args.train.iterations, desc=args.name, disable=None, leave=False) as bar:

        def log(row: dict) -> None:
            rows.append(row)
            bar.update()

        train_cost(cost, task, method, args.train, args.plan, log)
    metrics = pd.DataFrame(rows)
    table, q = trace(cost, task, args.plan)
    result = {"cost": args.cost, "method": method, "seed": args.seed}
    result |= {"detach_state": args.plan.detach_state, "visual": args.visual, "quick": args.quick}
    result |= rows[-1] | visual_metrics
    nothing = [irl_loss(demo[:1].expand_as(demo), demo) for demo in task.demos[task.n_train :]]
    result["test_loss_nothing"] = torch.stack(nothing).mean().item()
    result |= {"failures": failures(result), "seconds": time.monotonic() - began}
    write_json(args.folder / "config.json", asdict(args))
    write_csv(args.folder / "metrics.csv", metrics)
    write_csv(args.folder / "traces.csv", table)
    with replacing(args.folder / "cost.pt") as temporary:
        torch.save(cost.state_dict(), temporary)
    if args.film:
        result["no_film"] = write_film(args.folder / "film.gif", args, task, q)
    write_json(args.folder / "result.json", result)
    return result


def variants(args: Args) -> list[Args]:
    """The runs of --compare for a seed."""

    def baseline(cost: str, method: str) -> Args:
        plan = replace(args.plan, inner_lr=BASELINE_LR[cost])
        return replace(args, cost=cost, method=method, plan=plan)

    runs = [baseline("default", "none")]
    for cost in LEARNED:
        for detach in (False, True):
            plan = replace(args.plan, detach_state=detach)
            runs.append(replace(args, cost=cost, method="mbirl", plan=plan))
        runs.append(baseline(cost, "apprenticeship"))
    return runs


def compare(args: Args) -> Path:
    """All costs and baselines on SEEDS; writes compare.csv, curves.csv and losses.png."""
    folder = args.out or RESULTS / ("compare-quick" if args.quick else "compare")
    results = []
    curves = []
    for seed in SEEDS:
        base = replace(args, seed=seed, visual=False, film=False)
        base = replace(base, images=replace(args.images, visual_seed=SEEDS[0]))
        runs = variants(base)
        if args.visual:
            runs.append(replace(base, cost="rbf", method="mbirl", visual=True))
        for each in tqdm(runs, f"seed {seed}", disable=None):
            prepared = make_task(each)
            shown = args.film and each.name == "rbf" and seed == SEEDS[0]
            each = replace(each, out=folder / "runs" / each.name / f"seed{seed}", film=shown)
            results.append(run(each, prepared))
            curve = pd.read_csv(each.folder / "metrics.csv")[report.CURVES]
            if each.method == "mbirl":
                curves.append(curve.assign(name=each.name, seed=seed))
    write_csv(folder / "compare.csv", report.flat(results))
    write_csv(folder / "curves.csv", pd.concat(curves))
    report.draw_losses(folder)
    return folder


def main(flags: list[str] | None = None) -> None:
    """The command line: bad input ends in one line and exit status 1."""
    torch.set_num_threads(1)
    try:
        args = tyro.cli(Args, args=flags, description=__doc__)
        args = shortened(args) if args.quick else args
        if args.compare:
            folder = compare(args)
            print(report.table(pd.read_csv(folder / "compare.csv")))
            print(f"{folder}: compare.csv, curves.csv, losses.png")
            return
        result = run(args)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or args.folder}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the last checkpoint of the visual stage")
    if result.get("no_film"):
        print(result["no_film"], file=sys.stderr)
    if args.visual:
        print(f"median keypoint error: {result['keypoint_error_median_px']:.2f} pixels")
    print(f"{args.folder}: {result['seconds']:.0f} s, failures: {result['failures'] or 'none'}")
    print(f"goal distance, last over first: {result['test_goal_ratio']:.3f}")
    print(f"test L_IRL over that of doing nothing: {result['test_loss_ratio']:.3f}")


if __name__ == "__main__":
    main()
