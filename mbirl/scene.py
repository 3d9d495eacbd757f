"""RGB images of the Pusher arm from one fixed orthographic camera, by MuJoCo's off-screen renderer.

Gymnasium's pusher.xml without its object and goal, all of it grey, holding a rod with a red and a
blue ball of 3.5 cm radius at its ends. The renderer needs OpenGL without a display: EGL (Debian
packages libegl1 and libgl1-mesa-dri) or OSMesa (libosmesa6, with MUJOCO_GL=osmesa). `film` draws:

    film(Path("film.gif"), {"demonstration": q_demo, "plan": q_plan}, demo)
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import gymnasium
import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image, ImageDraw

from custom_irl import UserError, replacing
from mbirl.kinematics import CM_PER_M, PUSHER

XML = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "pusher.xml"
LOOKAT = np.array((0.6, -0.6, -0.15))  # metres
DISTANCE = 3.0  # of the camera from LOOKAT, metres
EXTENT = 1.25  # height and width of what an image shows, metres
SIZE = 64  # pixels a side
CM_PER_PIXEL = CM_PER_M * EXTENT / SIZE
TABLE_HEIGHT = -0.55  # metres; pusher.xml's, at -0.325, is above the demonstrations' last states
NO_RENDERING = (
    "no off-screen rendering: expected EGL (Debian: libegl1, libgl1-mesa-dri) or OSMesa "
    "(libosmesa6, with MUJOCO_GL=osmesa)"
)
ROD = replace(
    PUSHER, tips=((0.1, 0.0, -0.05), (0.1, 0.0, 0.05))
)  # ends of the rod the gripper holds
COLOURS = ((0.9, 0.1, 0.1, 1.0), (0.1, 0.2, 0.9, 1.0))
GREY = (0.55, 0.55, 0.55, 1.0)


def project(points: torch.Tensor) -> torch.Tensor:
    """Pixels (..., 2) as (column, row), from the top left corner, of points (..., 3), metres."""
    across = (points[..., 0] - LOOKAT[0]) / EXTENT
    up = (points[..., 2] - LOOKAT[2]) / EXTENT
    return SIZE * torch.stack((0.5 + across, 0.5 - up), -1)


def load_mujoco():
    """The module mujoco, with EGL on Linux unless MUJOCO_GL says otherwise; UserError without."""
    if sys.platform.startswith("linux"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is imported
    try:
        import mujoco
    except Exception as error:  # of many kinds, where the library MUJOCO_GL names is missing
        raise UserError(f"{NO_RENDERING} ({type(error).__name__})") from None
    return mujoco


def build_model(size: int):
    """The grey Pusher arm, the rod it holds and the camera, as a mujoco.MjModel."""
    mujoco = load_mujoco()
    spec = mujoco.MjSpec.from_file(str(XML))
    for name in ("object", "goal"):
        spec.delete(spec.body(name))
    for geom in spec.geoms:
        geom.rgba = GREY
    gripper = spec.body("tips_arm")
    ends = [*ROD.tips[0], *ROD.tips[1]]
    kind = mujoco.mjtGeom
    gripper.add_geom(type=kind.mjGEOM_CAPSULE, fromto=ends, size=(0.012, 0, 0), rgba=GREY)
    for tip, colour in zip(ROD.tips, COLOURS):
        gripper.add_geom(type=kind.mjGEOM_SPHERE, pos=tip, size=(0.035, 0, 0), rgba=colour)
    spec.geom("table").pos = (0.5, -0.3, TABLE_HEIGHT)
    spec.geom("table").rgba = (0.75, 0.75, 0.75, 1.0)
    # Orthographic and across the plane of the demonstrations: for any other camera, a turn of the
    # first joint, which moves the gripper the most, would pass for a motion in that plane.
    spec.worldbody.add_camera(
        name="fixed",
        pos=LOOKAT - (0.0, DISTANCE, 0.0),
        xyaxes=[1, 0, 0, 0, 0, 1],
        proj=mujoco.mjtProjection.mjPROJ_ORTHOGRAPHIC,
        fovy=EXTENT,
    )
    spec.visual.headlight.ambient = (0.4, 0.4, 0.4)
    spec.visual.global_.offwidth = size
    spec.visual.global_.offheight = size
    spec.visual.quality.offsamples = 0 if size == SIZE else 4
    return spec.compile()


class Camera:
    """Renders joints q (n,) as uint8 images (size, size, 3)."""

    def __init__(self, size: int = SIZE):
        mujoco = load_mujoco()
        self.model = build_model(size)
        self.data = mujoco.MjData(self.model)
        try:
            self.renderer = mujoco.Renderer(self.model, size, size)
        except Exception as error:  # the binding's errors differ between EGL, OSMesa and GLFW
            raise UserError(f"{NO_RENDERING} ({type(error).__name__})") from None
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.renderer.scene.flags[flag] = False

    def image(self, q: torch.Tensor, marks: np.ndarray | None = None) -> np.ndarray:
        """The arm at joints q (n,), with small green balls at `marks` (m, 3), metres."""
        mujoco = load_mujoco()
        self.data.qpos[:] = q.numpy()
        mujoco.mj_forward(self.model, self.data)
        self.renderer.update_scene(self.data, camera="fixed")
        for mark in () if marks is None else marks:
            scene = self.renderer.scene
            mujoco.mjv_initGeom(
                scene.geoms[scene.ngeom],
                mujoco.mjtGeom.mjGEOM_SPHERE,
                np.full(3, 0.012),
                mark.astype(np.float64),
                np.eye(3).flatten(),
                np.array((0.1, 0.7, 0.2, 1.0), np.float32),
            )
            scene.ngeom += 1
        return self.renderer.render()


@contextmanager
def camera(size: int = SIZE) -> Iterator[Camera]:
    """A camera whose OpenGL context is freed at the end."""
    device = Camera(size)
    try:
        yield device
    finally:
        device.renderer.close()


def images(q: torch.Tensor, progress=iter) -> torch.Tensor:
    """uint8 images (N, 3, SIZE, SIZE) of joints q (N, n)."""
    with camera() as device:
        frames = np.stack([device.image(row) for row in progress(q)])
    return torch.as_tensor(frames).permute(0, 3, 1, 2).contiguous()


def film(path: Path, paths: dict[str, torch.Tensor], demo: torch.Tensor, size: int = 240) -> None:
    """A GIF of joint paths (T, n) side by side; green: the demonstration's keypoints (T, 6), cm."""
    marks = demo.view(-1, 3).numpy() / CM_PER_M
    between = 4
    with camera(size) as device:
        frames = []
        for step in range((len(demo) - 1) * between + 1):
            t, part = divmod(step, between)
            row = []
            for title, q in paths.items():
                q_now = torch.lerp(q[t], q[min(t + 1, len(q) - 1)], part / between)
                picture = Image.fromarray(device.image(q_now, marks))
                ImageDraw.Draw(picture).text((6, 4), title, fill=(255, 255, 255))
                row.append(np.asarray(picture))
            frames.append(np.concatenate(row, 1))
    frames += [frames[-1]] * (2 * between)
    with replacing(path) as temporary:
        iio.imwrite(temporary, np.stack(frames), extension=".gif", duration=80, loop=0)
