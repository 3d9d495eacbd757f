"""The reference methods: signs and equations against a direct calculation, and a tiny run each."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import custom_irl as irl
from baselines import airl, airl_v2, bc, constant, gail, gail_v2, imitation_peers, untrained
from baselines.frozen import Frozen, frozen
from benchmark import resume, runs
from benchmark.load import load_reward, load_run

OBS_DIM, ACTION_DIM = 4, 2
ARGS = SimpleNamespace(irl_lr=1e-3, irl_batch_size=64, n_irl_updates_per_round=5)
TINY = {"total_timesteps": 2048, "demo_episodes": 4, "demo_subsample": 20, "update_epochs": 1}
AS_TINY = {"demo_episodes": 4, "demo_subsample": 20}  # as tiny_run has it
V2_AIRL = (airl_v2.AIRLRewardV2, airl_v2.AIRLV2)


def transitions(n: int, shift: float = 0.0, dims=(OBS_DIM, ACTION_DIM)) -> list[torch.Tensor]:
    torch.manual_seed(n)
    return [torch.randn(n, d) + shift for d in (*dims, dims[0])]


def make(reward_cls, algorithm_cls):
    demos = dict(zip(("obs", "acts", "next_obs"), transitions(300, shift=0.5)))
    net = reward_cls(OBS_DIM, ACTION_DIM)
    return net, algorithm_cls(net, demos, OBS_DIM, ACTION_DIM, torch.device("cpu"), ARGS), demos


V1_GAIL = (gail.GAILDiscriminator, gail.GAIL)
V2_GAIL = (gail_v2.GAILDiscriminatorV2, gail_v2.GAILV2)


@pytest.mark.parametrize("classes", [V1_GAIL, V2_GAIL])
def test_gail_reward_is_minus_log_one_minus_d(classes):
    net, algorithm, _ = make(*classes)
    batch = transitions(20)
    with torch.no_grad():
        d = torch.sigmoid(algorithm.logits(*batch, torch.zeros(20)))
        torch.testing.assert_close(algorithm.compute_reward(*batch), -torch.log(1 - d))
        assert torch.equal(net(*batch), algorithm.compute_reward(*batch))  # what a run saves


def test_airl_logit_subtracts_the_log_probability_and_its_reward_does_not():
    net, algorithm, _ = make(airl.AIRLReward, airl.AIRL)
    obs, acts, next_obs = transitions(20)
    with torch.no_grad():
        s, next_s = net.obs_norm(obs), net.obs_norm(next_obs)
        f = net.g(torch.cat([s, net.act_norm(acts)], -1)) + 0.99 * net.h(next_s) - net.h(s)
        torch.testing.assert_close(algorithm.compute_reward(obs, acts, next_obs), f)
        no_ends = torch.zeros(20)
        torch.testing.assert_close(algorithm.logits(obs, acts, next_obs, no_ends), f)  # no policy
        policy = irl.Policy(OBS_DIM, ACTION_DIM)
        algorithm.set_policy(policy, None)
        logprob = policy.get_action_and_value(obs, acts)[1]
        torch.testing.assert_close(algorithm.logits(obs, acts, next_obs, no_ends), f - logprob)


def test_airl_v2_knows_ends_in_the_logit_and_not_in_the_reward():
    net, algorithm, _ = make(airl_v2.AIRLRewardV2, airl_v2.AIRLV2)
    obs, acts, next_obs = transitions(20)
    dones = (torch.arange(20) % 3 == 0).float()
    with torch.no_grad():
        g, h, next_h = net.g(torch.cat([obs, acts], -1)), net.h(obs), net.h(next_obs)
        logits = g + 0.99 * (1 - dones) * next_h - h
        torch.testing.assert_close(algorithm.logits(obs, acts, next_obs, dones), logits)
        f = g + 0.99 * next_h - h
    rewards = algorithm.compute_reward(obs, acts, next_obs)
    torch.testing.assert_close(rewards, (f - f.mean()) / f.std(correction=0), atol=1e-4, rtol=1e-3)


def test_later_versions_take_four_steps_and_normalise_by_the_rollouts_states():
    for classes in [V2_GAIL, V2_AIRL]:
        net, algorithm, demos = make(*classes)
        rollout = transitions(256, shift=-0.5)
        algorithm.update(*rollout, torch.zeros(256))
        assert algorithm.optimizer.state[next(net.parameters())]["step"] == 4
        torch.testing.assert_close(net.norm.running_mean, rollout[0].mean(0))
        assert net.norm.running_mean.max() < demos["obs"].mean(0).min()


@pytest.mark.parametrize("classes", [V1_GAIL, V2_GAIL, (airl.AIRLReward, airl.AIRL), V2_AIRL])
def test_discriminators_learn_to_prefer_the_expert(classes):
    _, algorithm, demos = make(*classes)
    if hasattr(algorithm, "set_policy"):
        algorithm.set_policy(irl.Policy(OBS_DIM, ACTION_DIM), None)
    rollout = transitions(256, shift=-0.5)
    for _ in range(100):
        algorithm.update(*rollout, torch.zeros(256))
    with torch.no_grad():
        expert = algorithm.reward_net(demos["obs"], demos["acts"], demos["next_obs"])
        assert expert.mean() > algorithm.reward_net(*rollout).mean() + 0.5


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


def test_controls_pay_one_and_what_an_untrained_network_says():
    batch = transitions(20)
    _, algorithm, _ = make(constant.ConstantReward, constant.Constant)
    assert (algorithm.compute_reward(*batch) == 1).all()
    net, algorithm, demos = make(airl.AIRLReward, untrained.Untrained)
    before = algorithm.compute_reward(*batch)
    algorithm.update(*batch, torch.zeros(20))
    torch.testing.assert_close(algorithm.compute_reward(*batch), before)
    normalized = net.obs_norm(demos["obs"])
    torch.testing.assert_close(normalized.mean(0), torch.zeros(OBS_DIM), atol=1e-3, rtol=0)


def test_a_frozen_reward_is_the_finished_runs_network(tiny_run):
    folder, result, _ = tiny_run
    make_net, algorithm_cls, method = frozen(folder, irl.Args("Hopper-v4", **AS_TINY))
    assert (algorithm_cls, method) == (Frozen, "custom-frozen")
    weights = torch.load(folder / "reward_net.pt")
    for key, value in make_net(*result["dims"]).state_dict().items():
        assert torch.equal(value, weights[key])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "Walker2d-v4"}, "its reward was learned in Hopper-v4; expected --env Hopper-v4"),
        ({"demo_episodes": 50}, "with demo_episodes 4, here it is 50; expected the same --demo-ep"),
        ({"no_policy_access": True}, "with no_policy_access False, here it is True; expected the"),
        ({"demos": Path("mine.npz")}, "with demos None, here it is mine.npz; expected the same --"),
    ],
)
def test_a_run_on_a_frozen_reward_has_its_task_which_labels_it(tiny_run, changes, message):
    args = irl.Args(**{"env": "Hopper-v4", **AS_TINY, **changes})
    with pytest.raises(irl.UserError, match=message):
        frozen(tiny_run[0], args)


class Steeper(irl.IRLAlgorithm):
    hyperparameters = replace(irl.IRLAlgorithm.hyperparameters, terminal_cost=1000.0, gamma=0.5)


def test_a_loaded_reward_has_the_hyperparameters_of_its_run(tmp_path, monkeypatch):
    """Also one that was frozen since; the class's own are others."""
    nets = []

    class Kept(irl.RewardNetwork):
        def __init__(self, *dims):
            super().__init__(*dims)
            nets.append(self)

    args = irl.Args("Hopper-v4", no_policy_access=True, **TINY, out=tmp_path / "first")
    irl.run(Kept, Steeper, args, "custom")
    batch = transitions(20, dims=(11, 3))
    paid = nets[0](*batch).detach().numpy()
    assert np.abs(paid).max() > 100
    words = ["frozen", args.out, "--env", "Hopper-v4", "--no-policy-access", "--seed", "2"]
    words += [f"--{key.replace('_', '-')}={value}" for key, value in TINY.items()]
    words = [*map(str, words), "--out", str(tmp_path / "again")]
    monkeypatch.setattr(sys, "argv", ["resume", *words])
    resume.main()
    assert runs.read_result(tmp_path / "again")["method"] == "custom-frozen"
    for folder in (tmp_path / "first", tmp_path / "again"):
        np.testing.assert_allclose(load_reward(folder)(*batch), paid, rtol=1e-5)


