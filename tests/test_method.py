"""The EDITABLE region: its mathematics, and the contract it obeys in a loop that is not ours."""

import ast
import builtins
import os
import random
import time
from dataclasses import dataclass
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim

import custom_irl as irl

HEADER = dict(
    os=os, random=random, time=time, dataclass=dataclass, gym=gym, np=np, torch=torch, nn=nn, F=F, optim=optim
)
OBS_DIM, ACTION_DIM = 11, 3


def region() -> str:
    text = (irl.ROOT / "custom_irl.py").read_text()
    lines = text.splitlines()
    begin, end = (next(i for i, line in enumerate(lines) if mark in line and line.startswith("#"))
                  for mark in ("EDITABLE REGION BEGIN", "EDITABLE REGION END"))  # fmt: skip
    return "\n".join(lines[begin : end + 1])


def batch(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    obs = torch.randn(n, OBS_DIM, generator=g)
    return obs, torch.randn(n, ACTION_DIM, generator=g), obs + 0.1 * torch.randn(n, OBS_DIM, generator=g)


def make(reward_cls=irl.RewardNetwork, algorithm_cls=irl.IRLAlgorithm, n_expert=512):
    torch.manual_seed(0), np.random.seed(0)
    obs, acts, next_obs = batch(n_expert, seed=1)
    demos = {"obs": obs + 1.0, "acts": 0.1 * acts, "next_obs": next_obs + 1.0}
    args = SimpleNamespace(irl_lr=3e-4, irl_batch_size=64, n_irl_updates_per_round=5)
    net = reward_cls(OBS_DIM, ACTION_DIM)
    return net, algorithm_cls(net, demos, OBS_DIM, ACTION_DIM, torch.device("cpu"), args), demos


# ------------------------------------------------------------------------------------------------------- mathematics


@torch.no_grad()
def randomize(net: nn.Module) -> None:
    net.c.fill_(7.0)
    for p in net.parameters():
        p.copy_(torch.randn_like(p) / max(1, p.shape[-1]) ** 0.5)


def test_shaping_telescopes_along_a_trajectory():
    """sum_t gamma^t f_t = sum_t gamma^t g_t + gamma^T Phi(s_T) - Phi(s_0), for any weights (Ng et al. 1999)."""
    net, _, _ = make()
    randomize(net)
    net.double()
    states, acts = torch.randn(31, OBS_DIM).double(), torch.randn(30, ACTION_DIM).double()
    discount = net.gamma ** torch.arange(30).double()
    with torch.no_grad():
        shaped = (discount * net(states[:-1], acts, states[1:])).sum()
        plain = (discount * net.g(states[:-1], acts, states[1:])).sum()
        potential = net.potential(states)
    torch.testing.assert_close(shaped, plain + net.gamma**30 * potential[-1] - potential[0])


def test_dying_costs_the_value_and_living_does_not():
    """An ordinary step loses (1 - gamma) c of g, the one into a terminal state all of c."""
    net, c = make()[0], 40.0
    with torch.no_grad():
        net.c.fill_(c), net.end_log_odds.zero_()
        net.end_logit[0].weight.zero_()[0, 0] = 10.0  # p(s) is 1 where the first coordinate is large, else 0
        net.end_logit[2].weight.zero_()[0, 0] = 10.0
        net.end_logit[-1].weight.zero_()[0, 0] = 60.0
        net.end_logit[0].bias.zero_(), net.end_logit[2].bias.zero_(), net.end_logit[-1].bias.zero_()
        obs, acts, _ = batch(8)
        obs[:, 0] = net.obs_mean[0] - 5
        alive, dead = obs.clone(), obs.clone()
        dead[:, 0] = net.obs_mean[0] + 5
        torch.testing.assert_close(net(obs, acts, alive), net.g(obs, acts, alive) - (1 - net.gamma) * c)
        torch.testing.assert_close(net(obs, acts, dead), net.g(obs, acts, dead) - c)


def test_observation_normalizer_equals_numpy_and_is_saved():
    net, _, demos = make()
    x = demos["obs"].numpy()
    np.testing.assert_allclose(net.obs_mean.numpy(), x.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net.obs_std.numpy(), np.maximum(x.std(0), 0.05), rtol=1e-4)
    np.testing.assert_array_equal(net.act_high.numpy(), demos["acts"].numpy().max(0))
    assert {"obs_mean", "obs_std", "act_low", "act_high", "expert_score", "policy_score", "c"} <= set(net.state_dict())


def test_g_follows_the_critic_between_policy_and_expert():
    net = make()[0]
    with torch.no_grad():
        net.critic[-1].weight.zero_()
        net.policy_score.fill_(-3.0), net.expert_score.fill_(5.0)
        for score, expected in ((-3.0, -2.0), (1.0, 0.0), (5.0, 2.0)):
            net.critic[-1].bias.fill_(score)
            torch.testing.assert_close(net.g(*batch(4)), torch.sigmoid(torch.full((4,), expected)))


def test_gradient_penalty_slope_equals_finite_differences():
    net, _, _ = make()
    randomize(net)
    net.double()
    x = torch.randn(4, 2 * OBS_DIM + ACTION_DIM, dtype=torch.double, requires_grad=True)
    (slope,) = torch.autograd.grad(net.critic(x).sum(), x)
    step = 1e-6
    for j in range(x.shape[1]):
        e = torch.zeros_like(x)
        e[:, j] = step
        with torch.no_grad():
            difference = (net.critic(x + e) - net.critic(x - e)).squeeze(-1) / (2 * step)
        torch.testing.assert_close(slope[:, j], difference, rtol=1e-5, atol=1e-7)


def test_the_reward_prefers_the_expert_after_training():
    net, algorithm, demos = make()
    rollout = batch(256, seed=2)
    for _ in range(40):
        report = algorithm.update(*rollout, torch.zeros(256))
    with torch.no_grad():
        expert = net.g(demos["obs"], demos["acts"], demos["next_obs"]).mean()
        policy = net.g(*rollout).mean()
    assert expert > policy + 0.4 and report["critic_gap"] > 0


@pytest.mark.parametrize("time_limits", [False, True])
def test_endings_are_learned_as_terminal_but_time_limits_are_not(time_limits):
    """States beyond 3 end episodes; a done in an ordinary state is a time limit and must not count as an end."""
    net, algorithm, _ = make()
    obs, acts, next_obs = batch(2048, seed=3)
    next_obs[:200, 0] = 3.0 + next_obs[:200, 0].abs()
    dones = torch.zeros(2048)
    dones[:200] = 1
    if time_limits:
        dones[200:210] = 1
    for _ in range(120):
        algorithm.update(obs, acts, next_obs, dones)
    with torch.no_grad():
        p = net.end_probability(next_obs)
    assert p[:200].mean() > 0.9 and p[200:].mean() < 0.05


# ---------------------------------------------------------------------------------------------------------- contract


def test_region_uses_only_the_header_and_imports_nothing():
    tree = ast.parse(region())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    stored |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    stored |= {arg.arg for node in ast.walk(tree) if isinstance(node, ast.arguments)
               for arg in [*node.args, *node.kwonlyargs, *filter(None, [node.vararg, node.kwarg])]}  # fmt: skip
    loaded = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    assert loaded - stored - set(HEADER) - set(dir(builtins)) == set()


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("dones", ["terminations", "with time limits", "column"])
def test_region_runs_alone_in_another_loop(shuffled, dones):
    """Nothing but the header's names, one environment, transitions in any order, dones of any kind."""
    namespace = {"__name__": "elsewhere", **HEADER}
    exec(compile(region(), "region", "exec"), namespace)
    net, algorithm, _ = make(namespace["RewardNetwork"], namespace["IRLAlgorithm"])
    if hasattr(algorithm, "set_policy"):
        policy = irl.Policy(OBS_DIM, ACTION_DIM)
        algorithm.set_policy(policy, optim.Adam(policy.parameters(), lr=3e-4, eps=1e-5))
    for round_ in range(3):
        obs, acts, next_obs = batch(2048, seed=round_)
        ended = torch.zeros(2048)
        ended[99::100] = 1
        if dones == "with time limits":
            ended[1000] = 1
        order = torch.randperm(2048) if shuffled else torch.arange(2048)
        obs, acts, next_obs, ended = (x[order] for x in (obs, acts, next_obs, ended))
        reward = algorithm.compute_reward(obs, acts, next_obs)
        assert reward.shape == (2048,) and reward.isfinite().all() and not reward.requires_grad
        for _ in range(5):
            report = algorithm.update(obs, acts, next_obs, ended[:, None] if dones == "column" else ended)
            assert all(np.isfinite(float(value)) for value in report.values())
    assert net(obs, acts, next_obs).shape == (2048,)


@pytest.mark.parametrize("dims", [(17, 6), (11, 3)])
def test_reward_network_is_within_the_cap(dims):
    irl.check_size(irl.RewardNetwork(*dims), *dims)


def test_the_cap_is_the_contracts_and_names_the_class():
    class TooLarge(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(size))

    irl.check_size(TooLarge(149_992), 17, 6)  # 1.05 x 142,850, the contract's figure
    with pytest.raises(irl.UserError, match="TooLarge: 149993 parameters"):
        irl.check_size(TooLarge(149_993), 17, 6)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (torch.zeros(8, 1), r"Faulty.compute_reward: returned shape \(8, 1\); expected \(8,\)"),
        (torch.zeros(7), r"Faulty.compute_reward: returned shape \(7,\); expected \(8,\)"),
        (None, r"Faulty.compute_reward: returned shape \(\)"),
        (torch.tensor([0.0] * 6 + [torch.nan, torch.inf]), r"Faulty.compute_reward: returned 2 values of 8"),
    ],
)
def test_a_faulty_reward_is_named(reward, message):
    class Faulty:
        def compute_reward(self, obs, acts, next_obs):
            return reward

    with pytest.raises(irl.UserError, match=message):
        irl.learned_rewards(Faulty(), batch(8))
