"""Steps a second of the loop beside others: one thread each, measured in turn, on an idle machine.

    python -m benchmark.speed                 # some 10 minutes; data/speed.csv and README's tables
    python -m benchmark.speed --table-only    # the tables from the speed.csv that is there
    python -m benchmark.speed --envs Hopper-v4 --repeats 1 --rounds 2 --out /tmp/speed.csv  # a look

custom              the method, after behaviour cloning: 458 of a run's 488 rollouts
custom-reward-only  the method without policy access, likewise
gail, airl          baselines/gail.py and airl.py in the same loop
imitation           imitation's AIRL with the same settings and network sizes, 8 environments
imitation-1         the same with 1 environment
plain               custom written plainly: 1 environment, a reward a step, autograd throughout
environment         the environment alone, under random actions
roofline            custom, if it were the environment and its own matrix products alone
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn as nn
import torch.optim as optim
import tyro
from imitation.algorithms.adversarial.airl import AIRL as ImitationAIRL
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

import custom_irl as irl
from baselines import imitation_peers
from baselines.airl import AIRL, AIRLReward
from baselines.gail import GAIL, GAILDiscriminator
from benchmark import runs, tables

CSV = runs.PUBLISHED / "speed.csv"
README = irl.ROOT / "benchmark" / "README.md"
WARM_UP = 3  # rollouts before any measurement, which Improving needs to get there
PHASES = {
    "environment": "environment",
    "rollout": "policy and bookkeeping of the rollout",
    "reward": "reward",
    "reward_update": "the method's updates of reward and policy",
    "ppo": "PPO",
}
Advance = Callable[[int], int]  # trains so many rollouts; returns the environment steps they took


@dataclass(frozen=True)
class Config:
    envs: tuple[str, ...] = runs.ENVS
    """environments"""
    repeats: int = 5
    """measurements of every candidate, in turn"""
    rounds: int = irl.Hyperparameters.improvement_interval
    """rollouts of 2048 steps in a measurement; custom fits Q once in so many"""
    out: Path = CSV
    """the measurements; the tables in benchmark/README.md are written from data/speed.csv alone"""
    table_only: bool = False
    """measure nothing: write the tables from data/speed.csv"""


# ------------------------------------------------------------------------------------- candidates
class AllUpdates(irl.PolicyImprovement):
    """Q and actor get all their updates, as on scarce demonstrations; on dense ones fewer."""

    def estimate_q_share(self):
        return 1.0


class Improving(irl.IRLAlgorithm):
    """The method, past its behaviour cloning from the fourth rollout on."""

    policy_improvement_cls = AllUpdates
    hyperparameters = replace(
        irl.IRLAlgorithm.hyperparameters, bc_rounds=2, bc_steps=1, bc_eval_rounds=1
    )


def load_demos(args: irl.Args) -> irl.Demos:
    dims = irl.env_dims(args)
    return irl.load_demos(args.demos_path, *dims, args.demo_episodes, args.demo_subsample)


class OurLoop:
    def __init__(self, args: irl.Args, reward_cls: type, algorithm_cls: type):
        self.args = args
        self.envs = irl.VectorEnv(args)
        demos = load_demos(args).tensors
        self.training = irl.start_training(reward_cls, algorithm_cls, args, self.envs, demos)

    def __call__(self, rounds: int) -> int:
        steps = rounds * self.args.batch_size
        done = len(self.training.rows) * self.args.batch_size
        with redirect_stderr(io.StringIO()):  # the progress bar
            irl.train(
                self.training, self.envs, replace(self.args, total_timesteps=done + steps), ""
            )
        return steps


def imitation_loop(args: irl.Args) -> Advance:
    demos = imitation_peers.as_transitions(load_demos(args))
    envs = imitation_peers.make_envs(args)
    trainer = imitation_peers.make_trainer(ImitationAIRL, args, demos, envs)

    def advance(rounds: int) -> int:
        with redirect_stderr(io.StringIO()):  # the progress bar
            trainer.train(rounds * args.batch_size)
        return rounds * args.batch_size

    return advance


class PlainLoop:
    """CleanRL's ppo_continuous_action.py with a learned reward."""

    def __init__(self, args: irl.Args):
        self.args = args
        self.env = irl.make_env(args.env)
        dims = irl.env_dims(args)
        self.policy = irl.Policy(*dims)
        self.optimizer = optim.Adam(self.policy.parameters(), lr=args.learning_rate, eps=1e-5)
        self.norm = irl.RunningNorm()
        demos = load_demos(args).tensors
        device = torch.device("cpu")
        self.algorithm = Improving(irl.RewardNetwork(*dims), demos, *dims, device, args)
        self.algorithm.set_policy(self.policy, self.optimizer)
        self.obs = torch.as_tensor(self.env.reset(seed=1)[0], dtype=torch.float32)

    def __call__(self, rounds: int) -> int:
        for _ in range(rounds):
            self.train_round()
        return rounds * self.args.batch_size

    def step(self) -> tuple[torch.Tensor, ...]:
        """A transition's columns, each of one row."""
        obs = self.obs[None]
        with torch.no_grad():
            action, logprob, _, value = self.policy.get_action_and_value(obs)
        space = self.env.action_space
        step = irl.step_env(self.env, action[0].numpy().clip(space.low, space.high))
        next_obs = torch.as_tensor(step[0], dtype=torch.float32)[None]
        terminated, ended = step[2], step[2] or step[3]
        with torch.no_grad():
            next_value = self.policy.get_value(next_obs)
        reward = self.algorithm.compute_reward(obs, action, next_obs)
        last = self.env.reset()[0] if ended else step[0]
        self.obs = torch.as_tensor(last, dtype=torch.float32)
        ends = (torch.tensor([terminated]), torch.tensor([ended]))
        return obs, action, next_obs, logprob, value, next_value, reward, *ends

    def train_round(self) -> None:
        args = self.args
        columns = map(torch.cat, zip(*[self.step() for _ in range(args.batch_size)]))
        obs, acts, next_obs, logprobs, values, next_values, rewards, terminated, ended = columns
        for _ in range(args.n_irl_updates_per_round):
            self.algorithm.update(obs, acts, next_obs, ended.float())
        steps = (self.norm(rewards), values, next_values, terminated, ended)
        steps = (column[:, None] for column in steps)
        advantages = irl.compute_gae(*steps, args.gamma, args.gae_lambda)[:, 0]
        returns = advantages + values
        for _ in range(args.update_epochs):
            order = torch.randperm(args.batch_size)
            for rows in order.split(args.batch_size // args.num_minibatches):
                batch = (x[rows] for x in (obs, acts, logprobs, advantages, returns))
                self.train_minibatch(*batch)

    def train_minibatch(self, obs, acts, old_logprobs, advantages, returns) -> None:
        args = self.args
        _, logprobs, _, values = self.policy.get_action_and_value(obs, acts)
        ratio = (logprobs - old_logprobs).exp()
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
        policy_loss = torch.max(-advantages * ratio, -advantages * clipped).mean()
        value_loss = 0.5 * (values - returns).square().mean()
        self.optimizer.zero_grad()
        (policy_loss + args.vf_coef * value_loss).backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), args.max_grad_norm)
        self.optimizer.step()


