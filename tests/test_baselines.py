"""The reference methods: signs and equations against a direct calculation, and a tiny run of each."""

import json
from types import SimpleNamespace

import pytest
import torch

import custom_irl as irl
from baselines import airl, bc, gail
from benchmark import launch
from conftest import command

OBS_DIM, ACTION_DIM = 4, 2
ARGS = SimpleNamespace(irl_lr=1e-3, irl_batch_size=64, n_irl_updates_per_round=5)


def transitions(n: int, shift: float = 0.0) -> list[torch.Tensor]:
    torch.manual_seed(n)
    return [torch.randn(n, d) + shift for d in (OBS_DIM, ACTION_DIM, OBS_DIM)]


def make(reward_cls, algorithm_cls):
    demos = dict(zip(("obs", "acts", "next_obs"), transitions(300, shift=0.5)))
    net = reward_cls(OBS_DIM, ACTION_DIM)
    return net, algorithm_cls(net, demos, OBS_DIM, ACTION_DIM, torch.device("cpu"), ARGS), demos


def test_gail_reward_is_minus_log_one_minus_d():
    net, algorithm, _ = make(gail.GAILDiscriminator, gail.GAIL)
    batch = transitions(20)
    with torch.no_grad():
        d = torch.sigmoid(net(*batch))
    torch.testing.assert_close(algorithm.compute_reward(*batch), -torch.log(1 - d))


def test_airl_logit_subtracts_the_log_probability_and_its_reward_does_not():
    net, algorithm, _ = make(airl.AIRLReward, airl.AIRL)
    obs, acts, next_obs = transitions(20)
    with torch.no_grad():
        s, next_s = net.obs_norm(obs), net.obs_norm(next_obs)
        f = net.g(torch.cat([s, net.act_norm(acts)], -1)) + 0.99 * net.h(next_s) - net.h(s)
        torch.testing.assert_close(algorithm.compute_reward(obs, acts, next_obs), f)
        torch.testing.assert_close(algorithm.logits(obs, acts, next_obs), f)  # no policy access
        policy = irl.Policy(OBS_DIM, ACTION_DIM)
        algorithm.set_policy(policy, None)
        logprob = policy.get_action_and_value(obs, acts)[1]
        torch.testing.assert_close(algorithm.logits(obs, acts, next_obs), f - logprob)


@pytest.mark.parametrize("classes", [(gail.GAILDiscriminator, gail.GAIL), (airl.AIRLReward, airl.AIRL)])
def test_discriminators_learn_to_prefer_the_expert(classes):
    _, algorithm, demos = make(*classes)
    if hasattr(algorithm, "set_policy"):
        algorithm.set_policy(irl.Policy(OBS_DIM, ACTION_DIM), None)
    rollout = transitions(256, shift=-0.5)
    for _ in range(100):
        algorithm.update(*rollout, torch.zeros(256))
    expert = algorithm.compute_reward(demos["obs"], demos["acts"], demos["next_obs"])
    assert expert.mean() > algorithm.compute_reward(*rollout).mean() + 0.5


def test_bc_imitates_and_refuses_to_run_without_the_policy():
    _, algorithm, demos = make(bc.NoReward, bc.BC)
    rollout = transitions(64)
    with pytest.raises(irl.UserError, match="expected policy access"):
        algorithm.update(*rollout, torch.zeros(64))
    policy = irl.Policy(OBS_DIM, ACTION_DIM)
    algorithm.set_policy(policy, torch.optim.Adam(policy.parameters(), lr=1e-3))
    before = (policy.actor_mean(demos["obs"]) - demos["acts"]).square().mean().item()
    for _ in range(20):
        algorithm.update(*rollout, torch.zeros(64))
    after = (policy.actor_mean(demos["obs"]) - demos["acts"]).square().mean().item()
    assert after < 0.95 * before
    assert (algorithm.compute_reward(*rollout) == 0).all()


# The ablations are one command with a name: tests/test_ablations.py sees what each of them leaves out.
COMMANDS = [method for method in launch.METHODS if method != "custom" and not method.startswith("ablation-")]


@pytest.mark.parametrize("method", [*COMMANDS, "ablation-one-step"])
def test_each_runs_through_the_launcher(method, tmp_path):
    flags = ("--envs", "Hopper-v4", "--seeds", "1", "--results", tmp_path)
    tiny = ("--total-timesteps", "2048", "--demo-episodes", "4", "--demo-subsample", "20")
    done = command("-m", "benchmark.launch", "--method", method, *flags, *tiny)
    assert done.returncode == 0, done.stderr
    label = f"{method}-2048-steps-tiny"
    result = json.loads((tmp_path / label / "Hopper-v4" / "seed1" / "result.json").read_text())
    assert result["method"] == method and label in (tmp_path / "summary.md").read_text()
