"""The trained policy where the world differs from the one it was trained in, beside the expert."""

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pandas as pd

from benchmark.diagnose.subject import Subject, delayed, has_states, transitions
from benchmark.diagnose.table import frame
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


def mean_return(env: gym.Env, act: Act, change: Callable[[Act], Act], seed: int) -> float:
    """Over EPISODES episodes, `act` changed anew for each."""
    seeds = seeds_for(seed, purpose=2, n=EPISODES)
    return float(np.mean([play(env, change(act), each).rewards.sum() for each in seeds]))


def examine(subject: Subject, rng: np.random.Generator) -> pd.DataFrame:
    actors = {"own policy": subject.act}
    if subject.expert is not None:
        actors["expert"] = subject.expert
    env = subject.make_env()
    scale = OBS_NOISE * np.concatenate([transitions(x)[0] for x in subject.played.values()]).std(0)
    nothing = np.zeros(env.action_space.shape, np.float32)

    def noisy(act: Act) -> Act:
        return lambda obs: act(obs + rng.normal(0, 1, obs.shape) * scale)

    def same(act: Act) -> Act:
        return act

    worlds = {  # an environment, and how an actor's policy is changed in it
        "as trained": (env, same),
        f"observation noise {OBS_NOISE:g}": (env, noisy),
        "actions a step late": (env, lambda act: delayed(act, nothing)),
    }
    note = ""
    if has_states(env):
        for what in BODIES:
            for factor in FACTORS:
                world = subject.make_env()
                perturb(world, what, factor)
                worlds[f"{what} {factor:g}"] = (world, same)
    else:
        note = f"{subject.env_id} is not of MuJoCo: its bodies stay as they are"
    table = {
        name: {who: mean_return(world, act, change, subject.seed) for who, act in actors.items()}
        for name, (world, change) in worlds.items()
    }
    return frame(table, note)
