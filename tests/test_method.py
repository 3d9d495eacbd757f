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
    for p in net.parameters():
        p.copy_(torch.randn_like(p) / max(1, p.shape[-1]) ** 0.5)


REWARDS = {  # the reward, its g and its potential
    "exported": (lambda net: net, lambda net: net.g, lambda net: lambda state: net.c * net.alive(state)),
    "training": (lambda net: net.training_reward, lambda net: net.training_g, lambda net: net.training_potential),
}


@pytest.mark.parametrize("which", REWARDS)
def test_shaping_telescopes_along_a_trajectory(which):
    """sum_t gamma^t f_t = sum_t gamma^t g_t + gamma^T Phi(s_T) - Phi(s_0), for any weights (Ng et al. 1999)."""
    net, _, _ = make()
    randomize(net)
    net.double()
    states, acts = torch.randn(31, OBS_DIM).double(), torch.randn(30, ACTION_DIM).double()
    discount = net.gamma ** torch.arange(30).double()
    f, g, potential = (part(net) for part in REWARDS[which])
    with torch.no_grad():
        shaped = (discount * f(states[:-1], acts, states[1:])).sum()
        plain = (discount * g(states[:-1], acts, states[1:])).sum()
        potential = potential(states)
    torch.testing.assert_close(shaped, plain + net.gamma**30 * potential[-1] - potential[0])


def test_dying_costs_the_potential_and_living_does_not():
    """An ordinary step loses (1 - gamma) of the potential, c or V, of g; the one into a terminal state all of it."""
    net, v = make()[0], 40.0
    with torch.no_grad():
        net.end_log_odds.zero_()
        net.end_logit[0].weight.zero_()[0, 0] = 10.0  # p(s) is 1 where the first coordinate is large, else 0
        net.end_logit[2].weight.zero_()[0, 0] = 10.0
        net.end_logit[-1].weight.zero_()[0, 0] = 60.0
        net.end_logit[0].bias.zero_(), net.end_logit[2].bias.zero_(), net.end_logit[-1].bias.zero_()
        net.value[-1].bias.fill_(v / net.value_scale)
        obs, acts, _ = batch(8)
        obs[:, 0] = net.obs_mean[0] - 5
        living, dead = obs.clone(), obs.clone()
        dead[:, 0] = net.obs_mean[0] + 5
        for f, g, value in ((net, net.g, net.c), (net.training_reward, net.training_g, v)):
            torch.testing.assert_close(f(obs, acts, living), g(obs, acts, living) - (1 - net.gamma) * value)
            torch.testing.assert_close(f(obs, acts, dead), g(obs, acts, dead) - value)


def test_observation_normalizer_equals_numpy_and_is_saved():
    net, _, demos = make()
    x = demos["obs"].numpy()
    np.testing.assert_allclose(net.obs_mean.numpy(), x.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net.obs_std.numpy(), np.maximum(x.std(0), 0.05), rtol=1e-4)
    np.testing.assert_array_equal(net.act_high.numpy(), demos["acts"].numpy().max(0))
    assert {"obs_mean", "obs_std", "act_low", "act_high", "expert_score", "policy_score", "unskilled_score"} <= set(
        net.state_dict()
    )


def test_both_g_follow_the_critic_up_to_the_expert():
    net = make()[0]
    with torch.no_grad():
        net.critic[-1].weight.zero_()
        net.unskilled_score.fill_(-3.0), net.policy_score.fill_(1.0), net.expert_score.fill_(5.0)
        for score, g, training_logit in ((-3.0, 1.0, -9.0), (1.0, 2.0, -3.0), (5.0, 3.0, 3.0), (-20.0, 0.0, -34.5)):
            net.critic[-1].bias.fill_(score)
            torch.testing.assert_close(net.g(*batch(4)), torch.full((4,), g))
            torch.testing.assert_close(net.training_g(*batch(4)), torch.sigmoid(torch.full((4,), training_logit)))


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
        for g in (net.g, net.training_g):
            assert g(demos["obs"], demos["acts"], demos["next_obs"]).mean() > g(*rollout).mean() + 0.4
    assert report["critic_gap"] > 0


