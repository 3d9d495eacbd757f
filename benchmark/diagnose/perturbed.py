"""The trained policy where the world differs from the one it was trained in, beside the expert."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pandas as pd

from benchmark.diagnose.subject import Subject, has_states
from benchmark.load import Act
from custom_irl import seeds_for
from demos.expert import play

TITLE = "True return in perturbed worlds"
EPISODES = 3
FACTORS = (0.7, 0.85, 1.15, 1.3)
BODIES = {  # what is multiplied: arrays of MuJoCo's model
    "body mass": lambda model: (model.body_mass, model.body_inertia),
    "friction": lambda model: (model.geom_friction,),
    "gravity": lambda model: (model.opt.gravity,),
    "actuator gain": lambda model: (model.actuator_gear,),
}
OBS_NOISE = 0.05  # standard deviations of the observations


def perturb(env: gym.Env, what: str, factor: float) -> None:
    for array in BODIES[what](env.unwrapped.model):
        array[:] *= factor


def noisy(act: Act, scale: np.ndarray, rng: np.random.Generator) -> Act:
    return lambda obs: act(obs + rng.normal(0, 1, obs.shape) * scale)


def delayed(act: Act, action_dim: int) -> Act:
    """Each action a step late; the first is zero."""
    planned = [np.zeros(action_dim, np.float32)]

    def choose(obs: np.ndarray) -> np.ndarray:
        planned.append(act(obs))
        return planned.pop(0)

    return choose


def mean_return(env: gym.Env, act: Act, seed: int, wrap=lambda act: act) -> float:
    """Over EPISODES episodes, `act` wrapped anew for each."""
    seeds = seeds_for(seed, purpose=2, n=EPISODES)
    return float(np.mean([play(env, wrap(act), each).rewards.sum() for each in seeds]))


def examine(subject: Subject, rng: np.random.Generator) -> pd.DataFrame:
    actors = {"own policy": subject.act}
    if subject.expert is not None:
        actors["expert"] = subject.expert
    env = subject.make_env()
    scale = OBS_NOISE * np.concatenate([s.obs for s in subject.played.values()]).std(0)
    action_dim = env.action_space.shape[0]
    wrappers = {
        "as trained": lambda act: act,
        f"observation noise {OBS_NOISE:g}": lambda act: noisy(act, scale, rng),
        "actions a step late": lambda act: delayed(act, action_dim),
    }
    table = {
        name: {who: mean_return(env, act, subject.seed, wrap) for who, act in actors.items()}
        for name, wrap in wrappers.items()
    }
    note = ""
    if has_states(env):
        for what in BODIES:
            for factor in FACTORS:
                world = subject.make_env()
                perturb(world, what, factor)
                returns = {
                    who: mean_return(world, act, subject.seed) for who, act in actors.items()
                }
                table[f"{what} {factor:g}"] = returns
    else:
        note = f"{subject.env_id} is not of MuJoCo: its bodies stay as they are"
    frame = pd.DataFrame.from_dict(table, orient="index")
    frame.attrs["note"] = note
    return frame