def environment_alone(args: irl.Args) -> Advance:
    env = irl.make_env(args.env)
    shape = (args.batch_size, env.action_space.shape[0])
    actions = np.random.default_rng(0).normal(size=shape).clip(-1, 1)
    env.reset(seed=1)

    def advance(rounds: int) -> int:
        for action in np.tile(actions, (rounds, 1)):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return rounds * args.batch_size

    return advance


# --------------------------------------------------------------------------------------- roofline
class ProductCounter(TorchDispatchMode):
    """Counts the floating-point operations of matrix products, by torch's own formulas."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def product_rate() -> float:
    """Floating-point operations a second of PPO's commonest product, 64 x 256 x 256."""
    a, b, out = torch.randn(64, 256), torch.randn(256, 256), torch.empty(64, 256)
    start = time.perf_counter()
    for _ in range(2000):
        torch.mm(a, b, out=out)
    return 2000 * 2 * 64 * 256 * 256 / (time.perf_counter() - start)


# ----------------------------------------------------------------------------------- measurements
def measure(args: irl.Args, config: Config, bar: tqdm) -> list[dict]:
    """Rows of speed.csv. Candidates take turns, so that a slow minute hits all of them alike."""
    custom = OurLoop(args, irl.RewardNetwork, Improving)
    reward_only = replace(args, no_policy_access=True)
    candidates = {
        "custom": custom,
        "custom-reward-only": OurLoop(reward_only, irl.RewardNetwork, Improving),
        "gail": OurLoop(args, GAILDiscriminator, GAIL),
        "airl": OurLoop(args, AIRLReward, AIRL),
        "imitation": imitation_loop(args),
        "imitation-1": imitation_loop(replace(args, num_envs=1, num_steps=args.batch_size)),
        "plain": PlainLoop(args),
        "environment": environment_alone(args),
    }
    for advance in candidates.values():
        advance(WARM_UP)
    with ProductCounter() as counter:
        steps = custom(irl.Hyperparameters.improvement_interval)  # with one improvement
    flops_per_step = counter.flops / steps
    custom.training.seconds.clear()
    rows = []
    alone = []
    for repeat in range(config.repeats):
        rate = {}
        for name, advance in candidates.items():
            start = time.perf_counter()
            steps = advance(config.rounds)
            rate[name] = steps / (time.perf_counter() - start)
        rate["roofline"] = 1 / (1 / rate["environment"] + flops_per_step / product_rate())
        rows += [{"repeat": repeat, "what": k, "steps_per_second": v} for k, v in rate.items()]
        alone.append(rate["environment"])
        bar.update()
    n = config.repeats * config.rounds * args.batch_size
    seconds = {phase: s / n for phase, s in custom.training.seconds.items()}  # a step
    seconds["environment"] = 1 / np.median(alone)
    seconds["rollout"] -= seconds["environment"]
    rows += [
        {"repeat": "", "what": f"phase {phase}", "steps_per_second": 1 / s}
        for phase, s in seconds.items()
    ]
    return [{"env": args.env, **row, "machine": machine()} for row in rows]