@pytest.mark.parametrize("time_limits", [False, True])
def test_endings_are_learned_as_terminal_but_time_limits_are_not(time_limits):
    """States beyond 5, where no expert is, end episodes. A done in an ordinary state is a time limit: not an end."""
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
        p = 1 - net.alive(next_obs)
    assert p[:200].mean() > 0.9 and p[200:].mean() < 0.05


def test_value_is_fitted_to_lambda_returns_whatever_the_order():
    """Two trajectories of 40 states with known g, against the slow recursion, although their transitions are shuffled.

    The last transition of each is followed by nothing that was seen, so it bootstraps from its next state: the first
    one's ended there, in a state that looks deadly, the second one's is the end of the rollout.
    """
    net, algorithm, _ = make()
    randomize(net)
    states, acts = torch.randn(2, 41, OBS_DIM), torch.randn(2, 40, ACTION_DIM)
    obs, next_obs = states[:, :-1], states[:, 1:]
    decay = algorithm.decay
    with torch.no_grad():
        g = net.training_g(obs, acts, next_obs)
        after = net.training_value(next_obs)
        expected = torch.empty(2, 40)
        deadly = torch.sigmoid(net.end_logit(net.normalize(next_obs[0, -1])) - 3)
        expected[:, -1] = g[:, -1] + net.gamma * after[:, -1] * torch.stack([1 - deadly.squeeze(), torch.tensor(1.0)])
        for t in reversed(range(39)):
            later = (1 - decay) * after[:, t] + decay * expected[:, t + 1]
            expected[:, t] = g[:, t] + net.gamma * later
    order = torch.randperm(80)
    ended = torch.zeros(2, 40, dtype=torch.bool)
    ended[0, -1] = True
    flat = [x.flatten(0, 1)[order] for x in (obs, acts, next_obs, ended)]
    algorithm.remember(*batch(80, seed=7), torch.zeros(80, dtype=torch.bool))
    algorithm.remember(*flat)
    returns = algorithm.lambda_returns(80, g.flatten()[order], net.training_value)
    torch.testing.assert_close(returns, expected.flatten()[order], rtol=1e-4, atol=1e-4)


def test_every_transition_may_end_an_episode():
    """As in an environment of one step."""
    _, algorithm, _ = make()
    for _ in range(10):
        report = algorithm.update(*batch(64), torch.ones(64))
    assert all(np.isfinite(float(value)) for value in report.values())


# ------------------------------------------------------------------------------------------------------------- policy


def with_policy(n_expert=512):
    _, algorithm, demos = make(n_expert=n_expert)
    policy = irl.Policy(OBS_DIM, ACTION_DIM)
    algorithm.set_policy(policy, optim.Adam(policy.parameters(), lr=3e-4, eps=1e-5))
    algorithm.q_rounds = 1
    return algorithm, policy, demos


def clone(algorithm, steps):
    algorithm.clone_steps = steps
    algorithm.clone(lr=1e-3)


def test_clones_see_normalised_inputs_and_the_policy_stands_still_first():
    """In other units, here of a half and around 7, they are the same clones."""
    hidden = []
    for shift, scale in ((0.0, 1.0), (7.0, 2.0)):
        _, algorithm, demos = make()
        for key in ("obs", "next_obs"):
            demos[key].mul_(scale).add_(shift)
        algorithm.reward_net.fit_normalizer(demos["obs"], demos["acts"])
        policy = irl.Policy(OBS_DIM, ACTION_DIM)
        torch.manual_seed(0)
        algorithm.set_policy(policy, optim.Adam(policy.parameters()))
        with torch.no_grad():
            hidden.append([clone[:-1](demos["obs"]) for clone in (algorithm.first, algorithm.second)])
            for actor in (policy.actor_mean, algorithm.first, algorithm.second):
                assert (actor(demos["obs"]) == 0).all()
    for plain, shifted in zip(*hidden):
        torch.testing.assert_close(plain, shifted, rtol=1e-3, atol=1e-4)
    assert (hidden[0][0] - hidden[0][1]).abs().mean() > 0.1  # two of them


