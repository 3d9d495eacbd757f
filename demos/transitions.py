"""Rows of transitions as episodes: names of columns, end markers, order, and links between rows.

    from demos.transitions import Rows, to_episodes
    episodes = to_episodes(Rows(Path("demos.npz"), {"obs": obs, "acts": acts, "dones": dones}))

NumPy only. demos/README.md states the precedence of the end markers. Where rows can be read in two
ways this refuses (DemoError) or adds a note that says which way was taken, and for which rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


class DemoError(ValueError):
    """Demonstrations that cannot be read or written: one line naming file, key and expectation."""


@dataclass(frozen=True)
class Episode:
    """obs (T+1, obs_dim), acts (T, action_dim), rewards (T,) if known.

    `terminated`: the last observation is a terminal state, not a time limit or a cut.
    """

    obs: np.ndarray
    acts: np.ndarray
    terminated: bool
    rewards: np.ndarray | None = None


@dataclass(frozen=True)
class Note:
    """What a reader decided or left out, and the rows of the source that it concerns."""

    text: str
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.text


def pack(episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
    """The arrays of this project's .npz: obs, acts, lengths, terminated, rewards if known."""
    arrays = {
        "obs": np.concatenate([e.obs for e in episodes]),
        "acts": np.concatenate([e.acts for e in episodes]),
        "lengths": np.array([len(e.acts) for e in episodes], np.int64),
        "terminated": np.array([e.terminated for e in episodes], bool),
    }
    if all(e.rewards is not None for e in episodes):
        arrays["rewards"] = np.concatenate([e.rewards for e in episodes])
    return arrays


