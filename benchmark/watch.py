"""Films trained policies, each beside the expert where there is one.

    python -m benchmark.watch results/custom/Hopper-v4/seed42        # RUN_DIR/watch.mp4
    python -m benchmark.watch RUN_DIR --seconds 20 --seed 3 --out hopper.gif
    python -m benchmark.watch results/bc-scarce/*/seed42 results/custom-scarce/*/seed42 \\
        --names BC ours --out benchmark/data/hero.webp               # README's film

Several runs make a grid: a row an environment, a column a method. Every episode starts from the
state of `--seed` (README's film: of the default, 1) and its actions are deterministic. MuJoCo draws
without a screen by EGL (Debian and Ubuntu: `apt install libegl1`), or by OSMesa (`apt install
libosmesa6`) and MUJOCO_GL=osmesa; on macOS it needs neither.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

if sys.platform == "linux" and not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")  # read when MuJoCo is imported, by an environment

import custom_irl as irl
from benchmark import runs
from benchmark.load import load_policy, policy_action
from demos.expert import Expert, play

WIDTH, HEIGHT = 320, 240  # of a cell's picture, pixels
HEAD, CAPTION = 44, 30  # height of a column's head and of a cell's caption, pixels
FRAMES_PER_SECOND = 20
WEBP_QUALITY = 30
EXPERT = "expert"
MUJOCO_PLANE = 0  # mujoco.mjtGeom.mjGEOM_PLANE
FORMATS = (".mp4", ".gif", ".webp")


@dataclass(frozen=True)
class Config:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """folders of finished runs"""
    out: Path | None = None
    """the film, .mp4, .gif or .webp; default, of one run: RUN_DIR/watch.mp4"""
    seconds: float = 8.0
    """of the episode, at its own pace"""
    seed: int = 1
    """of the initial state"""
    names: tuple[str, ...] = ()
    """heads of the columns; default: the runs' methods and labels"""


@dataclass(frozen=True)
class Shot:
    """A frame, and what the episode has come to."""

    image: Image.Image
    total: float
    ended: bool


# ---------------------------------------------------------------------------------------- filming
@contextmanager
def drawing(env_id: str) -> Iterator[None]:
    """Makes one line of an error in drawing: the environment's own reason, and MuJoCo's remedy."""
    try:
        yield
    except irl.UserError:
        raise
    except Exception as error:  # which one depends on the environment and its drawing library
        reason = (str(error).splitlines() or [repr(error)])[0]
        remedy = ""
        if any("mujoco" in frame.filename for frame in traceback.extract_tb(error.__traceback__)):
            backend = os.environ.get("MUJOCO_GL", "not set")
            remedy = f"; MUJOCO_GL is {backend}: egl needs libegl1, osmesa needs libosmesa6"
        raise irl.UserError(f"{env_id}: cannot be drawn ({reason}){remedy}") from None


def make_stage(env_id: str, max_episode_steps: int | None) -> gym.Env:
    """An environment that can draw: in the cell's size if its constructor takes one.

    Raises:
        UserError: with the environment's own reason why it cannot.
    """
    kwargs = {"max_episode_steps": max_episode_steps, "render_mode": "rgb_array"}
    with drawing(env_id):
        try:
            env = irl.make_env(env_id, **kwargs, width=WIDTH, height=HEIGHT)
        except TypeError:
            env = irl.make_env(env_id, **kwargs)
        enlarge_floor(env)
        env.reset()
        draw(env)
    return env


