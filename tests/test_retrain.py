"""The second learner: what it is paid, what it evaluates, and a tiny run of the command."""

import sys
from functools import partial

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import custom_irl as irl
from benchmark import retrain, runs


def retrain_in_process(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["retrain", *map(str, words)])
    retrain.main()


def test_the_evaluated_policy_sees_observations_as_in_training():
    envs = VecNormalize(make_vec_env(partial(irl.make_env, "Hopper-v4"), 1, seed=3))
    settings = {"n_steps": 64, "batch_size": 32, "policy_kwargs": retrain.NETWORKS}
    ppo = PPO("MlpPolicy", envs, seed=1, **settings)
    ppo.learn(128)
    policy = retrain.EvaluatedPolicy(ppo.policy, retrain.Normalize(envs))
    raw = np.random.default_rng(0).normal(size=(16, 11)).astype(np.float32)
    expected, _ = ppo.predict(envs.normalize_obs(raw), deterministic=True)
    with torch.no_grad():
        ours = policy.actor_mean(torch.as_tensor(raw)).numpy().clip(-1, 1)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_evaluated_policy_of_sac_is_its_deterministic_action():
    args = irl.Args(env="Pendulum-v1", seed=3)  # actions from -2 to 2
    sac = SAC("MlpPolicy", retrain.make_envs(args, None), seed=1, **retrain.SAC_SETTINGS)
    policy = retrain.SquashedPolicy(sac, torch.full((1,), 0.1))
    obs = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    expected, _ = sac.predict(obs, deterministic=True)
    with torch.no_grad():
        ours = policy.actor_mean(torch.as_tensor(obs)).numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(policy.actor_logstd.exp().detach(), torch.full((1, 1), 0.2))


@pytest.mark.parametrize("learner", retrain.LEARNERS)
def test_it_is_paid_the_reward_it_is_given_and_notes_true_returns(learner, monkeypatch):
    paid = []

    class Noting(torch.nn.Module):
        def forward(self, obs, acts, next_obs):
            paid.append(len(obs))
            return obs[:, 0]

    monkeypatch.setitem(retrain.SAC_SETTINGS, "learning_starts", 480)
    args = irl.Args(env="Pendulum-v1", seed=3, num_envs=1, num_steps=512, total_timesteps=512)
    training = retrain.LEARNERS[learner](args, Noting())
    assert sum(paid) == 512
    assert [row["steps"] for row in training.rows] == [512]
    assert -2000 < training.rows[0]["true_return"] < -500


def test_a_run_on_a_finished_runs_reward_and_one_on_the_true_reward(
    tiny_run, tmp_path, monkeypatch, capsys
):
    flags = ("--env", "Hopper-v4", "--seed", "2", "--total-timesteps", "512")
    flags += ("--num-envs", "1", "--num-steps", "512")
    of_reward = ("--demo-episodes", "4", "--demo-subsample", "20")
    digest = irl.sha256(tiny_run[0] / "reward_net.pt")
    for words, method, reward in (
        (("--reward", tiny_run[0], *of_reward), "sb3-custom-frozen", digest),
        (("--true-reward",), "sb3-oracle", None),
        (("--true-reward", "--learner", "sac"), "sac-oracle", None),
    ):
        folder = tmp_path / method
        retrain_in_process(monkeypatch, *words, *flags, "--out", folder)
        result = runs.read_result(folder)
        assert (result["method"], result["steps"]) == (method, 512)
        identity = runs.read_json(folder / "origin.json")["identity"]
        assert identity["frozen_reward"]["sha256"] == reward
        assert capsys.readouterr().out.endswith(f"{result['eval_return_mean']:.2f}\n")
        assert (folder / "reward_net.pt").exists() == (reward is not None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected one of --reward RUN_DIR and --true-reward"),
        (("--true-reward", "--reward", "RUN"), "expected one of --reward RUN_DIR and --true"),
        (("--true-reward",), "--out: expected the folder of the run"),
        (("--true-reward", "--gamma", "0.9", "--out", "F"), "--gamma: not read by --learner sb3"),
        (("--true-reward", "--demo_episodes", "4", "--out", "F"), "--demo-episodes: not read by"),
        (("--reward", "RUN", "--clip-coef=0.1", "--out", "F"), "--clip-coef: not read by"),
        (("--reward", "RUN", "--out", "F", "--env", "Walker2d-v4"), "expected --env Hopper-v4"),
        (("--reward", "RUN", "--out", "F", "--env", "Hopper-v4"), "expected the same --demo-epi"),
        (("--reward", "nowhere", "--out", "F"), "nowhere.result.json: no such file"),
    ],
)
def test_bad_input_is_named(words, message, tiny_run, tmp_path, monkeypatch):
    replaced = {"RUN": tiny_run[0], "F": tmp_path / "out"}
    with pytest.raises(irl.UserError, match=message):
        retrain_in_process(monkeypatch, *(replaced.get(word, word) for word in words))
    assert not (tmp_path / "out").exists()
