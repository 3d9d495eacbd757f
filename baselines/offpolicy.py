"""What the off-policy and offline methods share: networks, replay, SAC, and the shell of a run.

Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905) with a tanh-Gaussian actor and two
critics, for iqlearn.py, recoil.py, gail_sac.py and the model-based methods. The networks normalise
observations themselves, by mean and standard deviation of the demonstrations (`Normalizer.fit`), so
that data is stored and passed as the environment gives it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from tqdm import tqdm

import custom_irl as irl
from benchmark import runs

LOGSTD_MIN, LOGSTD_MAX = -5.0, 2.0  # of the Gaussian before tanh
LOGSTD_MIDDLE = (LOGSTD_MAX + LOGSTD_MIN) / 2
LOGSTD_HALF = (LOGSTD_MAX - LOGSTD_MIN) / 2
OBS_CLIP = 20.0  # bound of normalised observations, in standard deviations
MIN_OBS_STD = 0.05  # floor of the standard deviation, for nearly constant inputs

Batch = dict[str, torch.Tensor]  # obs, acts, next_obs, terminated (float: 1 or 0)


@dataclass(frozen=True)
class SACConfig:
    hidden: tuple[int, ...] = (256, 256)
    """sizes of the hidden layers of actor and critics"""
    lr: float = 3e-4
    """Adam's learning rate of actor, critics and temperature"""
    batch_size: int = 256
    """transitions in a batch"""
    gamma: float = 0.99
    """discount"""
    tau: float = 0.005
    """Polyak coefficient of the target critics, per gradient step"""
    alpha: float | None = None
    """temperature of the entropy; None: learned, for an entropy of -action_dim"""


@dataclass(frozen=True)
class OnlineConfig(SACConfig):
    """Of the methods that step the environment, always or on request."""

    env_steps: int = 150_000
    """online: environment steps, one gradient step each after the first `random_steps`"""
    random_steps: int = 2_000
    """online: steps of uniform actions before the first gradient step"""

    def __post_init__(self):
        if self.env_steps <= self.random_steps:
            expected = f"expected more than the {self.random_steps} --random-steps"
            raise irl.UserError(f"--env-steps {self.env_steps}: {expected}")


# ---------------------------------------------------------------------------------------- networks
def mlp(in_dim: int, hidden: Sequence[int], out_dim: int) -> nn.Sequential:
    sizes = [in_dim, *hidden]
    layers = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], out_dim))


class Normalizer(nn.Module):
    """(x - mean) / std, clipped; the identity within +-OBS_CLIP until `fit`."""

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, x: torch.Tensor) -> None:
        self.mean.copy_(x.mean(0))
        self.std.copy_(x.std(0, correction=0).clamp(min=MIN_OBS_STD))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x - self.mean) / self.std).clamp(-OBS_CLIP, OBS_CLIP)