def to_transitions(episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
    """A row a transition: obs, acts, next_obs, terminated, truncated; rewards if all have them."""
    arrays = pack(episodes)
    lengths = arrays["lengths"]
    last = np.cumsum(lengths)[lengths > 0] - 1
    terminated, truncated = np.zeros((2, len(arrays["acts"])), bool)
    terminated[last] = arrays["terminated"][lengths > 0]
    truncated[last] = ~arrays["terminated"][lengths > 0]
    flat = {
        "obs": np.concatenate([e.obs[:-1] for e in episodes]),
        "acts": arrays["acts"],
        "next_obs": np.concatenate([e.obs[1:] for e in episodes]),
        "terminated": terminated,
        "truncated": truncated,
    }
    return flat | ({"rewards": arrays["rewards"]} if "rewards" in arrays else {})


# What the columns mean, and the names that files give them. The first name is ours.
NAMES = {
    "obs": ("obs", "observations", "observation", "state", "states"),
    "acts": ("acts", "actions", "action", "act"),
    "next_obs": (
        "next_obs", "next_observations", "next_observation", "next_state", "next_states",
        "obs_next", "new_obs",
    ),
    "rewards": ("rewards", "reward", "rews", "rew"),
    # The step led to a terminal state.
    "terminated": (
        "terminated", "terminateds", "terminal", "terminals", "termination", "terminations",
        "is_terminal",
    ),
    # The episode was cut after the step: a time limit.
    "truncated": (
        "truncated", "truncateds", "truncation", "truncations", "timeout", "timeouts",
        "is_truncated",
    ),
    # Either of them.
    "done": ("done", "dones", "is_last", "last", "dones_float"),
    # Neither of them: 1 - done.
    "going": ("masks", "not_done", "not_dones", "nonterminals"),
    # From the infos: the step's `done` was a time limit.
    "limit": ("TimeLimit.truncated", "infos/TimeLimit.truncated", "infos.TimeLimit.truncated"),
    # The row begins an episode: a flag for each row, or numbers of rows.
    "first": ("is_first", "first", "firsts", "episode_start", "episode_starts"),
    # Numbers of the rows that end an episode (or one more), or a flag for each row.
    "ends": ("episode_ends", "ends", "traj_ends"),
    "lengths": ("lengths", "episode_lengths", "traj_lengths", "ep_lengths"),
    # Which episode a row belongs to, and which step of it a row is.
    "episode": (
        "episode_index", "episode", "episodes", "episode_id", "episode_ids", "episode_idx",
        "traj_id", "traj_ids", "traj_index", "trajectory_id", "trajectory_ids", "ep_id",
    ),
    "frame": ("frame_index", "step", "steps", "step_index", "step_id", "timestep", "timesteps"),
}  # fmt: skip
ALL_NAMES = frozenset(name for names in NAMES.values() for name in names)
# Step limits that Gymnasium's own environments are registered with.
COMMON_LIMITS = (200, 300, 400, 500, 999, 1000, 1600, 2000)


# What vector environments that reset by themselves leave in a recording.
SAME_STEP = (
    "next_obs of an episode's last row is the next episode's first observation (recorded from a"
    " vector environment that resets by itself)"
)
NEXT_STEP = (
    "from an episode's last observation to the next episode's first (recorded from a vector"
    " environment that resets on the next step)"
)


@dataclass
class Rows:
    """Columns under our names, what the file calls them, and the notes taken so far."""

    where: Path
    columns: Mapping[str, np.ndarray]
    notes: list[Note] = field(default_factory=list)
    # The last row of an episode holds an observation only (RLDS): its flags are about that one.
    last_row_is_observation: bool = False
    # Every episode is stored with its last observation: no row leads to another one's first.
    whole: bool = False

    def __post_init__(self):
        self.data: dict[str, np.ndarray] = {}
        self.names: dict[str, str] = {}
        for ours, names in NAMES.items():
            for name in names:
                if name in self.columns:
                    self.add(ours, name, np.asarray(self.columns[name]))

    def add(self, ours: str, name: str, x: np.ndarray) -> None:
        if ours not in self.data:
            self.data[ours] = x
            self.names[ours] = name
        elif not same(self.data[ours], x):
            hint = " (or --obs-keys)" if ours == "obs" else ""
            raise DemoError(
                f"{self.where}: keys '{self.names[ours]}' and '{name}' both name {ours} and differ;"
                f" expected one of them{hint}"
            )

    def note(self, text: str, rows: Iterable[int] = ()) -> None:
        self.notes.append(Note(text, tuple(int(i) for i in rows)))

    def error(self, ours: str, message: str) -> DemoError:
        return DemoError(f"{self.where}: key '{self.names.get(ours, ours)}' {message}")


def same(a: np.ndarray, b: np.ndarray) -> bool:
    a, b = a.squeeze(), b.squeeze()
    if a.shape != b.shape:
        return False
    numbers = a.dtype.kind in "fc" and b.dtype.kind in "fc"
    return bool(np.array_equal(a, b, equal_nan=numbers))


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


# ------------------------------------------------------------------------------------ columns
def float32(x: np.ndarray, where: str) -> np.ndarray:
    """Numbers as float32; DemoError if they are none or do not fit."""
    x = np.asarray(x)
    if x.dtype.kind not in "fiub":
        raise DemoError(f"{where} is {x.dtype}; expected real numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        y = x.astype(np.float32)
    if x.dtype.itemsize > 4 and not (np.isfinite(y) | ~np.isfinite(x)).all():
        raise DemoError(f"{where} holds numbers that float32 cannot hold; expected less than 3e38")
    return y


def vectors(rows: Rows, ours: str) -> np.ndarray:
    """A column as float32 (n, dim); a plain column of numbers is one of dimension 1."""
    x = rows.data[ours]
    if x.shape[1:] in ((), (1,)) and x.dtype.kind in "iub" and ours == "acts":
        raise rows.error(ours, f"is {x.dtype} {x.shape}: discrete; expected vectors (n, dim)")
    if x.ndim == 1 and x.dtype.kind in "fiub":
        x = x[:, None]
    if x.ndim != 2 or x.shape[1] == 0:
        raise rows.error(ours, f"has shape {x.shape}; expected a vector for each row, (n, dim)")
    return float32(x, f"{rows.where}: key '{rows.names[ours]}'")


def column(rows: Rows, ours: str, n: int | None) -> np.ndarray:
    """A column of one number a row, (n,); (n, 1) and (1, n) are squeezed, all else is refused."""
    x = rows.data[ours]
    flat = x.reshape(-1) if x.size == max(x.shape, default=1) else x
    if flat.ndim != 1 or (n is not None and len(flat) != n):
        raise rows.error(ours, f"has shape {x.shape}; expected ({'n' if n is None else n},)")
    return flat


def flags(rows: Rows, ours: str, n: int) -> np.ndarray | None:
    """A column of 0 and 1 of any type as bool (n,); None if there is no such column."""
    if ours not in rows.data:
        return None
    return as_flags(rows, ours, column(rows, ours, n))


def as_flags(rows: Rows, ours: str, x: np.ndarray) -> np.ndarray:
    if x.dtype.kind not in "biuf" or not ((x == 0) | (x == 1)).all():
        raise rows.error(ours, f"({x.dtype}) is not 0 or 1 in every row; expected flags")
    return x.astype(bool)


def integers(rows: Rows, ours: str, x: np.ndarray) -> np.ndarray:
    """Whole numbers of any type as int64; DemoError for anything else."""
    whole = x.dtype.kind in "biu" or (x.dtype.kind == "f" and bool((x == np.floor(x)).all()))
    if not whole or (x.size and float(np.abs(x.astype(np.float64)).max()) > 2**62):
        raise rows.error(ours, f"is {x.dtype}; expected whole numbers")
    return x.astype(np.int64)


def whole_lengths(rows: Rows, total: int) -> np.ndarray:
    """The column `lengths`, checked to be counts that sum up to `total` rows of acts."""
    lengths = integers(rows, "lengths", column(rows, "lengths", None))
    if (lengths < 0).any():
        raise rows.error("lengths", f"holds {lengths.min()}; expected counts of steps")
    if sum(lengths.tolist()) != total:
        raise rows.error("lengths", f"sums up to {sum(lengths.tolist())}; expected {total} rows")
    return lengths


# -------------------------------------------------------------------------------- end markers
@dataclass(frozen=True)
class Ends:
    """terminated, ended: (n,) bool. `complete`: no end is without a mark. `combined`: `terminated`
    was read from a flag that also marks time limits."""

    terminated: np.ndarray
    ended: np.ndarray
    complete: bool
    combined: bool = False


def read_ends(rows: Rows, n: int) -> Ends:
    """Explicit terminated and truncated, then the infos' time limits, then a combined done."""
    done = combined_done(rows, n)
    terminated, truncated = flags(rows, "terminated", n), flags(rows, "truncated", n)
    limit = flags(rows, "limit", n)
    if truncated is not None and limit is not None and (limit & ~truncated).any():
        raise conflict(rows, "limit", "truncated", np.flatnonzero(limit & ~truncated))
    if truncated is None and limit is not None and terminated is not None:
        if (limit & terminated).any():
            raise conflict(rows, "limit", "terminated", np.flatnonzero(limit & terminated))
        truncated = limit
    if terminated is not None and truncated is not None:
        either = terminated | truncated
        if truncated.any() and not (truncated & ~terminated).any():
            rows.note(
                f"keys '{rows.names['terminated']}' and '{rows.names['truncated']}' mark the same"
                " rows: taken as terminal states",
                np.flatnonzero(truncated),
            )
        if done is not None and not (same(done, either) or same(done, terminated)):
            raise conflict(rows, "done", "terminated", np.flatnonzero(done != either))
        return Ends(terminated, either, True)
    if done is not None:
        return with_done(rows, done, terminated, truncated if truncated is not None else limit)
    if terminated is not None:
        return Ends(terminated, terminated, False)
    if truncated is None and limit is not None:
        truncated = limit
    if truncated is not None:
        return Ends(np.zeros(n, bool), truncated, False)
    return Ends(np.zeros(n, bool), np.zeros(n, bool), False)


def combined_done(rows: Rows, n: int) -> np.ndarray | None:
    """Beside done, 1 - masks are the terminal states alone (as JaxRL writes them)."""
    done, going = flags(rows, "done", n), flags(rows, "going", n)
    if going is None:
        return done
    if done is None:
        rows.names["done"] = rows.names["going"]
        return ~going
    if (~going & ~done).any():
        raise conflict(rows, "done", "going", np.flatnonzero(~going & ~done))
    if not same(done, ~going):
        rows.add("terminated", rows.names["going"], ~going)
    return done


def with_done(
    rows: Rows, done: np.ndarray, terminated: np.ndarray | None, truncated: np.ndarray | None
) -> Ends:
    """A combined done beside at most one of the other two. Read from masks alone it may be without
    time limits."""
    complete = "done" in rows.data
    if terminated is not None:
        if (terminated & ~done).any():
            raise conflict(rows, "terminated", "done", np.flatnonzero(terminated & ~done))
        return Ends(terminated, done, complete or not same(terminated, done))
    if truncated is None:
        return Ends(done, done, complete, combined=True)
    if not (truncated & ~done).any():  # done marks both kinds of ends
        return Ends(done & ~truncated, done, True)
    if not (truncated & done).any():  # done marks terminal states only
        return Ends(done, done | truncated, True)
    kind = "truncated" if "truncated" in rows.data else "limit"
    raise conflict(rows, kind, "done", np.flatnonzero(truncated & ~done))


def conflict(rows: Rows, a: str, b: str, at: np.ndarray) -> DemoError:
    return DemoError(
        f"{rows.where}: keys '{rows.names[a]}' and '{rows.names[b]}' contradict each other in"
        f" {plural(len(at), 'row')}, the first is row {at[0]}; expected flags that agree"
    )


@dataclass(frozen=True)
class Starts:
    """start (n,): rows before which an episode was cut. group (n,): rows of one number belong
    together. known: any key says so."""

    start: np.ndarray
    group: np.ndarray
    known: bool


def read_starts(rows: Rows, n: int) -> Starts:
    """Cuts by the keys first (row by row), ends and lengths (which also group the rows)."""
    first = np.zeros(n, bool)
    first[0] = True
    cut = np.zeros(n + 1, bool)
    if "first" in rows.data:
        x = column(rows, "first", None)
        if len(x) == n and ((x == 0) | (x == 1)).all():
            first |= x.astype(bool)
        else:
            starts = row_numbers(rows, "first", x, n - 1)
            if len(starts) == 0 or starts[0] != 0:
                raise rows.error("first", "does not begin with row 0; expected numbers from 0 on")
            first[starts] = True
            said(rows, "first", "numbers of rows that begin an episode")
    if "ends" in rows.data:
        x = column(rows, "ends", None)
        if len(x) == n and ((x == 0) | (x == 1)).all():
            cut[1:] |= x.astype(bool)
            said(rows, "ends", "flags, one a row")
        else:
            ends = row_numbers(rows, "ends", x, n)
            if len(ends) == 0 or ends[-1] not in (n - 1, n):
                raise rows.error("ends", f"does not end at the last of {n} rows; expected that")
            inclusive = int(ends[-1] == n - 1)
            cut[ends + inclusive] = True
            which = "last row of an episode" if inclusive else "row after the end of an episode"
            said(rows, "ends", f"numbers of the {which}")
    if "lengths" in rows.data:
        by_lengths = np.zeros(n + 1, bool)
        by_lengths[np.cumsum(whole_lengths(rows, n))] = True
        if "ends" in rows.data and not same(cut[1:n], by_lengths[1:n]):
            raise conflict(rows, "lengths", "ends", np.flatnonzero(cut != by_lengths))
        cut |= by_lengths
    known = any(ours in rows.data for ours in ("first", "ends", "lengths"))
    return Starts(first | cut[:n], np.cumsum(cut[:n]), known)


def said(rows: Rows, ours: str, what: str) -> None:
    rows.note(f"key '{rows.names[ours]}' was read as {what}")


def row_numbers(rows: Rows, ours: str, x: np.ndarray, highest: int) -> np.ndarray:
    numbers = integers(rows, ours, x)
    if (np.diff(numbers) <= 0).any() or (numbers < 0).any() or (numbers > highest).any():
        raise rows.error(ours, f"is no list of rising row numbers up to {highest}; expected that")
    return numbers


# -------------------------------------------------------------------------------------- order
def index_order(
    rows: Rows, episode: np.ndarray, frame: np.ndarray | None, linked: bool, sources=None
) -> tuple[np.ndarray, np.ndarray]:
    """The order of the rows by (episode, frame), and (n,) bool: a cut before this row of it.

    sources: for each row the file it came from, for messages. linked: next_obs is known, so that
    rows of one episode may lie apart without frame numbers.
    """
    n = len(episode)
    if frame is None:
        again = np.flatnonzero(np.r_[True, episode[1:] != episode[:-1]])
        runs = episode[again]
        if len(np.unique(runs)) == len(runs):
            return np.arange(n), starts_of(episode)
        seen: set = set()
        back = next(int(r) for r, e in zip(again, runs.tolist()) if e in seen or seen.add(e))
        if not linked:
            raise rows.error(
                "episode",
                f"comes back to {episode[back]} in row {back};"
                " expected the rows of an episode together, or a key frame_index",
            )
        order = np.argsort(episode, kind="stable")
        rows.note(f"the rows of an episode lie apart: put in order by '{rows.names['episode']}'")
        return order, starts_of(episode[order])
    order = np.lexsort((frame, episode))
    e, f = episode[order], frame[order]
    twice = np.flatnonzero((e[1:] == e[:-1]) & (f[1:] == f[:-1]))
    if len(twice):
        i, j = sorted(order[twice[0] : twice[0] + 2].tolist())
        at = f"rows {i} and {j}" if sources is None else f"{sources[i]} and {sources[j]}"
        at = at if sources is None or sources[i] != sources[j] else f"{sources[i]}, twice"
        raise DemoError(
            f"{rows.where}: episode {e[twice[0]]} has step {f[twice[0]]} in {at}"
            f" ({plural(len(twice), 'such step')}); expected every (episode, step) once"
        )
    start = starts_of(e)
    first_gaps = np.flatnonzero(start & (f != 0))
    gap = ~start
    gap[1:] &= f[1:] != f[:-1] + 1
    gap[0] = False
    if gap.any():
        missing = int((f[gap] - f[np.flatnonzero(gap) - 1] - 1).sum())
        rows.note(
            f"{plural(int(gap.sum()), 'gap')} in '{rows.names['frame']}' ({missing} steps missing):"
            " the episode is cut there",
            order[gap],
        )
    if len(first_gaps) and len(first_gaps) < start.sum():
        rows.note(f"{plural(len(first_gaps), 'episode')} without a step 0", order[first_gaps])
    return order, start | gap


def starts_of(x: np.ndarray) -> np.ndarray:
    return np.r_[True, x[1:] != x[:-1]][: len(x)]


# ---------------------------------------------------------------------------------- the reading
def to_episodes(rows: Rows, sources: np.ndarray | None = None) -> list[Episode]:
    """Episodes of at least one step; what was decided or left out is added to rows.notes."""
    for ours in ("obs", "acts"):
        if ours not in rows.data:
            there = ", ".join(sorted(rows.columns)) or "nothing"
            raise DemoError(
                f"{rows.where}: key '{ours}' is missing; expected one of"
                f" {', '.join(NAMES[ours])}; there is {there}"
            )
    obs, acts = vectors(rows, "obs"), vectors(rows, "acts")
    next_obs = vectors(rows, "next_obs") if "next_obs" in rows.data else None
    n = len(acts)
    if n == 0:
        return []
    if next_obs is None and len(obs) == n + 1:
        next_obs, obs = obs[1:], obs[:-1]
        rows.note(f"obs has {n + 1} rows, acts {n}: read as one episode with its last observation")
    for ours, x in (("obs", obs), ("next_obs", next_obs)):
        if x is not None and x.shape != (n, obs.shape[1]):
            raise rows.error(ours, f"has shape {x.shape}; expected ({n}, {obs.shape[1]})")
    if n < obs.shape[1] == acts.shape[1]:
        shapes = f"obs {obs.shape}, actions {acts.shape}"
        raise DemoError(f"{rows.where}: {shapes}: transposed? expected a row a step")
    empty = np.flatnonzero(~obs.any(1) & ~acts.any(1))
    if len(empty):
        rows.note(f"{plural(len(empty), 'row')} with obs and actions all 0: padding?", empty)
    if rows.names.get("done") == "is_last" and next_obs is None:
        rows.last_row_is_observation = True
        rows.note("read as RLDS: the row with is_last holds an episode's last observation")
    rewards = read_rewards(rows, n)
    ends = read_ends(rows, n)
    starts = read_starts(rows, n)
    table = Table(rows, obs, acts, next_obs, rewards, ends, starts, np.arange(n))
    episode, frame = read_index(rows, n)
    if episode is not None:
        table = table.ordered(*index_order(rows, episode, frame, next_obs is not None, sources))
    elif frame is not None and next_obs is None:
        check_frames(rows, frame)
        cut = np.r_[True, frame[1:] != frame[:-1] + 1]
        if cut.sum() > 1:
            table = table.ordered(np.arange(n), cut)
    check_groups(table)
    return from_frames(table) if next_obs is None else from_transitions(table)


def check_frames(rows: Rows, frame: np.ndarray) -> None:
    """DemoError where neighbours have the same number, and not that of a first row: cut where the
    numbers do not go on, such rows would be joined with those of another environment."""
    repeated = np.flatnonzero((frame[1:] == frame[:-1]) & (frame[1:] != frame.min())) + 1
    if len(repeated):
        raise rows.error(
            "frame",
            f"has the number of the row before in {plural(len(repeated), 'row')}, the first is row"
            f" {repeated[0]}, as if rows of several environments were interleaved; expected the"
            " rows of an episode together, or next_obs",
        )


def check_groups(table: Table) -> None:
    """DemoError where a flag ends an episode before lengths, ends or the rows' numbers do."""
    rows, group = table.rows, table.starts.group
    key = next((ours for ours in ("episode", "lengths", "ends") if ours in rows.data), None)
    in_order = table.next_obs is None or key != "episode" or "frame" in rows.data
    if key is None or rows.whole or not in_order:
        return
    early = np.flatnonzero(table.ends.ended[:-1] & (group[1:] == group[:-1]))
    if len(early):
        flag = next(k for k in ("done", "terminated", "truncated", "limit") if k in rows.names)
        raise conflict(rows, flag, key, table.source[early])


def read_rewards(rows: Rows, n: int) -> np.ndarray | None:
    if "rewards" not in rows.data:
        return None
    key = f"{rows.where}: key '{rows.names['rewards']}'"
    rewards = float32(column(rows, "rewards", n), key)
    if np.isnan(rewards).all():
        rows.note("rewards are NaN in every row: taken as not known")
        return None
    return rewards


def read_index(rows: Rows, n: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Numbers of episode and step of each row, where the file has them."""
    episode = frame = None
    if "episode" in rows.data:
        x = column(rows, "episode", n)
        texts = x.dtype.kind in "US"
        episode = np.unique(x, return_inverse=True)[1] if texts else integers(rows, "episode", x)
    if "frame" in rows.data:
        frame = integers(rows, "frame", column(rows, "frame", n))
    return episode, frame


@dataclass
class Table:
    """n rows in order; source (n,): their numbers in the file."""

    rows: Rows
    obs: np.ndarray
    acts: np.ndarray
    next_obs: np.ndarray | None
    rewards: np.ndarray | None
    ends: Ends
    starts: Starts
    source: np.ndarray

    @property
    def known(self) -> bool:
        return self.starts.known or self.ends.complete

    def ordered(self, order: np.ndarray, cut: np.ndarray) -> Table:
        """The same rows in `order`, with a new episode before each row where `cut` is true."""
        ends = self.ends
        start = self.starts.start.copy()
        start[0] = False  # the first row of the file, and not necessarily of an episode
        start = start[order] | cut
        return Table(
            self.rows,
            self.obs[order],
            self.acts[order],
            None if self.next_obs is None else self.next_obs[order],
            None if self.rewards is None else self.rewards[order],
            Ends(ends.terminated[order], ends.ended[order], ends.complete, ends.combined),
            Starts(start, np.cumsum(cut), True),
            order,
        )

    def episode(self, at: np.ndarray | slice, last: np.ndarray, terminated: bool) -> Episode:
        rewards = None if self.rewards is None else self.rewards[at]
        obs = np.concatenate([self.obs[at], last])
        return Episode(obs, self.acts[at], bool(terminated), rewards)


# ------------------------------------------------------------------- rows without next_obs
def from_frames(table: Table) -> list[Episode]:
    """Rows of an observation and the action taken there: the last action of an episode led to an
    observation that is not stored, so that this transition is left out."""
    rows, ends, n = table.rows, table.ends, len(table.obs)
    if not table.known:
        raise DemoError(
            f"{rows.where}: where episodes end cannot be known ({marks(rows)}, no next_obs);"
            " expected terminals and timeouts, dones, episode_index or next_observations"
        )
    ended, terminated = ends.ended, ends.terminated
    if not table.starts.known and not ended.any() and n > 3:
        raise DemoError(
            f"{rows.where}: no row is marked as an end, and there is no next_obs; expected marks,"
            f" next_obs, or lengths ([{n}] for one episode that was cut off)"
        )
    if ended[0] and not ended[-1] and n > 3:
        raise DemoError(
            f"{rows.where}: the first row is marked as an end and the last one is not, as if the"
            " marks were of first rows; expected those named is_first"
        )
    start = table.starts.start.copy()
    start[1:] |= ended[:-1]
    bounds = np.r_[np.flatnonzero(start), n]
    check_actions(table, bounds[:-1])
    single = np.flatnonzero(np.diff(bounds) == 1)
    if len(bounds) > 2 and 2 * len(single) >= len(bounds) - 1 and n > 3:
        raise DemoError(
            f"{rows.where}: {len(single)} of {len(bounds) - 1} episodes have one row, as if rows of"
            " several environments were interleaved; expected the rows of an episode together,"
            " or next_obs"
        )
    skip = ignored_resets(table, start)
    episodes = []
    tails = []
    left_out = []
    for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist()):
        a += int(skip[a])
        if not rows.last_row_is_observation:
            left_out.append(b - 1)
        if b - a < 2:
            continue
        final = rows.last_row_is_observation and bool(terminated[b - 1])
        episodes.append(table.episode(slice(a, b - 1), table.obs[b - 1 : b], final))
        tails.append(b - 1)
    check_hidden_limits(table, episodes)
    if ends.combined:
        episodes = recognise_limits(table, episodes, np.array(tails, int))
    if left_out:
        rows.note(
            f"no next_obs: the last transition of each of {len(bounds) - 1} episodes is left out",
            table.source[left_out],
        )
    note_interleaving(table)
    return episodes


def check_hidden_limits(table: Table, episodes: list[Episode]) -> None:
    """DemoError where flags that alone say where episodes end seem to mark deaths only: a step
    within an episode is a jump, as from a time limit to the next start. A note where a flag of time
    limits is there, and 0."""
    rows, ends = table.rows, table.ends
    limits_are_marked = not ends.combined and (ends.ended & ~ends.terminated).any()
    if table.starts.known or rows.last_row_is_observation or limits_are_marked or not episodes:
        return
    strange = jumps(episodes)
    if not len(strange):
        return
    where = f"{plural(len(strange), 'place')} where obs jumps as from one episode to the next"
    limit = next((ours for ours in ("truncated", "limit") if ours in rows.data), None)
    if limit is not None:
        rows.note(f"'{rows.names[limit]}' marks no row; taken at its word, in spite of {where}")
        return
    raise DemoError(
        f"{rows.where}: '{rows.names['done']}' does not mark {where};"
        " expected time limits too: truncated or timeouts (0 if there are none), or next_obs"
    )


def check_actions(table: Table, firsts: np.ndarray) -> None:
    """DemoError where each row seems to hold the action before it (as Dreamer and dm_env do): it is
    0 in the first row of every episode and in no other."""
    idle = ~table.acts.any(1)
    if not (idle[firsts].all() and idle.sum() == len(firsts) < len(idle)):
        return
    if len(firsts) == 1:
        table.rows.note(
            "actions are 0 in the first row alone: stored with the observation that they led to?",
            table.source[firsts],
        )
    else:
        raise DemoError(
            f"{table.rows.where}: actions are 0 in the first row of each of {len(firsts)} episodes"
            " and in no other, as if stored with the observation that they led to; expected each"
            " with the observation that it was taken in, or next_obs"
        )


def ignored_resets(table: Table, start: np.ndarray) -> np.ndarray:
    """(n,) bool: first rows of episodes that hold the last observation of the episode before.

    Vector environments that reset on the next step ignore that action and give the reward 0.
    """
    n = len(start)
    skip = np.zeros(n, bool)
    after = np.flatnonzero(table.ends.ended[:-1] & start[1:]) + 1
    after = after[after + 1 < n]
    after = after[~start[after + 1]]
    if not len(after):
        return skip
    legs = (table.obs[after] - table.obs[after - 1], table.obs[after + 1] - table.obs[after])
    usual = ~start[1:]
    usual[after - 1] = usual[after] = False
    steps = np.diff(table.obs, axis=0)[usual]
    if resets_on_next_step(table, after, legs, steps) is True:
        skip[after] = True
        table.rows.note(
            f"{plural(len(after), 'transition')} left out: {NEXT_STEP}", table.source[after]
        )
    return skip


def resets_on_next_step(table: Table, after: np.ndarray, legs, steps: np.ndarray) -> bool | None:
    """Is the row after an end the reset itself? None if that cannot be told.

    after: rows after an end. legs: what the observation changed by in the row before and in that
    row, each (m, obs_dim); one of the two is the jump to a fresh start. steps: usual changes.
    """
    rewards = table.rewards
    by_rewards = None
    if rewards is not None:
        if (rewards[after] != 0).any():
            return False
        others = np.ones(len(rewards), bool)
        others[after] = False
        if others.any() and (rewards[others] != 0).mean() > 0.5:
            by_rewards = True
    if len(steps) < 5:
        return by_rewards
    usual = np.quantile(np.abs(steps), 0.95, axis=0)
    moving = usual > 0
    if not moving.any():
        return by_rewards
    first, second = ((np.abs(leg[:, moving]) / usual[moving]).max(1) for leg in legs)
    share = float((second > first).mean())
    clear = max(np.median(first), np.median(second)) > 2 * min(np.median(first), np.median(second))
    return (share > 0.5) if clear and (share >= 0.8 or share <= 0.2) else by_rewards


def note_interleaving(table: Table) -> None:
    """Says so if rows k apart are far closer to each other than neighbours are."""
    x = table.obs[:20_000].astype(np.float64)
    n = len(x)
    if n < 50 or not np.isfinite(x).all():
        return
    far = np.median(np.abs(x[np.random.default_rng(0).permutation(n)] - x), axis=0)
    x = x[:, far > 0] / far[far > 0]
    if x.shape[1] == 0:
        return
    smoothest = max(1, x.shape[1] // 4)

    def roughness(k: int) -> float:
        return float(np.sort(np.median(np.abs(x[k:] - x[:-k]), axis=0))[:smoothest].mean())

    by_lag = np.array([roughness(k) for k in range(1, min(65, n // 4))])
    k = int(by_lag[1:].argmin()) + 2
    # A periodic gait too has close rows k apart, but there roughness rises from lag 1 to lag 2.
    periodic = k > 2 and by_lag[1] > 1.3 * by_lag[0]
    if by_lag[0] > 0.25 and by_lag[k - 1] < 0.6 * by_lag[0] and not periodic:
        table.rows.note(
            f"rows {k} apart are closer than neighbours: if the rows of {k} environments are"
            " interleaved, these transitions never happened"
        )


# ---------------------------------------------------------------------- rows with next_obs
def from_transitions(table: Table) -> list[Episode]:
    """Rows linked by next_obs = obs, wherever they lie; cut after ends and where no row follows."""
    ends = table.ends
    links = link(table)
    note_links(table, links)
    keep = without_resets(table)
    if not table.known:
        strange = unusual(np.abs(table.next_obs.astype(np.float64) - table.obs))
        keep[strange] = False
        if len(strange):
            table.rows.note(
                f"{plural(len(strange), 'transition')} left out: an observation changes as in no"
                " other step, as from one episode to the next",
                table.source[strange],
            )
    follower = np.where((links.next >= 0) & keep & keep[links.next], links.next, -1)
    episodes = []
    tails = []
    for chain in chains(follower, keep):
        last = chain[-1]
        at = slice(chain[0], last + 1) if (np.diff(chain) == 1).all() else chain
        tails.append(int(last))
        episodes.append(
            table.episode(at, table.next_obs[last : last + 1], bool(ends.terminated[last]))
        )
    if ends.combined:
        episodes = recognise_limits(table, episodes, np.array(tails))
    return episodes


def without_resets(table: Table) -> np.ndarray:
    """(n,) bool: rows that do not lead to another episode's first observation.

    Environments that reset by themselves put that observation into next_obs of the last row, or
    (those that reset on the next step) into next_obs of one more row.
    """
    keep = np.ones(len(table.obs), bool)
    if table.rows.whole:
        return keep
    # Last rows of episodes, by a flag or because the next row begins one.
    ended = np.flatnonzero(table.ends.ended | np.r_[table.starts.start[1:], False])
    follower = reset_rows(table, ended)
    found = follower >= 0
    if not found.any():
        return keep
    t, after = ended[found], follower[found]
    if not table.known:
        raise DemoError(
            f"{table.rows.where}: next_obs of {plural(len(t), 'last row')} is the next row's obs"
            f" (first: row {t[0]}) and no key marks time limits; expected truncated, timeouts or"
            " dones too"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        steps = table.next_obs - table.obs
    legs = (steps[t], steps[after])
    usual = ~table.ends.ended
    usual[after] = False
    steps = steps[usual]
    on_next = False if table.ends.ended[after].any() else (
        resets_on_next_step(table, after, legs, steps)
    )  # fmt: skip
    if on_next is not True:
        # An end that no row follows (the last of the file) was recorded as the others were.
        final = len(table.obs) - 1
        all_alike = 2 * len(t) >= (ended < final).sum()
        out = ended if all_alike else t
        if all_alike and not table.ends.complete:
            out = np.union1d(out, final)
        keep[out] = False
        table.rows.note(
            f"{plural(len(out), 'transition')} left out: {SAME_STEP}", table.source[out]
        )
    if on_next is not False:
        keep[after] = False
        unsure = "" if on_next else "; which of the two it is cannot be told"
        table.rows.note(
            f"{plural(len(after), 'transition')} left out: {NEXT_STEP}{unsure}", table.source[after]
        )
    return keep


def reset_rows(table: Table, ended: np.ndarray) -> np.ndarray:
    """For each row of `ended` a row whose obs is its next_obs, a neighbour if it can be, or -1.

    Observations may repeat (grids, an object at rest): a row that a step led to is no follower,
    except for neighbours, if half of the ends have theirs.
    """
    n = len(table.obs)
    follower = np.full(len(ended), -1)
    keys_of_obs = row_keys(table.obs)
    going = np.delete(table.next_obs, ended, axis=0)
    first = ~np.isin(keys_of_obs, row_keys(going))
    near = ended[ended + 1 < n]
    equal = rows_equal(table.next_obs[near], table.obs[near + 1])
    if 2 * equal.sum() < len(near):
        equal &= first[near + 1]
    follower[: len(near)][equal] = near[equal] + 1
    rest = np.flatnonzero(follower < 0)
    if len(rest) and first.any():
        keys = row_keys(table.next_obs[ended[rest]])
        by_key = np.flatnonzero(first)
        by_key = by_key[np.argsort(keys_of_obs[first], kind="stable")]
        # The last of the rows with that key: one that lies after the end, if any does.
        candidate = by_key[np.searchsorted(keys_of_obs[by_key], keys, side="right") - 1]
        hit = rows_equal(table.obs[candidate], table.next_obs[ended[rest]])
        hit &= candidate > ended[rest]
        follower[rest[hit]] = candidate[hit]
    return follower


def rows_equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) bool; NaN equals NaN, as both are the same observation."""
    return ((a == b) | (np.isnan(a) & np.isnan(b))).all(1)


def row_keys(x: np.ndarray) -> np.ndarray:
    """A 64-bit key of each row; equal rows have equal keys."""
    bits = (x + np.float32(0)).view(np.uint32).astype(np.uint64)  # + 0: no negative zero
    odd = np.random.default_rng(0).integers(0, 2**62, x.shape[1], dtype=np.uint64) * 2 + 1
    keys = np.zeros(len(x), np.uint64)
    for i in range(x.shape[1]):
        keys = (keys ^ bits[:, i]) * odd[i]
        keys ^= keys >> np.uint64(29)
    return keys


@dataclass(frozen=True)
class Links:
    """next (n,): the row that follows, or -1. far: rows whose follower is no neighbour.
    ambiguous: rows with several possible followers, or that share theirs: they got none."""

    next: np.ndarray
    far: np.ndarray
    ambiguous: np.ndarray


def link(table: Table) -> Links:
    """Followers by next_obs = obs, within a group: the neighbour first, else the only row with that
    obs. Rows that end an episode have none; rows that begin one follow none."""
    obs, next_obs, start, group = table.obs, table.next_obs, table.starts.start, table.starts.group
    n = len(obs)
    free = ~table.ends.ended
    follower = np.full(n, -1)
    near = free[:-1] & ~start[1:] & (group[1:] == group[:-1])
    near &= rows_equal(next_obs[:-1], obs[1:])
    follower[:-1][near] = np.flatnonzero(near) + 1
    # Row 0 begins the file and not necessarily an episode.
    heads = np.flatnonzero(~np.r_[False, near | start[1:]])
    tails = np.flatnonzero(free & (follower < 0))
    if not len(heads) or not len(tails):
        return Links(follower, np.empty(0, int), np.empty(0, int))
    keys_of_tails, keys_of_heads = row_keys(next_obs[tails]), row_keys(obs[heads])
    _, kind, sharing = np.unique(keys_of_tails, return_inverse=True, return_counts=True)
    keys, at, candidates = np.unique(keys_of_heads, return_index=True, return_counts=True)
    place = np.minimum(np.searchsorted(keys, keys_of_tails), len(keys) - 1)
    head = heads[at[place]]
    match = (keys[place] == keys_of_tails) & rows_equal(obs[head], next_obs[tails])
    match &= (group[head] == group[tails]) & (head != tails)
    single = (sharing[kind] == 1) & (candidates[place] == 1)
    far = tails[match & single]
    follower[far] = head[match & single]
    return Links(follower, far, tails[match & ~single])


def note_links(table: Table, links: Links) -> None:
    rows, n = table.rows, len(table.obs)
    if len(links.far):
        rows.note(
            f"{plural(len(links.far), 'row')} of {n} linked to a row that is no neighbour, by"
            " next_obs = obs (interleaved or shuffled rows)",
            table.source[links.far],
        )
    if len(links.ambiguous):
        rows.note(
            f"{plural(len(links.ambiguous), 'row')} could be followed by several others: the"
            " episode is cut there",
            table.source[links.ambiguous],
        )
    expected = np.r_[table.starts.start[1:], True]
    cut = np.flatnonzero(~table.ends.ended & (links.next < 0) & ~expected)
    if len(cut):
        rows.note(
            f"{plural(len(cut), 'cut')} without an end marker, where next_obs is no other row's"
            " obs",
            table.source[cut],
        )
    if not table.known:
        rows.note(f"{marks(rows)}: episodes were cut where next_obs and obs disagree")


def marks(rows: Rows) -> str:
    """The end markers that a file has, where they are not enough."""
    have = [rows.names[k] for k in ("terminated", "truncated", "limit", "going") if k in rows.data]
    return f"no end marker but {', '.join(have)}" if have else "no end marker"


def chains(follower: np.ndarray, keep: np.ndarray) -> list[np.ndarray]:
    """Rows of each episode in order; episodes in the order of their first rows."""
    n = len(follower)
    if ((follower < 0) | (follower == np.arange(n) + 1)).all():
        begins = np.flatnonzero(np.r_[True, follower[:-1] < 0] & keep).tolist()
        stops = np.flatnonzero((follower < 0) & keep).tolist()
        return [np.arange(a, b + 1) for a, b in zip(begins, stops, strict=True)]
    has_leader = np.zeros(n, bool)
    has_leader[follower[follower >= 0]] = True
    left = keep.copy()
    out = []
    # Rows without a leader begin a chain; what is left after them are rings, begun at any row.
    for heads in (np.flatnonzero(keep & ~has_leader), np.flatnonzero(keep)):
        for head in heads.tolist():
            chain = []
            i = head
            while i >= 0 and left[i]:
                left[i] = False
                chain.append(i)
                i = int(follower[i])
            if chain:
                out.append(np.array(chain))
    return sorted(out, key=lambda chain: chain[0])


def recognise_limits(table: Table, episodes: list[Episode], tails: np.ndarray) -> list[Episode]:
    """Ends of a combined done that are time limits: at the longest length, if two share it or it
    is a common limit. All others stay terminal."""
    lengths = np.array([len(e.acts) for e in episodes])
    ended = np.array([e.terminated for e in episodes], bool)
    if not ended.any():
        return episodes
    longest = int(lengths.max())
    limit = ended & (lengths == longest)
    if not ((limit.sum() > 1 and longest > 1) or longest in COMMON_LIMITS):
        limit[:] = False
    deaths = f"{plural(int((ended & ~limit).sum()), 'end')} taken as terminal"
    at_limit = f"{plural(int(limit.sum()), 'end')} after {longest} steps, the longest, taken as"
    table.rows.note(
        f"'{table.rows.names['done']}' does not tell time limits from terminal states: "
        + (f"{at_limit} time limits, {deaths}" if limit.any() else deaths),
        table.source[tails[limit]],
    )
    return [
        Episode(e.obs, e.acts, e.terminated and not out, e.rewards)
        for e, out in zip(episodes, limit.tolist())
    ]


# ---------------------------------------------------------------------------------- jumps
def jumps(episodes: list[Episode]) -> np.ndarray:
    """Transitions (numbered over all episodes) that change a coordinate as no other step does."""
    with np.errstate(invalid="ignore"):
        steps = [np.diff(e.obs.astype(np.float64), axis=0) for e in episodes]
    return unusual(np.abs(np.concatenate(steps)))


def unusual(change: np.ndarray) -> np.ndarray:
    """Rows of absolute changes (n, dim) that no other row comes near to.

    The largest 5 % of the absolute changes of each coordinate, sorted: where one is more than
    twice the next smaller, those from there up are jumps. Coordinates that rest in half of the
    steps (contacts, goals) and full turns of an angle are left out.
    """
    change = np.where(np.isfinite(change), change, 0.0)
    n = len(change)
    if n < 20:
        return np.empty(0, int)
    top = max(1, n // 20)
    found = np.zeros(n, bool)
    for x in change.T:
        if np.median(x) == 0:
            continue
        largest = np.sort(x)[::-1][: top + 1]
        ratio = largest[:-1] / np.maximum(largest[1:], 1e-300)
        i = int(ratio.argmax())
        if ratio[i] > 2:
            usual = largest[i + 1]
            turn = (np.abs(x - 2 * np.pi) <= usual) | (np.abs(x - 360) <= usual)
            found |= (x >= largest[i]) & ~turn
    return np.flatnonzero(found)
