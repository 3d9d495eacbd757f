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
    flat = (x.flatten(0, 1)[order] for x in (obs, acts, next_obs, ended))
    algorithm.remember(*batch(80, seed=7), torch.zeros(80, dtype=torch.bool))
    algorithm.remember(*flat)
    returns = algorithm.lambda_returns(80, net.training_g, net.training_value)
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


def test_whitening_normalises_the_policys_inputs():
    torch.manual_seed(0)
    plain = irl.Policy(OBS_DIM, ACTION_DIM)
    torch.manual_seed(0), np.random.seed(0)
    whitened = irl.Policy(OBS_DIM, ACTION_DIM)
    net, algorithm, demos = make()
    algorithm.set_policy(whitened, optim.Adam(whitened.parameters()))
    normalized = (demos["obs"] - net.obs_mean) / net.obs_std
    torch.manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(
            whitened.actor_mean[:-1](demos["obs"]), plain.actor_mean[:-1](normalized), rtol=1e-3, atol=1e-5
        )
        assert (whitened.actor_mean(demos["obs"]) == 0).all()  # it stands still first


def test_the_clone_learns_the_demonstrations_and_what_is_rare_in_them(monkeypatch):
    """Every sixteenth of the expert's actions is unlike the others, in states of their own. Drawn by their errors these
    are learned sooner than drawn evenly.
    """
    rare = []
    for draw in (torch.multinomial, lambda weights, n: torch.randint(len(weights), (n,))):
        monkeypatch.setattr(torch, "multinomial", draw)
        algorithm, policy, demos = with_policy()
        demos["acts"][:] = 0.3 * demos["obs"][:, :ACTION_DIM].sin()
        demos["obs"][::16, 4] += 5.0
        demos["acts"][::16] = 1.0
        clone(algorithm, 500)
        squares = (policy.actor_mean(demos["obs"]) - demos["acts"]).square().mean(1)
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
    algorithm.lr, algorithm.left = 1e-3, 0.0
    for _ in range(200):
        algorithm.fit_q()
    with torch.no_grad():
        q = algorithm.action_values(algorithm.q, obs, acts)
        expert = algorithm.action_values(algorithm.q, demos["obs"], demos["acts"])
    assert q[:, ended].mean().item() == pytest.approx(value, abs=0.2)
    assert q[:, ~ended].mean().item() == pytest.approx(2.0, abs=0.2)
    assert expert.mean().item() == pytest.approx(2.0, abs=0.2)


def test_the_policy_follows_q_and_what_turned_out_better_and_stays_the_expert_where_the_expert_goes(monkeypatch):
    """Three places: where somebody was, Q grows with the action; in the last rollout something better is known; and the
    expert's states. The mean must follow there, and stay here.
    """
    algorithm, policy, demos = with_policy()
    clone(algorithm, 500)
    seen, rollout = batch(512, seed=4)[0], batch(512, seed=5)[0]
    seen[:, 0] += 20
    rollout[:, 0] -= 20
    monkeypatch.setattr(algorithm, "action_values", lambda q, obs, acts: 10 + acts.sum(1).expand(len(q), -1))
    with torch.no_grad():
        before = [policy.actor_mean(x) for x in (seen, rollout)]
    error = algorithm.error(demos["obs"], demos["acts"]).item()
    algorithm.optimizer.param_groups[0]["lr"] = 1e-3
    for _ in range(30):
        algorithm.follow(rollout, before[1] - 0.5, seen)
    with torch.no_grad():
        up, down = (policy.actor_mean(x) - mean for x, mean in zip((seen, rollout), before))
    assert up.mean() > 0.05 and down.mean() < -0.3
    assert algorithm.error(demos["obs"], demos["acts"]) < error + 0.05