class TanhMean(nn.Module):
    """The mode of a tanh-Gaussian policy: obs (n, obs_dim) -> actions (n, action_dim)."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: Sequence[int], low, high):
        super().__init__()
        self.norm = Normalizer(obs_dim)
        self.features = mlp(obs_dim, hidden[:-1], hidden[-1])
        self.mean = nn.Linear(hidden[-1], action_dim)
        low = torch.as_tensor(low, dtype=torch.float32).expand(action_dim)
        high = torch.as_tensor(high, dtype=torch.float32).expand(action_dim)
        self.register_buffer("center", (high + low) / 2)
        self.register_buffer("scale", (high - low) / 2)

    def hidden(self, obs: torch.Tensor) -> torch.Tensor:
        return F.relu(self.features(self.norm(obs)))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.center + self.scale * torch.tanh(self.mean(self.hidden(obs)))


class TanhGaussianActor(nn.Module):
    """a = center + scale tanh(u), u ~ N(mean(s), std(s)^2); actions between `low` and `high`.

    Evaluation uses `actor_mean`, the mode. Its sampled variant adds Gaussian noise of one standard
    deviation for all states, `exp(actor_logstd)` (1, action_dim); `fit_evaluation_noise` sets it to
    the root mean square of a - mode over the policy's own actions in given states. (The mode of u;
    the density of a itself may peak elsewhere.)
    """

    def __init__(self, obs_dim: int, action_dim: int, hidden: Sequence[int], low=-1.0, high=1.0):
        super().__init__()
        self.actor_mean = TanhMean(obs_dim, action_dim, hidden, low, high)
        self.logstd = nn.Linear(hidden[-1], action_dim)
        self.register_buffer("actor_logstd", torch.full((1, action_dim), LOGSTD_MIN))

    @property
    def norm(self) -> Normalizer:
        return self.actor_mean.norm

    def gaussian(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """mean and log standard deviation of u, (n, action_dim) each."""
        hidden = self.actor_mean.hidden(obs)
        logstd = LOGSTD_MIDDLE + LOGSTD_HALF * torch.tanh(self.logstd(hidden))
        return self.actor_mean.mean(hidden), logstd

    @torch.no_grad()
    def set_std(self, std: float) -> None:
        """The standard deviation of u becomes `std` in all states."""
        self.logstd.weight.zero_()
        self.logstd.bias.fill_(math.atanh((math.log(std) - LOGSTD_MIDDLE) / LOGSTD_HALF))

    def log_density(self, u: torch.Tensor, z: torch.Tensor, logstd: torch.Tensor) -> torch.Tensor:
        """log pi(a|s) = log N(u) - sum log |da/du|, with z = (u - mean) / std.

        log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), which does not overflow.
        """
        gaussian = -0.5 * z**2 - logstd - 0.5 * math.log(2 * math.pi)
        slope = 2 * (math.log(2) - u - F.softplus(-2 * u)) + self.actor_mean.scale.log()
        return (gaussian - slope).sum(-1)

    def sample(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions (n, action_dim), differentiable, and their log-probabilities (n,)."""
        mean, logstd = self.gaussian(obs)
        z = torch.randn_like(mean)
        u = mean + logstd.exp() * z
        acts = self.actor_mean.center + self.actor_mean.scale * torch.tanh(u)
        return acts, self.log_density(u, z, logstd)

    def mode(self, obs: torch.Tensor) -> torch.Tensor:
        return self.actor_mean(obs)

    @torch.no_grad()
    def fit_evaluation_noise(self, obs: torch.Tensor) -> None:
        noise = self.sample(obs)[0] - self.mode(obs)
        rms = noise.square().mean(0, keepdim=True).sqrt()
        self.actor_logstd.copy_(rms.clamp(min=math.exp(LOGSTD_MIN)).log())


class TwinLinear(nn.Module):
    """Two linear layers in one call: (2, n, in_dim) -> (2, n, out_dim)."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        bound = in_dim**-0.5  # as nn.Linear
        self.weight = nn.Parameter(torch.empty(2, in_dim, out_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(2, 1, out_dim).uniform_(-bound, bound))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class TwinQ(nn.Module):
    """Two critics Q(s, a): obs (n, obs_dim), acts (n, action_dim) -> (2, n).

    `unit` scales the output, for values far from 1.
    """

    def __init__(self, obs_dim: int, action_dim: int, hidden: Sequence[int], unit: float = 1.0):
        super().__init__()
        self.norm = Normalizer(obs_dim)
        self.unit = unit
        sizes = [obs_dim + action_dim, *hidden, 1]
        self.layers = nn.ModuleList(TwinLinear(a, b) for a, b in pairwise(sizes))

    def inputs(self, obs: torch.Tensor, acts: torch.Tensor) -> torch.Tensor:
        """What `head` takes, (n, obs_dim + action_dim): normalised observations, actions."""
        return torch.cat([self.norm(obs), acts], -1)

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """Of (n, dim), or (2, n, dim) with inputs for each: (2, n)."""
        x = x.expand(2, *x.shape[-2:])
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.unit * self.layers[-1](x).squeeze(-1)

    def forward(self, obs: torch.Tensor, acts: torch.Tensor) -> torch.Tensor:
        return self.head(self.inputs(obs, acts))


@torch.no_grad()
def polyak_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    """target <- target + tau (source - target), parameter by parameter."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)