def test_the_clone_learns_the_demonstrations_and_what_is_rare_in_them(monkeypatch):
    """Every sixteenth of the expert's actions is unlike the others, in states of their own. Drawn by their errors these
    are learned sooner than drawn evenly.
    """
    rare = []
    for draw in (torch.multinomial, lambda weights, n: torch.randint(len(weights), (n,))):
        monkeypatch.setattr(torch, "multinomial", draw)
        algorithm, _, demos = with_policy()
        demos["acts"][:] = 0.3 * demos["obs"][:, :ACTION_DIM].sin()
        demos["obs"][::16, 4] += 5.0
        demos["acts"][::16] = 1.0
        clone(algorithm, 500)
        squares = (algorithm.first(demos["obs"]) - demos["acts"]).square().mean(1)
        rare.append(squares[::16].mean())
        assert squares.mean() < 0.1 * demos["acts"].var()
    assert rare[0] < 0.7 * rare[1]


@pytest.mark.parametrize(("time_limits", "value"), [(False, 1.0), (True, 2.0)])
def test_q_is_what_the_reward_is_worth_until_death(monkeypatch, time_limits, value):
    """g is 1 everywhere and counts half a step later: 1 / (1 - 0.5) = 2 in all but the last step before a death. States
    beyond 5 look deadly; an end elsewhere is a time limit's.
    """
    algorithm, _, demos = with_policy()
    net = algorithm.reward_net
    monkeypatch.setattr(net, "gamma", 0.5)
    monkeypatch.setattr(net, "g", lambda obs, acts, next_obs: torch.ones(len(obs)))
    monkeypatch.setattr(net, "deadly", lambda state: (state[:, 0] > 5).float())
    obs, acts, next_obs = batch(2048, seed=3)
    ended = torch.rand(2048) < 0.5
    obs[ended, 1] -= 20.0  # from afar, so that Q can tell
    next_obs[ended, 0] = 0.0 if time_limits else 6.0
    algorithm.remember(obs, acts, next_obs, ended)
    algorithm.clone_acts, algorithm.doubt = algorithm.memory[1], torch.zeros(512 + 2048)
    algorithm.left, algorithm.first_lr = 1.0, 1e-3
    for _ in range(200):
        algorithm.fit_q(learn=False)
    with torch.no_grad():
        q = algorithm.action_values(algorithm.q, obs, acts)
        expert = algorithm.action_values(algorithm.q, demos["obs"], demos["acts"])
    assert q[:, ended].mean().item() == pytest.approx(value, abs=0.2)
    assert q[:, ~ended].mean().item() == pytest.approx(2.0, abs=0.2)
    assert expert.mean().item() == pytest.approx(2.0, abs=0.2)


def test_clones_doubt_what_was_not_demonstrated_and_are_asked_once():
    algorithm, _, demos = with_policy()
    demos["acts"][:] = 0.3 * demos["obs"][:, :ACTION_DIM].sin()
    clone(algorithm, 500)
    far = [batch(512, seed=4)[0] + 8, *batch(512, seed=4)[1:]]
    algorithm.remember(*far, torch.zeros(512, dtype=torch.bool))
    algorithm.ask_clones()
    with torch.no_grad():
        obs = torch.cat([demos["obs"], far[0]])
        acts, others = algorithm.first(obs), algorithm.second(obs)
    torch.testing.assert_close(algorithm.clone_acts, acts)
    torch.testing.assert_close(algorithm.doubt, (acts - others).square().mean(1) / algorithm.agreement)
    known, unknown = algorithm.doubt.split(512)
    assert unknown.median() > 20 * known.median()
    algorithm.remember(*far, torch.zeros(512, dtype=torch.bool))
    algorithm.doubt[:512] = -1.0
    algorithm.ask_clones()
    assert (algorithm.doubt[:512] == -1).all()
    torch.testing.assert_close(algorithm.doubt[1024:], unknown)
    torch.testing.assert_close(algorithm.clone_acts[1024:], acts[512:])
    algorithm.clone(lr=1e-3)
    algorithm.ask_clones()  # new clones
    assert (algorithm.doubt >= 0).all() and len(algorithm.doubt) == len(algorithm.clone_acts) == 3 * 512


