"""The off-policy methods: losses on cases with known answers, ends of episodes, tiny runs."""

import math

import pytest
import torch
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, TanhTransform

from baselines import offpolicy as op

OBS_DIM, ACTION_DIM = 4, 2
LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_actor() -> op.TanhGaussianActor:
    return op.TanhGaussianActor(OBS_DIM, ACTION_DIM, (16, 16), LOW, HIGH)


def distribution(actor, obs):
    mean, logstd = actor.gaussian(obs)
    squash = [TanhTransform(), AffineTransform((LOW + HIGH) / 2, (HIGH - LOW) / 2)]
    return TransformedDistribution(Normal(mean, logstd.exp()), squash)


def test_log_probabilities_are_those_of_torch():
    actor, obs = make_actor(), torch.randn(50, OBS_DIM)
    acts, logprob = actor.sample(obs)
    assert ((acts >= LOW) & (acts <= HIGH)).all()
    inside = (((acts - (LOW + HIGH) / 2) / ((HIGH - LOW) / 2)).abs() < 0.99).all(-1)
    expected = distribution(actor, obs).log_prob(acts).sum(-1)[inside]
    torch.testing.assert_close(logprob[inside], expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(actor.log_prob(obs, acts)[inside], expected, atol=1e-3, rtol=1e-3)
    assert actor.log_prob(obs, HIGH.expand(50, -1)).isfinite().all()


def test_evaluation_acts_by_the_mode_and_samples_with_the_policys_own_spread():
    actor, obs = make_actor(), torch.randn(2000, OBS_DIM)
    mean, _ = actor.gaussian(obs)
    torch.testing.assert_close(actor.mode(obs), (LOW + HIGH) / 2 + mean.tanh() * (HIGH - LOW) / 2)
    actor.fit_evaluation_noise(obs)
    spread = (actor.sample(obs)[0] - actor.mode(obs)).square().mean(0).sqrt()
    torch.testing.assert_close(actor.actor_logstd.exp()[0], spread, rtol=0.1, atol=0)


def test_twin_critics_are_two_networks():
    q = op.TwinQ(OBS_DIM, ACTION_DIM, (8, 8))
    q.norm.fit(torch.randn(100, OBS_DIM) * 3 + 1)
    obs, acts = torch.randn(5, OBS_DIM), torch.randn(5, ACTION_DIM)
    for i in range(2):
        x = torch.cat([(obs - q.norm.mean) / q.norm.std, acts], -1)
        for layer in q.layers[:-1]:
            x = (x @ layer.weight[i] + layer.bias[i]).relu()
        x = x @ q.layers[-1].weight[i] + q.layers[-1].bias[i]
        torch.testing.assert_close(q(obs, acts)[i], x[:, 0])


def test_polyak_update_moves_by_tau():
    target, source = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    expected = 0.9 * target.weight.detach() + 0.1 * source.weight.detach()
    op.polyak_update(target, source, 0.1)
    torch.testing.assert_close(target.weight.detach(), expected)


def test_gradient_penalty_is_one_sided_and_takes_the_largest_component():
    slope = torch.tensor([3.0, -5.0, 1.0])
    a, b = torch.randn(7, 3), torch.randn(7, 3)
    assert op.gradient_penalty(lambda x: x @ slope, a, b, 2.0).item() == pytest.approx(9)
    assert op.gradient_penalty(lambda x: x @ slope, a, b, 6.0).item() == 0
    both = op.gradient_penalty(lambda x: torch.stack([x @ slope, 0 * x.sum(-1)]), a, b, 2.0)
    assert both.item() == pytest.approx(4.5)
    # f(x) = x^2 between 0 and 1: the mean of (2 eps)^2 is 4/3.
    zero, one = torch.zeros(20_000, 1), torch.ones(20_000, 1)
    square = op.gradient_penalty(lambda x: x.square().sum(-1), zero, one, 0.0)
    assert square.item() == pytest.approx(4 / 3, rel=0.03)


def test_the_replay_is_a_ring():
    buffer = op.ReplayBuffer(5, OBS_DIM, ACTION_DIM, weight=0)
    for i in range(7):
        row = {"obs": torch.full((1, OBS_DIM), i), "acts": torch.zeros(1, ACTION_DIM)}
        buffer.add(**row, next_obs=row["obs"] + 1, terminated=[i == 6], weight=[i])
    assert len(buffer) == 5
    batch = buffer.sample(200)
    assert set(batch["weight"].tolist()) == {2, 3, 4, 5, 6}
    torch.testing.assert_close(batch["obs"][:, 0], batch["weight"])
    torch.testing.assert_close(batch["terminated"], (batch["weight"] == 6).float())


def test_a_terminal_state_has_no_value():
    target = op.td_target(
        torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]), torch.tensor(10.0), 0.9
    )
    torch.testing.assert_close(target, torch.tensor([10.0, 1.0]))


def test_sac_solves_a_bandit_and_counts_its_entropy():
    """Reward -(a - 1)^2 / 0.02 at alpha 1: the best policy is N(1, 0.1^2), up to the squashing."""
    config = op.SACConfig(hidden=(32, 32), lr=3e-3, batch_size=128, alpha=1.0, tau=0.05)
    sac = op.SAC(1, 1, torch.tensor([-3.0]), torch.tensor([3.0]), config)
    zeros = torch.zeros(128, 1)
    for _ in range(400):
        acts = 2 * torch.rand(128, 1)
        batch = {"obs": zeros, "acts": acts, "next_obs": zeros, "terminated": torch.ones(128)}
        op.sac_step(sac, batch, -((acts - 1) ** 2).squeeze(-1) / 0.02)
    acts, logprob = sac.actor.sample(torch.zeros(5000, 1))
    assert acts.mean().item() == pytest.approx(1, abs=0.05)
    assert acts.std().item() == pytest.approx(0.1, rel=0.3)
    entropy = 0.5 * math.log(2 * math.pi * math.e * acts.var().item())
    assert -logprob.mean().item() == pytest.approx(entropy, abs=0.1)