def test_better_is_on_the_side_of_what_the_advantage_praises():
    algorithm, policy, _ = with_policy()
    obs, noise, _ = batch(512, seed=4)
    with torch.no_grad():
        mean = policy.actor_mean(obs)
    advantages = 7.0 + 100 * torch.linspace(-1, 1, 512) ** 5  # their level and their scale say nothing
    step = (algorithm.better(obs, mean + noise, advantages) - mean) / noise
    assert step.std(1).max() < 1e-3  # the mean moves along what was tried,
    assert (step.diff(dim=0) > -1e-3).all()  # as the advantages, from the worst to the best
    assert step.mean(1).min() == pytest.approx(-3, abs=1e-3) and step.mean(1).max() == pytest.approx(3, abs=1e-3)


def test_worth_is_the_sum_of_g_with_deaths(monkeypatch):
    """g is 2, the horizon 1000 steps, and then every fourth transition is a death. A time limit is none."""
    _, algorithm, _ = make()
    net = algorithm.reward_net
    monkeypatch.setattr(net, "g", lambda obs, acts, next_obs: torch.full((len(obs),), 2.0))
    monkeypatch.setattr(net, "deadly", lambda state: (state[:, 0] > 5).float())
    obs, acts, next_obs = batch(400)
    ended = torch.arange(400) % 4 == 0
    algorithm.remember(obs, acts, next_obs, ended)
    assert algorithm.worth(slice(0, 400)) == pytest.approx(2000, rel=2e-2)
    next_obs[ended, 0] = 6.0
    algorithm.remember(obs, acts, next_obs, ended)
    assert algorithm.worth(slice(400, 800)) == pytest.approx(2 / (0.25 + 0.001))


