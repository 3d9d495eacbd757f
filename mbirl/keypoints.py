"""The visual stage: keypoints detected in RGB images, and their dynamics, both self-supervised.

Detector: a CNN with a spatial softmax (Finn et al. 2016, arXiv 1509.06113), trained without labels
to reconstruct what is coloured in an image. With chroma(I) = I - mean over RGB of I,

    loss = sum over x of |chroma(I)(x) - sum_k colour_k sum_g h_kg exp(-|x - g|^2 / 2 sigma^2)|^2

where h_k is the heatmap, the softmax over cells g of channel k, and the keypoint p_k the mean of g
under h_k; colour_k are the k-means of the most coloured pixels of the training images, and sigma is
about the radius of a ball. A second term of the same form has a single blob at p_k. It is an
autoencoder with a keypoint bottleneck as in Das et al. 2020 (arXiv 2010.09034), with blobs in place
of a CNN decoder: without the first term the gradient vanishes where a blob overlaps no ball.

Dynamics: an MLP z[t+1] = z[t] + f(z[t], q[t], a[t]), trained on detected keypoints before and
after random actions. Keypoints are scaled to centimetres at the camera's target. The projected true
ends of the rod serve to measure the error alone.

    python -m mbirl --cost rbf --visual
"""

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from custom_irl import UserError, replacing
from mbirl import scene
from mbirl.kinematics import Arm, forward

K = 2  # keypoints
GRID = 32  # side of the detector's heatmaps
SIGMA = 1.4  # of a blob, pixels
CHECKPOINT_EVERY = 200  # batches
SPREAD = (0.2, 0.7, 0.2, 0.9, 0.2, 0.7, 0.2)  # random joints about the start, radians


@dataclass(frozen=True)
class VisualConfig:
    frames: int = 6000
    """images in the training set, in pairs before and after a random action"""
    detector_steps: int = 1500
    """batches the detector is trained on"""
    dynamics_steps: int = 6000
    """batches the dynamics are trained on"""
    batch_size: int = 32
    """images a batch of the detector; 8 times as many pairs a batch of the dynamics"""
    lr: float = 2e-3
    """Adam's step size at first, for both; it falls to 0 as a cosine"""
    max_action: float = 0.4
    """largest random action, radians"""
    visual_seed: int = 1
    """seed of the images, of the detector and of the dynamics"""

    def __post_init__(self):
        least = {"frames": 100, "detector_steps": 1, "dynamics_steps": 1, "batch_size": 1}
        for name, n in least.items():
            if getattr(self, name) < n:
                flag = f"--images.{name.replace('_', '-')} {getattr(self, name)}"
                raise UserError(f"{flag}: expected {n} or more")
        if not 0 < self.lr < math.inf:
            raise UserError(f"--images.lr {self.lr}: expected more than 0, and finite")


class Detector(nn.Module):
    """Images (N, 3, 64, 64), uint8, to keypoints (N, K, 2) as (column, row), pixels."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(channels, K, 1),
        )
        self.register_buffer("colour", torch.zeros(K, 3))
        self.register_buffer("centre", (torch.arange(GRID) + 0.5) * scene.SIZE / GRID)

    def heatmaps(self, images: torch.Tensor) -> torch.Tensor:
        """Softmax over the cells, (N, K, 32, 32)."""
        logits = 5 * self.net(images.float() / 255 - 0.5)
        return logits.flatten(2).softmax(-1).view_as(logits)

    def points(self, heatmaps: torch.Tensor) -> torch.Tensor:
        """Means (N, K, 2) of heatmaps (N, K, 32, 32), pixels."""
        return torch.stack((heatmaps.sum(2) @ self.centre, heatmaps.sum(3) @ self.centre), -1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.points(self.heatmaps(images))

    def profile(self, centre: torch.Tensor) -> torch.Tensor:
        """A blob's Gaussian over the 64 columns or rows, (..., 64), about centres (...), pixels."""
        pixel = torch.arange(scene.SIZE) + 0.5
        return torch.exp(-((pixel - centre[..., None]) ** 2) / (2 * SIGMA**2))

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """Reconstruction error of the images' chroma, by heatmaps plus by blobs at their means."""
        target = chroma(images)
        heatmaps = self.heatmaps(images)
        grid = self.profile(self.centre)
        by_map = torch.einsum("kc,nkhw->nchw", self.colour, grid.T @ heatmaps @ grid)
        columns, rows = self.profile(self.points(heatmaps)).unbind(2)
        by_point = torch.einsum("kc,nkh,nkw->nchw", self.colour, rows, columns)
        return sum(((target - x) ** 2).sum((1, 2, 3)).mean() for x in (by_map, by_point))