def test_doubt_is_taken_off_the_reward_of_q():
    algorithm, _, _ = with_policy()
    rollout = batch(64)
    algorithm.remember(*rollout, torch.zeros(64, dtype=torch.bool))
    algorithm.doubt = torch.cat([torch.zeros(512), torch.full((32,), 1.0), torch.full((32,), 99.0)])
    with torch.no_grad():
        cost = algorithm.reward_net.g(*rollout) - algorithm.q_rewards(slice(-64, None))
    assert algorithm.doubt_cost > 0
    torch.testing.assert_close(cost[:32], torch.full((32,), algorithm.doubt_cost * np.log(2)))
    torch.testing.assert_close(cost[32:], torch.full((32,), algorithm.doubt_cost * np.log(100)))


def test_the_policy_climbs_the_lower_q_where_there_is_doubt_and_stays_the_clone_where_there_is_none(monkeypatch):
    """Two places. In both one Q says up and another, which is lower, says down."""
    algorithm, _, _ = with_policy()
    clone(algorithm, 500)
    algorithm.move(algorithm.learner, algorithm.first)
    sure, unsure = batch(512, seed=4)[0], batch(512, seed=5)[0]
    sure[:, 0] += 20
    unsure[:, 0] -= 20
    for obs in (sure, unsure):
        algorithm.remember(obs, *batch(512)[1:], torch.zeros(512, dtype=torch.bool))
    algorithm.ask_clones()
    algorithm.doubt[512:1024], algorithm.doubt[1024:] = 0.0, 1000.0
    q = lambda networks, obs, acts: torch.stack([20 + acts.sum(1), 10 - acts.sum(1)])  # noqa: E731
    monkeypatch.setattr(algorithm, "action_values", q)
    algorithm.optimizer.param_groups[0]["lr"] = 1e-3
    for _ in range(30):
        algorithm.follow(torch.arange(512, 3 * 512))
    with torch.no_grad():
        stayed, gone = (algorithm.learner(x) - algorithm.first(x) for x in (sure, unsure))
    assert gone.mean() < -0.2 and stayed.abs().mean() < 0.2 * gone.abs().mean()


def test_q_is_not_heard_where_there_is_no_doubt():
    """Not even where nothing else holds the policy."""
    algorithm, _, _ = with_policy()
    algorithm.loyalty, algorithm.optimizer.param_groups[0]["lr"] = 0.0, 1e-3
    algorithm.ask_clones()
    moved = []
    for doubt in (0.0, 1.0, 1000.0):
        algorithm.doubt[:] = doubt
        before = [p.clone() for p in algorithm.learner.parameters()]
        algorithm.follow(torch.arange(512))
        moved.append(max((p - old).abs().max().item() for p, old in zip(algorithm.learner.parameters(), before)))
    assert moved[0] == 0 < min(moved[1:])
    torch.testing.assert_close(algorithm.heard(torch.tensor([0.0, 1.0, 3.0])), torch.tensor([0.0, 0.5, 0.9]))


def test_rows_to_learn_from_are_drawn_by_doubt(monkeypatch):
    algorithm, _, _ = with_policy()
    algorithm.ask_clones()
    algorithm.doubt[:], algorithm.doubt[:64] = 0.0, np.expm1(1.8)  # log(1 + doubt) + 0.2 is 2 for an eighth, else 0.2
    drawn, values = [], algorithm.action_values
    monkeypatch.setattr(algorithm, "action_values", lambda q, obs, acts: drawn.append(obs) or values(q, obs, acts))
    for _ in range(50):
        algorithm.follow(torch.arange(512).repeat(8))
    share = np.mean([(obs[:, None] == algorithm.memory[0][:64]).all(2).any(1).float().mean() for obs in drawn])
    assert share == pytest.approx(10 / 17, abs=0.03)


