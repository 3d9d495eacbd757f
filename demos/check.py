"""What is in these demonstrations, and is anything wrong with them?

    python -m demos.check demos/Hopper-v4.npz --env Hopper-v4   # tables, Hopper-v4.check.png
    python -m demos.check ~/.minari/datasets/mujoco/hopper/expert-v0 --json report.json

Takes every format of demos/formats.py. With --env it also says what does not fit that environment.
The exit status is not 0 for demonstrations that cannot be read; with --strict, for any finding too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

if __name__ == "__main__":  # `python demos/check.py` finds the project as -m does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from demos.columns import read_json
from demos.formats import (
    MAX_BYTES,
    DemoError,
    Demonstrations,
    Episode,
    cannot_write,
    pack,
    read,
    replacing,
    to_transitions,
)
from demos.transitions import jumps, rows_equal

matplotlib.use("Agg")  # nothing here needs a screen
import matplotlib.pyplot as plt

REPORT_SCHEMA = "irl-check-1"  # marks the JSON file of --json
RESETS = 64  # of the environment, to compare first observations with


@dataclass(frozen=True)
class Config:
    path: tyro.conf.Positional[Path]
    """demonstrations in any of the formats"""
    env: str | None = None
    """environment they should fit"""
    max_episode_steps: int | None = None
    """time limit of that environment, if it has none of its own or another one was used"""
    picture: Path | None = None
    """default: NAME.check.png in the current folder"""
    json: Path | None = None
    """write a report with the rows that every finding concerns"""
    obs_keys: tuple[str, ...] = ()
    """which observations to read, in this order, where there are several arrays of them"""
    max_mib: int = MAX_BYTES // 2**20
    """largest size of the arrays to read, in MiB"""
    strict: bool = False
    """exit with status 1 if there is any finding or note"""


@dataclass(frozen=True)
class Finding:
    """What is wrong, and the transitions it concerns, numbered from 0 over all episodes."""

    kind: str
    text: str
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.text


def finding(kind: str, text: str, rows: Iterable[int] = ()) -> Finding:
    return Finding(kind, text, tuple(int(i) for i in rows))


# ------------------------------------------------------------------------------------- facts
def spread(x: np.ndarray) -> str:
    return f"{x.mean():.6g} ± {x.std():.4g}, {x.min():.6g} to {x.max():.6g}"


def facts(episodes: Sequence[Episode]) -> dict[str, str]:
    """What is there: name and value of each line."""
    lengths = np.array([len(e.acts) for e in episodes])
    ended = sum(e.terminated for e in episodes)
    known = all(e.rewards is not None and np.isfinite(e.rewards).all() for e in episodes)
    returns = "rewards are not stored"
    if known:
        returns = spread(np.array([e.rewards.sum(dtype=np.float64) for e in episodes]))
    dims = episodes[0].obs.shape[1], episodes[0].acts.shape[1]
    return {
        "episodes": str(len(episodes)),
        "transitions": str(lengths.sum()),
        "length of an episode": spread(lengths),
        "ended in a terminal state": f"{ended}, at a limit or cut off: {len(episodes) - ended}",
        "return of an episode": returns,
        "observation, action": f"{dims[0]} and {dims[1]} numbers",
    }


# ---------------------------------------------------------------------------------- findings
def problems(
    episodes: Sequence[Episode], env_id: str | None, max_episode_steps: int | None = None
) -> list[Finding]:
    """What is wrong; nothing for clean demonstrations. `max_episode_steps`: in place of the
    environment's own time limit.
    """
    data = pack(episodes)
    flat = to_transitions(episodes)
    rows = np.concatenate([flat[key] for key in ("obs", "acts", "next_obs")], 1)
    found = []
    broken = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(broken):
        found.append(
            finding("not-finite", f"{len(broken)} transitions hold NaN or infinity", broken)
        )
    repeated = repeats(rows)
    if len(repeated):
        text = f"{len(repeated)} transitions repeat another one exactly"
        found.append(finding("repeated", text, repeated))
    for name, x in (("observation", data["obs"]), ("action", data["acts"])):
        constant = np.flatnonzero((x == x[0]).all(0)).tolist()
        if constant:
            text = f"{name} {', '.join(map(str, constant))}: the same number everywhere"
            found.append(finding("constant", text))
    found += strange_steps(episodes, data["lengths"])
    return found + (mismatches(episodes, data, env_id, max_episode_steps) if env_id else [])


def repeats(rows: np.ndarray) -> np.ndarray:
    """Rows that equal an earlier one."""
    first = np.unique(rows, axis=0, return_index=True)[1]
    repeated = np.ones(len(rows), bool)
    repeated[first] = False
    return np.flatnonzero(repeated)


def strange_steps(episodes: Sequence[Episode], lengths: np.ndarray) -> list[Finding]:
    """Transitions that no step of the environment makes, and episodes that are single rows."""
    found = []
    ends = np.cumsum(lengths)
    firsts = np.stack([e.obs[0] for e in episodes])
    lasts = np.stack([e.obs[-1] for e in episodes])
    joined = np.flatnonzero(rows_equal(lasts[:-1], firsts[1:]))
    if len(joined):
        text = (
            f"{len(joined)} episodes end with the next one's first observation: as vector"
            " environments that reset by themselves record it, a transition that never happened"
        )
        found.append(finding("fresh-start", text, ends[joined] - 1))
    strange = jumps(episodes)
    if len(strange):
        text = (
            f"{len(strange)} transitions change an observation as no other step does: rows missing"
            " between them, or one episode running into the next"
        )
        found.append(finding("jump", text, strange))
    single = np.flatnonzero(lengths == 1)
    if 2 * len(single) >= len(lengths) > 2:
        text = f"{len(single)} of {len(lengths)} episodes have one step: rows that do not follow"
        found.append(finding("one-step", f"{text} each other", ends[single] - 1))
    return found


def environment(env_id: str, max_episode_steps: int | None):
    from custom_irl import UserError, make_env  # here: PyTorch is needed with --env only

    try:
        return make_env(env_id, max_episode_steps)
    except UserError as error:
        raise DemoError(str(error)) from None


def mismatches(
    episodes: Sequence[Episode],
    data: dict[str, np.ndarray],
    env_id: str,
    max_episode_steps: int | None,
) -> list[Finding]:
    """What does not fit the environment."""
    env = environment(env_id, max_episode_steps)
    found = []
    spaces = {"obs": env.observation_space, "acts": env.action_space}
    # Which transition each row of obs belongs to; the last one of an episode to its last.
    lengths = data["lengths"]
    of_obs = np.concatenate([np.minimum(np.arange(n + 1), n - 1) for n in lengths])
    of_obs += np.repeat(np.cumsum(lengths) - lengths, lengths + 1)
    for name, space in spaces.items():
        x = data[name]
        if x.shape[1:] != space.shape:
            text = f"{name}: {x.shape[1]} numbers; {env_id} has {space.shape[0]}"
            found.append(finding("dimension", text))
            continue
        outside = np.flatnonzero(((x < space.low) | (x > space.high)).any(1))
        if len(outside):
            text = f"{name}: {len(outside)} of {len(x)} rows lie outside the space of {env_id}"
            rows = np.unique(of_obs[outside]) if name == "obs" else outside
            found.append(finding("outside", text, rows))
    found += wrong_lengths(episodes, lengths, env.spec.max_episode_steps, env_id)
    if data["obs"].shape[1:] == env.observation_space.shape:
        found += far_from_resets(episodes, env, env_id)
    env.close()
    return found


def wrong_lengths(
    episodes: Sequence[Episode], lengths: np.ndarray, limit: int | None, env_id: str
) -> list[Finding]:
    found = []
    if not limit:
        return found
    last = np.cumsum(lengths) - 1
    longer = lengths > limit
    if longer.any():
        text = f"{longer.sum()} episodes are longer than the {limit} steps of {env_id}"
        found.append(finding("too-long", text, last[longer]))
    cut = (lengths < limit) & ~np.array([e.terminated for e in episodes])
    if cut.any():
        text = f"{cut.sum()} episodes stop before the {limit} steps of {env_id}"
        found.append(finding("cut-short", f"{text} without a terminal state", last[cut]))
    return found


def far_from_resets(episodes: Sequence[Episode], env, env_id: str) -> list[Finding]:
    """First observations beyond what the environment's own resets give.

    A coordinate is far off beyond the range of the resets, widened by five of their standard
    deviations and by a hundredth of its size, in more than half of the episodes.
    """
    resets = np.stack([env.reset(seed=seed)[0] for seed in range(RESETS)]).astype(np.float64)
    firsts = np.stack([e.obs[0] for e in episodes]).astype(np.float64)
    margin = 5 * resets.std(0) + 0.01 * np.maximum(np.abs(resets).max(0), 1e-2)
    far = (firsts < resets.min(0) - margin) | (firsts > resets.max(0) + margin)
    share = far.mean(0)
    i = int(share.argmax())
    if share[i] <= 0.5:
        return []
    lengths = np.array([len(e.acts) for e in episodes])
    text = (
        f"first observations of {far[:, i].sum()} of {len(far)} episodes are far from the resets of"
        f" {env_id} in {(share > 0.5).sum()} of {len(share)} coordinates (obs[{i}]:"
        f" {firsts[:, i].mean():.3g}, resets {resets[:, i].mean():.3g} ± {resets[:, i].std():.2g}):"
        " normalised, of another environment, or not whole episodes"
    )
    return [finding("first-observations", text, (np.cumsum(lengths) - lengths)[far[:, i]])]


# ------------------------------------------------------------------------------ what is shown
def ranges_table(episodes: Sequence[Episode]) -> Table:
    data = pack(episodes)
    table = Table("", "minimum", "mean", "maximum", "std")
    for name, x in (("obs", data["obs"]), ("acts", data["acts"])):
        for i, column in enumerate(x.T.astype(np.float64)):
            finite = (
                column[np.isfinite(column)] if np.isfinite(column).any() else np.full(1, np.nan)
            )
            numbers = (finite.min(), finite.mean(), finite.max(), finite.std())
            table.add_row(f"{name}[{i}]", *(f"{number:.4g}" for number in numbers))
    return table


def draw(episodes: Sequence[Episode], title: str, path: Path) -> None:
    """Lengths and returns, the first episode, and how observations and actions are spread."""
    data = pack(episodes)
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    lengths = data["lengths"]
    if "rewards" in data and np.isfinite(data["rewards"]).all():
        returns = np.array([e.rewards.sum() for e in episodes])
        for kind, color in ((True, "tab:red"), (False, "tab:blue")):
            chosen = data["terminated"] == kind
            label = "terminal state" if kind else "time limit or cut off"
            style = {"s": 14, "color": color, "alpha": 0.6, "label": label}
            axes[0, 0].scatter(lengths[chosen], returns[chosen], **style)
        axes[0, 0].set(title="episodes", xlabel="length", ylabel="return")
        axes[0, 0].legend(frameon=False)
    else:
        axes[0, 0].hist(lengths, bins=30)
        axes[0, 0].set(title="lengths of episodes", xlabel="steps", ylabel="episodes")
    axes[0, 1].plot(episodes[0].obs, linewidth=0.8)
    axes[0, 1].set(title="first episode, every observation", xlabel="step")
    for axis, name, key in zip(axes[1], ("observations", "actions"), ("obs", "acts")):
        finite = [column[np.isfinite(column)] for column in data[key].T]
        columns = [column if len(column) else [0.0] for column in finite]
        axis.violinplot(columns, range(len(columns)), widths=0.9)
        axis.set(title=f"{name}, each dimension", xlabel="dimension")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        plt.close(figure)


def check_targets(picture: Path, report: Path | None) -> None:
    """DemoError rather than replacing a file that is no earlier picture or report."""
    if picture.is_file() and not picture.read_bytes().startswith(b"\x89PNG"):
        raise DemoError(f"{picture}: exists and is no picture; expected another --picture")
    if report is not None and report.is_file():
        try:
            schema = read_json(report)["schema"]
        except (DemoError, KeyError, TypeError):
            schema = None
        if schema != REPORT_SCHEMA:
            raise DemoError(f"{report}: exists and is no report; expected another --json")


def write_report(config: Config, episodes: Demonstrations, found: Sequence[Finding]) -> None:
    """Every note with rows of the source, every finding with numbers of transitions."""
    report = {
        "schema": REPORT_SCHEMA,
        "path": str(config.path),
        "format": episodes.format,
        "env": config.env,
        "episodes": len(episodes),
        "transitions": sum(len(e.acts) for e in episodes),
        "notes": [{"text": note.text, "rows": note.rows} for note in episodes.notes],
        "findings": [{"kind": f.kind, "text": f.text, "rows": f.rows} for f in found],
    }
    try:
        with replacing(config.json) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise cannot_write(config.json, error) from None


def main(config: Config) -> int:
    """Prints what is there and what is wrong; returns the exit status."""
    console = Console(highlight=False, markup=False)
    picture = config.picture or Path(f"{config.path.resolve().stem}.check.png")
    check_targets(picture, config.json)
    episodes = read(config.path, config.obs_keys, config.max_mib * 2**20)
    table = Table("", f"{config.path}: {episodes.format}")
    for name, value in facts(episodes).items():
        table.add_row(name, value)
    console.print(table, ranges_table(episodes))
    for note in episodes.notes:
        console.print(f"note: {note}", soft_wrap=True)
    found = problems(episodes, config.env, config.max_episode_steps)
    for one in found:
        console.print(f"! {one}", soft_wrap=True)
    if not found:
        fits = f", and they fit {config.env}" if config.env else ""
        console.print(f"Nothing missing, repeated or constant{fits}.")
    if config.json:
        write_report(config, episodes, found)
    draw(episodes, config.path.name, picture)
    console.print(f"picture: {picture}", soft_wrap=True)
    return int(config.strict and bool(found or episodes.notes))


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Config, description=__doc__)))
    except DemoError as error:
        sys.exit(f"error: {error}")
