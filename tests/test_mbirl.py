"""MBIRL against MuJoCo, finite differences and hand computation, and its commands as typed.

python -m pytest tests/test_mbirl.py
"""

import json
import math
import os
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch

if sys.platform.startswith("linux"):
    os.environ.setdefault("MUJOCO_GL", "egl")

from custom_irl import UserError
from mbirl import __main__ as command
from mbirl import demos as demos_command
from mbirl import keypoints, report, scene
from mbirl.costs import LEARNED, make_cost
from mbirl.demos import START, DemoConfig, follow, place, read_demos, write_demos
from mbirl.kinematics import PUSHER, REACHER, forward
from mbirl.planner import ArmModel, PlanConfig, plan
from mbirl.train import Task, TrainConfig, evaluate, feature_loss, irl_loss, meta_loss, train_cost

ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
MODEL = ArmModel(PUSHER)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def rendering():
    try:
        scene.Camera().renderer.close()
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("arm", "xml", "geoms"),
    [
        (PUSHER, "pusher.xml", ["tip_arml", "tip_armr"]),
        (REACHER, "reacher.xml", ["fingertip"]),
    ],
)
def test_kinematics_agree_with_mujoco(arm, xml, geoms):
    mujoco = pytest.importorskip("mujoco")
    model = mujoco.MjModel.from_xml_path(str(ASSETS / xml))
    data = mujoco.MjData(model)
    n = arm.num_joints
    rng = np.random.default_rng(0)
    for q in rng.uniform(-1.5, 1.5, (50, n)):
        data.qpos[:n] = q
        mujoco.mj_forward(model, data)
        expected = np.stack([data.geom(name).xpos for name in geoms])
        tips = forward(arm, torch.tensor(q)).numpy()
        assert np.abs(tips - expected).max() < 1e-5
    limits = model.jnt_range[:n]
    limited = model.jnt_limited[:n].astype(bool)
    assert np.allclose(limits[limited], np.array([arm.lower, arm.upper]).T[limited], atol=1e-6)


def test_kinematics_of_reacher_by_hand():
    q = torch.tensor([0.3, -0.8], dtype=torch.float64)
    x = 0.1 * math.cos(0.3) + 0.11 * math.cos(-0.5)
    y = 0.1 * math.sin(0.3) + 0.11 * math.sin(-0.5)
    expected = torch.tensor([[x, y, 0.01]], dtype=torch.float64)
    assert torch.allclose(forward(REACHER, q), expected)


def test_costs_by_hand():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(10, 6, generator=generator)
    goal = torch.randn(6, generator=generator)
    error = (z - goal) ** 2
    expected = {name: 0.0 for name in ("default", *LEARNED)}
    weights = {name: torch.rand_like(make_cost(name, 10, 6).weights) for name in expected}
    weights["default"] = torch.full((6,), 0.1)
    for t in range(10):
        for d in range(6):
            expected["default"] += 0.1 * error[t, d] / 10
            expected["weighted"] += weights["weighted"][d] * error[t, d] / 10
            expected["timedep"] += weights["timedep"][t, d] * error[t, d] / 60
            for c, centre in enumerate((0, 2, 4, 6, 9)):
                kernel = math.exp(-((centre - t) ** 2) / 2)
                expected["rbf"] += weights["rbf"][c, d] * kernel * error[t, d] / 6
    for name, value in expected.items():
        cost = make_cost(name, 10, 6)
        cost.weights.data.copy_(weights[name])
        assert cost(z, goal).item() == pytest.approx(value.item(), rel=1e-5)
        assert cost(goal.expand(10, 6), goal).item() == 0
    assert not make_cost("default", 10, 6).weights.requires_grad


def task_of(seed=1):
    config = DemoConfig(seed=seed)
    demos = place(config).to(torch.get_default_dtype())
    return Task(MODEL, MODEL, torch.tensor(config.start), demos, demos, config.n_train)