def test_targets_are_of_who_acts_and_do_not_hear_what_the_learner_promises(monkeypatch):
    """Q here is the sum of the actions: a learner far beyond everybody promises much, and has never been seen."""
    algorithm, policy, _ = with_policy()
    q = lambda networks, obs, acts: acts.sum(1).expand(len(networks), -1)  # noqa: E731
    monkeypatch.setattr(algorithm, "action_values", q)
    algorithm.left, obs = 0.0, batch(4096)[0]
    with torch.no_grad():
        policy.actor_mean[-1].bias.fill_(0.5), algorithm.learner[-1].bias.fill_(9.0)
        values = algorithm.slow_value(obs)
        torch.testing.assert_close(values.mean(), policy.actor_mean(obs).sum(1).mean(), rtol=0, atol=0.01)
    assert 0 < (values - policy.actor_mean(obs).sum(1)).std() < 0.1  # noise, a hundredth


@pytest.mark.parametrize(("steps", "acting"), [(1, 1.0), (2, 1.9), (3, 1.9 + 0.9 / 1.1 * 1.1)])
def test_who_acts_is_an_average_that_forgets_how_it_began(monkeypatch, steps, acting):
    """Polynomial decay: 9 / (8 + t) of the way. The learner goes up by 1 each time, before every second rollout."""
    algorithm, policy, _ = with_policy()
    algorithm.clone_rounds, algorithm.watch_rounds, algorithm.clone_steps = 2, 1, 1
    parameters = list(policy.actor_mean.parameters())

    def learn(learn):
        with torch.no_grad():
            for p in algorithm.learner.parameters():
                p += float(learn)

    monkeypatch.setattr(algorithm, "fit_q", learn)
    for i in range(2 + 2 * steps):
        algorithm.update(*batch(64), torch.zeros(64))
        algorithm.calls += 4
        if i == 2:
            before = [p.clone() for p in algorithm.learner.parameters()]
    for p, old in zip(parameters, before):
        torch.testing.assert_close(p.detach(), old + acting)


def test_rollouts_are_of_all_kinds_then_the_clones_then_it_learns(monkeypatch):
    """PPO must not move any of them: it is paid nothing from beginning to end."""
    algorithm, policy, demos = with_policy()
    algorithm.clone_steps, logstds, strengths, q = 2, [], [], []
    monkeypatch.setattr(algorithm, "fit_q", lambda learn: q.append((algorithm.round, learn)))
    rollout = batch(64)
    first = algorithm.clone_rounds + algorithm.watch_rounds
    for _ in range(first + 10):
        assert (algorithm.compute_reward(*rollout) == 0).all()
        for _ in range(5):
            algorithm.update(*rollout, torch.zeros(64))
        logstds.append(policy.actor_logstd.mean().item())
        with torch.no_grad():
            acts, clones = policy.actor_mean(demos["obs"]), algorithm.first(demos["obs"])
        strengths.append((acts * clones).mean().item() / clones.square().mean().item() if clones.any() else 0.0)
    assert logstds[: algorithm.clone_rounds] == [0.0, -1.0, 0.0] + [-3.0, -2.0, -1.0, 0.0] * 4 + [-3.0]
    expected = [0.0] + [1.0] * 6 + [0.5] * 4 + [0.25] * 4 + [2.0**-10] * 4 + [1.0] * 21
    assert strengths == pytest.approx(expected, abs=1e-3)
    assert set(logstds[algorithm.clone_rounds : first]) == {-4.0}
    assert logstds[first:] == [-3.0, -4.0] * 5
    assert q == [(i, False) for i in range(2, first + 1)] + [(i, True) for i in range(first + 1, first + 11, 2)]


