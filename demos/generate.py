"""Train an expert with stable-baselines3's PPO, then record its demonstrations and their card.

    python -m demos.generate --env Hopper-v4                # train (resumable), then record
    python -m demos.generate --env Hopper-v4 --record-only  # from the stored weights, in seconds
    python -m demos.generate --env Hopper-v4 --record-only --noise 0.1 --out /tmp/noisy
    python -m demos.generate --env Hopper-v4 --bank         # mixed quality; needs a training here
    python -m demos.generate --env Hopper-v4 --mixed        # transitions below half of the expert

Per environment this writes, to `--out` (this folder by default):

    ENV.expert.npz    the expert: an MLP's weights, the observation normaliser in its first layer
    ENV.npz           50 whole episodes: obs, acts, lengths, terminated (no rewards)
    ENV.rewards.npz   the environment's true rewards of the same episodes, for evaluation only
    ENV.json          the card: returns, hashes, command, seeds, versions, date

with --bank ENV.bank.npz and ENV.bank.json: held-out episodes between random and expert, with true
rewards; and with --mixed what demos/mixed.py describes: policies of another training, stopped at
half of the expert's return, and transitions of theirs.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from tqdm import tqdm

if (
    __name__ == "__main__"
):  # `python demos/generate.py` finds the project as `python -m demos.generate` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmark import checkpoint
from custom_irl import CARD_SCHEMA, UserError, replacing, sha256
from demos import mixed
from demos.expert import Expert, play
from demos.formats import DemoError, Episode, cannot_write, pack

HERE = Path(__file__).resolve().parent

# One range of reset seeds for each purpose, so that no two purposes share an initial state.
SEEDS = {"demos": 10_000, "fresh": 20_000, "random": 30_000, "selection": 40_000, "bank": 50_000}
MAX_SEED = 2**32 - 101
PACKAGES = ("gymnasium", "mujoco", "numpy", "stable-baselines3", "torch")


@dataclass(frozen=True)
class Recipe:
    """How one expert is trained: `ppo` goes to SB3's PPO as it is."""

    total_timesteps: int
    n_envs: int
    ppo: dict


# rl-zoo3's tuned settings reach 2410 on Hopper and 3479 on Walker2d (the zoo's own table). Here
# they reached 6900 on HalfCheetah, falling in three episodes of fifty. Eight environments, larger
# steps and more noise do better on all.
PPO_SETTINGS = dict(
    n_steps=256, batch_size=128, n_epochs=10, gamma=0.99, gae_lambda=0.95, clip_range=0.2,
    learning_rate=lambda remaining: 2e-4 * remaining, ent_coef=0.0, vf_coef=0.5, max_grad_norm=0.5,
)  # fmt: skip
NETWORKS = dict(
    ortho_init=False, activation_fn=nn.ReLU, net_arch=dict(pi=[256, 256], vf=[256, 256])
)
RECIPES = {
    "HalfCheetah-v4": Recipe(
        3_000_000, 8, {**PPO_SETTINGS, "policy_kwargs": {**NETWORKS, "log_std_init": -1}}
    ),
    # With less noise at the start Hopper learns to stand still (1030) and stays there.
    "Hopper-v4": Recipe(
        2_000_000, 8, {**PPO_SETTINGS, "policy_kwargs": {**NETWORKS, "log_std_init": 0}}
    ),
    "Walker2d-v4": Recipe(
        3_000_000, 8, {**PPO_SETTINGS, "policy_kwargs": {**NETWORKS, "log_std_init": -1}}
    ),
}