@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("name", list(LEARNED))
def test_meta_gradient_agrees_with_finite_differences(float64, name, inner_steps):
    task = task_of()
    q0 = task.q0 + torch.tensor([0.2, 0.0, 0.1, 0.0, 0.1, 0.0, 0.1])  # all joints matter
    config = PlanConfig(inner_steps=inner_steps, inner_lr=1e-4)
    cost = make_cost(name, 10, 6)
    generator = torch.Generator().manual_seed(0)
    cost.weights.data *= 0.5 + torch.rand(cost.weights.shape, generator=generator)

    def loss():
        return meta_loss(cost, MODEL, q0, task.demos[0], config)

    (gradient,) = torch.autograd.grad(loss(), cost.weights)
    numeric = torch.zeros_like(gradient)
    step = 1e-6
    for i in range(gradient.numel()):
        values = []
        for sign in (1, -1):
            cost.weights.data.view(-1)[i] += sign * step
            values.append(loss().item())
            cost.weights.data.view(-1)[i] -= sign * step
        numeric.view(-1)[i] = (values[0] - values[1]) / (2 * step)
    assert (gradient - numeric).norm() < 1e-3 * numeric.norm()
    detached = PlanConfig(inner_steps=inner_steps, inner_lr=1e-4, detach_state=True)
    other = torch.autograd.grad(meta_loss(cost, MODEL, q0, task.demos[0], detached), cost.weights)
    assert (other[0] - numeric).norm() > 0.01 * numeric.norm()


def test_feature_matching_gradient_is_the_difference_of_features(float64):
    task = task_of()
    cost = make_cost("weighted", 10, 6)
    demo = task.demos[0]
    feature_loss(cost, MODEL, task.q0, demo, PlanConfig()).backward()
    actions = plan(cost, MODEL, task.q0, demo[-1], 10, PlanConfig()).detach()
    z, _ = MODEL.rollout(task.q0, actions)
    features = [((path - demo[-1]) ** 2).mean(0) for path in (demo, z)]
    assert torch.allclose(cost.weights.grad, features[0] - features[1])


@pytest.mark.parametrize("detach", [False, True])
def test_planner_reduces_the_cost_within_the_limits(detach):
    task = task_of()
    cost = make_cost("weighted", 10, 6)
    goal = task.demos[0, -1]
    values = []
    for steps in (1, 10):
        config = PlanConfig(inner_steps=steps, inner_lr=1e-4, detach_state=detach)
        z, q = MODEL.rollout(task.q0, plan(cost, MODEL, task.q0, goal, 10, config))
        values.append(cost(z, goal).item())
    start = cost(task.demos[0, :1].expand(10, 6), goal).item()
    assert values[1] < values[0] < start
    far, q = MODEL.rollout(task.q0, torch.full((9, 7), 5.0))
    assert torch.allclose(q[-1], torch.tensor(PUSHER.upper))
    assert torch.isfinite(far).all()


def test_outer_loop_reduces_the_loss():
    task = task_of()
    cost = make_cost("rbf", 10, 6)
    before = evaluate(cost, task, "test", PlanConfig())
    train_cost(cost, task, "mbirl", TrainConfig(iterations=6), PlanConfig())
    after = evaluate(cost, task, "test", PlanConfig())
    assert after["loss_ratio"] < min(0.9, before["loss_ratio"])


def test_demonstrations_are_deterministic_and_within_reach():
    demos = place(DemoConfig(seed=3))
    assert demos.shape == (6, 10, 6)
    assert torch.equal(demos, place(DemoConfig(seed=3)))
    assert not torch.equal(demos, place(DemoConfig(seed=4)))
    assert torch.equal(demos[:, 0], demos[:1, 0].expand(6, 6))
    moved = demos[:, -1] - demos[:, 0]
    assert ((moved[:, [0, 3]] + 20).abs() < 5).all()
    assert (moved[:, [1, 4]] == 0).all()
    assert ((moved[:, [2, 5]] + 30).abs() < 5).all()
    q = follow(PUSHER, demos[0], START)
    z, _ = MODEL.rollout(q[0], q[1:] - q[:-1])
    assert (z - demos[0]).abs().max() < 0.01
    assert irl_loss(z, demos[0]) < 1e-4


