"""The mathematics of the FIXED part: advantages, reward normalisation, density, episode sums."""

from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

import custom_irl as irl


def slow_gae(rewards, values, next_values, terminated, ended, gamma, lam):
    """Equation 16: the discounted sum of TD residuals up to the end of episode or rollout."""
    T, N = rewards.shape
    advantages = np.zeros((T, N))
    for n in range(N):
        for t in range(T):
            weight = 1.0
            for k in range(t, T):
                bootstrap = 0.0 if terminated[k, n] else next_values[k, n]
                advantages[t, n] += weight * (rewards[k, n] + gamma * bootstrap - values[k, n])
                if ended[k, n]:
                    break
                weight *= gamma * lam
    return advantages


@given(
    st.integers(0, 2**31),
    st.integers(1, 24),
    st.integers(1, 4),
    st.floats(0.5, 1.0),
    st.floats(0.0, 1.0),
)
@settings(max_examples=50, deadline=None)
def test_gae_equals_the_slow_sum_with_terminations_and_time_limits(seed, T, N, gamma, lam):
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.normal(size=(3, T, N)).astype(np.float32)
    ended = rng.random((T, N)) < 0.2
    terminated = ended & (rng.random((T, N)) < 0.5)
    fast = irl.compute_gae(
        *map(torch.from_numpy, (rewards, values, next_values, terminated, ended)), gamma, lam
    )
    slow = slow_gae(rewards, values, next_values, terminated, ended, gamma, lam)
    np.testing.assert_allclose(fast.numpy(), slow, rtol=1e-4, atol=1e-4)


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    one, yes, no = (
        torch.ones(1, 1),
        torch.ones(1, 1, dtype=torch.bool),
        torch.zeros(1, 1, dtype=torch.bool),
    )
    limit = irl.compute_gae(one, 0 * one, 10 * one, no, yes, 0.9, 0.95)
    death = irl.compute_gae(one, 0 * one, 10 * one, yes, yes, 0.9, 0.95)
    assert (limit.item(), death.item()) == (10.0, 1.0)