def test_a_hyperparameter_of_another_type_is_named(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run[0], tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    result["hyperparameters"]["terminal_cost"] = "high"
    (folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(irl.UserError, match=r"result.json: .*'terminal_cost' is 'high'; expected"):
        load_run(folder)


def leave_gail_run(folder: Path, method: str = "gail") -> None:
    """What load_run needs of a finished one."""
    result = {"schema": 2, "method": method, "dims": [OBS_DIM, ACTION_DIM]}
    result |= {"env": "Hopper-v4", "config": {}}
    (folder / "result.json").write_text(json.dumps(result))
    torch.save(irl.Policy(OBS_DIM, ACTION_DIM).state_dict(), folder / "policy.pt")
    torch.save(gail.GAILDiscriminator(OBS_DIM, ACTION_DIM).state_dict(), folder / "reward_net.pt")


def test_the_file_of_a_frozen_reward_identifies_its_runs(tmp_path):
    leave_gail_run(tmp_path)
    files = runs.modules_of(frozen(tmp_path, irl.Args("Hopper-v4"))[:2])
    assert {Path(file).name for file in files} == {"frozen.py", "gail.py", "shared.py"}


@pytest.mark.parametrize("method", ["imitation-gail", "sb3-oracle", "sac-custom-frozen"])
def test_a_policy_of_another_library_is_not_called_damaged(method, tmp_path):
    leave_gail_run(tmp_path, method)
    with pytest.raises(irl.UserError, match=rf"of another library \({method}\), which cannot be"):
        load_run(tmp_path)


def test_a_run_without_a_reward_cannot_be_frozen(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run[0], tmp_path / "oracle")
    (folder / "reward_net.pt").unlink()
    with pytest.raises(irl.UserError, match="learns no reward"):
        frozen(folder, irl.Args("Hopper-v4"))
    with pytest.raises(irl.UserError, match="expected the folder of a finished run"):
        frozen(tmp_path, irl.Args("Hopper-v4"))


@pytest.mark.parametrize("method", [name for name in runs.METHODS if name != "custom"])
def test_each_method_runs(method, tmp_path):
    args = irl.Args("Hopper-v4", out=tmp_path / method, **TINY)
    result = irl.run(*runs.method_named(method).classes(), args, method)
    assert (result["method"], result["steps"]) == (method, 2048)
    assert result["normalized_return"] is not None


@pytest.mark.parametrize("peer", ["bc", "airl"])
def test_imitations_trainers_leave_the_result_of_any_run(peer, tmp_path, monkeypatch):
    monkeypatch.setattr(imitation_peers, "BC_EPOCHS", 1)
    args = irl.Args("Hopper-v4", out=tmp_path / "run", **TINY)
    result = imitation_peers.run(peer, args)
    assert result == runs.read_result(args.out)
    assert result["steps"] == (0 if peer == "bc" else 2048)
    assert result["demos"]["transitions"] == 200
    assert json.loads((args.out / "origin.json").read_text())["quick"] is False
    assert imitation_peers.run(peer, args) == result  # read, not trained again


def test_imitations_bc_takes_fewer_transitions_than_its_batch(monkeypatch, tmp_path):
    monkeypatch.setattr(imitation_peers, "BC_EPOCHS", 1)
    args = irl.Args("Hopper-v4", out=tmp_path, demo_episodes=1, demo_subsample=50)
    assert imitation_peers.run("bc", args)["demos"]["transitions"] == 20


def test_flags_that_are_not_read_are_refused(tmp_path, monkeypatch):
    words = ["bc", "--env", "Hopper-v4", "--gamma", "0.9", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["imitation_peers", *words])
    with pytest.raises(irl.UserError, match="--gamma: not read by imitation's BC; expected some"):
        imitation_peers.main()
    assert list(tmp_path.iterdir()) == []


def test_imitations_trainers_refuse_what_they_cannot_do(tmp_path):
    args = irl.Args("Hopper-v4", out=tmp_path, true_reward=True)
    with pytest.raises(irl.UserError, match="--true-reward: imitation's trainers have no such"):
        imitation_peers.run("gail", args)
    with pytest.raises(irl.UserError, match="--out: expected the folder"):
        imitation_peers.run("gail", irl.Args("Hopper-v4"))
