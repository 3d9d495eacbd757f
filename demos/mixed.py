"""Mixed data: transitions of policies far below the expert, for methods that learn offline.

    from demos.mixed import load_mixed
    load_mixed("Hopper-v4")  # obs, acts, next_obs, terminated; float32, no rewards

`python -m demos.generate --env ENV --mixed` makes, in demos/mixed/:

    ENV.STEPS.npz  policies: checkpoints of another training by the expert's recipe and another
                   seed, none above half of the expert's return
    ENV.json       the card: how they were trained, mean returns, seeds, versions, hashes
    ENV.npz        TRANSITIONS of each policy: obs (n, obs_dim), acts (n, action_dim), next_obs
                   (n, obs_dim) float32, terminated (n,) bool

ENV.npz is too large to be committed: `load_mixed` records it on first use, a minute, and refuses
it if its hash is not the card's.
"""

from __future__ import annotations

import hashlib
import json
import sys
from io import BytesIO
from pathlib import Path

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from custom_irl import UserError, read_npz, sha256
from demos.expert import Expert, play
from demos.formats import DemoError, Episode, replacing, to_transitions

FOLDER = Path(__file__).resolve().parent / "mixed"
KEYS = ("obs", "acts", "next_obs", "terminated")
TRANSITIONS = 25_000  # of each policy
FIRST_SEED = 60_000  # of the episodes' resets; the other purposes end below (demos/generate.py)


def command(env_id: str) -> str:
    return f"python -m demos.generate --env {env_id} --mixed"


def record_policy(
    env: gym.Env, expert: Expert, std: np.ndarray, first_seed: int, bar: tqdm
) -> list[Episode]:
    """Episodes of N(expert(obs), (c std)^2), clipped, with c ~ U(0, 1) an episode, until there are
    TRANSITIONS.

    A Gaussian policy's own noise ends nearly every episode of Hopper early; with less of it some
    come further.
    """
    rng = np.random.default_rng(first_seed)
    episodes: list[Episode] = []
    n = 0
    while n < TRANSITIONS:
        scale = np.float32(rng.uniform())

        def act(obs: np.ndarray, scale: np.float32 = scale) -> np.ndarray:
            noise = scale * std * rng.standard_normal(std.shape, np.float32)
            return np.clip(expert(obs) + noise, expert.low, expert.high)

        episodes.append(play(env, act, first_seed + len(episodes)))
        n += len(episodes[-1].acts)
        bar.update(len(episodes[-1].acts))
    return episodes


def rows_of(episodes: list[Episode]) -> dict[str, np.ndarray]:
    """The first TRANSITIONS of the episodes."""
    flat = to_transitions(episodes)
    return {key: flat[key][:TRANSITIONS] for key in KEYS}


def record(env_id: str, policies: list[dict], folder: Path) -> tuple[bytes, list[np.ndarray]]:
    """An ENV.npz as bytes, and the returns of each policy's episodes.

    `policies`: the card's list, with the file, the standard deviations of the actions and the first
    seed of each.

    Raises:
        DemoError: naming a policy's file that is missing or damaged.
    """
    env = gym.make(env_id)
    parts = []
    returns = []
    total = TRANSITIONS * len(policies)
    with tqdm(total=total, desc=f"{env_id} mixed data", unit="step", disable=None) as bar:
        for policy in policies:
            expert = Expert.load(folder / policy["file"])
            std = np.array(policy["std"], np.float32)
            episodes = record_policy(env, expert, std, policy["first_seed"], bar)
            parts.append(rows_of(episodes))
            returns.append(np.array([e.rewards.sum(dtype=np.float64) for e in episodes]))
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    buffer = BytesIO()
    np.savez(buffer, **arrays)  # not compressed: the bytes of zlib's versions differ
    return buffer.getvalue(), returns


def read_card(path: Path, env_id: str) -> dict:
    if not path.is_file():
        raise DemoError(f"{path}: no such file; expected mixed data, made by: {command(env_id)}")
    try:
        card = json.loads(path.read_text())
        files = [policy["file"] for policy in card["policies"]]
        complete = {f"{env_id}.npz", *files} <= set(card["sha256"]) and card["env"] == env_id
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        expected = f"expected env {env_id}, policies and sha256"
        raise DemoError(f"{path}: not the card of mixed data; {expected} ({command(env_id)})")
    return card


def check_policies(card: dict, folder: Path) -> None:
    for policy in card["policies"]:
        path = folder / policy["file"]
        if not path.is_file() or sha256(path) != card["sha256"][path.name]:
            raise DemoError(f"{path}: missing or damaged; expected the file with the card's hash")


def load_mixed(env_id: str, folder: Path = FOLDER) -> dict[str, np.ndarray]:
    """obs, acts, next_obs and terminated (n,) of the mixed data of an environment, float32.

    Records it if it is not there.

    Raises:
        DemoError: if there is no card, or a policy or the data is damaged or of another hash.
    """
    card = read_card(folder / f"{env_id}.json", env_id)
    path = folder / f"{env_id}.npz"
    if not path.exists():
        check_policies(card, folder)
        print(f"{path}: recording it, once", file=sys.stderr)
        content, _ = record(env_id, card["policies"], folder)
        refuse_other(path, hashlib.sha256(content).hexdigest(), card)
        with replacing(path) as temporary:  # named after this process: several may record at once
            temporary.write_bytes(content)
    refuse_other(path, sha256(path), card)
    try:
        data = read_npz(path, KEYS)
    except UserError as error:
        raise DemoError(str(error)) from None
    return {key: np.asarray(data[key], np.float32) for key in KEYS}


def refuse_other(path: Path, digest: str, card: dict) -> None:
    """DemoError if data of the hash `digest` is not what the card states.

    Another processor or version rounds differently, and after some hundred steps of an episode
    nothing is alike.
    """
    stated = card["sha256"][path.name]
    if digest != stated:
        how = f"take this machine's with: {command(card['env'])} --record-only"
        raise DemoError(
            f"{path}: sha256 {digest[:12]}, the card's is {stated[:12]}; damaged, or recorded on"
            f" another processor; remove it, or {how}"
        )