def test_demonstrations_are_read_back(tmp_path):
    path = tmp_path / "demos.csv"
    demos = place(DemoConfig())
    write_demos(path, demos)
    assert torch.allclose(read_demos(path, DemoConfig()), demos, atol=1e-3)
    pd.read_csv(path).sample(frac=1, random_state=0).to_csv(path, index=False)
    assert torch.allclose(read_demos(path, DemoConfig()), demos, atol=1e-3)  # in order of t


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="t"), "expected numbers in the columns demo, t"),
        (lambda f: f.assign(demo=f.demo.mask(f.demo == 5)), "NaN or infinity"),
        (lambda f: f.assign(x1=f.x1.mask(f.t == 3)), "NaN or infinity"),
        (lambda f: f.assign(t=f.t + 1), "demo 0: expected t from 0 to 9"),
        (lambda f: f.assign(t=f.t.replace(4, 5)), "demo 0: expected t from 0 to 9"),
        (lambda f: f[f.demo < 5], "5 demonstrations; expected 6"),
        (
            lambda f: f.groupby("demo").transform("first").assign(demo=f.demo, t=f.t),
            "1 of 6 ends w",
        ),
    ],
)
def test_a_csv_of_other_steps_is_refused(tmp_path, change, message):
    path = tmp_path / "demos.csv"
    write_demos(path, place(DemoConfig()))
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(UserError, match=message):
        read_demos(path, DemoConfig())


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--horizon", "7"], "--horizon 7: expected an even number"),
        (["--seed", "-1"], "--seed -1: expected 0 or more"),
        ([], "demos.csv: exists; expected a new name"),
        (["--out", "{folder}/demos.csv/x.csv"], "cannot be written"),
    ],
)
def test_demonstrations_as_a_user_writes_them(tmp_path, flags, expected):
    out = tmp_path / "demos.csv"
    demos_command.main(["--out", str(out)])
    before = out.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        demos_command.main(["--out", str(out), *(f.format(folder=tmp_path) for f in flags)])
    assert expected in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--cost", "cubic"], "--cost cubic: expected one of default, weighted, timedep, rbf"),
        (["--method", "gail"], "expected one of mbirl, apprenticeship, none"),
        (
            ["--start", "0", "3", "0", "-1", "0", "0", "0"],
            "joint 1 at 3.0 rad: expected a value in",
        ),
        (["--demos", "missing.csv"], "missing.csv: no such file"),
        (["--demos", "{long}"], "has 12 states; expected 10"),
        (["--demos", "{text}"], "expected numbers in the columns"),
        (["--plan.inner-steps", "0"], "expected 1 or more"),
        (["--plan.inner-lr", "nan"], "expected more than 0, and finite"),
        (["--train.outer-lr", "inf"], "expected more than 0, and finite"),
        (["--visual", "--images.frames", "9"], "--images.frames 9: expected 100 or more"),
        (["--visual", "--images.batch-size", "0"], "--images.batch-size 0: expected 1 or more"),
        (["--horizon", "7"], "expected an even number of at least 4"),
        (["--seed", "-1"], "--seed -1: expected 0 or more"),
    ],
)
def test_bad_input_gets_one_line(flags, expected, tmp_path):
    write_demos(tmp_path / "long", place(DemoConfig(horizon=12)))
    (tmp_path / "text").write_text("demo,x1\n0,left\n")
    flags = [f.format(long=tmp_path / "long", text=tmp_path / "text") for f in flags]
    with pytest.raises(SystemExit) as stopped:
        command.main([*flags, "--out", str(tmp_path / "run"), "--no-film"])
    message = str(stopped.value)
    assert expected in message
    assert "\n" not in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [[], ["--visual"], ["--compare"]])
def test_a_folder_that_is_a_file_gets_one_line_before_the_training(tmp_path, flags, monkeypatch):
    for module, name in ((command, "train_cost"), (keypoints, "learn_model")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"^error: .*file.*: (File exists|Not a directory)$"):
        command.main([*flags, "--quick", "--out", str(tmp_path / "file")])


