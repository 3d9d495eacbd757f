"""How fast is the loop?  Side by side with others, one thread each, alternating; medians and spread of the ratios.

    python -m benchmark.speed                       # an idle machine, some 10 minutes; benchmark/speed.csv and SPEED.md
    python -m benchmark.speed --envs Hopper-v4 --repeats 1 --rounds 1 --out /tmp/speed    # a look

custom, airl        our loop with the method of the EDITABLE region and with baselines/airl.py
imitation, imitation-1    imitation's AIRL with the same PPO settings and network sizes, 8 environments and 1
plain               the same algorithm as custom, written plainly: 1 environment, torch and one reward at every step
environment         the environment alone, stepped by the policy's actions
roofline            custom's time if it were the environment and its matrix products alone
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tempfile
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
from stable_baselines3.common.env_util import make_vec_env
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

import custom_irl as irl
from baselines.airl import AIRL, AIRLReward
from benchmark.peers import as_transitions, make_trainer
from report import BEGIN, END, ENVS, markdown_table, write_block, write_text

BARS = {"imitation": 3.0, "imitation-1": 5.0, "plain": 2.5, "roofline": 0.5}
Advance = Callable[[], int]  # trains a little; how many environment steps that were


@dataclass(frozen=True)
class Config:
    envs: tuple[str, ...] = ENVS
    """environments"""
    repeats: int = 5
    """how often every candidate is measured, in turn"""
    rounds: int = 4
    """rollouts of 2048 steps in one measurement"""
    out: Path = irl.ROOT / "benchmark"
    """folder for speed.csv and SPEED.md"""


# --------------------------------------------------------------------------------------------------------- candidates
class Moving(irl.IRLAlgorithm):
    """The method as it is once it learns, after clones of a single step."""

    clone_rounds, clone_steps, watch_rounds = 2, 1, 1


def our_loop(env_id: str, reward_cls: type, algorithm_cls: type) -> tuple[Advance, dict]:
    args = irl.Args(env_id)
    envs = irl.VectorEnv(env_id, args.num_envs, args.seed)
    dims = envs.obs.shape[1], envs.action_space.shape[0]
    demos = irl.load_demos(args.demos_path, *dims, args.demo_episodes, args.demo_subsample)
    state = irl.start_training(reward_cls, algorithm_cls, args, envs, demos)

    def advance() -> int:
        irl.train_round(state, envs, args)
        return args.batch_size

    return advance, state


def imitation_loop(env_id: str, num_envs: int) -> Advance:
    args = replace(irl.Args(env_id), num_envs=num_envs, num_steps=2048 // num_envs)
    envs = make_vec_env(lambda: irl.make_env(env_id), num_envs, seed=args.seed)
    dims = envs.observation_space.shape[0], envs.action_space.shape[0]
    demos = as_transitions(irl.load_demos(args.demos_path, *dims, args.demo_episodes, args.demo_subsample))
    trainer = make_trainer(ImitationAIRL, args, demos, envs)

    def advance() -> int:
        with redirect_stderr(io.StringIO()):  # its progress bar
            trainer.train(args.batch_size)
        return args.batch_size

    return advance


def plain_loop(env_id: str) -> Advance:
    """CleanRL's ppo_continuous_action.py with a learned reward: one of everything, autograd throughout."""
    args = irl.Args(env_id)
    env = irl.make_env(env_id)
    dims = env.observation_space.shape[0], env.action_space.shape[0]
    demos = irl.load_demos(args.demos_path, *dims, args.demo_episodes, args.demo_subsample)
    policy, reward_net, norm = irl.Policy(*dims), irl.RewardNetwork(*dims), irl.RunningNorm()
    optimizer = optim.Adam(policy.parameters(), lr=args.learning_rate, eps=1e-5)
    algorithm = Moving(reward_net, demos, *dims, torch.device("cpu"), args)
    algorithm.set_policy(policy, optimizer)
    obs = torch.as_tensor(env.reset(seed=1)[0], dtype=torch.float32)

    def advance() -> int:
        nonlocal obs
        rows = []
        for _ in range(args.batch_size):
            with torch.no_grad():
                action, logprob, _, value = policy.get_action_and_value(obs[None])
            clipped = action[0].numpy().clip(env.action_space.low, env.action_space.high)
            reached, _, terminated, truncated, _ = env.step(clipped)
            next_obs = torch.as_tensor(reached, dtype=torch.float32)
            with torch.no_grad():
                next_value = policy.get_value(next_obs[None])
            reward = algorithm.compute_reward(obs[None], action, next_obs[None])
            ends = torch.tensor([[terminated], [terminated or truncated]])
            rows.append((obs[None], action, next_obs[None], logprob, value, next_value, reward, *ends))
            obs = torch.as_tensor(env.reset()[0], dtype=torch.float32) if terminated or truncated else next_obs
        b_obs, acts, b_next_obs, logprobs, values, next_values, rewards, terminated, ended = map(torch.cat, zip(*rows))
        for _ in range(args.n_irl_updates_per_round):
            algorithm.update(b_obs, acts, b_next_obs, ended.float())
        columns = (x[:, None] for x in (norm(rewards), values, next_values, terminated, ended))
        advantages = irl.compute_gae(*columns, args.gamma, args.gae_lambda)[:, 0]
        returns = advantages + values
        for _ in range(args.update_epochs):
            for mb in torch.randperm(args.batch_size).split(args.batch_size // args.num_minibatches):
                _, new_logprob, _, new_value = policy.get_action_and_value(b_obs[mb], acts[mb])
                ratio = (new_logprob - logprobs[mb]).exp()
                adv = (advantages[mb] - advantages[mb].mean()) / (advantages[mb].std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                loss = torch.max(-adv * ratio, -adv * clipped).mean()
                loss = loss + args.vf_coef * 0.5 * (new_value - returns[mb]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(policy.parameters(), args.max_grad_norm)
                optimizer.step()
        return args.batch_size

    return advance


def environment_alone(env_id: str) -> Advance:
    """Steps without wrappers of ours, with the actions of an untrained policy, which are drawn beforehand."""
    env, n = irl.make_env(env_id), 2048
    actions = np.random.default_rng(0).normal(size=(n, env.action_space.shape[0])).clip(-1, 1)
    env.reset(seed=1)

    def advance() -> int:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return n

    return advance


class ProductCounter(TorchDispatchMode):
    """Counts the floating-point operations of matrix products, torch's own formulas."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def products_of_a_round(advance: Advance) -> Callable[[], float]:
    """Seconds that a round's matrix products take at the rate of a 64 x 256 x 256 product, PPO's commonest."""
    with ProductCounter() as counter:
        advance()
    a, b, out = torch.randn(64, 256), torch.randn(256, 256), torch.empty(64, 256)

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(2000):
            torch.mm(a, b, out=out)
        rate = 2000 * 2 * 64 * 256 * 256 / (time.perf_counter() - start)
        return counter.flops / rate

    return seconds


# -------------------------------------------------------------------------------------------------------- measurements
def measure(env_id: str, config: Config, bar: tqdm) -> list[dict]:
    """Steps a second of every candidate, measured in turn so that a slow minute of the machine hits all alike."""
    torch.manual_seed(0), np.random.seed(0)
    custom, state = our_loop(env_id, irl.RewardNetwork, Moving)
    candidates = {
        "custom": custom,
        "airl": our_loop(env_id, AIRLReward, AIRL)[0],
        "imitation": imitation_loop(env_id, 8),
        "imitation-1": imitation_loop(env_id, 1),
        "plain": plain_loop(env_id),
        "environment": environment_alone(env_id),
    }
    for advance in candidates.values():
        for _ in range(3):  # Moving needs three rounds to get there
            advance()
    products, rows = products_of_a_round(custom), []
    state["seconds"].clear()
    for repeat in range(config.repeats):
        for name, advance in candidates.items():
            start = time.perf_counter()
            steps = sum(advance() for _ in range(config.rounds))
            rate = steps / (time.perf_counter() - start)
            rows.append({"env": env_id, "repeat": repeat, "what": name, "steps_per_second": rate})
            bar.update()
        a_round = 2048 / rate + products()  # the rate measured last is the environment's
        rows.append({"env": env_id, "repeat": repeat, "what": "roofline", "steps_per_second": 2048 / a_round})
    n = config.repeats * config.rounds * 2048
    phases = {phase: seconds / n for phase, seconds in state["seconds"].items()}
    in_environment = 1 / np.median([row["steps_per_second"] for row in rows if row["what"] == "environment"])
    phases["rollout"] -= in_environment
    for phase, seconds in {"environment": in_environment, **phases}.items():
        rows.append({"env": env_id, "repeat": "", "what": f"phase {phase}", "steps_per_second": 1 / seconds})
    return rows


def peak_memory(process: subprocess.Popen) -> float:
    """Waits for a process; the most memory it held, in MB. Its rusage would count what we held when we forked."""
    status, peak = Path(f"/proc/{process.pid}/status"), float("nan")
    while process.poll() is None:
        if status.exists() and (held := re.search(r"VmHWM:\s*(\d+)", status.read_text())):
            peak = float(held[1]) / 1024
        time.sleep(0.05)
    return peak


def measure_commands(env_id: str, rounds: int) -> dict:
    """Of a run of so many rollouts, in a process of its own: peak memory (MB), and seconds outside training."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["custom_irl.py", "--env", env_id, "--total-timesteps", str(2048 * rounds), "--out", folder]
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], cwd=irl.ROOT, stdout=subprocess.DEVNULL)
        peak, wall = peak_memory(process), time.perf_counter() - start
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, words)
        seconds = json.loads((Path(folder) / "result.json").read_text())["seconds"]
    return {"start": wall - sum(seconds.values()), "memory": peak}


