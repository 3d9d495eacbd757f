"""Whole runs, as a user types them: the files they leave, determinism, resuming, what training may depend on."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import custom_irl as irl
from conftest import ROOT, command

TIMING = {"steps_per_second", "seconds", "date", "git_commit", "git_clean"}

SMALL = dict(total_timesteps=2048, num_steps=32, update_epochs=2, demo_episodes=4, demo_subsample=20)


def without_timing(result: dict) -> dict:
    return {key: value for key, value in result.items() if key not in TIMING}


def train(tmp_path, name, signals=(), **flags) -> dict | None:
    """A run of 8 small rollouts in this process, on few demonstrations unless told otherwise."""
    args = irl.Args(**{**SMALL, **flags}, out=tmp_path / name)
    return irl.run(irl.RewardNetwork, irl.IRLAlgorithm, args, "custom", signals)


@pytest.mark.parametrize("env", ["HalfCheetah-v4", "Hopper-v4", "Walker2d-v4"])
def test_command_line_run(env, tmp_path):
    done = command("custom_irl.py", "--env", env, "--total-timesteps", "2048", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    key = f"eval_return_{env.lower().replace('-', '_')}"
    assert done.stdout.splitlines()[-1] == f"{key}: {result['eval_return_mean']:.2f}"
    assert done.stderr == ""  # no bar, no warning, away from a terminal
    for kind in ("deterministic", "sampled"):
        assert len(result["evaluation"][kind]["returns"]) == len(result["evaluation"][kind]["lengths"]) == 10
    card = json.loads((ROOT / "demos" / f"{env}.json").read_text())
    floor, ceiling = card["random"]["return_mean"], card["expert"]["demos"]["return_mean"]
    assert result["normalized_return"] == pytest.approx((result["eval_return_mean"] - floor) / (ceiling - floor))
    assert result["demos"]["sha256"] == card["sha256"][f"{env}.npz"]


def test_files_of_a_run(tiny_run):
    folder, result, _ = tiny_run
    assert {p.name for p in folder.iterdir()} == {"result.json", "metrics.csv", "checkpoint"}
    assert {p.name for p in (folder / "checkpoint").iterdir()} == {"config.json", "policy.pt", "reward_net.pt"}
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [int(row["steps"]) for row in rows] == [2048, 4096]
    wanted = {"true_return", "episode_length", "learned_return", "reward_mean", "reward_std", "approx_kl", "logstd",
              "clip_fraction", "ppo_value_loss", "explained_variance", "steps_per_second", "irl/g"}  # fmt: skip
    assert wanted <= set(rows[0])
    assert result["schema"] == 1 and result["labels"] == ["4096-steps"] and result["panel"] == "dense"


def test_tensorboard_shows_what_metrics_csv_holds_also_of_a_resumed_run(tmp_path):
    """Only the flag is new: it may be given to go on with a run, which stays the same run."""
    train(tmp_path, "run", env="Hopper-v4", signals=After(3))
    labels = train(tmp_path, "run", env="Hopper-v4", tensorboard=True)["labels"]
    assert labels == ["2048-steps", "tiny", "num-steps-32", "update-epochs-2"]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert set(events.Tags()["scalars"]) == set(rows[0]) - {"round", "steps"}
    logged = {event.step: event.value for event in events.Scalars("ppo_value_loss")}
    assert logged == {int(row["steps"]): pytest.approx(float(row["ppo_value_loss"])) for row in rows[3:]}


def test_a_reloaded_policy_evaluates_to_the_same_returns(tiny_run):
    folder, result, _ = tiny_run
    policy, reward_net = irl.load_run(folder, irl.RewardNetwork)
    again = irl.evaluate(policy, "Hopper-v4", 10, seed=1, deterministic=True)
    assert again == result["evaluation"]["deterministic"]
    assert reward_net.obs_std.std() > 0  # the normaliser came along


def test_same_seed_same_result_and_another_seed_another(tmp_path):
    """In one process; that another process comes to the same, too, is seen below, with an interruption."""
    a, b, c = (train(tmp_path, name, env="Hopper-v4", seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert without_timing(a) == without_timing(b) and a["evaluation"] != c["evaluation"]


class After:
    """Stands for the list of signals received: empty until it has been asked `n` times."""

    def __init__(self, n: int):
        self.left = n

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("true_reward", [False, True])
def test_resuming_equals_an_uninterrupted_run(tmp_path, true_reward):
    flags = dict(env="Hopper-v4", true_reward=true_reward)
    whole = train(tmp_path, "whole", **flags)
    for interruption in (3, 3):
        assert train(tmp_path, "parts", signals=After(interruption), **flags) is None
        assert (tmp_path / "parts" / "checkpoint" / "training.pt").exists()
    parts = train(tmp_path, "parts", **flags)
    assert without_timing(parts) == without_timing(whole)
    rows = [list(csv.DictReader((tmp_path / name / "metrics.csv").open())) for name in ("whole", "parts")]
    for a, b in zip(*rows, strict=True):
        assert {k: v for k, v in a.items() if k not in TIMING} == {k: v for k, v in b.items() if k not in TIMING}
    for name in ("policy.pt", "reward_net.pt")[: 1 if true_reward else 2]:
        states = [torch.load(tmp_path / run / "checkpoint" / name, weights_only=True) for run in ("whole", "parts")]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_signal_stops_a_command_in_order_and_it_goes_on_to_the_same_result(tiny_run, tmp_path):
    _, expected, _ = tiny_run
    words = [sys.executable, "custom_irl.py", "--env", "Hopper-v4", "--seed", "1", "--total-timesteps", "4096"]
    words += ["--out", str(tmp_path)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "checkpoint" / "config.json").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr.startswith("stopped; the same command goes on")
    assert not (tmp_path / "result.json").exists() and not list(tmp_path.rglob("*.tmp"))
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert without_timing(json.loads((tmp_path / "result.json").read_text())) == without_timing(expected)


def test_the_environments_reward_does_not_change_training(tmp_path, monkeypatch):
    before = train(tmp_path, "before")
    original = irl.make_env

    class Other(irl.gym.Wrapper):
        def step(self, action):
            obs, reward, *rest = self.env.step(action)
            return obs, -3.0 * reward + 7.0, *rest

    monkeypatch.setattr(irl, "make_env", lambda env_id: Other(original(env_id)))
    after = train(tmp_path, "after")
    assert before["eval_return_mean"] != after["eval_return_mean"]  # the wrapper does change what evaluation sees,
    assert before["evaluation"]["sampled"]["lengths"] == after["evaluation"]["sampled"]["lengths"]
    states = [torch.load(tmp_path / n / "checkpoint" / "policy.pt", weights_only=True) for n in ("before", "after")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])  # and the policy not at all


def test_policy_access_is_given_unless_refused(tmp_path):
    calls = []

    class Curious(irl.IRLAlgorithm):
        def set_policy(self, policy, optimizer):
            calls.append((type(policy), type(optimizer)))

    for name, refused in (("a", False), ("b", True)):
        args = irl.Args(total_timesteps=256, num_steps=32, out=tmp_path / name, no_policy_access=refused)
        result = irl.run(irl.RewardNetwork, Curious, args, "curious")
        assert result["variant"] == ("reward-only" if refused else "full")
    assert calls == [(irl.Policy, torch.optim.Adam)]


def test_a_damaged_checkpoint_is_named(tmp_path):
    assert train(tmp_path, "run", signals=After(2)) is None
    unfinished = tmp_path / "run" / "checkpoint" / "training.pt"
    unfinished.write_bytes(unfinished.read_bytes()[:1000])
    with pytest.raises(irl.UserError, match=r"training.pt: cannot be resumed from"):
        train(tmp_path, "run")


def test_labels_name_whatever_differs_from_the_benchmark():
    assert irl.Args().labels() == [] and irl.Args(true_reward=True, seed=7, env="Walker2d-v4").labels() == []
    assert irl.Args(demo_episodes=20, demo_subsample=20, no_policy_access=True).labels() == ["reward-only", "scarce"]
    assert irl.Args(irl_lr=1e-3, num_envs=4, quick=True).labels() == ["quick", "num-envs-4", "irl-lr-0.001"]
    assert irl.Args(demos=irl.Path("a/b.npz"), demo_episodes=3).labels() == ["3x1", "demos-b"]


def test_true_reward_is_the_oracle(tmp_path):
    result = train(tmp_path, "oracle", true_reward=True)
    assert result["method"] == "oracle" and result["demos"]["sha256"] is None
    rows = list(csv.DictReader((tmp_path / "oracle" / "metrics.csv").open()))
    assert all(row["true_return"] == row["learned_return"] for row in rows if row["true_return"])


def test_a_frozen_reward_trains_a_fresh_policy_and_stays_as_it_was(tmp_path, capsys):
    train(tmp_path, "first", env="Hopper-v4", demo_episodes=20, demo_subsample=20, no_policy_access=True)
    again = train(tmp_path, "again", env="Hopper-v4", seed=7, frozen_reward=tmp_path / "first")
    assert again["variant"] == "frozen" and {"reward-only", "frozen", "scarce"} < set(again["labels"])
    assert again["demos"]["sha256"] is None and again["frozen_reward"]["sha256"]
    nets = [torch.load(tmp_path / n / "checkpoint" / "reward_net.pt", weights_only=True) for n in ("first", "again")]
    assert all(torch.equal(nets[0][key], nets[1][key]) for key in nets[0])
    again["labels"] = ["frozen", "scarce"]
    irl.print_result(again, irl.Args(env="Hopper-v4", seed=7, frozen_reward=tmp_path / "first"))
    assert f"results{os.sep}custom-frozen-scarce{os.sep}Hopper-v4{os.sep}seed7" in capsys.readouterr().out
    with pytest.raises(irl.UserError, match=r"config.json: env is Hopper-v4; expected Walker2d-v4"):
        train(tmp_path, "other", env="Walker2d-v4", frozen_reward=tmp_path / "first")


def test_another_run_is_never_replaced_unasked(tmp_path):
    first = train(tmp_path, "run", env="Hopper-v4")
    assert train(tmp_path, "run", env="Hopper-v4") == first  # read, not run again: the date is the same
    with pytest.raises(irl.UserError, match=r"another run \(config irl_lr differ\)"):
        train(tmp_path, "run", env="Hopper-v4", irl_lr=1e-3)
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == first
    assert train(tmp_path, "run", env="Hopper-v4", irl_lr=1e-3, overwrite=True) != first


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env", "Hoper-v4"], "error: --env Hoper-v4: "),
        (["--total-timesteps", "100"], "error: --total-timesteps 100: expected at least 2048, a rollout"),
        (["--num-steps", "0"], "error: --num-steps 0: expected a positive integer"),
        (["--num-minibatches", "7"], "error: --num-minibatches 7: expected a divisor of 2048"),
        (["--demo-episodes", "51"], "holds 50 episodes; expected at least 51"),
        (["--demos", "demos/Walker2d-v4.npz"], "demos/Walker2d-v4.npz: key 'obs' has shape"),
        (
            ["--frozen-reward", "nowhere"],
            "config.json: no such file; expected nowhere to be the folder of a finished run",
        ),
        (["--demos", "nowhere.npz"], "error: nowhere.npz: no such file"),
    ],
)
def test_bad_input_gets_one_line(flags, message, tmp_path):
    done = command("custom_irl.py", *flags, "--out", tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_every_flag_of_the_issue_exists():
    flags = "--env --seed --total-timesteps --num-envs --num-steps --demos --demo-episodes --demo-subsample --out"
    help_text = re.sub(r"\x1b\[[0-9;]*m", "", command("custom_irl.py", "--help").stdout)
    for flag in [*flags.split(), "--no-policy-access", "--true-reward", "--quick"]:
        assert re.search(rf"{flag}\b", help_text), flag


def test_a_baseline_is_two_classes_and_one_call(tmp_path):
    (tmp_path / "still.py").write_text(
        "import torch, torch.nn as nn, custom_irl\n"
        "class Zero(nn.Module):\n    def __init__(self, obs_dim, action_dim): super().__init__()\n"
        "class Still:\n    def __init__(self, reward_net, *rest): self.reward_net = reward_net\n"
        "    def compute_reward(self, obs, acts, next_obs): return torch.zeros(len(obs))\n"
        "    def update(self, *rollout): return {}\n"
        "custom_irl.main(Zero, Still, method='still')\n"
    )
    flags = ["--total-timesteps", "2048", "--out", str(tmp_path / "run")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "still.py", *flags], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["method"] == "still" and set(result["code_sha256"]) == {"custom_irl.py", "still.py"}
    assert np.isfinite(result["eval_return_mean"])