def draw(env: gym.Env) -> Image.Image:
    """A picture of the environment, in the cell's size."""
    with drawing(env.spec.id):
        frame = env.render()
        if not isinstance(frame, np.ndarray):
            raise TypeError(f"render() returned {frame!r}; expected an array (H, W, 3)")
        image = Image.fromarray(frame)
    if image.size == (WIDTH, HEIGHT):
        return image
    cell = Image.new("RGB", (WIDTH, HEIGHT), "white")
    image.thumbnail((WIDTH, HEIGHT))
    cell.paste(image, ((WIDTH - image.width) // 2, (HEIGHT - image.height) // 2))
    return cell


def enlarge_floor(env: gym.Env) -> None:
    """Draws MuJoCo's planes, and with them their tiles, three times as large: a Walker2d would run
    off in 7 s, and small tiles double a film's size. Physics does not change: contacts treat every
    plane as endless.
    """
    if hasattr(env.unwrapped, "mujoco_renderer"):
        model = env.unwrapped.model
        model.geom_size[model.geom_type == MUJOCO_PLANE, :2] *= 3


class Camera(gym.Wrapper):
    """Takes FRAMES_PER_SECOND shots a second of an episode and truncates it after `seconds`.

    A step lasts 1 / metadata["render_fps"] seconds.
    """

    def __init__(self, env: gym.Env, seconds: float):
        super().__init__(env)
        self.steps_per_shot = (env.metadata.get("render_fps") or 30) / FRAMES_PER_SECOND
        self.n_shots = max(1, int(seconds * FRAMES_PER_SECOND))

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        self.total = 0.0
        self.steps = 0
        self.shots = []
        self.shoot(ended=False)
        return obs, info

    def step(self, action):
        action = np.asarray(action, float)  # Pendulum draws no float32
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.total += float(reward)
        self.steps += 1
        ended = terminated or truncated
        while len(self.shots) < self.n_shots and (
            ended or self.steps >= len(self.shots) * self.steps_per_shot
        ):
            self.shoot(ended)
        return obs, reward, terminated, len(self.shots) >= self.n_shots, info

    def shoot(self, ended: bool) -> None:
        if self.shots and self.shots[-1].ended:
            self.shots.append(self.shots[-1])  # the last frame stands until the film ends
            return
        self.shots.append(Shot(draw(self.env), self.total, ended))


# ------------------------------------------------------------------------------------------- grid
Grid = dict[str, dict[str, list[Shot]]]  # environment -> column -> shots


def shoot_runs(config: Config) -> Grid:
    """Every run's episode, and the expert's of every environment that has one."""
    grid: Grid = {}
    for folder in tqdm(config.runs, desc="filming", disable=None):
        result = runs.read_result(folder)
        column = "-".join([result["method"], *runs.labels_of(result["config"])])
        row = grid.setdefault(result["env"], {})
        if column in row:
            raise irl.UserError(f"{folder}: a second run of {column} on {result['env']}")
        row |= shoot_run(folder, result, column, config, with_expert=EXPERT not in row)
    return grid


def shoot_run(
    folder: Path, result: dict, column: str, config: Config, with_expert: bool
) -> dict[str, list[Shot]]:
    """A function of its own, so that a stage's memory is freed before the next one is made:
    MuJoCo's, freed later, would take the next one's textures with it.
    """
    policy = load_policy(folder)
    stage = make_stage(result["env"], result["config"]["max_episode_steps"])
    acts = {column: policy_action(policy, stage.action_space)}
    if with_expert and expert_of(result).is_file():
        acts[EXPERT] = Expert.load(expert_of(result))
    camera = Camera(stage, config.seconds)
    shots = {}
    for name, act in acts.items():
        play(camera, act, config.seed)
        shots[name] = camera.shots
    stage.close()
    return shots


def expert_of(result: dict) -> Path:
    """The expert's file beside the demonstrations of a run."""
    demos = result["config"]["demos"]
    path = Path(demos) if demos else irl.ROOT / "demos" / f"{result['env']}.npz"
    return path.with_suffix(".expert.npz")


def heads_of(grid: Grid, names: tuple[str, ...]) -> dict[str, str]:
    """Columns, the expert last, and their heads."""
    columns = dict.fromkeys(column for row in grid.values() for column in row)
    own = [column for column in columns if column != EXPERT]
    if names and len(names) != len(own):
        raise irl.UserError(f"--names: {len(names)} names; expected {len(own)} ({', '.join(own)})")
    return dict(zip(own, names or own)) | ({EXPERT: EXPERT} if EXPERT in columns else {})


def draw_page(grid: Grid, heads: dict[str, str], k: int) -> Image.Image:
    """Frame k of the film."""
    size = (WIDTH * len(heads), HEAD + (CAPTION + HEIGHT) * len(grid))
    page = Image.new("RGB", size, "#1d1d1f")
    draw = ImageDraw.Draw(page)
    for i, (column, head) in enumerate(heads.items()):
        center = (i + 0.5) * WIDTH
        draw.text((center, HEAD / 2), head, "white", font_for(head, HEAD - 12), anchor="mm")
        for j, (env_id, row) in enumerate(grid.items()):
            if column in row:
                top = HEAD + j * (CAPTION + HEIGHT)
                page.paste(draw_cell(env_id, row[column][k]), (i * WIDTH, top))
    return page


def draw_cell(env_id: str, shot: Shot) -> Image.Image:
    """The picture below its caption; once the episode has ended the last picture, darkened."""
    cell = Image.new("RGB", (WIDTH, CAPTION + HEIGHT), "#1d1d1f")
    draw = ImageDraw.Draw(cell)
    total = f"return {shot.total:.0f}"
    font = font_for(f"{env_id}   {total}", CAPTION - 8)
    draw.text((8, CAPTION / 2), env_id, "#b8b8c0", font, anchor="lm")
    draw.text((WIDTH - 8, CAPTION / 2), total, "white", font, anchor="rm")
    image = shot.image.point(lambda value: value // 2) if shot.ended else shot.image
    cell.paste(image, (0, CAPTION))
    if shot.ended:
        font = font_for("ended", CAPTION)
        draw.text((WIDTH / 2, CAPTION + HEIGHT / 4), "ended", "white", font, anchor="mm")
    return cell


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, in `size` or as much smaller as the width of a cell demands."""
    width = ImageFont.load_default(size).getlength(text)
    return ImageFont.load_default(size * min(1, (WIDTH - 16) / width))


# ------------------------------------------------------------------------------------------ files
def write_film(path: Path, pages: list[Image.Image]) -> None:
    with irl.replacing(path) as temporary:
        if path.suffix == ".mp4":
            # The temporary name does not say which format it is.
            writer = imageio_ffmpeg.write_frames(
                str(temporary), pages[0].size, fps=FRAMES_PER_SECOND, output_params=["-f", "mp4"]
            )
            writer.send(None)  # starts the encoder
            for page in pages:
                writer.send(np.asarray(page).tobytes())
            writer.close()
            return
        pages[0].save(
            temporary,
            format=path.suffix[1:].upper(),
            save_all=True,
            append_images=pages[1:],
            duration=1000 // FRAMES_PER_SECOND,
            loop=0,
            quality=WEBP_QUALITY,
            method=4,  # of WebP: half the size that the default gives
        )


def watch(config: Config) -> Path:
    """Writes the film and returns its path.

    Raises:
        UserError: where there is no run, or nothing to draw with.
    """
    if not config.runs:
        raise irl.UserError("expected the folder of a finished run")
    if config.seed < 0:
        raise irl.UserError(f"--seed {config.seed}: expected 0 or more")
    out = config.out
    if out is None:
        if len(config.runs) != 1:
            raise irl.UserError("--out: expected the film's name, as there are several runs")
        out = config.runs[0] / "watch.mp4"
    if out.suffix not in FORMATS:
        raise irl.UserError(f"--out {out}: expected a name ending in {', '.join(FORMATS)}")
    grid = shoot_runs(config)
    heads = heads_of(grid, config.names)
    n_shots = len(next(iter(next(iter(grid.values())).values())))
    write_film(out, [draw_page(grid, heads, k) for k in range(n_shots)])
    return out


def main() -> None:
    print(watch(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    runs.command_line(main)
