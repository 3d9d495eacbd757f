"""A trained policy as a short film, with the expert beside it where the project has one:

    python -m benchmark.watch results/custom/Hopper-v4/seed42                  # RUN_DIR/watch.mp4
    python -m benchmark.watch results/custom/Hopper-v4/seed42 --seconds 20 --seed 3 --out hopper.gif

Both start from the same state and act deterministically. Drawn without a screen: MuJoCo needs EGL for that (Debian and
Ubuntu: `apt install libegl1`), or OSMesa (`apt install libosmesa6`) and MUJOCO_GL=osmesa. On macOS it needs neither.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
import tyro
from PIL import Image, ImageDraw
from tqdm import tqdm

if sys.platform == "linux" and not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")  # read when MuJoCo is imported, so before the environments

import custom_irl as irl
from demos.generate import Expert
from diagnose import policy_action

WIDTH, HEIGHT, FRAMES_PER_SECOND = 320, 240, 25


@dataclass(frozen=True)
class Config:
    run: tyro.conf.Positional[Path]
    """folder of a finished run"""
    out: Path | None = None
    """the film, .mp4 or .gif; default: RUN_DIR/watch.mp4"""
    seconds: float = 8.0
    """of the simulation, at its own pace"""
    seed: int = 1
    """of the initial state"""


def make_stage(env_id: str) -> gym.Env:
    """An environment that has drawn once; UserError where there is nothing to draw with."""
    try:
        env = irl.make_env(env_id, render_mode="rgb_array", width=WIDTH, height=HEIGHT)
        env.reset()
        env.render()
    except irl.UserError:
        raise
    except Exception as error:  # which one depends on the library that is missing; a user can mend only that
        backend, reason = os.environ.get("MUJOCO_GL", "not set"), (str(error).splitlines() or [repr(error)])[0]
        raise irl.UserError(
            f"MUJOCO_GL is {backend}: cannot draw ({reason}); expected egl with libegl1 or osmesa with libosmesa6"
        ) from None
    return env


def film(env: gym.Env, act: Callable[[np.ndarray], np.ndarray], title: str, config: Config) -> list[Image.Image]:
    """Frames of one episode; the last one is repeated if it ends before its time."""
    n_frames = max(1, int(config.seconds * FRAMES_PER_SECOND))
    steps_per_frame = 1 / (env.unwrapped.dt * FRAMES_PER_SECOND)
    obs, _ = env.reset(seed=config.seed)
    frames, total, steps, done = [], 0.0, 0, False
    for k in tqdm(range(n_frames), desc=title, disable=None):
        while not done and steps < k * steps_per_frame:
            obs, reward, terminated, truncated, _ = env.step(act(obs))
            total, steps, done = total + float(reward), steps + 1, terminated or truncated
        frame = Image.fromarray(env.render()) if not done or not frames else frames[-1].copy()
        draw = ImageDraw.Draw(frame)
        draw.rectangle((0, 0, WIDTH, 16), fill="white")
        draw.text((4, 2), f"{title}: return {total:.0f} after {steps} steps{', ended' if done else ''}", fill="black")
        frames.append(frame)
    return frames


def films(config: Config) -> list[list[Image.Image]]:
    """One of the policy and, where the project has the expert, one of it."""
    trained = irl.run_config(config.run)
    stage, expert = make_stage(trained["env"]), irl.ROOT / "demos" / f"{trained['env']}.expert.npz"
    policy, _ = irl.load_run(config.run)
    actors = {f"{trained['method']}, seed {trained['seed']}": policy_action(policy, stage.action_space)}
    if expert.is_file():
        actors["expert"] = Expert.load(expert)
    shot = [film(stage, act, title, config) for title, act in actors.items()]
    stage.close()
    return shot


def watch(config: Config) -> Path:
    """Writes the film and returns its path; UserError where there is no run or nothing to draw with."""
    out = config.out or config.run / "watch.mp4"
    if out.suffix not in (".mp4", ".gif"):
        raise irl.UserError(f"--out {out}: expected a name ending in .mp4 or .gif")
    columns = zip(*films(config))
    pages = [np.hstack([np.asarray(frame) for frame in frames]) for frames in columns]
    with irl.replacing(out) as temporary:
        if out.suffix == ".gif":
            imageio.mimwrite(temporary, pages, format="GIF", duration=1000 / FRAMES_PER_SECOND, loop=0)
        else:
            size, mp4 = pages[0].shape[1::-1], ["-f", "mp4"]  # the temporary name does not say what it is
            film = imageio_ffmpeg.write_frames(str(temporary), size, fps=FRAMES_PER_SECOND, output_params=mp4)
            film.send(None)  # starts the encoder
            for page in pages:
                film.send(np.ascontiguousarray(page))
            film.close()
    return out


def main() -> None:
    try:
        print(watch(tyro.cli(Config, description=__doc__)))
    except irl.UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