def gradient_penalty(
    net: Callable[[torch.Tensor], torch.Tensor],
    a: torch.Tensor,
    b: torch.Tensor,
    target: float,
    critics: int = 1,
    euclidean: bool = False,
) -> torch.Tensor:
    """mean max(|grad_x f(x)| - target, 0)^2 at x = eps a + (1 - eps) b, eps ~ U(0, 1).

    One-sided; |.| is the largest component, or the `euclidean` norm. `a` and `b` are (n, dim).
    `net` maps (n, dim) to (n,), or with 2 `critics` (2, n, dim) to (2, n), each of which counts.
    """
    eps = torch.rand(len(a), 1)
    x = (eps * a + (1 - eps) * b).detach()
    if critics > 1:
        x = x.repeat(critics, 1, 1)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    slope = grad.norm(dim=-1) if euclidean else grad.abs().amax(-1)
    return F.relu(slope - target).square().mean()


# ------------------------------------------------------------------------------------------ replay
class ReplayBuffer:
    """A ring of transitions with named columns, all float32; `terminated` excludes time limits."""

    def __init__(self, capacity: int, obs_dim: int, action_dim: int, **more: int):
        """`more`: names and widths of further columns; those of width 0 are (n,)."""
        widths = {"obs": obs_dim, "acts": action_dim, "next_obs": obs_dim, "terminated": 0, **more}
        self.columns = {
            name: torch.zeros((capacity, width) if width else (capacity,))
            for name, width in widths.items()
        }
        self.capacity = capacity
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, **rows) -> None:
        """Rows (n, width) or (n,) for every column, arrays or tensors; the oldest make room."""
        n = len(rows["obs"])
        place = (self.added + torch.arange(n)) % self.capacity
        for name, column in self.columns.items():
            column[place] = torch.as_tensor(rows[name], dtype=torch.float32)
        self.added += n

    def columns_so_far(self) -> Batch:
        return {name: column[: len(self)] for name, column in self.columns.items()}

    def sample(self, n: int, recent: int | None = None) -> Batch:
        """`n` rows, uniformly and with replacement; of the newest `recent` ones, if given."""
        newest = min(len(self), recent or self.capacity)
        rows = (self.added - 1 - torch.randint(newest, (n,))) % self.capacity
        return {name: column[rows] for name, column in self.columns.items()}


def sample(data: Batch, n: int) -> Batch:
    """`n` rows of `data`, uniformly and with replacement."""
    rows = torch.randint(len(data["obs"]), (n,))
    return {name: column[rows] for name, column in data.items()}


def concatenate(*batches: Batch) -> Batch:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


# --------------------------------------------------------------------------------------------- SAC
class SAC:
    """Actor, critics, target critics, temperature, and their optimizers."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        low,
        high,
        config: SACConfig,
        alpha: float | None = None,
        q: TwinQ | None = None,
    ):
        """`alpha` and `q` in place of the config's temperature and of critics of its sizes."""
        self.config = config
        alpha = config.alpha if alpha is None else alpha
        self.actor = TanhGaussianActor(obs_dim, action_dim, config.hidden, low, high)
        self.q = TwinQ(obs_dim, action_dim, config.hidden) if q is None else q
        self.q_target = copy.deepcopy(self.q).requires_grad_(False)
        self.learns_alpha = alpha is None
        first = 0.2 if alpha is None else alpha
        self.log_alpha = torch.tensor(math.log(first), requires_grad=self.learns_alpha)
        self.target_entropy = -float(action_dim)
        self.actor_optimizer = adam(self.actor.parameters(), config.lr)
        self.q_optimizer = adam(self.q.parameters(), config.lr)
        self.alpha_optimizer = adam([self.log_alpha], config.lr)

    @property
    def alpha(self) -> float:
        return self.log_alpha.exp().item()

    def fit_normalizers(self, obs: torch.Tensor) -> None:
        for net in (self.actor, self.q, self.q_target):
            net.norm.fit(obs)


def adam(parameters, lr: float) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def gradient_step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
    """One step on the optimizer's own parameters; no other gets a gradient. Returns the loss."""
    optimizer.zero_grad()
    loss.backward(inputs=optimizer.param_groups[0]["params"])
    optimizer.step()
    return loss.item()


@torch.no_grad()
def soft_value(actor: TanhGaussianActor, q: TwinQ, obs: torch.Tensor, alpha: float) -> torch.Tensor:
    """V(s) = min_i Q_i(s, a) - alpha log pi(a|s), a ~ pi: (n,), without a gradient."""
    acts, logprob = actor.sample(obs)
    return q(obs, acts).amin(0) - alpha * logprob