@dataclass(frozen=True)
class Config:
    env: str = "Hopper-v4"
    """environment id, one of RECIPES"""
    seed: int = 0
    """seed of the expert's training"""
    episodes: int = 50
    """episodes to record, and episodes in each evaluation of the card"""
    noise: float = 0.0
    """standard deviation of Gaussian noise added to the recorded actions (before clipping)"""
    record_only: bool = False
    """skip training and record from ENV.expert.npz of this folder"""
    mixed: bool = False
    """train below half of the expert's return with seed MIXED_SEED + `seed` (resumable), record
    transitions of its checkpoints; nothing else"""
    bank: bool = False
    """record episodes of mixed quality from the checkpoints of a finished training; nothing else"""
    eval_every: int = 25_000
    """environment steps between two evaluations of the expert during training"""
    eval_episodes: int = 10
    """deterministic episodes an evaluation"""
    finalists: int = 5
    """so many best evaluations play `episodes` more; the best of these, by mean minus standard
    deviation, is the expert"""
    out: Path = HERE
    """folder for the demonstrations and the card"""


# --------------------------------------------------------------------------------------- expert


def expert_from_sb3(model: PPO, normalizer: VecNormalize) -> Expert:
    """SB3's actor with the observation normaliser (x - mean) / std folded into its first layer."""
    policy = model.policy
    linear = [m for m in policy.mlp_extractor.policy_net if isinstance(m, nn.Linear)]
    layers = []
    for m in [*linear, policy.action_net]:
        weight = m.weight.detach().numpy().astype(np.float64)
        layers.append((weight, m.bias.detach().numpy().astype(np.float64)))
    mean = normalizer.obs_rms.mean
    std = np.sqrt(normalizer.obs_rms.var + normalizer.epsilon)
    weight, bias = layers[0]
    layers[0] = (weight / std, bias - (weight / std) @ mean)
    space = model.action_space
    layers = [(w.astype(np.float32), b.astype(np.float32)) for w, b in layers]
    return Expert(layers, space.low, space.high)


def play_many(
    env: gym.Env, act: Callable, purpose: str, n: int, quiet: bool = False
) -> list[Episode]:
    seeds = range(SEEDS[purpose], SEEDS[purpose] + n)
    return [
        play(env, act, seed) for seed in tqdm(seeds, desc=purpose, disable=True if quiet else None)
    ]


def returns_of(episodes: list[Episode]) -> np.ndarray:
    return np.array([float(e.rewards.sum(dtype=np.float64)) for e in episodes])


# ------------------------------------------------------------------------------------- training


class EvaluateExpert(BaseCallback):
    """Every `eval_every` steps: evaluates and stores the expert, and a checkpoint to go on from."""

    def __init__(self, args: Config, folder: Path, bar: tqdm, stop_at: float):
        super().__init__()
        self.args = args
        self.folder = folder
        self.bar = bar
        self.stop_at = stop_at
        self.env = gym.make(args.env)
        past = read_evaluations(folder)
        self.next_eval = (past[-1]["steps"] if past else 0) + args.eval_every
        self.reached = False

    def _on_step(self) -> bool:
        return not self.reached

    def _on_rollout_start(self) -> None:
        """Between an update and the next rollout, so that a checkpoint is consistent."""
        self.bar.update(self.num_timesteps - self.bar.n)
        if self.num_timesteps < self.next_eval:
            return
        self.next_eval = self.num_timesteps + self.args.eval_every
        expert = expert_from_sb3(self.model, self.training_env)
        episodes = play_many(self.env, expert, "selection", self.args.eval_episodes, quiet=True)
        score = summary(episodes)
        self.bar.set_postfix_str(f"eval {score['return_mean']:.0f} ± {score['return_std']:.0f}")
        expert.save(self.folder / f"{self.num_timesteps}.npz")
        self.save_checkpoint()
        with (self.folder / "evaluations.jsonl").open("a") as f:
            std = self.model.policy.log_std.exp().tolist()
            f.write(json.dumps({"steps": self.num_timesteps, "std": std, **score}) + "\n")
        self.reached = score["return_mean"] >= self.stop_at

    def save_checkpoint(self) -> None:
        """Two pickles, named by a signed file that is replaced last."""
        files = [f"model-{self.num_timesteps}.zip", f"normalizer-{self.num_timesteps}.pkl"]
        for name, save in zip(files, (self.model.save, self.training_env.save)):
            save(str(self.folder / name))
        hashes = {name: sha256(self.folder / name) for name in files}
        checkpoint.write_signed(self.folder / "checkpoint.json", hashes)
        for path in (*self.folder.glob("model-*.zip"), *self.folder.glob("normalizer-*.pkl")):
            if path.name not in files:
                path.unlink()