def test_command_writes_the_artifacts(tmp_path, capsys):
    command.main(["--cost", "timedep", "--quick", "--no-film", "--out", str(tmp_path)])
    assert "test L_IRL over that of doing nothing" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["cost"] == "timedep"
    assert result["quick"]
    assert isinstance(result["failures"], list)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1
    assert len(pd.read_csv(tmp_path / "metrics.csv")) == 4
    assert len(pd.read_csv(tmp_path / "traces.csv")) == 3 * 10
    state = torch.load(tmp_path / "cost.pt", weights_only=True)
    make_cost("timedep", 10, 6).load_state_dict(state)


def test_compare_writes_table_and_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "SEEDS", (1,))
    command.main(["--compare", "--quick", "--out", str(tmp_path)])
    assert "doing nothing" in capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "compare.csv")
    assert len(frame) == 10
    assert set(frame.cost) == {"default", *LEARNED}
    assert (tmp_path / "losses.png").stat().st_size > 5000


def test_images_show_the_rod_where_it_is_projected(rendering):
    q = follow(PUSHER, place(DemoConfig())[0], START, steps=10)[[0, 9]]
    pictures = scene.images(q)
    assert pictures.shape == (2, 3, 64, 64)
    ends = scene.project(forward(scene.ROD, q))
    colour = keypoints.chroma(pictures)
    for i in range(2):
        for end, channel in enumerate((0, 2)):  # red, blue
            row, column = torch.nonzero(colour[i, channel] > 0.1, as_tuple=True)
            centre = torch.stack((column, row), -1).float().mean(0) + 0.5
            assert torch.dist(centre, ends[i, end]) < 1


def test_detector_training_resumes_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(keypoints, "CHECKPOINT_EVERY", 2)
    config = keypoints.VisualConfig()
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 255, (16, 3, 64, 64), generator=generator, dtype=torch.uint8)
    colours = torch.tensor([[0.4, -0.2, -0.2], [-0.2, -0.2, 0.4]])

    def train(path, calls):
        torch.manual_seed(0)
        net = keypoints.Detector()
        net.colour.copy_(colours)

        def loss(generator):
            calls.append(1)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return net.loss(pictures[torch.randint(16, (4,), generator=generator)])

        keypoints.fit(net, loss, 5, config, path, "key", "")
        return net

    whole = train(tmp_path / "whole.pt", [])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "part.pt", [1, 1])
    calls = []
    resumed = train(tmp_path / "part.pt", calls)
    assert len(calls) == 3
    assert torch.equal(whole(pictures), resumed(pictures))


def test_keypoints_are_the_means_of_heatmaps():
    peak = torch.zeros(1, 2, 32, 32)
    peak[0, 0, 4, 10] = 1
    peak[0, 1, 20, 7] = 1
    assert keypoints.Detector().points(peak).tolist() == [[[21.0, 9.0], [15.0, 41.0]]]


def test_visual_command_as_typed(rendering, tmp_path, capsys):
    flags = ["--cost", "rbf", "--visual", "--quick", "--out", str(tmp_path)]
    command.main(flags)
    assert "median keypoint error" in capsys.readouterr().out
    assert (tmp_path / "film.gif").read_bytes()[:3] == b"GIF"
    first = json.loads((tmp_path / "result.json").read_text())
    command.main([*flags, "--no-film"])
    second = json.loads((tmp_path / "result.json").read_text())
    assert second["test_loss"] == first["test_loss"]


def test_the_seeds_on_which_apprenticeship_learning_is_better_are_counted():
    frame = pd.read_csv(report.HERE / "data" / "compare.csv")
    rows = [row for row in report.verdicts(frame) if "apprenticeship" in row]
    counts = {row.split(":")[0].strip("| "): row.split("|")[3].strip() for row in rows}
    assert counts == {"weighted": "5 of 5", "timedep": "3 of 5", "rbf": "5 of 5"}


def test_readme_table_is_that_of_the_csv():
    text = (report.HERE / "README.md").read_text()
    block = text.split(report.MARKERS[0])[1].split(report.MARKERS[1])[0]
    assert block == report.readme_block()