def chroma(images: torch.Tensor) -> torch.Tensor:
    """Colour without brightness, (N, 3, H, W), of uint8 images."""
    images = images.float() / 255
    return images - images.mean(1, keepdim=True)


def blob_colours(images: torch.Tensor, rounds: int = 20) -> torch.Tensor:
    """Chroma (K, 3) of the K clusters (k-means) of the images' 0.1 % most coloured pixels."""
    pixels = chroma(images).permute(0, 2, 3, 1).flatten(0, 2)
    pixels = pixels[pixels.norm(dim=-1).topk(len(pixels) // 1000).indices]
    first = pixels[0]
    colours = torch.stack((first, pixels[(pixels - first).norm(dim=-1).argmax()]))
    for _ in range(rounds):
        nearest = torch.cdist(pixels, colours).argmin(1)
        colours = torch.stack([pixels[nearest == k].mean(0) for k in range(K)])
    return colours


class Dynamics(nn.Module):
    """Change (N, 2K) of keypoints z (N, 2K), cm, at joints q (N, n) under actions (N, n)."""

    def __init__(self, num_joints: int, hidden: int = 128):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2 * K + 2 * num_joints, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 2 * K),
        )

    def forward(self, z: torch.Tensor, q: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return 10 * self.net(torch.cat((z / 50, q, 3 * actions), -1))


def to_cm(points: torch.Tensor) -> torch.Tensor:
    """Pixels (..., K, 2) to z (..., 2K), centimetres from the image's centre."""
    return ((points - scene.SIZE / 2) * scene.CM_PER_PIXEL).flatten(-2)


@dataclass(frozen=True)
class VisualModel:
    """The planner's model: keypoints by the learned dynamics from the detected first ones."""

    arm: Arm
    dynamics: Dynamics
    z0: torch.Tensor
    """keypoints (2K,) detected in the first image, cm"""

    def rollout(self, q0, actions, detach=False):
        lower = q0.new_tensor(self.arm.lower)
        upper = q0.new_tensor(self.arm.upper)
        z_path = [self.z0]
        q_path = [q0]
        for action in actions:
            z, q = z_path[-1], q_path[-1]
            if detach:
                z, q = z.detach(), q.detach()
            q_next = torch.clamp(q + action, lower, upper)
            z_path.append(z + self.dynamics(z, q, q_next - q))
            q_path.append(q_next)
        return torch.stack(z_path), torch.stack(q_path)


def random_joints(arm: Arm, start, config: VisualConfig, n: int, seed: int):
    """Joints before and after random actions, twice (n, num_joints), radians, within the limits."""
    generator = torch.Generator().manual_seed(seed)
    lower, upper = torch.tensor(arm.lower), torch.tensor(arm.upper)
    uniform = 2 * torch.rand(2, n, arm.num_joints, generator=generator) - 1
    before = torch.clamp(torch.tensor(start) + torch.tensor(SPREAD) * uniform[0], lower, upper)
    after = torch.clamp(before + config.max_action * uniform[1], lower, upper)
    return before, after


def detect(detector: Detector, images: torch.Tensor) -> torch.Tensor:
    """Keypoints (N, K, 2), pixels, without a graph."""
    with torch.no_grad():
        return torch.cat([detector(batch) for batch in images.split(256)])


def pixel_errors(detector: Detector, q: torch.Tensor, images: torch.Tensor):
    """Distances (N, K), pixels, of keypoints to the rod's ends, in the better of both orders."""
    points = detect(detector, images)
    truth = scene.project(forward(scene.ROD, q))
    orders = [(points[:, list(o)] - truth).norm(dim=-1) for o in permutations(range(K))]
    return min(orders, key=lambda errors: errors.median())


def fit(net, loss_of, steps: int, config: VisualConfig, path: Path, key: str, title: str) -> None:
    """Trains `net` on loss_of(generator) and goes on from the checkpoint `path` if its `key` fits.

    A step's batch depends on the seed and the step alone: a resumed run gives the same weights.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done = 0
    if path.is_file():
        saved = torch.load(path, weights_only=True)
        if saved["key"] == key:
            net.load_state_dict(saved["net"])
            optimizer.load_state_dict(saved["optimizer"])
            schedule.load_state_dict(saved["schedule"])
            done = saved["step"]
    bar = tqdm(range(done, steps), title, total=steps, initial=done, disable=None)
    for step in bar:
        generator = torch.Generator().manual_seed(100_000 * config.visual_seed + step)
        loss = loss_of(generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            bar.set_postfix(loss=f"{loss.item():.3g}")
            state = {"key": key, "step": step + 1, "net": net.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            with replacing(path) as temporary:
                torch.save(state, temporary)


def learn_model(arm: Arm, start, config: VisualConfig, folder: Path):
    """Detector, dynamics and their metrics, trained or taken from `folder`.

    Metrics, on 500 images of another seed: median and 90th percentile of the keypoint error,
    pixels, and the dynamics' error after one step over that of no motion.
    """
    began = time.monotonic()
    files = [Path(__file__), Path(scene.__file__)]
    code = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
    key = json.dumps([asdict(config), list(start), code])
    done = folder / "model.json"
    saved = json.loads(done.read_text()) if done.is_file() else {}
    if saved.get("key") == key:
        detector, dynamics = Detector(), Dynamics(arm.num_joints)
        for net, name in ((detector, "detector.pt"), (dynamics, "dynamics.pt")):
            net.load_state_dict(torch.load(folder / name, weights_only=True)["net"])
        return detector, dynamics.requires_grad_(False), saved["metrics"]
    pairs = random_joints(arm, start, config, config.frames // 2, config.visual_seed)
    joints = torch.cat(pairs)
    frames = scene.images(joints, lambda q: tqdm(q, "rendering", disable=None))
    torch.manual_seed(config.visual_seed)
    detector = Detector()
    detector.colour.copy_(blob_colours(frames[:500]))

    def detector_loss(generator):
        batch = torch.randint(len(frames), (config.batch_size,), generator=generator)
        return detector.loss(frames[batch])

    path = folder / "detector.pt"
    fit(detector, detector_loss, config.detector_steps, config, path, key, "detector")
    before, after = pairs
    z, z_next = to_cm(detect(detector, frames)).chunk(2)
    dynamics = Dynamics(arm.num_joints)

    def dynamics_loss(generator):
        rows = torch.randint(len(z), (8 * config.batch_size,), generator=generator)
        change = dynamics(z[rows], before[rows], after[rows] - before[rows])
        return F.huber_loss(z[rows] + change, z_next[rows])

    path = folder / "dynamics.pt"
    fit(dynamics, dynamics_loss, config.dynamics_steps, config, path, key, "dynamics")
    held = random_joints(arm, start, config, 250, config.visual_seed + 10_000)
    held_frames = scene.images(torch.cat(held))
    errors = pixel_errors(detector, torch.cat(held), held_frames)
    z, z_next = to_cm(detect(detector, held_frames)).chunk(2)
    with torch.no_grad():
        predicted = z + dynamics(z, held[0], held[1] - held[0])
    metrics = {
        "keypoint_error_median_px": errors.median().item(),
        "keypoint_error_p90_px": errors.quantile(0.9).item(),
        "dynamics_error_ratio": ((predicted - z_next).norm() / (z - z_next).norm()).item(),
        "visual_seconds": time.monotonic() - began,  # since the last interruption
    }
    with replacing(done) as temporary:
        temporary.write_text(json.dumps({"key": key, "metrics": metrics}, indent=1) + "\n")
    return detector, dynamics.requires_grad_(False), metrics