@pytest.mark.parametrize(("score", "times"), [(-1.0, 1), (0.8, 1), (0.95, 2), (0.99, 10), (1.0, 100), (1.2, 100)])
def test_a_clone_as_good_as_the_expert_is_kept(monkeypatch, score, times):
    """Whoever lacks a tenth of the expert's score, or more, learns at full speed. Once, by its watch."""
    algorithm, _, _ = with_policy()
    algorithm.clone_rounds, algorithm.watch_rounds, algorithm.clone_steps = 2, 2, 2
    monkeypatch.setattr(algorithm, "q_rounds", 0)
    monkeypatch.setattr(algorithm, "critic_step", lambda: {})
    net = algorithm.reward_net
    marked = [x + 100 * (k == 0) for k, x in enumerate(batch(64))]  # the watched rollouts' observations
    monkeypatch.setattr(net, "score", lambda obs, acts, next_obs, zero: torch.where(obs[:, 0] > 50, score, -9.0))
    for i in range(8):
        algorithm.update(*(marked if i in (3, 4) else batch(64)), torch.zeros(64))
        algorithm.calls += 4
        assert algorithm.worth == pytest.approx(times if i >= 4 else 1, rel=1e-4), i
        if i:
            slow, fast = (x.param_groups[0]["lr"] for x in (algorithm.optimizer, algorithm.q_optimizer))
            assert slow == pytest.approx(fast / algorithm.worth)


def test_the_better_the_clone_the_more_it_costs_to_leave_it(monkeypatch):
    algorithm, _, _ = with_policy()
    algorithm.remember(*batch(256), torch.zeros(256, dtype=torch.bool))
    algorithm.ask_clones()
    losses = []
    monkeypatch.setattr(algorithm, "heard", torch.zeros_like)
    monkeypatch.setattr(irl, "descend", lambda optimizer, loss: losses.append(loss))
    for algorithm.worth in (1.0, 100.0):
        torch.manual_seed(0)
        algorithm.follow(torch.arange(512, 768))
    assert losses[0] > 0
    torch.testing.assert_close(losses[1], 100 * losses[0])


def test_what_beginners_do_is_not_forgotten():
    """The first rollouts are two eighths of what the critic sees of the past, however many there have been since."""
    _, algorithm, _ = make()
    for i in range(100):  # 2 marks a first one, 0 the last five
        mark = 2.0 if i <= algorithm.clone_rounds else 0.0 if i >= 95 else 1.0
        rollout = [torch.full((64, n), mark) for n in (OBS_DIM, ACTION_DIM, OBS_DIM)]
        algorithm.remember(*rollout, torch.zeros(64, dtype=torch.bool))
    seen = torch.cat([algorithm.memory[0][algorithm.policy_rows(512), 0] for _ in range(40)])
    shares = [(seen == mark).float().mean().item() for mark in (0, 1, 2)]
    assert shares == pytest.approx([0.5 + 0.375 * 0.05, 0.375 * 0.74, 0.125 + 0.375 * 0.21], abs=0.02)


def test_a_reward_of_zero_does_not_move_the_policy():
    """What holding the clone rests on: the loop's PPO has no gradient then. Not just a small one."""
    algorithm, policy, _ = with_policy()
    before = [p.clone() for p in policy.parameters()]
    args = irl.Args()
    obs = torch.randn(args.num_steps, args.num_envs, OBS_DIM)
    with torch.no_grad():
        flat = policy.get_action_and_value(obs.flatten(0, 1))
    acts, logprobs, _, values = (x.unflatten(0, obs.shape[:2]) for x in flat)
    ended = torch.zeros(obs.shape[:2], dtype=torch.bool)
    ended[99::100] = True
    rollout = SimpleNamespace(obs=obs, acts=acts, logprobs=logprobs, values=values, next_values=values,
                              terminated=ended, ended=ended)  # fmt: skip
    irl.update_policy(policy, algorithm.ppo_optimizer, rollout, torch.zeros(ended.shape), args)
    for p, old in zip(policy.parameters(), before):
        assert torch.equal(p, old)


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
    algorithm.clone_steps = 100  # the same code, sooner
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
