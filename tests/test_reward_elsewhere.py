"""The learned reward elsewhere: a function, an environment, stable-baselines3, imitation."""

import re

import numpy as np
import pytest
import torch
from imitation.rewards.reward_wrapper import RewardVecEnvWrapper
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env

import custom_irl as irl
from baselines.airl import AIRLReward
from benchmark.load import LearnedReward, as_function, imitation_reward, load_reward, load_run
from conftest import ROOT


def batch(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 11)), rng.normal(size=(n, 3)), rng.normal(size=(n, 11))


def test_the_function_is_the_network(tiny_run):
    reward, net = load_reward(tiny_run[0]), load_run(tiny_run[0], irl.RewardNetwork)[1]
    with torch.no_grad():
        expected = net(*(torch.as_tensor(x, dtype=torch.float32) for x in batch(8))).numpy()
    np.testing.assert_allclose(reward(*batch(8)), expected, rtol=1e-5)


def test_an_environment_pays_the_reward_of_the_step_that_was_made():
    """Also of the step that ends an episode: with its last observation."""
    env = LearnedReward(
        irl.make_env("Hopper-v4"),
        lambda obs, act, new: obs.sum(1) + 10 * act.sum(1) + 100 * new.sum(1),
    )
    plain, rng, ends = irl.make_env("Hopper-v4"), np.random.default_rng(0), 0
    obs, _ = env.reset(seed=3)
    np.testing.assert_array_equal(obs, plain.reset(seed=3)[0])
    for _ in range(200):
        action = rng.uniform(-1, 1, 3).astype(np.float32)
        next_obs, reward, terminated, truncated, info = env.step(action)
        expected, true_reward, *_ = plain.step(action)
        np.testing.assert_array_equal(next_obs, expected)
        assert reward == pytest.approx(obs.sum() + 10 * action.sum() + 100 * next_obs.sum())
        assert info["true_reward"] == true_reward
        obs = next_obs
        if terminated or truncated:
            obs, ends = env.reset()[0], ends + 1
            plain.reset()
    assert ends > 2


def test_stable_baselines3_finds_nothing_wrong_with_the_environment(tiny_run):
    check_env(LearnedReward(irl.make_env("Hopper-v4"), load_reward(tiny_run[0])), warn=False)


def test_the_readmes_example_runs(tiny_run):
    block = next(
        b
        for b in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
        if "SAC" in b
    )
    assert block.count("results/custom/Hopper-v4/seed42") == 1 and block.count("100_000") == 1
    names = {}
    exec(
        block.replace("results/custom/Hopper-v4/seed42", str(tiny_run[0])).replace(
            "100_000", "200"
        ),
        names,
    )
    assert names["model"].num_timesteps == 200


def test_imitation_takes_it(tiny_run):
    net = load_run(tiny_run[0], irl.RewardNetwork)[1]
    venv = make_vec_env(lambda: irl.make_env("Hopper-v4"), 1, seed=3)
    theirs = imitation_reward(venv.observation_space, venv.action_space, net)
    ours = as_function(net)(*batch(8))
    np.testing.assert_allclose(theirs.predict(*batch(8), np.zeros(8, bool)), ours, rtol=1e-4)
    wrapped = RewardVecEnvWrapper(venv, theirs.predict_processed)
    obs, action = wrapped.reset(), np.zeros((1, 3), np.float32)
    next_obs, rewards, _, _ = wrapped.step(action)
    assert rewards[0] == pytest.approx(as_function(net)(obs, action, next_obs)[0], rel=1e-4)


@pytest.mark.parametrize(
    ("cls", "folder", "message"),
    [
        (AIRLReward, None, r"reward_net.pt: does not fit AIRLReward; expected its weights"),
        (
            irl.RewardNetwork,
            "nowhere",
            r"nowhere/result.json: no such file; expected the folder of a finished run",
        ),
    ],
)
def test_what_is_no_such_run_is_named(tiny_run, cls, folder, message):
    with pytest.raises(irl.UserError, match=message):
        load_reward(folder or tiny_run[0], cls)