@given(
    st.lists(
        st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), min_size=1, max_size=6
    )
)
@settings(max_examples=100, deadline=None)
def test_reward_normalization_equals_numpy_over_all_rewards_so_far(batches):
    norm, seen = irl.RunningNorm(), []
    for batch in batches:
        seen.extend(batch)
        out = norm(torch.tensor(batch))
        x = np.array(seen, np.float64)
        np.testing.assert_allclose(norm.mean, x.mean(), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(norm.var, x.var(), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(
            out.numpy(), (batch - x.mean()) / np.sqrt(x.var() + 1e-8), rtol=1e-3, atol=1e-3
        )


def test_policy_density_and_entropy_equal_torch_distributions():
    torch.manual_seed(0)
    policy, obs, acts = irl.Policy(5, 3), torch.randn(7, 5), torch.randn(7, 3)
    with torch.no_grad():
        policy.actor_logstd.copy_(torch.randn(1, 3))
    action, log_prob, entropy, value = policy.get_action_and_value(obs, acts)
    normal = Normal(policy.actor_mean(obs), policy.actor_logstd.exp().expand(7, 3))
    torch.testing.assert_close(log_prob, normal.log_prob(acts).sum(-1))
    torch.testing.assert_close(entropy, normal.entropy().sum(-1))
    assert action is acts and value.shape == (7,)


def plain_ppo_step(policy, optimizer, rollout, rewards, args):
    """update_policy by autograd, clip_grad_norm_ and torch.min, with the same minibatches."""
    with torch.no_grad():
        advantages = irl.compute_gae(
            rewards,
            rollout.values,
            rollout.next_values,
            rollout.terminated,
            rollout.ended,
            args.gamma,
            args.gae_lambda,
        )
    data = (rollout.obs, rollout.acts, rollout.logprobs, advantages, advantages + rollout.values)
    batch = [x.flatten(0, 1) for x in data]
    for _ in range(args.update_epochs):
        order = torch.randperm(args.batch_size)
        for obs, acts, old, adv, ret in zip(
            *(x[order].split(args.batch_size // args.num_minibatches) for x in batch)
        ):
            _, logprobs, _, values = policy.get_action_and_value(obs, acts)
            ratio = (logprobs - old).exp()
            adv = (adv - adv.mean()) / (adv.std() + 1e-8)
            policy_loss = -torch.min(
                adv * ratio, adv * ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
            ).mean()
            loss = policy_loss + args.vf_coef * 0.5 * ((values - ret) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), args.max_grad_norm)
            optimizer.step()


@given(st.integers(0, 2**31), st.sampled_from([(3, 1), (17, 6)]), st.sampled_from([0.1, 1.0, 30.0]))
@settings(max_examples=15, deadline=None)
def test_the_fast_update_equals_the_plain_one(seed, dims, scale):
    """`scale` takes the gradient below and above its clipping norm."""
    torch.manual_seed(seed)
    args = irl.Args(
        num_envs=4, num_steps=64, total_timesteps=256, num_minibatches=4, update_epochs=3
    )
    policy, (obs_dim, action_dim) = irl.Policy(*dims), dims
    obs, acts = torch.randn(64, 4, obs_dim), torch.randn(64, 4, action_dim)
    with torch.no_grad():
        policy.actor_logstd.copy_(0.3 * torch.randn(1, action_dim))
        _, logprobs, _, values = policy.get_action_and_value(obs.flatten(0, 1), acts.flatten(0, 1))
    logprobs = (logprobs + 0.3 * torch.randn(256)).view(
        64, 4
    )  # ratios on both sides of the clipping range
    ended = torch.rand(64, 4) < 0.1
    values, rewards = values.view(64, 4), scale * torch.randn(64, 4)
    rollout = irl.Rollout(obs, acts, obs, logprobs, values, values, rewards, ended, ended)
    ends = []
    for update in (irl.update_policy, plain_ppo_step):
        learner = deepcopy(policy)
        optimizer = torch.optim.Adam(learner.parameters(), lr=3e-4, eps=1e-5)
        torch.manual_seed(seed)
        update(learner, optimizer, rollout, rewards, args)
        ends.append(nn.utils.parameters_to_vector(learner.parameters()).detach())
    start = nn.utils.parameters_to_vector(policy.parameters()).detach()
    assert (ends[0] - ends[1]).norm() < 1e-5 * ends[1].norm()
    assert (ends[0] - ends[1]).norm() < 1e-2 * (ends[1] - start).norm()


@pytest.mark.parametrize("moving", [False, True])
def test_a_reward_of_zero_gives_the_numbers_of_the_plain_update(moving):
    """`moving`: Adam's momentum of an earlier round moves the policy under a gradient of 0."""
    torch.manual_seed(0)
    args = irl.Args(
        num_envs=4, num_steps=64, total_timesteps=256, num_minibatches=4, update_epochs=3
    )
    policy, obs, acts, zeros = (
        irl.Policy(3, 1),
        torch.randn(64, 4, 3),
        torch.randn(64, 4, 1),
        torch.zeros(64, 4),
    )
    for p in policy.critic[-1].parameters():
        p.data.zero_()
    logprobs = (
        policy.get_action_and_value(obs.flatten(0, 1), acts.flatten(0, 1))[1].detach().view(64, 4)
    )
    rollout = irl.Rollout(obs, acts, obs, logprobs, zeros, zeros, zeros, zeros > 0, zeros > 0)
    ends = []
    for update in (irl.update_policy, plain_ppo_step):
        learner = deepcopy(policy)
        optimizer = torch.optim.Adam(learner.parameters(), lr=3e-4, eps=1e-5)
        torch.manual_seed(1)
        if moving:
            plain_ppo_step(learner, optimizer, rollout, obs[..., 0], args)
        update(learner, optimizer, rollout, zeros, args)
        clocks = {int(state["step"]) for state in optimizer.state.values()}
        ends.append((nn.utils.parameters_to_vector(learner.parameters()).detach(), clocks))
    torch.testing.assert_close(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1] == {24 if moving else 12}
    assert torch.equal(ends[0][0], nn.utils.parameters_to_vector(policy.parameters())) != moving


def test_policy_update_raises_the_probability_of_rewarded_actions():
    """One-step episodes, reward 1 where the action is positive: PPO has to move the mean up."""
    torch.manual_seed(0)
    args = irl.Args(num_envs=8, num_steps=64, total_timesteps=512)
    policy = irl.Policy(3, 1)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-4)
    obs, yes = torch.randn(64, 8, 3), torch.ones(64, 8, dtype=torch.bool)
    with torch.no_grad():
        acts, logprobs, _, values = policy.get_action_and_value(obs.flatten(0, 1))
        before = policy.actor_mean(obs).mean()
    shaped = acts.view(64, 8, 1), obs, logprobs.view(64, 8), values.view(64, 8), values.view(64, 8)
    rollout = irl.Rollout(obs, *shaped, torch.zeros(64, 8), yes, yes)
    stats = irl.update_policy(policy, optimizer, rollout, (acts.view(64, 8) > 0).float(), args)
    assert policy.actor_mean(obs).mean() > before + 0.1
    assert stats["approx_kl"] > 0 and 0 <= stats["clip_fraction"] <= 1


@given(st.integers(0, 2**31), st.integers(2, 30), st.integers(1, 3), st.integers(1, 29))
@settings(max_examples=50, deadline=None)
def test_episode_sums_do_not_depend_on_where_rollouts_are_cut(seed, T, N, cut):
    rng = np.random.default_rng(seed)
    rewards = torch.as_tensor(rng.integers(-5, 5, (T, N)).astype(np.float32))
    ended = torch.as_tensor(rng.random((T, N)) < 0.3)

    def sums_of(running, rows):
        part = SimpleNamespace(true_rewards=2 * rewards[rows], ended=ended[rows])
        return irl.finished_episodes(running, part, rewards[rows])

    whole, parts = np.zeros((2, 3, N))
    expected = sums_of(whole, slice(None))
    cut = min(cut, T - 1)
    first, second = sums_of(parts, slice(cut)), sums_of(parts, slice(cut, None))
    for name, sums in expected.items():
        assert sums == first[name] + second[name]
    np.testing.assert_array_equal(whole, parts)
    left = whole[list(expected).index("learned_return")].sum()
    assert np.isclose(sum(expected["learned_return"]) + left, rewards.sum())
    assert expected["true_return"] == [2 * x for x in expected["learned_return"]]