def load_checkpoint(folder: Path, envs: VecEnv) -> tuple[VecNormalize, PPO]:
    """What `save_checkpoint` wrote; UserError for files that this user did not write."""
    path = folder / "checkpoint.json"
    advice = f"remove {folder} to train again"
    hashes = checkpoint.read_signed(path, advice)
    for name, digest in hashes.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise UserError(f"{folder / name}: missing or damaged; {advice}")
    model, normalizer = (str(folder / name) for name in hashes)
    envs = VecNormalize.load(normalizer, envs)
    return envs, PPO.load(model, env=envs, device="cpu")


def read_evaluations(folder: Path) -> list[dict]:
    path = folder / "evaluations.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def lower_bound(score: dict) -> float:
    return score["return_mean"] - score["return_std"]


def training_folder(args: Config) -> Path:
    return HERE / ".training" / f"{args.env}-seed{args.seed}"


def train_checkpoints(args: Config, stop_at: float = np.inf) -> list[dict]:
    """Trains the recipe of `args.env`, or goes on with a training that was interrupted, until an
    evaluation's mean return is `stop_at` or more; returns all evaluations."""
    recipe = RECIPES[args.env]
    folder = training_folder(args)
    folder.mkdir(parents=True, exist_ok=True)
    envs = make_vec_env(args.env, recipe.n_envs, seed=args.seed)
    if (folder / "checkpoint.json").exists():
        envs, model = load_checkpoint(folder, envs)
    else:
        # Clipping cannot be folded into a linear layer, hence a bound that is never reached.
        envs = VecNormalize(envs, clip_obs=1e6, gamma=recipe.ppo["gamma"])
        model = PPO("MlpPolicy", envs, seed=args.seed, device="cpu", **recipe.ppo)
    shown = {"total": recipe.total_timesteps, "desc": f"{args.env} expert", "unit": "step"}
    with tqdm(**shown, disable=None) as bar:
        remaining = recipe.total_timesteps - model.num_timesteps
        past = [score["return_mean"] for score in read_evaluations(folder)]
        if remaining > 0 and max(past, default=-np.inf) < stop_at:
            callback = EvaluateExpert(args, folder, bar, stop_at)
            model.learn(remaining, callback=callback, reset_num_timesteps=False)
    return read_evaluations(folder)


def train(args: Config) -> Expert:
    """The best expert of the recipe of `args.env`."""
    folder = training_folder(args)
    evaluations = train_checkpoints(args)
    # Ten episodes miss a fall in fifty, so the best few play again.
    best = sorted(evaluations, key=lower_bound)[-args.finalists :]
    experts = [Expert.load(folder / f"{score['steps']}.npz") for score in best]
    env = gym.make(args.env)
    played = [play_many(env, expert, "selection", args.episodes) for expert in experts]
    scores = [lower_bound(summary(episodes)) for episodes in played]
    return experts[scores.index(max(scores))]


# ------------------------------------------------------------------------------------ recording


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    with replacing(path) as temporary, temporary.open("wb") as f:
        np.savez_compressed(f, **arrays)


def summary(episodes: list[Episode]) -> dict:
    returns = returns_of(episodes)
    lengths = [len(e.acts) for e in episodes]
    return {
        "episodes": len(episodes),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_min": float(returns.min()),
        "length_mean": float(np.mean(lengths)),
        "terminated": sum(e.terminated for e in episodes),
    }


def training_of(args: Config) -> dict:
    """What the card says of a training with these settings."""
    return {
        "command": f"python -m demos.generate --env {args.env} --seed {args.seed}",
        "algorithm": "stable-baselines3 PPO",
        "recipe": describe(RECIPES[args.env]),
        "seed": args.seed,
        "kept": f"best of {args.finalists} finalists in {args.episodes} episodes,"
        " by mean minus standard deviation",
    }