def machine() -> str:
    hardware = runs.hardware()
    words = (hardware["cpu"], f"{hardware['cores']} cores", hardware["system"])
    return ", ".join([*words, f"torch {torch.__version__}"])


# ----------------------------------------------------------------------------------------- tables
def ratio_table(rates: pd.DataFrame, own: str) -> str:
    """Of `own`'s speed to that of each other candidate; `plain` and the roofline are `custom`'s."""
    apart = ["custom", "custom-reward-only", "environment"]
    apart += ["plain", "roofline"] if own != "custom" else []
    rows = []
    for name in rates.columns.drop(apart, errors="ignore"):
        ratio = (rates[own] / rates[name]).groupby("env").agg(["median", "min", "max"])
        cells = [f"{r.median:.2f} [{r.min:.2f}, {r.max:.2f}]" for r in ratio.itertuples()]
        rows.append([name, *cells])
    head = [f"`{own}` over ..., median [least, most]", *rates.index.unique("env")]
    return tables.markdown_table(head, rows)


def speed_block(rows: pd.DataFrame) -> str:
    """The tables of speed.csv."""
    is_phase = rows["what"].str.startswith("phase ")
    rates = rows[~is_phase].pivot(index=["env", "repeat"], columns="what")["steps_per_second"]
    median = rates.groupby("env").median()
    names = list(rows.loc[~is_phase, "what"].unique())
    steps = [[name, *(f"{rate:.0f}" for rate in median[name])] for name in names]
    ratios = [ratio_table(rates[names], name) for name in names if name.startswith("custom")]
    phases = rows[is_phase].pivot(index="what", columns="env")["steps_per_second"]
    microseconds = [
        [title, *(f"{1e6 / rate:.0f}" for rate in phases.loc[f"phase {phase}"])]
        for phase, title in PHASES.items()
    ]
    envs = list(median.index)
    return (
        f"One thread; {'; '.join(rows['machine'].unique())}. Median of "
        f"{rates.groupby('env').size().max()} repeats.\n\n"
        + tables.markdown_table(["environment steps a second", *envs], steps)
        + "\n"
        + "".join(table + "\n" for table in ratios)
        + tables.markdown_table(["microseconds of a step of `custom`", *envs], microseconds)
    )


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    if min(config.repeats, config.rounds) < 1 or not config.envs:
        raise irl.UserError("--repeats, --rounds, --envs: expected at least one of each")
    if not config.table_only:
        torch.set_num_threads(1)
        irl.seed_everything(0)
        rows = []
        total = len(config.envs) * config.repeats
        with tqdm(total=total, desc="measuring", disable=None) as bar:
            for env_id in config.envs:
                rows += measure(irl.Args(env_id), config, bar)
        irl.write_metrics(config.out, rows)
    block = speed_block(pd.read_csv(config.out))
    if config.out == CSV:
        tables.write_block(README, "speed", block)
    print(block)


if __name__ == "__main__":
    runs.command_line(main)
