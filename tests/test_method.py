"""The EDITABLE region: its mathematics, and the contract it obeys in a loop that is not ours."""

import ast
import builtins
import os
import random
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim

import custom_irl as irl

HEADER = {
    "os": os,
    "random": random,
    "time": time,
    "dataclass": dataclass,
    "gym": gym,
    "np": np,
    "torch": torch,
    "nn": nn,
    "F": F,
    "optim": optim,
}
OBS_DIM, ACTION_DIM = 11, 3
CPU = torch.device("cpu")


def region() -> str:
    """The text between the two lines, these included."""
    lines = (irl.ROOT / "custom_irl.py").read_text().splitlines()
    marks = ("EDITABLE REGION BEGIN", "EDITABLE REGION END")
    begin, end = (
        next(i for i, line in enumerate(lines) if mark in line and line.startswith("#"))
        for mark in marks
    )
    return "\n".join(lines[begin : end + 1])


def region_namespace() -> dict:
    """What the region defines when it runs with nothing but the header's names."""
    namespace = {"__name__": "elsewhere", **HEADER}
    exec(compile(region(), "region", "exec"), namespace)
    return namespace


def batch(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    obs = torch.randn(n, OBS_DIM, generator=g)
    acts = torch.randn(n, ACTION_DIM, generator=g)
    return obs, acts, obs + 0.1 * torch.randn(n, OBS_DIM, generator=g)


def make(
    reward_cls=irl.RewardNetwork,
    algorithm_cls=irl.IRLAlgorithm,
    n_expert=512,
    shift=1.0,
    scale=1.0,
    **changes,
):
    """A network, an algorithm with some hyperparameters changed, and its demonstrations."""
    torch.manual_seed(0)
    np.random.seed(0)
    obs, acts, next_obs = batch(n_expert, seed=1)
    obs, next_obs = (scale * x + shift for x in (obs, next_obs))
    demos = {"obs": obs, "acts": 0.1 * acts, "next_obs": next_obs}
    args = SimpleNamespace(irl_lr=3e-4, irl_batch_size=64, n_irl_updates_per_round=5)
    net = reward_cls(OBS_DIM, ACTION_DIM)
    hyperparameters = replace(algorithm_cls.hyperparameters, **changes)
    changed = type("Changed", (algorithm_cls,), {"hyperparameters": hyperparameters})
    return net, changed(net, demos, OBS_DIM, ACTION_DIM, CPU, args), demos


def with_policy(**changes):
    """An algorithm with access to a policy: its improvement, the policy, the demonstrations."""
    _, algorithm, demos = make(**changes)
    policy = irl.Policy(OBS_DIM, ACTION_DIM)
    algorithm.set_policy(policy, optim.Adam(policy.parameters(), lr=3e-4, eps=1e-5))
    return algorithm, policy, demos


@torch.no_grad()
def randomize(net: nn.Module) -> None:
    for p in net.parameters():
        p.copy_(torch.randn_like(p) / max(1, p.shape[-1]) ** 0.5)


def parameters_of(net: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


# -------------------------------------------------------------------------------------- the reward
REWARDS = {  # the reward, its g and its potential
    "forward": (
        lambda net: net,
        lambda net: net.g,
        lambda net: lambda state: net.hyperparameters.terminal_cost * net.survival_prob(state),
    ),
    "training_reward": (
        lambda net: net.training_reward,
        lambda net: net.policy_relative_g,
        lambda net: net.potential,
    ),
}


@pytest.mark.parametrize("which", REWARDS)
def test_shaping_telescopes_along_a_trajectory(which):
    """sum_t gamma^t f_t = sum_t gamma^t g_t + gamma^T Phi(s_T) - Phi(s_0) (Ng et al. 1999)."""
    net, _, _ = make()
    randomize(net)
    net.double()
    gamma = net.hyperparameters.gamma
    states = torch.randn(31, OBS_DIM).double()
    acts = torch.randn(30, ACTION_DIM).double()
    discount = gamma ** torch.arange(30).double()
    f, g, potential = (part(net) for part in REWARDS[which])
    with torch.no_grad():
        shaped = (discount * f(states[:-1], acts, states[1:])).sum()
        plain = (discount * g(states[:-1], acts, states[1:])).sum()
        phi = potential(states)
    torch.testing.assert_close(shaped, plain + gamma**30 * phi[-1] - phi[0])


def test_dying_costs_the_potential_and_living_does_not():
    """A step that ends nothing loses (1 - gamma) Phi of g, one into a terminal state Phi."""
    net, value = make()[0], 40.0
    hp = net.hyperparameters
    with torch.no_grad():
        # p(s) is 1 where the first coordinate is large, else 0
        net.termination_prior_logit.zero_()
        for layer, weight in ((0, 10.0), (2, 10.0), (-1, 60.0)):
            net.termination_net[layer].weight.zero_()[0, 0] = weight
            net.termination_net[layer].bias.zero_()
        net.value_net[-1].bias.fill_(value / hp.value_scale)
        obs, acts, _ = batch(8)
        obs[:, 0] = net.obs_mean[0] - 5
        living, dead = obs.clone(), obs.clone()
        dead[:, 0] = net.obs_mean[0] + 5
        cases = (
            (net, net.g, hp.terminal_cost),
            (net.training_reward, net.policy_relative_g, value),
        )
        for f, g, phi in cases:
            alive = g(obs, acts, living) - (1 - hp.gamma) * phi
            torch.testing.assert_close(f(obs, acts, living), alive)
            torch.testing.assert_close(f(obs, acts, dead), g(obs, acts, dead) - phi)


def test_the_normalizer_equals_numpy_and_is_saved():
    net, _, demos = make()
    x = demos["obs"].numpy()
    np.testing.assert_allclose(net.obs_mean.numpy(), x.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net.obs_std.numpy(), np.maximum(x.std(0), 0.05), rtol=1e-4)
    np.testing.assert_array_equal(net.act_high.numpy(), demos["acts"].numpy().max(0))
    other = irl.RewardNetwork(OBS_DIM, ACTION_DIM)
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(other(*batch(8)), net(*batch(8)))


def test_both_g_follow_the_critic_from_its_references_to_the_expert():
    net = make()[0]
    cases = ((-3.0, 1.0, -9.0), (1.0, 2.0, -3.0), (5.0, 3.0, 3.0), (-20.0, 0.0, -34.5))
    with torch.no_grad():
        net.critic[-1].weight.zero_()
        net.baseline_score.fill_(-3.0)
        net.policy_score_ema.fill_(1.0)
        net.expert_score_ema.fill_(5.0)
        for score, g, training_logit in cases:
            net.critic[-1].bias.fill_(score)
            torch.testing.assert_close(net.g(*batch(4)), torch.full((4,), g))
            relative = torch.sigmoid(torch.full((4,), training_logit))
            torch.testing.assert_close(net.policy_relative_g(*batch(4)), relative)


def test_the_reward_prefers_the_expert_after_training():
    net, algorithm, demos = make()
    rollout = batch(256, seed=2)
    for _ in range(40):
        stats = algorithm.update(*rollout, torch.zeros(256))
    with torch.no_grad():
        for g in (net.g, net.policy_relative_g):
            expert = g(demos["obs"], demos["acts"], demos["next_obs"])
            assert expert.mean() > g(*rollout).mean() + 0.4
    assert stats["critic_gap"] > 0


def test_the_critics_slope_is_held_near_one():
    """Without the penalty it grows without bound."""
    slopes = {}
    for weight in (0.0, 10.0):
        net, algorithm, demos = make(gradient_penalty=weight)
        rollout = batch(256, seed=2)
        for _ in range(60):
            algorithm.update(*rollout, torch.zeros(256))
        features = net.features(demos["obs"], demos["acts"], demos["next_obs"]).requires_grad_(True)
        (grad,) = torch.autograd.grad(net.critic(features).sum(), features)
        slopes[weight] = grad.norm(dim=1).mean().item()
    assert slopes[10.0] < 1.3
    assert slopes[0.0] > 2 * slopes[10.0]


@pytest.mark.parametrize("time_limits", [False, True])
def test_terminal_states_are_learned_and_time_limits_are_not(time_limits):
    """States beyond 5, where no expert is, end episodes; an end elsewhere is a time limit."""
    net, algorithm, _ = make()
    obs, acts, next_obs = batch(2048, seed=3)
    next_obs[:200, 0] = 5.0 + next_obs[:200, 0].abs()
    dones = torch.zeros(2048)
    dones[:200] = 1
    if time_limits:
        dones[200:210] = 1
    for _ in range(120):
        algorithm.update(obs, acts, next_obs, dones)
    with torch.no_grad():
        p = 1 - net.survival_prob(next_obs)
    assert p[:200].mean() > 0.9
    assert p[200:].mean() < 0.05


def test_every_transition_may_end_an_episode():
    """As in an environment of one step."""
    _, algorithm, _ = make()
    for _ in range(10):
        stats = algorithm.update(*batch(64), torch.ones(64))
    assert all(np.isfinite(float(value)) for value in stats.values())


# -------------------------------------------------------------------------------------- the replay
def slow_lambda_returns(rewards, next_values, gamma, td_lambda):
    """One trajectory (T,), by the recursion; the last step bootstraps."""
    returns = torch.empty_like(rewards)
    returns[-1] = rewards[-1] + gamma * next_values[-1]
    for t in reversed(range(len(rewards) - 1)):
        mixed = (1 - td_lambda) * next_values[t] + td_lambda * returns[t + 1]
        returns[t] = rewards[t] + gamma * mixed
    return returns


def test_lambda_returns_equal_the_slow_recursion_whatever_the_order():
    """Two trajectories of 40 steps, shuffled; an earlier rollout does not mix in."""
    replay = irl.Replay(*batch(16, seed=9))
    states = torch.randn(2, 41, OBS_DIM)
    acts = torch.randn(2, 40, ACTION_DIM)
    rewards, next_values = torch.randn(2, 2, 40)
    expected = torch.stack(
        [slow_lambda_returns(r, v, 0.99, 0.9) for r, v in zip(rewards, next_values)]
    )
    order = torch.randperm(80)
    columns = (states[:, :-1], acts, states[:, 1:], torch.zeros(2, 40, dtype=torch.bool))
    obs, acts, next_obs, ended = (x.flatten(0, 1)[order] for x in columns)
    replay.add(*batch(80, seed=7), ended)
    replay.add(obs, acts, next_obs, ended)
    flat = (x.flatten()[order] for x in (rewards, next_values))
    returns = replay.lambda_returns(*flat, gamma=0.99, td_lambda=0.9)
    torch.testing.assert_close(returns, expected.flatten()[order], rtol=1e-4, atol=1e-4)


def test_a_replay_holds_the_demonstrations_and_every_rollout_in_order():
    demos = batch(16, seed=9)
    replay = irl.Replay(*demos)
    rollouts = [(*batch(n, seed=n), torch.rand(n) < 0.5) for n in [5, 3, 400, 2] + 40 * [8]]
    for rollout in rollouts:
        replay.add(*rollout)
    names = ("obs", "acts", "next_obs", "ended")
    for name, first, *rest in zip(names, (*demos, torch.zeros(16, dtype=torch.bool)), *rollouts):
        assert torch.equal(getattr(replay, name), torch.cat([first, *rest]))
    assert replay.next_row.tolist() == (16 + 410 + 40 * 8) * [-1]
    assert torch.equal(demos[0], batch(16, seed=9)[0])


def test_rows_are_drawn_from_where_they_should_be():
    """The critic's policy rows: 1/2 of the newest rollouts, 1/8 of the first, the rest of all."""
    _, algorithm, _ = make()
    first, recent = algorithm.hyperparameters.bc_rounds + 1, algorithm.hyperparameters.recent_rounds
    for i in range(100):  # 2 marks a first rollout, 0 a recent one
        mark = 2.0 if i < first else 0.0 if i >= 100 - recent else 1.0
        rollout = [torch.full((64, n), mark) for n in (OBS_DIM, ACTION_DIM, OBS_DIM)]
        algorithm.replay.add(*rollout, torch.zeros(64, dtype=torch.bool))
    drawn = [algorithm.replay.obs[algorithm.sample_policy_rows(512), 0] for _ in range(40)]
    shares = [(torch.cat(drawn) == mark).float().mean().item() for mark in (0, 1, 2)]
    expected = [0.5 + 0.375 * 0.05, 0.375 * 0.74, 0.125 + 0.375 * 0.21]
    assert shares == pytest.approx(expected, abs=0.02)
    expert = algorithm.replay.sample_expert(1000)
    assert ((expert >= 0) & (expert < 512)).all()


def test_the_value_is_zero_after_a_termination_and_not_after_a_time_limit():
    """g is 0.5 at the middle of the score's range, so V is 0.5 / (1 - gamma) without ends."""
    net, algorithm, _ = make(value_steps=400, value_lr=3e-3)
    net.critic[-1].weight.data.zero_()
    net.critic[-1].bias.data.fill_(0.5)
    algorithm.critic_step = dict
    algorithm.termination_step = dict
    obs, acts, next_obs = batch(512, seed=3)
    ended = torch.ones(512, dtype=torch.bool)
    for deadly, expected in ((True, 0.5), (False, 0.5 + 0.99 * 7.0)):
        with torch.no_grad():
            net.termination_net[-1].weight.zero_()
            net.termination_net[-1].bias.fill_(60.0 if deadly else -60.0)
            net.value_net[-1].weight.zero_()
            net.value_net[-1].bias.fill_(0.7)  # V = 7
        algorithm.replay.add(obs, acts, next_obs, ended)
        algorithm.fit_value()
        with torch.no_grad():
            assert net.value(obs).mean().item() == pytest.approx(expected, abs=0.1)


# -------------------------------------------------------------------------------------- the policy
def test_bc_actors_do_not_depend_on_the_units_of_the_observations():
    hidden = []
    for shift, scale in ((0.0, 1.0), (7.0, 2.0)):
        algorithm, policy, demos = with_policy(shift=shift, scale=scale)
        actors = algorithm.improvement.bc_actors + algorithm.cloning.actors
        with torch.no_grad():
            hidden.append([actor[:-1](demos["obs"]) for actor in actors])
            for actor in (policy.actor_mean, *actors):
                assert (actor(demos["obs"]) == 0).all()
    for plain, shifted in zip(*hidden):
        torch.testing.assert_close(plain, shifted, rtol=1e-3, atol=1e-4)
    assert (hidden[0][0] - hidden[0][1]).abs().mean() > 0.1  # two different actors


def test_bc_learns_the_demonstrations_and_what_is_rare_in_them(monkeypatch):
    """Every 16th action is unlike the others. Drawn by error these are learned sooner."""
    rare = []
    for draw in (torch.multinomial, lambda weights, n: torch.randint(len(weights), (n,))):
        monkeypatch.setattr(torch, "multinomial", draw)
        algorithm, _, demos = with_policy(bc_steps=250)
        demos["acts"][:] = 0.3 * demos["obs"][:, :ACTION_DIM].sin()
        demos["obs"][::16, 4] += 5.0
        demos["acts"][::16] = 1.0
        torch.manual_seed(0)
        algorithm.improvement.cloning.train(11)
        errors = algorithm.improvement.bc_actors[0](demos["obs"]) - demos["acts"]
        squares = errors.square().mean(1)
        rare.append(squares[::16].mean())
        assert squares.mean() < 0.1 * demos["acts"].var()
    assert rare[0] < 0.7 * rare[1]


@pytest.mark.parametrize(("transitions", "steps"), [(50, 21), (200, 24), (1000, 40), (3000, 40)])
def test_bc_takes_fewer_steps_on_few_transitions(monkeypatch, transitions, steps):
    algorithm, _, _ = with_policy(bc_steps=40)
    algorithm.replay.n_expert = transitions
    counted = []
    monkeypatch.setattr(irl, "gradient_step", lambda optimizer, loss: counted.append(loss))
    monkeypatch.setattr(algorithm.replay, "sample_expert", lambda size: torch.randint(512, (size,)))
    algorithm.improvement.cloning.train(1)
    assert len(counted) == steps


def test_bc_actors_disagree_where_nothing_was_demonstrated():
    algorithm, _, demos = with_policy(bc_steps=500)
    improvement = algorithm.improvement
    demos["acts"][:] = 0.3 * demos["obs"][:, :ACTION_DIM].sin()
    improvement.cloning.train(11)
    obs, acts, next_obs = batch(512, seed=4)
    algorithm.replay.add(obs + 8, acts, next_obs, torch.zeros(512, dtype=torch.bool))
    improvement.query_bc_actors()
    known, unknown = improvement.disagreement.split(512)
    assert unknown.median() > 20 * known.median()
    with torch.no_grad():
        first, second = (actor(algorithm.replay.obs) for actor in improvement.bc_actors)
    torch.testing.assert_close(improvement.bc_acts, first)
    squares = (first - second).square().mean(1)
    torch.testing.assert_close(improvement.disagreement, squares / 4e-4)


@pytest.mark.parametrize(("time_limits", "value"), [(False, 1.0), (True, 2.0)])
def test_q_is_the_discounted_reward_until_a_termination(time_limits, value):
    """g is 1 and gamma 0.5: Q is 1 / (1 - 0.5) = 2, but 1 in the last step before a termination.

    States beyond 5 look terminal; an end elsewhere is a time limit.
    """
    algorithm, _, demos = with_policy(target_refreshes=2, gamma=0.5)
    net, improvement = algorithm.reward_net, algorithm.improvement
    net.g = lambda obs, acts, next_obs: torch.ones(len(obs))
    net.continuation = lambda state, ended: 1 - ended * (state[:, 0] > 5).float()
    obs, acts, next_obs = batch(2048, seed=3)
    ended = torch.rand(2048) < 0.5
    obs[ended, 1] -= 20.0  # far away, so that Q can tell
    next_obs[ended, 0] = 0.0 if time_limits else 6.0
    algorithm.replay.add(obs, acts, next_obs, ended)
    improvement.bc_acts = algorithm.replay.acts
    improvement.disagreement = torch.zeros(512 + 2048)
    improvement.base_lr = 1e-3
    for _ in range(150):
        improvement.fit_q(with_actor=False)
    with torch.no_grad():
        q = improvement.q_values(improvement.q, obs, acts)
        expert = improvement.q_values(improvement.q, demos["obs"], demos["acts"])
    assert q[:, ended].mean().item() == pytest.approx(value, abs=0.2)
    assert q[:, ~ended].mean().item() == pytest.approx(2.0, abs=0.2)
    assert expert.mean().item() == pytest.approx(2.0, abs=0.2)


def test_disagreement_is_subtracted_from_qs_reward():
    algorithm, _, _ = with_policy()
    rollout = batch(64)
    algorithm.replay.add(*rollout, torch.zeros(64, dtype=torch.bool))
    disagreement = [torch.zeros(512), torch.full((32,), 1.0), torch.full((32,), 99.0)]
    algorithm.improvement.disagreement = torch.cat(disagreement)
    with torch.no_grad():
        g = algorithm.reward_net.g(*rollout)
    penalty = g - algorithm.improvement.q_rewards(slice(-64, None))
    torch.testing.assert_close(penalty[:32], torch.full((32,), 0.15 * np.log(2)))
    torch.testing.assert_close(penalty[32:], torch.full((32,), 0.15 * np.log(100)))


def improvement_with_two_places(**changes):
    """BC actors trained a little; 512 rows in each of two places, disagreement 0 and 1000 there.

    In both, one Q says that higher actions are better and the lower one says the opposite.
    """
    algorithm, _, _ = with_policy(bc_steps=500, **changes)
    improvement = algorithm.improvement
    improvement.cloning.train(11)
    irl.polyak_update(improvement.actor, improvement.bc_actors[0], tau=1.0)
    places = [batch(512, seed=seed)[0] for seed in (4, 5)]
    places[0][:, 0] += 20
    places[1][:, 0] -= 20
    for obs in places:
        algorithm.replay.add(obs, *batch(512)[1:], torch.zeros(512, dtype=torch.bool))
    improvement.query_bc_actors()
    improvement.disagreement[512:1024] = 0.0
    improvement.disagreement[1024:] = 1000.0
    improvement.actor_optimizer.param_groups[0]["lr"] = 1e-3
    improvement.q_values = lambda q, obs, acts: torch.stack([20 + acts.sum(1), 10 - acts.sum(1)])
    return improvement, places


def test_the_actor_stays_the_bc_policy_without_disagreement_and_climbs_the_lower_q_with_much():
    improvement, (sure, unsure) = improvement_with_two_places()
    for _ in range(30):
        improvement.actor_step(torch.arange(512, 1536))
    with torch.no_grad():
        stayed, moved = (improvement.actor(x) - improvement.bc_actors[0](x) for x in (sure, unsure))
    assert moved.mean() < -0.2
    assert stayed.abs().mean() < 0.2 * moved.abs().mean()


def test_q_has_no_weight_at_disagreement_zero():
    """Not even where the BC term does not hold the actor."""
    improvement, _ = improvement_with_two_places(bc_coef=0.0)
    before = parameters_of(improvement.actor)
    improvement.actor_step(torch.arange(512, 1024))
    assert torch.equal(parameters_of(improvement.actor), before)
    improvement.actor_step(torch.arange(1024, 1536))
    assert not torch.equal(parameters_of(improvement.actor), before)


def test_a_better_bc_policy_holds_the_actor_more(monkeypatch):
    improvement, _ = improvement_with_two_places()
    improvement.q_weight = torch.zeros_like
    with torch.no_grad():
        for p in improvement.actor[-1].parameters():
            p *= 0.5
    losses = []
    monkeypatch.setattr(irl, "gradient_step", lambda optimizer, loss: losses.append(loss.item()))
    for improvement.bc_scale in (1.0, 100.0):
        torch.manual_seed(0)
        improvement.actor_step(torch.arange(1024, 1536))
    assert losses[0] > 0
    assert losses[1] == pytest.approx(100 * losses[0])


@pytest.mark.parametrize(
    ("score", "scale"), [(-1.0, 1), (0.8, 1), (0.95, 2), (0.99, 10), (1.0, 100), (1.2, 100)]
)
def test_bc_scale_is_the_inverse_of_what_the_bc_policy_lacks(score, scale):
    """It reads the rollouts of the BC policy's evaluation, the newest ones, and no others."""
    algorithm, _, _ = with_policy(bc_eval_rounds=2)
    for mark in (0.0, 100.0, 100.0):
        obs, acts, next_obs = batch(64)
        algorithm.replay.add(obs + mark, acts, next_obs, torch.zeros(64, dtype=torch.bool))
    net = algorithm.reward_net
    net.normalized_score = lambda obs, *rest: torch.where(obs[:, 0] > 50, score, -9.0)
    assert algorithm.improvement.estimate_bc_scale() == pytest.approx(scale, rel=1e-4)


@pytest.mark.parametrize(("disagreement", "share"), [(0.0, 0.0), (0.5, 0.4), (3.0, 1.0)])
def test_q_and_actor_are_updated_in_proportion_to_what_q_counts(disagreement, share):
    """2 h(0.5) is 0.4. It reads the rollouts of the BC policy's evaluation and no others."""
    algorithm, _, _ = with_policy(bc_eval_rounds=2, target_refreshes=10)
    improvement = algorithm.improvement
    for _ in range(3):
        algorithm.replay.add(*batch(64), torch.zeros(64, dtype=torch.bool))
    improvement.query_bc_actors()
    improvement.disagreement[:-128] = 9.0
    improvement.disagreement[-128:] = disagreement
    improvement.q_share = improvement.estimate_q_share()
    assert improvement.q_share == pytest.approx(share)
    refreshes = []
    improvement.td_targets = lambda rows: refreshes.append(1) or torch.zeros(len(rows))
    improvement.fit_q(with_actor=True)
    assert len(refreshes) == 10 * share


def test_targets_use_the_averaged_actor_and_not_the_learner():
    """Q is the sum of the actions here, so a learner far away would raise every target."""
    algorithm, policy, _ = with_policy()
    improvement = algorithm.improvement
    improvement.q_values = lambda networks, obs, acts: acts.sum(1).expand(2, -1)
    improvement.lr_fraction = 0.0  # the least smoothing noise
    obs = batch(4096)[0]
    with torch.no_grad():
        policy.actor_mean[-1].bias.fill_(0.5)
        improvement.actor[-1].bias.fill_(9.0)
        values = improvement.target_value(obs)
        expected = policy.actor_mean(obs).sum(1)
    torch.testing.assert_close(values.mean(), expected.mean(), rtol=0, atol=0.01)
    assert 0 < (values - expected).std() < 0.1


def test_the_policy_that_acts_is_a_polynomial_decay_average_of_the_actor():
    """tau is 9 / (8 + t): the actor goes up by 1 before each, the average is 1, 1.9, ..."""
    algorithm, policy, _ = with_policy(bc_rounds=2, bc_eval_rounds=1, improvement_interval=2)
    improvement = algorithm.improvement

    def fit_q(with_actor):
        with torch.no_grad():
            for p in improvement.actor.parameters():
                p += float(with_actor)

    improvement.fit_q = fit_q
    averages = []
    for round_ in range(8):
        algorithm.start_round(*batch(64), torch.zeros(64, dtype=torch.bool))
        if round_ == 2:
            start = parameters_of(policy.actor_mean)
        if round_ > 2 and round_ % 2:
            averages.append((parameters_of(policy.actor_mean) - start).mean().item())
    assert averages == pytest.approx([1.0, 1.9, 1.9 + 9 / 11 * 1.1], abs=1e-4)


@pytest.mark.parametrize("bc_rounds", [4, 10, 20])
def test_the_trained_bc_actor_is_evaluated_at_full_strength(bc_rounds):
    """However many rollouts of scaled actions there were before."""
    algorithm, policy, _ = with_policy(bc_rounds=bc_rounds, bc_eval_rounds=2, bc_steps=2)
    algorithm.improvement.fit_q = lambda with_actor: None
    for _ in range(bc_rounds + 2):
        algorithm.start_round(*batch(64), torch.zeros(64, dtype=torch.bool))
    bc_actor = algorithm.improvement.bc_actors[0]
    assert torch.equal(parameters_of(policy.actor_mean), parameters_of(bc_actor))


def test_the_policy_can_be_improved_before_every_rollout():
    algorithm, policy, _ = with_policy(
        bc_rounds=2, bc_eval_rounds=1, bc_steps=2, improvement_interval=1
    )
    calls = []
    algorithm.improvement.fit_q = lambda with_actor: calls.append(with_actor)
    for _ in range(6):
        algorithm.start_round(*batch(64), torch.zeros(64, dtype=torch.bool))
    assert calls == [False, False, True, True, True]  # rounds 2, 3; 4, 5, 6
    assert policy.actor_logstd.mean() == -3


def test_between_two_improvements_nothing_is_fitted_and_little_noise_added():
    algorithm, policy, _ = with_policy(
        bc_rounds=2, bc_eval_rounds=1, bc_steps=2, improvement_interval=3
    )
    improvement = algorithm.improvement
    calls = []
    improvement.fit_q = lambda with_actor: calls.append(with_actor)
    logstds = []
    for _ in range(10):
        algorithm.start_round(*batch(64), torch.zeros(64, dtype=torch.bool))
        logstds.append(policy.actor_logstd.mean().item())
    assert calls == [False, False, True, True, True]  # rounds 2, 3; 4, 7, 10
    assert logstds[3:] == [-3, -4, -4, -3, -4, -4, -3]


def test_ppo_never_moves_the_policy_while_it_is_paid_nothing():
    """The gradient is exactly 0, not merely small."""
    algorithm, policy, _ = with_policy()
    assert (algorithm.compute_reward(*batch(64)) == 0).all()
    before = parameters_of(policy)
    args = irl.Args()
    obs = torch.randn(args.num_steps, args.num_envs, OBS_DIM)
    with torch.no_grad():
        flat = policy.get_action_and_value(obs.flatten(0, 1))
    acts, logprobs, _, values = (x.unflatten(0, obs.shape[:2]) for x in flat)
    ended = torch.zeros(obs.shape[:2], dtype=torch.bool)
    ended[99::100] = True
    rewards = torch.zeros(ended.shape)
    rollout = irl.Rollout(obs, acts, obs, logprobs, values, values, rewards, ended, ended)
    irl.update_policy(policy, algorithm.improvement.ppo_optimizer, rollout, rewards, args)
    assert torch.equal(parameters_of(policy), before)


# -------------------------------------------------------------------------------- imitation reward
def test_the_advantage_of_the_imitation_reward_is_each_actions_own_distance():
    """In any order of the rows, whatever an episode ends with. The last step of a rollout has no
    successor in it, which changes that step alone."""
    _, algorithm, _ = make()
    shape = (64, 4)
    obs, acts, next_obs = (x.unflatten(0, shape) for x in batch(64 * 4))
    ended = torch.rand(shape) < 0.05
    terminated = ended & (torch.rand(shape) < 0.5)
    next_obs[:-1] = torch.where(ended[:-1, :, None], next_obs[:-1], obs[1:])
    order = torch.randperm(64 * 4)
    flat = [x.flatten(0, 1)[order] for x in (obs, acts, next_obs)]
    rewards = torch.empty(64 * 4)
    rewards[order] = algorithm.imitation_reward(*flat)
    nothing = torch.zeros(shape)
    advantages = irl.compute_gae(
        rewards.view(shape), nothing, nothing, terminated, ended, gamma=0.99, lam=0.95
    )
    distances = acts.square().sum(-1)  # an untrained BC actor's actions are 0
    with torch.no_grad():
        baseline = algorithm.baseline_net(algorithm.reward_net.normalize(obs)).squeeze(-1)
    torch.testing.assert_close(advantages, -distances - baseline, rtol=1e-4, atol=1e-4)


def test_no_state_is_paid_for_by_the_imitation_reward():
    """Where all actions are as far from the clone's as these, the mean over actions is 0."""
    _, algorithm, _ = make()
    obs, acts, next_obs = batch(4096)
    near = torch.arange(4096) % 2 == 0
    obs[:, 0] = torch.where(near, 3.0, -3.0)
    acts[near] *= 0.1
    for _ in range(10):
        x = algorithm.imitation_reward(obs, acts, next_obs)  # no transition follows another
    assert x[near].mean().item() == pytest.approx(0.0, abs=0.2)
    assert x[~near].mean().item() == pytest.approx(0.0, abs=0.2)
    assert acts[~near].square().sum(1).mean() > 2.5


def test_without_policy_access_ppo_is_paid_for_the_clones_actions():
    _, algorithm, demos = make(bc_steps=800, bc_rounds=2)
    demos["acts"][:] = 0.3 * demos["obs"][:, :ACTION_DIM].sin()
    obs, acts, next_obs = batch(512, seed=3)
    for _ in range(3):
        algorithm.start_round(obs, acts, next_obs, torch.zeros(512, dtype=torch.bool))
    obs, next_obs = demos["obs"], demos["next_obs"]
    near, far = demos["acts"], demos["acts"] + 1.0
    half = torch.arange(512)[:, None] < 256
    reward = algorithm.compute_reward(obs, torch.where(half, near, far), next_obs)
    plain = algorithm.reward_net.training_reward(obs, torch.where(half, near, far), next_obs)
    term = reward - plain.detach()
    assert (term[:256].mean() - term[256:].mean()).item() == pytest.approx(3.0, abs=0.1)


# ------------------------------------------------------------------------------------ the contract
def test_the_region_uses_only_the_header_and_imports_nothing():
    tree = ast.parse(region())
    nodes = list(ast.walk(tree))
    assert not [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node for node in nodes if isinstance(node, ast.Name)]
    defined = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    defined |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    defined |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    loaded = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    assert loaded - defined - set(HEADER) - set(dir(builtins)) == set()


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("dones", ["terminations", "with time limits", "column"])
def test_the_region_runs_alone_in_another_loop(shuffled, dones):
    """Nothing but the header's names, one environment, transitions in any order, any dones."""
    elsewhere = region_namespace()
    classes = (elsewhere["RewardNetwork"], elsewhere["IRLAlgorithm"])
    net, algorithm, _ = make(*classes, bc_steps=50, target_refreshes=5)
    policy = irl.Policy(OBS_DIM, ACTION_DIM)
    algorithm.set_policy(policy, optim.Adam(policy.parameters(), lr=3e-4, eps=1e-5))
    for round_ in range(3):
        obs, acts, next_obs = batch(1024, seed=round_)
        ended = torch.zeros(1024)
        ended[99::100] = 1
        if dones == "with time limits":
            ended[1000] = 1
        order = torch.randperm(1024) if shuffled else torch.arange(1024)
        obs, acts, next_obs, ended = (x[order] for x in (obs, acts, next_obs, ended))
        reward = algorithm.compute_reward(obs, acts, next_obs)
        assert reward.shape == (1024,)
        assert reward.isfinite().all()
        assert not reward.requires_grad
        for _ in range(5):
            given = ended[:, None] if dones == "column" else ended
            stats = algorithm.update(obs, acts, next_obs, given)
            assert all(np.isfinite(float(value)) for value in stats.values())
    assert net(obs, acts, next_obs).shape == (1024,)


@pytest.mark.parametrize("dims", [(17, 6), (11, 3)])
def test_the_reward_network_is_within_the_cap(dims):
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
        (torch.tensor([0.0] * 6 + [torch.nan, torch.inf]), r"returned 2 values of 8"),
    ],
)
def test_a_faulty_reward_is_named(reward, message):
    class Faulty:
        def compute_reward(self, obs, acts, next_obs):
            return reward

    columns = [x.view(4, 2, -1) for x in batch(8)]
    rollout = irl.Rollout(*columns, *torch.zeros(6, 4, 2))
    with pytest.raises(irl.UserError, match=message):
        irl.learned_rewards(Faulty(), rollout)