def stored_training(weights: Path) -> dict:
    """What the card beside stored weights says of their training; that it is not known, without a
    card or with one of other weights.
    """
    card_path = weights.with_name(weights.name.replace(".expert.npz", ".json"))
    try:
        card = json.loads(card_path.read_text())
        if card["sha256"][weights.name] == sha256(weights):
            return dict(card["training"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {"unknown": f"{card_path.name} was not the card of {weights.name}"}


def record(args: Config, expert: Expert, training: dict) -> dict:
    """Plays and writes the demonstrations and the card; returns the card. `training`: of the
    expert, for the card.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    env = gym.make(args.env)
    noise_rng = np.random.default_rng(args.seed)

    def noisy(obs: np.ndarray) -> np.ndarray:
        action = expert(obs)
        if args.noise == 0.0:
            return action
        noise = noise_rng.normal(0.0, args.noise, action.shape).astype(np.float32)
        return np.clip(action + noise, expert.low, expert.high)

    env.action_space.seed(SEEDS["random"])
    demos = play_many(env, noisy, "demos", args.episodes)
    fresh = play_many(env, noisy, "fresh", args.episodes)
    uniform = play_many(env, lambda obs: env.action_space.sample(), "random", args.episodes)

    files = {
        kind: args.out / f"{args.env}.{kind}"
        for kind in ("npz", "rewards.npz", "expert.npz", "json")
    }
    expert.save(files["expert.npz"])
    arrays = pack(demos)
    write_npz(files["rewards.npz"], rewards=arrays.pop("rewards"))
    write_npz(files["npz"], **arrays)
    card = {
        "schema": CARD_SCHEMA,
        "env": args.env,
        "expert": {
            "demos": summary(demos),
            "fresh": summary(fresh),
            "noise": args.noise,
            "noise_seed": args.seed,
        },
        "random": summary(uniform),
        "sha256": {path.name: sha256(path) for kind, path in files.items() if kind != "json"},
        "command": shlex.join(["python", "-m", "demos.generate", *sys.argv[1:]]),
        "training": training,
        "seeds": {
            k: [SEEDS[k], SEEDS[k] + args.episodes - 1]
            for k in ("demos", "fresh", "random", "selection")
        },
        "versions": {name: version(name) for name in PACKAGES} | {"python": sys.version.split()[0]},
        "date": datetime.now(UTC).date().isoformat(),
    }
    with replacing(files["json"]) as temporary:
        temporary.write_text(json.dumps(card, indent=2) + "\n")
    return card


# Shares of the expert's return: two episodes of the nearest checkpoint for each.
BANK_LEVELS = np.linspace(0.1, 0.95, 9)
# Standard deviations of the noise that is added to the expert's actions.
BANK_NOISE = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.7)


def bank_policies(args: Config) -> list[tuple[str, Callable]]:
    """(name, policy) of every episode of the bank: checkpoints, noisy experts, random actions."""
    folder = training_folder(args)
    rng = np.random.default_rng(args.seed)
    if not (past := read_evaluations(folder)):
        raise DemoError(f"{folder}: holds no checkpoints; train the expert first, without --bank")
    expert = Expert.load(HERE / f"{args.env}.expert.npz")

    def noisy(std: float) -> Callable:
        def act(obs: np.ndarray) -> np.ndarray:
            noise = rng.normal(0.0, std, expert.low.shape).astype(np.float32)
            return np.clip(expert(obs) + noise, expert.low, expert.high)

        return act

    policies = []
    for level in BANK_LEVELS * max(score["return_mean"] for score in past):
        steps = min(past, key=lambda score: abs(score["return_mean"] - level))["steps"]
        policies += 2 * [(f"checkpoint {steps}", Expert.load(folder / f"{steps}.npz"))]
    policies += [(f"noise {std}", noisy(std)) for std in BANK_NOISE]

    def uniform(obs: np.ndarray) -> np.ndarray:
        return rng.uniform(expert.low, expert.high).astype(np.float32)

    return policies + 3 * [("random", uniform)]


def record_bank(args: Config) -> dict:
    """Plays and writes the bank and its card; returns the card."""
    env = gym.make(args.env)
    policies = bank_policies(args)
    episodes = []
    for i, (_, act) in enumerate(tqdm(policies, desc="bank", disable=None)):
        episodes.append(play(env, act, SEEDS["bank"] + i))
    path = args.out / f"{args.env}.bank.npz"
    write_npz(path, **pack(episodes))
    card = {
        "schema": CARD_SCHEMA,
        "env": args.env,
        "episodes": [
            {"policy": name, "return": float(r), "length": len(e.acts)}
            for (name, _), r, e in zip(policies, returns_of(episodes), episodes)
        ],
        "sha256": {path.name: sha256(path)},
        "command": shlex.join(["python", "-m", "demos.generate", *sys.argv[1:]]),
        "seeds": [SEEDS["bank"], SEEDS["bank"] + len(episodes) - 1],
        "versions": {name: version(name) for name in PACKAGES} | {"python": sys.version.split()[0]},
        "date": datetime.now(UTC).date().isoformat(),
    }
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(card, indent=2) + "\n")
    return card


# Training seed of the mixed data: another one than the experts'.
MIXED_SEED = 1000
# Shares of the expert's return; the nearest evaluation for each, none above the last.
MIXED_LEVELS = (0.0, 0.15, 0.3, 0.5)


def mixed_policies(args: Config, expert_return: float) -> list[dict]:
    """Trains until half of the expert's return and copies the checkpoints nearest to MIXED_LEVELS
    into `args.out`; returns what the card says of them."""
    args = replace(args, seed=MIXED_SEED + args.seed)
    evaluations = train_checkpoints(args, MIXED_LEVELS[-1] * expert_return)
    below = [e for e in evaluations if e["return_mean"] <= MIXED_LEVELS[-1] * expert_return]
    policies = []
    for level in MIXED_LEVELS:
        if not below:
            raise DemoError(f"{training_folder(args)}: too few evaluations; a smaller --eval-every")
        nearest = min(below, key=lambda e: abs(e["return_mean"] - level * expert_return))
        below.remove(nearest)
        name = f"{args.env}.{nearest['steps']}.npz"
        Expert.load(training_folder(args) / f"{nearest['steps']}.npz").save(args.out / name)
        policies.append(
            {
                "file": name,
                "steps": nearest["steps"],
                "deterministic_return_mean": nearest["return_mean"],
                "std": nearest["std"],
                "first_seed": mixed.FIRST_SEED + 10_000 * len(policies),
            }
        )
    return policies


def record_mixed(args: Config) -> dict:
    """Writes the policies, the transitions and the card of the mixed data; returns the card."""
    folder = args.out / "mixed"
    folder.mkdir(parents=True, exist_ok=True)
    expert_return = expert_return_of(HERE / f"{args.env}.json")
    path = folder / f"{args.env}.json"
    before = mixed.read_card(path, args.env) if path.exists() or args.record_only else None
    if args.record_only:
        mixed.check_policies(before, folder)
        policies = before["policies"]
    else:
        policies = mixed_policies(replace(args, out=folder), expert_return)
    data, returns = mixed.record(args.env, policies, folder)
    with replacing(path.with_suffix(".npz")) as temporary:
        temporary.write_bytes(data)
    for policy, values in zip(policies, returns):
        policy |= {
            "episodes": len(values),
            "return_mean": float(values.mean()),
            "share_of_expert": float(values.mean() / expert_return),
        }
    files = [path.with_suffix(".npz"), *(folder / policy["file"] for policy in policies)]
    training_seed = before["training"]["seed"] if args.record_only else MIXED_SEED + args.seed
    card = {
        "schema": "irl-mixed-1",
        "env": args.env,
        "transitions": mixed.TRANSITIONS * len(policies),
        "policies": policies,
        "sha256": {file.name: sha256(file) for file in files},
        "command": before["command"]
        if args.record_only
        else f"{mixed.command(args.env)} --seed {args.seed}",
        "training": {
            "algorithm": "stable-baselines3 PPO, the expert's recipe",
            "recipe": describe(RECIPES[args.env]),
            "seed": training_seed,
            "stopped": f"at {MIXED_LEVELS[-1]} of the expert's return, {expert_return:.1f}",
        },
        "versions": {name: version(name) for name in PACKAGES} | {"python": sys.version.split()[0]},
        "date": datetime.now(UTC).date().isoformat(),
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(card, indent=2) + "\n")
    name = f"{args.env}.npz"
    if before is not None and before["sha256"][name] != card["sha256"][name]:
        print(f"{folder / name}: differs from the one that the card before stated", file=sys.stderr)
    return card


def expert_return_of(card_path: Path) -> float:
    """The expert's mean return, from the card of its demonstrations."""
    try:
        return float(json.loads(card_path.read_text())["expert"]["demos"]["return_mean"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DemoError(f"{card_path}: expected the card of the expert's demonstrations") from None


def describe(recipe: Recipe) -> dict:
    """The recipe as JSON: classes by name, a learning-rate schedule by its first value."""
    ppo = {k: f"linear from {v(1.0):g} to 0" if callable(v) else v for k, v in recipe.ppo.items()}
    ppo["policy_kwargs"] = {
        k: v.__name__ if isinstance(v, type) else v for k, v in ppo["policy_kwargs"].items()
    }
    return {"total_timesteps": recipe.total_timesteps, "n_envs": recipe.n_envs, **ppo}


def main(args: Config) -> None:
    if args.env not in RECIPES:
        raise DemoError(f"--env {args.env}: no recipe; expected one of {', '.join(RECIPES)}")
    if not 0 <= args.seed <= MAX_SEED:  # what NumPy's old generator and SB3's environments take
        raise DemoError(f"--seed {args.seed}: expected 0 to {MAX_SEED}")
    if not 0 <= args.noise < np.inf:
        raise DemoError(f"--noise {args.noise}: expected a standard deviation, 0 or more")
    for name in ("episodes", "eval_every", "eval_episodes", "finalists"):
        if getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise DemoError(f"--{flag} {getattr(args, name)}: expected 1 or more")
    weights = HERE / f"{args.env}.expert.npz"
    if args.mixed and args.bank:
        raise DemoError("--mixed and --bank: expected one of them")
    if args.record_only and not args.mixed and not weights.exists():
        raise DemoError(f"{weights}: no such file; train the expert first, without --record-only")
    try:
        train_or_record(args, weights)
    except OSError as error:
        raise cannot_write(Path(error.filename or args.out), error) from None


def train_or_record(args: Config, weights: Path) -> None:
    torch.set_num_threads(1)  # small matrices: a second thread costs more than it brings
    if args.bank:
        for row in record_bank(args)["episodes"]:
            print(f"{args.env} bank, {row['policy']}: {row['return']:.0f} in {row['length']} steps")
        return
    if args.mixed:
        for row in record_mixed(args)["policies"]:
            share = f"{row['share_of_expert']:.2f} of the expert's"
            print(f"{args.env} after {row['steps']} steps: {row['return_mean']:.0f}, {share}")
        return
    if args.record_only:
        card = record(args, Expert.load(weights), stored_training(weights))
    else:
        card = record(args, train(args), training_of(args))
    rows = {**card["expert"], "random": card["random"]}
    for name in ("demos", "fresh", "random"):
        mean, std, lowest = (rows[name][f"return_{kind}"] for kind in ("mean", "std", "min"))
        print(f"{args.env} {name}: {mean:.1f} ± {std:.1f}, min {lowest:.1f}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (DemoError, UserError) as error:
        sys.exit(f"error: {error}")
