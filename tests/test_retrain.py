"""The second learner: what it is paid, what it evaluates, and a tiny run of the command."""

import json

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import custom_irl as irl
from benchmark import launch, retrain
from conftest import command


def test_the_evaluated_policy_sees_observations_as_in_training():
    envs = VecNormalize(make_vec_env(lambda: irl.make_env("Hopper-v4"), 1, seed=3))
    ppo = PPO("MlpPolicy", envs, n_steps=64, batch_size=32, seed=1, policy_kwargs=retrain.NETWORKS)
    ppo.learn(128)
    policy = retrain.EvaluatedPolicy(ppo.policy, retrain.Normalize(envs))
    raw = np.random.default_rng(0).normal(size=(16, 11)).astype(np.float32)
    expected, _ = ppo.predict(envs.normalize_obs(raw), deterministic=True)
    with torch.no_grad():
        ours = policy.actor_mean(torch.as_tensor(raw)).numpy().clip(-1, 1)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_it_runs_through_the_launcher_on_a_frozen_reward_and_on_the_true_one(tiny_run, tmp_path):
    trained = tmp_path / "custom-4096-steps" / "Hopper-v4" / "seed1"
    trained.parent.mkdir(parents=True)
    trained.symlink_to(tiny_run[0])
    flags = ("--envs", "Hopper-v4", "--seeds", "1", "--results", tmp_path, "--total-timesteps", "4096")
    for extra, folder, seed in (
        ("--frozen", "sb3-custom-4096-steps-frozen", 2),
        ("--true-reward", "sb3-oracle-4096-steps", 1),
    ):
        done = command("-m", "benchmark.launch", *flags, extra, "--learner", "sb3")
        assert done.returncode == 0, done.stderr
        result = json.loads((tmp_path / folder / "Hopper-v4" / f"seed{seed}" / "result.json").read_text())
        assert result["steps"] == 4096 and np.isfinite(result["eval_return_mean"])


def test_without_a_reward_it_says_so():
    done = command("-m", "benchmark.retrain", "--env", "Hopper-v4")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "expected --frozen-reward" in done.stderr
    with pytest.raises(irl.UserError, match="expected --frozen or --true-reward"):
        launch.make_jobs(launch.Config(learner="sb3"), [])
