"""Whole runs: files, determinism, resuming, what training may depend on, bad input."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

import custom_irl as irl
from baselines.frozen import frozen
from benchmark import resume, runs
from benchmark.load import load_run
from conftest import ROOT, command

TIMING = {"steps_per_second", "seconds", "date", "id"}
SMALL = {
    "total_timesteps": 2048,
    "num_steps": 32,
    "update_epochs": 2,
    "demo_episodes": 4,
    "demo_subsample": 20,
}
CUSTOM = (irl.RewardNetwork, irl.IRLAlgorithm)


def without_timing(result: dict) -> dict:
    return {key: value for key, value in result.items() if key not in TIMING}


def args_for(folder, **flags) -> irl.Args:
    """8 small rollouts on few demonstrations, unless told otherwise."""
    return irl.Args(**{**SMALL, **flags}, out=folder)


def train(folder, classes=CUSTOM, method="custom", **flags) -> dict:
    return irl.run(*classes, args_for(folder, **flags), method)


def metrics(folder) -> list[dict]:
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]


def weights(folder, name) -> dict:
    return torch.load(folder / f"{name}.pt", weights_only=True)


def same(ours: dict, theirs: dict) -> bool:
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


# ---------------------------------------------------------------------------------- a run's result
def test_files_and_numbers_of_a_run(tiny_run):
    folder, result, stdout = tiny_run
    names = {path.name for path in folder.iterdir()}
    assert names == {".lock", "result.json", "metrics.csv", "policy.pt", "reward_net.pt"}
    assert stdout.splitlines()[-1] == f"eval_return_hopper_v4: {result['eval_return_mean']:.2f}"
    assert "200 of 50000 transitions, 4 of 50 episodes" in stdout
    for kind in ("deterministic", "sampled"):
        evaluation = result["evaluation"][kind]
        assert len(evaluation["returns"]) == len(evaluation["lengths"]) == 10
        assert evaluation["mean"] == pytest.approx(np.mean(evaluation["returns"]))
    card = json.loads((ROOT / "demos" / "Hopper-v4.json").read_text())
    floor = card["random"]["return_mean"]
    ceiling = card["expert"]["demos"]["return_mean"]
    share = (result["eval_return_mean"] - floor) / (ceiling - floor)
    assert result["normalized_return"] == pytest.approx(share)
    assert result["demos"]["sha256"] == card["sha256"]["Hopper-v4.npz"]
    assert result["hyperparameters"]["bc_coef"] == irl.Hyperparameters().bc_coef
    assert [row["steps"] for row in metrics(folder)] == ["2048", "4096"]


def test_a_reloaded_policy_evaluates_to_the_same_returns(tiny_run):
    folder, result, _ = tiny_run
    policy, reward_net = load_run(folder)
    args = irl.Args("Hopper-v4", seed=1)
    again = irl.evaluate(policy, args, 10, deterministic=True)
    assert again == result["evaluation"]["deterministic"]
    assert reward_net.obs_std.std() > 0  # the normaliser is part of the network


def test_same_seed_same_result_and_another_seed_another(tmp_path):
    a = train(tmp_path / "a", env="Hopper-v4", seed=1)
    b = train(tmp_path / "b", env="Hopper-v4", seed=1)
    c = train(tmp_path / "c", env="Hopper-v4", seed=2)
    assert without_timing(a) == without_timing(b)
    assert a["evaluation"] != c["evaluation"]


def test_a_seed_may_have_64_bits(tmp_path):
    a = train(tmp_path / "a", env="Hopper-v4", seed=20261128131500)
    b = train(tmp_path / "b", env="Hopper-v4", seed=20261128131500 + 2**32)
    assert a["evaluation"] != b["evaluation"]


def test_the_environments_reward_does_not_change_training(tmp_path, monkeypatch):
    before = train(tmp_path / "before")
    original = irl.make_env

    class Other(irl.gym.Wrapper):
        def step(self, action):
            obs, reward, *rest = self.env.step(action)
            return obs, -3.0 * reward + 7.0, *rest

    monkeypatch.setattr(irl, "make_env", lambda *words: Other(original(*words)))
    after = train(tmp_path / "after")
    assert before["eval_return_mean"] != after["eval_return_mean"]  # evaluation sees it
    assert same(weights(tmp_path / "before", "policy"), weights(tmp_path / "after", "policy"))


def test_policy_access_is_given_unless_refused(tmp_path):
    calls = []

    class Curious(irl.IRLAlgorithm):
        def set_policy(self, policy, optimizer):
            calls.append((type(policy), type(optimizer)))

    for refused in (False, True):
        classes = (irl.RewardNetwork, Curious)
        train(tmp_path / str(refused), classes, "curious", no_policy_access=refused)
    assert calls == [(irl.Policy, torch.optim.Adam)]


def test_the_oracle_learns_from_the_true_reward(tmp_path):
    result = train(tmp_path, true_reward=True)
    assert result["method"] == "oracle"
    assert result["demos"]["sha256"] is None
    rows = [row for row in metrics(tmp_path) if row["true_return"]]
    assert all(row["true_return"] == row["learned_return"] for row in rows)


def test_a_finished_run_is_not_replaced_unasked(tmp_path):
    first = train(tmp_path, env="Hopper-v4")
    with pytest.raises(irl.UserError, match="holds a finished run; --overwrite it"):
        train(tmp_path, env="Hopper-v4", irl_lr=1e-3)
    assert runs.read_result(tmp_path) == first
    assert train(tmp_path, env="Hopper-v4", irl_lr=1e-3, overwrite=True)["id"] != first["id"]


def test_the_two_variants_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for refused in (False, True):
        train(None, env="Hopper-v4", no_policy_access=refused)
    assert {p.parts[1] for p in Path().glob("results/*/*/*/result.json")} == {
        "custom",
        "custom-reward-only",
    }


def test_of_a_replaced_run_nothing_is_left(tmp_path, monkeypatch):
    """Neither a reward of another method nor, once a file is replaced, a result that it belies."""
    first = train(tmp_path, env="Hopper-v4")
    save = irl.save_weights

    def fail(path, net):
        save(path, net)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(irl, "save_weights", fail)
    with pytest.raises(OSError, match="No space"):
        train(tmp_path, env="Hopper-v4", true_reward=True, overwrite=True)
    assert not (tmp_path / "result.json").exists()
    monkeypatch.setattr(irl, "save_weights", save)
    assert train(tmp_path, env="Hopper-v4", true_reward=True)["id"] != first["id"]
    assert not (tmp_path / "reward_net.pt").exists()


def test_most_of_a_file_left_out_by_default_is_said(tmp_path, capsys):
    episodes = 120
    lengths = np.full(episodes, 2)
    rng = np.random.default_rng(0)
    arrays = {
        "obs": rng.normal(size=(3 * episodes, 11)).astype(np.float32),
        "acts": rng.normal(size=(2 * episodes, 3)).astype(np.float32),
        "lengths": lengths,
    }
    np.savez(tmp_path / "many.npz", **arrays)
    for chosen, warned in ((50, True), (60, False)):
        args = irl.Args(demos=tmp_path / "many.npz", demo_episodes=chosen)
        irl.prepare_demos(args)
        out, err = capsys.readouterr()
        assert f"{2 * chosen} of 240 transitions, {chosen} of 120 episodes" in out
        assert ("leaves out most of the file" in err) == warned


# ---------------------------------------------------------------------------------------- resuming
class After(list):
    """Stands for the list of signals received: empty until it has been asked `n` times."""

    def __init__(self, n: int):
        self.left = n

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0


def resumable(folder, signals=None, **flags) -> dict | None:
    return resume.run(*CUSTOM, args_for(folder, **flags), "custom", signals=signals)


@pytest.mark.parametrize("true_reward", [False, True])
def test_resuming_equals_an_uninterrupted_run(tmp_path, true_reward):
    flags = {"env": "Hopper-v4", "true_reward": true_reward}
    whole = train(tmp_path / "whole", **flags)
    for _ in range(2):
        assert resumable(tmp_path / "parts", After(3), **flags) is None
        assert (tmp_path / "parts" / "checkpoint.json").exists()
    parts = resumable(tmp_path / "parts", **flags)
    assert without_timing(parts) == without_timing(whole)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    for name in ("policy",) if true_reward else ("policy", "reward_net"):
        assert same(weights(tmp_path / "parts", name), weights(tmp_path / "whole", name))
    assert not (tmp_path / "parts" / "checkpoint.json").exists()


def test_a_finished_run_is_read_and_another_is_refused(tmp_path):
    first = resumable(tmp_path, env="Hopper-v4")
    assert resumable(tmp_path, env="Hopper-v4") == first
    with pytest.raises(irl.UserError, match=r"another run \(config irl_lr differ\)"):
        resumable(tmp_path, env="Hopper-v4", irl_lr=1e-3)
    assert runs.read_result(tmp_path) == first
    origin = runs.read_json(tmp_path / "origin.json")
    assert origin["identity"]["code"]["custom_irl.py"] == irl.sha256(ROOT / "custom_irl.py")


def test_a_baselines_code_is_all_that_it_is_made_of():
    """gail-v2's classes are built on gail.py's and share its update."""
    classes = runs.method_named("gail-v2").classes()
    code = runs.identity_of(irl.Args(), "gail-v2", classes)["code"]
    files = {"custom_irl.py", "gail_v2.py", "gail.py", "shared.py"}
    assert {Path(name).name for name in code} == files


def test_of_a_run_that_is_replaced_no_examination_and_no_film_stays(tmp_path):
    resumable(tmp_path, env="Hopper-v4")
    for name in ("diagnosis.json", "diagnosis-steps.png", "watch.mp4"):
        (tmp_path / name).touch()
    resumable(tmp_path, env="Hopper-v4", irl_lr=1e-3, overwrite=True)
    assert not [*tmp_path.glob("diagnosis*"), *tmp_path.glob("watch*")]


def test_a_signal_stops_a_command_after_a_checkpoint_and_it_continues(tmp_path):
    words = [sys.executable, "-m", "benchmark.resume", "custom", "--env", "Hopper-v4"]
    words += ["--no-policy-access", "--total-timesteps", "6144"]
    whole = subprocess.run([*words, "--out", str(tmp_path / "whole")], cwd=ROOT)
    assert whole.returncode == 0
    words += ["--out", str(tmp_path / "parts")]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "parts" / "metrics.csv").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.startswith("stopped; the same command continues")
    assert not (tmp_path / "parts" / "result.json").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = [runs.read_result(tmp_path / name) for name in ("whole", "parts")]
    assert without_timing(results[0]) == without_timing(results[1])


def test_a_damaged_checkpoint_is_named(tmp_path):
    assert resumable(tmp_path, After(2), env="Hopper-v4") is None
    unfinished = tmp_path / "checkpoint.json"
    unfinished.write_bytes(unfinished.read_bytes()[:1000])
    with pytest.raises(irl.UserError, match=r"checkpoint.json: not readable as JSON"):
        resumable(tmp_path, env="Hopper-v4")


# ------------------------------------------------------------------------------- names and origins
def test_labels_name_whatever_differs_from_the_benchmark():
    def labels(quick=False, **flags):
        return runs.labels_of(irl.config_of(irl.Args(**flags)), quick)

    assert labels() == []
    assert labels(true_reward=True, seed=7, env="Walker2d-v4") == []
    scarce = {"demo_episodes": 20, "demo_subsample": 20, "no_policy_access": True}
    assert labels(**scarce) == ["reward-only", "scarce"]
    assert labels(True, irl_lr=1e-3, num_envs=4) == ["quick", "num-envs-4", "irl-lr-0.001"]
    assert labels(demos=irl.Path("a/b.npz"), demo_episodes=3) == ["3x1", "demos-b"]


def test_a_frozen_reward_trains_a_fresh_policy_and_stays_as_it_was(tmp_path):
    train(tmp_path / "first", env="Hopper-v4", no_policy_access=True)
    args = args_for(tmp_path / "again", env="Hopper-v4", no_policy_access=True, seed=7)
    *classes, method = frozen(tmp_path / "first", args)
    again = irl.run(*classes, args, method)
    assert again["method"] == "custom-frozen"
    assert again["demos"]["sha256"] is None
    nets = [weights(tmp_path / name, "reward_net") for name in ("first", "again")]
    assert same(*nets)


# --------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env", "Hoper-v4"], "error: --env Hoper-v4: "),
        (["--total-timesteps", "100"], "--total-timesteps: expected at least 2048, a rollout"),
        (["--num-steps", "0"], "--num-steps 0: expected an integer from 1 to 2^63 - 1"),
        (["--seed", "-1"], "--seed -1: expected an integer from 0 to 2^63 - 1"),
        (["--learning-rate", "0"], "--learning-rate 0.0: expected a finite number above 0"),
        (["--irl-lr", "nan"], "--irl-lr nan: expected a finite number above 0"),
        (["--gamma", "2"], "--gamma 2.0: expected a number from 0 to 1"),
        (["--true-reward", "--no-policy-access"], "--true-reward: not with --no-policy-access"),
        (["--num-minibatches", "7"], "--num-minibatches: expected a divisor below 2048"),
        (["--num-minibatches", "2048"], "--num-minibatches: expected a divisor below 2048"),
        (["--env", "a:b:c"], "--env a:b:c: "),
        (["--demo-episodes", "51"], "holds 50 episodes; expected at least 51"),
        (
            ["--demos", "demos/Walker2d-v4.npz"],
            "Walker2d-v4.npz: key 'obs' is float32 (50050, 17); expected",
        ),
        (["--demos", "."], "error: .: [Errno 21] Is a directory"),
        (["--demos", "nowhere.npz"], "error: nowhere.npz: [Errno 2] No such file or directory"),
        (["--demos", "README.md"], "README.md: File is not a zip file; expected an .npz"),
    ],
)
def test_bad_input_gets_one_line(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["custom_irl.py", *flags, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        irl.main(*CUSTOM, method="custom")
    assert message in stopped.value.code
    assert "\n" not in stopped.value.code
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    words = ["custom_irl.py", "--total-timesteps", "2048", "--out", str(tmp_path / "file" / "run")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match=r"error: .*Not a directory: .*file/run"):
        irl.main(*CUSTOM, method="custom")


def test_a_method_of_ones_own_is_two_classes_and_one_call(tmp_path):
    (tmp_path / "still.py").write_text(
        "import torch\n"
        "import custom_irl\n"
        "class Zero(torch.nn.Module):\n"
        "    def __init__(self, obs_dim, action_dim): super().__init__()\n"
        "class Still:\n"
        "    def __init__(self, reward_net, *rest): self.reward_net = reward_net\n"
        "    def compute_reward(self, obs, acts, next_obs): return torch.zeros(len(obs))\n"
        "    def update(self, *rollout): return {}\n"
        "custom_irl.main(Zero, Still, method='still')\n"
    )
    words = [sys.executable, "still.py", "--total-timesteps", "2048", "--out", "run"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no bar and no warning away from a terminal
    result = runs.read_result(tmp_path / "run")
    assert result["method"] == "still"
    assert np.isfinite(result["eval_return_mean"])


def test_a_method_may_state_its_settings_in_a_dict(tmp_path):
    class Stated:
        hyperparameters: ClassVar[dict] = {"width": 3}

        def __init__(self, *args): ...

        def compute_reward(self, obs, acts, next_obs):
            return torch.zeros(len(obs))

        def update(self, *rollout): ...

    result = train(tmp_path, (irl.RewardNetwork, Stated), "stated", total_timesteps=256)
    assert result["hyperparameters"] == {"width": 3}


def test_a_method_without_set_policy_has_one_variant(tmp_path):
    class Plain:
        def __init__(self, *args): ...

    with pytest.raises(irl.UserError, match="--no-policy-access: Plain has no set_policy"):
        train(tmp_path, (irl.RewardNetwork, Plain), "plain", no_policy_access=True)


def test_a_run_that_replaces_the_launchers_leaves_nothing_that_is_not_of_it(tmp_path):
    for name in ("result.json", "origin.json", "diagnosis.json", "diagnosis.png", "watch.mp4"):
        (tmp_path / name).write_text("old")
    train(tmp_path, total_timesteps=256, overwrite=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {".lock", "result.json", "metrics.csv", "policy.pt", "reward_net.pt"}


def test_returns_under_another_time_limit_are_not_normalised(tmp_path, capsys):
    result = train(tmp_path / "short", total_timesteps=256, max_episode_steps=50)
    assert result["normalized_return"] is None
    assert "--max-episode-steps" in capsys.readouterr().err
    same = train(tmp_path / "same", total_timesteps=256, max_episode_steps=1000)
    assert same["normalized_return"] is not None


def test_a_policy_that_diverges_is_named(tmp_path):
    class Diverging(irl.IRLAlgorithm):
        def update(self, *rollout):
            torch.nn.init.constant_(self.improvement.policy.actor_mean[0].bias, torch.nan)
            return {}

    message = "the policy's actions are NaN or infinite"
    with pytest.raises(irl.UserError, match=message):
        train(tmp_path, (irl.RewardNetwork, Diverging), "diverging", total_timesteps=512)


def test_help_is_shown():
    done = command("custom_irl.py", "--help")
    assert done.returncode == 0
    assert "--no-policy-access" in done.stdout
