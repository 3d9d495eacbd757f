"""A deterministic expert policy that needs NumPy alone, and one episode of any policy.

from demos.expert import Expert, play
expert = Expert.load(Path("demos/Hopper-v4.expert.npz"))
episode = play(gym.make("Hopper-v4"), expert, seed=0)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from demos.formats import DemoError, Episode, replacing

if TYPE_CHECKING:
    import gymnasium as gym


@dataclass(frozen=True)
class Expert:
    """`layers` are (weight, bias) pairs of an MLP; hidden layers are followed by a ReLU."""

    layers: list[tuple[np.ndarray, np.ndarray]]
    low: np.ndarray
    high: np.ndarray

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        """Actions (…, action_dim), clipped to the action space, for observations (…, obs_dim)."""
        x = obs.astype(np.float32)
        for weight, bias in self.layers[:-1]:
            x = np.maximum(x @ weight.T + bias, 0.0)
        weight, bias = self.layers[-1]
        return np.clip(x @ weight.T + bias, self.low, self.high)

    def save(self, path: Path) -> None:
        arrays = {"low": self.low, "high": self.high}
        for i, (weight, bias) in enumerate(self.layers):
            arrays[f"weight{i}"] = weight
            arrays[f"bias{i}"] = bias
        with replacing(path) as temporary, temporary.open("wb") as f:
            np.savez_compressed(f, **arrays)

    @classmethod
    def load(cls, path: Path) -> Expert:
        """Raises DemoError if there is no expert at `path`."""
        try:
            with np.load(path, allow_pickle=False) as f:
                n_layers = sum(key.startswith("weight") for key in f.files)
                layers = [(f[f"weight{i}"], f[f"bias{i}"]) for i in range(n_layers)]
                return cls(layers, f["low"], f["high"])
        except Exception as error:  # NumPy and zipfile raise errors of many kinds
            what = str(error).partition("\n")[0]
            raise DemoError(f"{path}: not a readable expert ({what}); expected an .npz") from None


def play(env: gym.Env, act: Callable[[np.ndarray], np.ndarray], seed: int) -> Episode:
    """One episode from `env.reset(seed=seed)` under `act`."""
    obs, _ = env.reset(seed=seed)
    # Copies: some environments hand out one buffer and change it in place.
    observations = [np.array(obs, np.float32)]
    actions = []
    rewards = []
    terminated = truncated = False
    while not (terminated or truncated):
        action = np.array(act(obs))
        obs, reward, terminated, truncated, _ = env.step(action)
        observations.append(np.array(obs, np.float32))
        actions.append(np.float32(action))
        rewards.append(reward)
    return Episode(
        np.stack(observations),
        np.stack(actions),
        bool(terminated),
        np.asarray(rewards, np.float32),
    )