def td_target(
    rewards: torch.Tensor, terminated: torch.Tensor, next_values: torch.Tensor, gamma: float
) -> torch.Tensor:
    """r + gamma (1 - terminated) V(s'): a time limit is no end."""
    return rewards + gamma * (1 - terminated) * next_values


def critic_loss(q_values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """sum over both critics of mean (Q_i(s, a) - target)^2."""
    return (q_values - target).square().mean(1).sum()


def actor_loss(q_values: torch.Tensor, logprob: torch.Tensor, alpha: float) -> torch.Tensor:
    """mean of alpha log pi(a|s) - min_i Q_i(s, a), a ~ pi reparametrised."""
    return (alpha * logprob - q_values.amin(0)).mean()


def alpha_loss(log_alpha: torch.Tensor, logprob: torch.Tensor, entropy: float) -> torch.Tensor:
    """-log alpha mean(log pi(a|s) + target entropy): alpha grows while the entropy is too small."""
    return -log_alpha * (logprob.detach().mean() + entropy)


# --------------------------------------------------------- advantage-weighted regression, offline
def sample_near_mode(actor: TanhGaussianActor, obs: torch.Tensor, std: float) -> torch.Tensor:
    """a ~ N(mode(s), std^2), clipped to the action range, without a gradient: (n, action_dim)."""
    with torch.no_grad():
        mode = actor.mode(obs)
        low = actor.actor_mean.center - actor.actor_mean.scale
        high = actor.actor_mean.center + actor.actor_mean.scale
        return torch.clamp(mode + std * torch.randn_like(mode), low, high)


def awr_loss(
    modes: torch.Tensor, acts: torch.Tensor, advantages: torch.Tensor, alpha: float, most: float
) -> torch.Tensor:
    """mean min(exp(A / alpha), most) |a - mode(s)|^2, of a policy N(mode(s), std^2), std fixed.

    Up to a factor and a constant this is -mean w log pi(a|s). Not the tanh-Gaussian's density,
    which is unbounded at the ends of the range, where clipped actions of an expert often are.
    """
    weights = (advantages / alpha).exp().clamp(max=most)
    return (weights * (acts - modes).square().sum(-1)).mean()


# ------------------------------------------------------------------------------------ SAC's steps
def actor_step(sac: SAC, obs: torch.Tensor) -> dict[str, float]:
    """One gradient step of the actor, and of the temperature where it is learned."""
    acts, logprob = sac.actor.sample(obs)
    loss = gradient_step(sac.actor_optimizer, actor_loss(sac.q(obs, acts), logprob, sac.alpha))
    if sac.learns_alpha:
        gradient_step(sac.alpha_optimizer, alpha_loss(sac.log_alpha, logprob, sac.target_entropy))
    return {"actor_loss": loss, "entropy": -logprob.mean().item(), "alpha": sac.alpha}


def critic_step(sac: SAC, batch: Batch, rewards: torch.Tensor) -> dict[str, float]:
    """One gradient step of the critics on `batch` with `rewards` (n,), and of their targets."""
    next_values = soft_value(sac.actor, sac.q_target, batch["next_obs"], sac.alpha)
    target = td_target(rewards, batch["terminated"], next_values, sac.config.gamma)
    q_values = sac.q(batch["obs"], batch["acts"])
    loss = gradient_step(sac.q_optimizer, critic_loss(q_values, target))
    polyak_update(sac.q_target, sac.q, sac.config.tau)
    return {"critic_loss": loss, "q_mean": q_values.mean().item()}


def sac_step(sac: SAC, batch: Batch, rewards: torch.Tensor) -> dict[str, float]:
    """One gradient step of critics, actor and temperature on `batch` with `rewards` (n,)."""
    return {**critic_step(sac, batch, rewards), **actor_step(sac, batch["obs"])}


# ------------------------------------------------------------------------------------------- a run
LOG_EVERY = 1000  # gradient steps, or environment steps, in a row of metrics.csv


@dataclass
class Task:
    """What a method learns from: expert transitions, an environment, maybe mixed transitions."""

    args: irl.Args
    expert: Batch
    mixed: Batch | None
    env: gym.Env

    @property
    def dims(self) -> tuple[int, int]:
        """obs_dim and action_dim."""
        return self.env.observation_space.shape[0], self.env.action_space.shape[0]

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        return self.env.action_space.low, self.env.action_space.high


def make_policy(dims: Sequence[int], hyperparameters: dict) -> TanhGaussianActor:
    """The policy of a finished run, before its weights: runs.Trainer needs it."""
    return TanhGaussianActor(*dims, hyperparameters["hidden"])


def kept_lengths(lengths: np.ndarray, args: irl.Args) -> np.ndarray:
    """Transitions that `irl.load_demos` keeps of episodes of these lengths."""
    return (lengths - 1) // args.demo_subsample + 1


def expert_terminated(args: irl.Args) -> torch.Tensor:
    """1 for those of the demonstrations' transitions that ended their episode, (n,), else 0.

    An end is a time limit unless `terminated` of the .npz says otherwise. The transitions are those
    that `irl.load_demos` keeps: every `demo_subsample`-th of the first `demo_episodes` episodes.

    Raises:
        UserError: for keys of another name, which may say the same.
    """
    from demos import formats

    data = irl.read_npz(args.demos_path, ("lengths",), ("terminated",))
    unknown = sorted(set(formats.npz_shapes(args.demos_path)) - formats.OWN_KEYS)
    if unknown:
        expected = f"expected none but {', '.join(sorted(formats.OWN_KEYS))}"
        convert = f"python -m demos.convert {args.demos_path} NEW.npz"
        raise irl.UserError(f"{args.demos_path}: key '{unknown[0]}': {expected} ({convert})")
    if "terminated" not in data:
        print(f"{args.demos_path}: without a key 'terminated'; every end counts as a time limit")
    lengths = data["lengths"][: args.demo_episodes].astype(np.int64)
    ended = np.asarray(data.get("terminated", np.zeros(len(data["lengths"]), bool)))
    if ended.shape != data["lengths"].shape or ended.dtype != bool:
        found = f"{ended.dtype} {ended.shape}"
        expected = f"expected bool {data['lengths'].shape}"
        raise irl.UserError(f"{args.demos_path}: key 'terminated' is {found}; {expected}")
    last_is_kept = (lengths - 1) % args.demo_subsample == 0
    kept = kept_lengths(lengths, args)
    flags = np.zeros(kept.sum(), np.float32)
    flags[np.cumsum(kept) - 1] = ended[: args.demo_episodes] & last_is_kept
    return torch.as_tensor(flags)


def load_mixed_batch(args: irl.Args, dims: tuple[int, int]) -> Batch:
    """The project's mixed transitions of an environment (demos/mixed.py), float32.

    Raises:
        UserError: for an environment without, or of other dimensions.
    """
    from demos.mixed import load_mixed

    arrays = load_mixed(args.env)
    if (arrays["obs"].shape[1], arrays["acts"].shape[1]) != dims:
        found = (arrays["obs"].shape[1], arrays["acts"].shape[1])
        problem = f"its mixed data has dimensions {found}; expected {dims}"
        raise irl.UserError(f"--env {args.env}: {problem}")
    return {name: torch.as_tensor(x, dtype=torch.float32) for name, x in arrays.items()}


class Explorer:
    """One environment, stepped with a policy's sampled actions; its rows go into a replay."""

    def __init__(self, task: Task, buffer: ReplayBuffer):
        self.env = task.env
        self.buffer = buffer
        self.low, self.high = task.action_range
        self.obs = irl.reset_env(self.env, irl.seeds_for(task.args.seed, purpose=0, n=1)[0])
        self.running = 0.0
        self.returns: list[float] = []  # of the finished episodes, under the true reward

    @torch.no_grad()
    def act(self, actor: TanhGaussianActor) -> np.ndarray:
        return actor.sample(torch.as_tensor(self.obs, dtype=torch.float32)[None])[0][0].numpy()

    def uniform(self) -> np.ndarray:
        return (self.low + (self.high - self.low) * torch.rand(len(self.low)).numpy()).astype("f4")

    def step(self, actor: TanhGaussianActor | None) -> None:
        """One step with an action that `actor` samples, without it a uniform one.

        The environment's reward is summed for metrics.csv and nothing else.
        """
        action = self.uniform() if actor is None else self.act(actor)
        action = action.clip(self.low, self.high)
        obs = np.array(self.obs, np.float32)
        next_obs, reward, terminated, truncated = irl.step_env(self.env, action)
        row = {"obs": obs, "acts": action, "next_obs": next_obs, "terminated": terminated}
        self.buffer.add(**{name: np.asarray(x, np.float32)[None] for name, x in row.items()})
        self.running += float(reward)
        self.obs = next_obs
        if terminated or truncated:
            self.returns.append(self.running)
            self.running = 0.0
            self.obs = irl.reset_env(self.env)


@dataclass
class Log:
    """Rows of metrics.csv: means of what `add` got in the last LOG_EVERY steps."""

    online: bool
    total: int = 0  # steps of the run, the last of which ends a row too; 0: not known
    rows: list[dict] = field(default_factory=list)
    reports: list[dict[str, float]] = field(default_factory=list)
    seen: int = 0  # episodes that are in earlier rows

    def add(self, step: int, report: dict[str, float], returns: Sequence[float] = ()) -> None:
        """`step` counts from 1: environment steps if `online`, else gradient steps."""
        if report:
            self.reports.append(report)
        if step % LOG_EVERY and step != self.total:
            return
        row = {"steps": step} if self.online else {"steps": 0, "gradient_steps": step}
        if self.online:
            row["true_return"] = (
                float(np.mean(returns[self.seen :])) if returns[self.seen :] else ""
            )
            self.seen = len(returns)
        for key in dict.fromkeys(key for one in self.reports for key in one):
            row[key] = float(np.mean([one[key] for one in self.reports if key in one]))
        self.rows.append(row)
        self.reports = []


def progress(n: int, title: str, unit: str) -> Iterator[int]:
    """1 to n under a progress bar; no bar where stderr is not a terminal."""
    return iter(tqdm(range(1, n + 1), desc=title, unit=unit, unit_scale=True, disable=None))


def parse(config_cls: type, doc: str) -> tuple:
    """The method's config and custom_irl.py's Args from the command line.

    Raises:
        UserError: for a flag of custom_irl.py's that these methods do not read.
    """
    config, words = tyro.cli(
        config_cls,
        description=f"{doc}\nAs for custom_irl.py: {' '.join(runs.OFFLINE_READS)}",
        config=(tyro.conf.FlagCreatePairsOff,),
        return_unknown_args=True,
    )
    runs.refuse_unread(words, runs.OFFLINE_READS, "this method, whose own are listed by --help")
    return config, irl.parse_args(words)


def run(
    train: Callable[[object, Task], irl.Training],
    config: object,
    args: irl.Args,
    method: str,
    uses_mixed: bool = False,
    parts: Sequence[type] = (),
) -> dict:
    """Trains, evaluates and writes the run's folder as any other method does; returns the result.

    `config`, a dataclass, lands in result.json as the hyperparameters. `parts`: classes of further
    files that the method is made of.
    """
    if args.out is None:
        args = replace(args, out=Path("results", method, args.env, f"seed{args.seed}"))
    identity = {"hyperparameters": runs.as_json(asdict(config))}
    if uses_mixed:
        from demos.mixed import FOLDER, load_mixed

        load_mixed(args.env)  # records it on the first use
        identity["mixed"] = {"sha256": irl.sha256(FOLDER / f"{args.env}.npz")}

    def train_timed(args: irl.Args, demos: irl.Demos) -> irl.Training:
        env = irl.make_env(args.env, args.max_episode_steps)
        dims = env.observation_space.shape[0], env.action_space.shape[0]
        expert = {**demos.tensors, "terminated": expert_terminated(args)}
        mixed = load_mixed_batch(args, dims) if uses_mixed else None
        timer = irl.Training(policy=None)
        with timer.timed("training"):
            training = train(config, Task(args, expert, mixed, env))
        training.seconds = timer.seconds
        training.algorithm = SimpleNamespace(hyperparameters=config)
        if uses_mixed:
            training.data["mixed_transitions"] = len(mixed["obs"])
        return training

    classes = (type(config), TanhGaussianActor, *parts)
    result = runs.run_trainer(train_timed, args, method, classes, more_identity=identity)
    irl.print_result(result)
    return result
