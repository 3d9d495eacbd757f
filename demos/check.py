"""What is in these demonstrations, and is anything wrong with them?

    python -m demos.check demos/Hopper-v4.npz --env Hopper-v4           # tables, and Hopper-v4.check.png here
    python -m demos.check ~/.minari/datasets/mujoco/hopper/expert-v0

Takes every format of demos/formats.py. With --env it also says what does not fit that environment.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

if (
    __name__ == "__main__"
):  # `python demos/check.py` finds the project as `python -m demos.check` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from custom_irl import UserError, make_env, replacing
from demos.formats import DemoError, Episode, format_of, pack, read, to_transitions

matplotlib.use("Agg")  # nothing here needs a screen
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Config:
    path: tyro.conf.Positional[Path]
    """demonstrations in any of the formats"""
    env: str | None = None
    """environment they should fit"""
    picture: Path | None = None
    """default: NAME.check.png in the current folder"""


def spread(x: np.ndarray) -> str:
    return f"{x.mean():.6g} ± {x.std():.4g}, {x.min():.6g} to {x.max():.6g}"


def facts(episodes: Sequence[Episode]) -> dict[str, str]:
    """What is there: name and value of each line."""
    lengths = np.array([len(e.acts) for e in episodes])
    ended = sum(e.terminated for e in episodes)
    known = all(e.rewards is not None and np.isfinite(e.rewards).all() for e in episodes)
    returns = np.array([e.rewards.sum(dtype=np.float64) for e in episodes]) if known else None
    return {
        "episodes": str(len(episodes)),
        "transitions": str(lengths.sum()),
        "length of an episode": spread(lengths),
        "ended in a terminal state": f"{ended}, at a time limit or cut off: {len(episodes) - ended}",
        "return of an episode": spread(returns) if known else "rewards are not stored",
        "observation, action": f"{episodes[0].obs.shape[1]} and {episodes[0].acts.shape[1]} numbers",
    }


def problems(episodes: Sequence[Episode], env_id: str | None) -> list[str]:
    """What is wrong, a line each; nothing for clean demonstrations."""
    data, found = pack(episodes), []
    flat = to_transitions(episodes)
    rows = np.concatenate([flat[key] for key in ("obs", "acts", "next_obs")], 1)
    if broken := int((~np.isfinite(rows)).any(1).sum()):
        found.append(f"{broken} transitions hold NaN or infinity")
    if repeated := len(rows) - len(np.unique(rows, axis=0)):
        found.append(f"{repeated} transitions repeat another one exactly")
    for name, x in (("observation", data["obs"]), ("action", data["acts"])):
        if constant := np.flatnonzero(np.nanmin(x, 0) == np.nanmax(x, 0)).tolist():
            found.append(f"{name} {', '.join(map(str, constant))}: the same number everywhere")
    return found + (mismatches(episodes, data, env_id) if env_id else [])


def mismatches(episodes: Sequence[Episode], data: dict[str, np.ndarray], env_id: str) -> list[str]:
    """What does not fit the environment."""
    env, found = make_env(env_id), []
    for name, x, space in (
        ("obs", data["obs"], env.observation_space),
        ("acts", data["acts"], env.action_space),
    ):
        if x.shape[1:] != space.shape:
            found.append(f"{name}: {x.shape[1]} numbers; {env_id} has {space.shape[0]}")
        elif outside := int(((x < space.low) | (x > space.high)).any(1).sum()):
            found.append(f"{name}: {outside} of {len(x)} rows lie outside the space of {env_id}")
    limit = env.spec.max_episode_steps
    if limit and (longer := sum(len(e.acts) > limit for e in episodes)):
        found.append(f"{longer} episodes are longer than the {limit} steps of {env_id}")
    if limit and (cut := sum(not e.terminated and len(e.acts) < limit for e in episodes)):
        found.append(
            f"{cut} episodes stop before the {limit} steps of {env_id} without a terminal state"
        )
    return found


def ranges_table(episodes: Sequence[Episode]) -> Table:
    data = pack(episodes)
    table = Table("", "minimum", "mean", "maximum", "std")
    for name, x in (("obs", data["obs"]), ("acts", data["acts"])):
        for i, column in enumerate(x.T.astype(np.float64)):
            numbers = (np.nanmin(column), np.nanmean(column), np.nanmax(column), np.nanstd(column))
            table.add_row(f"{name}[{i}]", *(f"{number:.4g}" for number in numbers))
    return table


def draw(episodes: Sequence[Episode], title: str, path: Path) -> None:
    """Lengths and returns, the first episode, and how observations and actions are spread."""
    data = pack(episodes)
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    lengths = data["lengths"]
    if "rewards" in data and np.isfinite(data["rewards"]).all():
        returns = [e.rewards.sum() for e in episodes]
        for kind, color in ((True, "tab:red"), (False, "tab:blue")):
            chosen = [i for i, e in enumerate(episodes) if e.terminated == kind]
            label = "terminal state" if kind else "time limit or cut off"
            axes[0, 0].scatter(
                lengths[chosen],
                np.array(returns)[chosen],
                s=14,
                color=color,
                alpha=0.6,
                label=label,
            )
        axes[0, 0].set(title="episodes", xlabel="length", ylabel="return")
        axes[0, 0].legend(frameon=False)
    else:
        axes[0, 0].hist(lengths, bins=30)
        axes[0, 0].set(title="lengths of episodes", xlabel="steps", ylabel="episodes")
    axes[0, 1].plot(episodes[0].obs, linewidth=0.8)
    axes[0, 1].set(title="first episode, every observation", xlabel="step")
    for axis, (name, x) in zip(axes[1], (("observations", data["obs"]), ("actions", data["acts"]))):
        finite = [column[np.isfinite(column)] for column in x.T]
        axis.violinplot(
            [column if len(column) else [0.0] for column in finite], range(x.shape[1]), widths=0.9
        )
        axis.set(title=f"{name}, each dimension", xlabel="dimension")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def main(config: Config) -> None:
    episodes, console = read(config.path), Console(highlight=False)
    table = Table("", f"{config.path}: {format_of(config.path)}")
    for name, value in facts(episodes).items():
        table.add_row(name, value)
    console.print(table, ranges_table(episodes))
    found = problems(episodes, config.env)
    for line in found:
        console.print(f"! {line}", soft_wrap=True)
    if not found:
        fits = f", and they fit {config.env}" if config.env else ""
        console.print(f"Nothing missing, repeated or constant{fits}.")
    picture = config.picture or Path(f"{config.path.resolve().stem}.check.png")
    draw(episodes, config.path.name, picture)
    console.print(f"picture: {picture}", soft_wrap=True)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (UserError, DemoError) as error:
        sys.exit(f"error: {error}")