def test_in_the_finals_the_best_takes_over_and_luck_does_not_last(monkeypatch):
    """Worth is the mean of what each rollout says. Who is best is tested again, with what was said before."""
    algorithm, policy, _ = with_policy()
    algorithm.left, algorithm.recent_rounds, worths = 1.0, 1, []
    monkeypatch.setattr(algorithm, "worth", lambda rows: np.mean([worths[i // 64] for i in rows.tolist()]))
    mark = policy.actor_mean[-1].bias

    def judge(worth):
        worths.append(worth)
        algorithm.remember(*batch(64), torch.zeros(64, dtype=torch.bool))
        algorithm.judge()
        return mark[0].item()

    for policy_number, worth in ((1, 5), (2, 4), (3, 9), (4, 6)):
        with torch.no_grad():
            mark.fill_(policy_number)
        assert judge(worth) == policy_number  # nobody goes back while it learns
    algorithm.left = 0.05
    with torch.no_grad():
        mark.fill_(5)
    assert judge(2) == 3
    assert judge(1) == 4  # 9 and 1: it was luck
    assert judge(6) == 4
    assert judge(2) == 1 and len(algorithm.tested) == 5  # 6, 6 and 2


@pytest.mark.parametrize(("far", "acts"), [(True, 3.0), (False, 0.1 * 0.9**2 * 1 + 0.1 * 0.9 * 2 + 0.1 * 3)])
def test_near_the_expert_the_policy_is_the_slow_average_of_one_that_learns(monkeypatch, far, acts):
    algorithm, policy, _ = with_policy()
    algorithm.far, algorithm.lr, algorithm.q_rounds, algorithm.policy_steps = far, 1.0, 1, 1
    parameters = list(policy.actor_mean.parameters())

    def learn(*args):
        with torch.no_grad():
            for p in parameters:
                p += 1.0

    monkeypatch.setattr(algorithm, "fit_q" if far else "follow", learn)
    before = [p.clone() for p in parameters]
    for _ in range(3):
        algorithm.learn(None, None)
    for p, old, learner in zip(parameters, before, algorithm.learner):
        torch.testing.assert_close(p.detach(), old + acts)
        torch.testing.assert_close(learner, old + 3.0)


@pytest.mark.parametrize("far", [True, False])
def test_rollouts_are_of_all_kinds_then_the_clones_then_it_learns_and_finals_come_last(monkeypatch, far):
    """PPO must not move any of them: it is paid nothing from beginning to end."""
    algorithm, policy, _ = with_policy()
    algorithm.clone_steps, algorithm.q_rounds, logstds, scales = 2, 1, [], []
    q, followed, judged = [], [], []
    monkeypatch.setattr(algorithm, "fit_q", lambda *better: q.append((algorithm.round, bool(better))))
    monkeypatch.setattr(algorithm, "follow", lambda *rows: followed.append(algorithm.round))
    monkeypatch.setattr(algorithm, "judge", lambda: judged.append(algorithm.round))
    algorithm.far = far
    rollout = batch(64)
    first = algorithm.clone_rounds + algorithm.watch_rounds
    for _ in range(first + 46):
        if algorithm.round == first + 19:
            algorithm.ppo_optimizer.param_groups[0]["lr"] *= 0.5  # half of the training is over
        if algorithm.round == first + 29:
            algorithm.ppo_optimizer.param_groups[0]["lr"] *= 0.1  # and nearly all of it
        assert (algorithm.compute_reward(*rollout) == 0).all()
        for _ in range(5):
            algorithm.update(*rollout, torch.zeros(64))
        logstds.append(policy.actor_logstd.mean().item())
        scales.append(algorithm.scale)
        if algorithm.round == algorithm.clone_rounds:
            clone = [p.clone() for p in policy.actor_mean.parameters()]
    assert logstds[: algorithm.clone_rounds] == [0.0, -1.0, 0.0] + [-3.0, -2.0, -1.0, 0.0] * 4 + [-3.0]
    assert scales == [1.0] * 7 + [0.5] * 4 + [0.25] * 4 + [2.0**-10] * 4 + [1.0] * 57
    assert set(logstds[algorithm.clone_rounds : first - 1]) == {-4.0}
    learns = range(first, first + 30)
    assert q == [(i, i >= first) for i in range(2, first + 30 if far else first)]
    assert sorted(set(followed)) == ([] if far else list(learns))
    assert judged == [first, first + 10, first + 20, *range(first + 30, first + 47, 5)]
    noise = {i: -2.0 if far else -3.5 for i in learns if (i - first) % 10 < 5}
    assert logstds[first - 1 :] == pytest.approx([noise.get(i, -4.0) for i in range(first, first + 47)])
    assert all(torch.equal(p, q) for p, q in zip(policy.actor_mean.parameters(), clone))


def test_a_weak_actor_is_restored_exactly():
    algorithm, policy, demos = with_policy()
    clone(algorithm, 50)
    before = [p.clone() for p in policy.actor_mean.parameters()]
    full = policy.actor_mean(demos["obs"])
    algorithm.scale_actor(0.25)
    torch.testing.assert_close(policy.actor_mean(demos["obs"]), full / 4)
    algorithm.scale_actor(2.0**-10), algorithm.scale_actor(1.0)
    assert all(torch.equal(p, q) for p, q in zip(before, policy.actor_mean.parameters()))


def test_what_beginners_do_is_not_forgotten():
    """The first rollouts are two eighths of what the critic sees of the past, however many there have been since."""
    _, algorithm, _ = make()
    for i in range(100):  # 2 marks a first one, 0 the last five
        mark = 2.0 if i <= algorithm.clone_rounds else 0.0 if i >= 95 else 1.0
        rollout = [torch.full((64, n), mark) for n in (OBS_DIM, ACTION_DIM, OBS_DIM)]
        algorithm.remember(*rollout, torch.zeros(64, dtype=torch.bool))
    seen = torch.cat([algorithm.policy_batch(512)[0][:, 0] for _ in range(40)])
    shares = [(seen == mark).float().mean().item() for mark in (0, 1, 2)]
    assert shares == pytest.approx([0.5 + 0.375 * 0.05, 0.375 * 0.74, 0.125 + 0.375 * 0.21], abs=0.02)


def test_the_expert_is_near_and_the_unskilled_are_far():
    algorithm, _, demos = with_policy()
    for _ in range(12):
        for _ in range(5):
            algorithm.update(*batch(512, seed=2), torch.zeros(512))
    algorithm.judge()
    assert algorithm.far
    for _ in range(5):
        algorithm.remember(*(demos[key] for key in ("obs", "acts", "next_obs")), torch.zeros(512, dtype=torch.bool))
    algorithm.judge()
    assert not algorithm.far


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