def late_over_early(folder: Path) -> pd.Series:
    """Steps/s of the last 50 rollouts over those of 50 early ones, after cloning, of every whole run in `folder`."""
    ratios = {}
    for path in sorted(folder.glob("*/seed*/metrics.csv")):
        speed = pd.read_csv(path)["steps_per_second"]
        if len(speed) == irl.BENCHMARK_TIMESTEPS // 2048:
            ratios[f"{path.parts[-3]} {path.parts[-2]}"] = speed[-50:].median() / speed[31:81].median()
    return pd.Series(ratios)


# -------------------------------------------------------------------------------------------------------------- report
def block(rows: pd.DataFrame, commands: dict, late: pd.Series, cpu: str) -> str:
    """SPEED.md's tables, made of what was measured."""
    measured = rows[rows["repeat"] != ""].pivot_table(
        index=["env", "repeat"], columns="what", values="steps_per_second"
    )
    median = measured.groupby("env").median()
    names = ["custom", "airl", "imitation", "imitation-1", "plain", "environment", "roofline"]
    text = (
        f"{cpu}, one thread; torch {torch.__version__}. Median of {measured.groupby('env').size().iloc[0]} repeats.\n\n"
    )
    text += "Environment steps a second:\n\n"
    text += markdown_table(
        ["", *median.index], [[n, *(f"{median.loc[e, n]:.0f}" for e in median.index)] for n in names]
    )
    text += "\n`custom` over others, median of the repeats' ratios [least, most]:\n\n"
    lines = []
    for name, wanted in BARS.items():
        ratios = (measured["custom"] / measured[name]).groupby("env").agg(["median", "min", "max"])
        cells = (f"{r['median']:.2f} [{r['min']:.2f}, {r['max']:.2f}]" for _, r in ratios.iterrows())
        lines.append([name, f"{wanted}", *cells])
    text += markdown_table(["over", "wanted", *median.index], lines)
    text += "\nMicroseconds a step of `custom` (inference is what `rollout` takes beyond the environment):\n\n"
    phases = rows[rows["what"].str.startswith("phase ")]
    phases = (1e6 / phases.set_index(["what", "env"])["steps_per_second"]).unstack("env")
    named = {"rollout": "inference and bookkeeping", "reward_update": "reward and policy update of the method"}
    order = [
        f"phase {p}"
        for p in ("environment", "rollout", "reward", "reward_update", "ppo")
        if f"phase {p}" in phases.index
    ]
    lines = [[named.get(p[6:], p[6:]), *(f"{phases.loc[p, e]:.0f}" for e in phases.columns)] for p in order]
    text += markdown_table(["", *phases.columns], lines)
    text += "\nA run of its own: " + "; ".join(
        f"{env} {c['start']:.1f} s besides training and evaluation, {c['memory']:.0f} MB at most"
        for env, c in commands.items()
    )
    if len(late):
        text += (
            f".\n\nSteps/s of the last 50 rollouts of a run over those of 50 early ones, after cloning: median"
            f" {late.median():.2f}, {late.min():.2f} to {late.max():.2f}, in the {len(late)} runs in results/custom"
            " (whatever else the machine was doing)"
        )
    return text + ".\n"


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    torch.set_num_threads(1)
    rows = []
    with tqdm(total=len(config.envs) * config.repeats * 6, desc="measuring", disable=None) as bar:
        for env_id in config.envs:
            rows += measure(env_id, config, bar)
    commands = {env_id: measure_commands(env_id, config.rounds) for env_id in config.envs}
    table = pd.DataFrame(rows)
    with irl.replacing(config.out / "speed.csv") as temporary:
        table.to_csv(temporary, index=False)
    hardware = irl.provenance()["hardware"]
    cpu = f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['system']}"
    page = config.out / "SPEED.md"
    if not page.exists():
        write_text(page, f"# How fast\n\n{BEGIN}\n{END}\n")
    write_block(page, block(table, commands, late_over_early(irl.ROOT / "results" / "custom"), cpu))


if __name__ == "__main__":
    main()
