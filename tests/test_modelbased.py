"""Model-based methods: the ensemble on known systems, terminations, imagined rollouts."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

import custom_irl as irl
from baselines import dynamics, modelbased, offpolicy, omlirl, rmirl
from baselines.frozen import frozen as baselines_frozen
from benchmark.load import load_reward
from conftest import ROOT
from demos import mixed

SMALL = dynamics.DynamicsConfig(
    members=3, elites=2, hidden=32, max_steps=800, eval_every=200, learning_rate=1e-2
)


def linear_system(n: int) -> tuple[torch.Tensor, ...]:
    """s' = s + A s + B a + noise of standard deviations 0.5 and 0.1."""
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(n, 2, generator=generator)
    acts = torch.rand(n, 1, generator=generator) * 2 - 1
    delta = obs @ torch.tensor([[-0.1, 0.3], [0.2, -0.4]]) + acts @ torch.tensor([[1.0, -0.5]])
    noise = torch.randn(n, 2, generator=generator) * torch.tensor([0.5, 0.1])
    return obs, acts, obs + delta, noise


@pytest.fixture(scope="module")
def fitted() -> dynamics.Ensemble:
    torch.manual_seed(0)
    obs, acts, mean, noise = linear_system(4000)
    ensemble, report = dynamics.fit_ensemble(obs, acts, mean + noise, SMALL, seed=0)
    assert len(ensemble.weights[0]) == 2 and report["dynamics_steps"] <= 800
    return ensemble


def test_the_ensemble_finds_mean_and_noise_of_a_linear_gaussian_system(fitted):
    obs, acts, mean, noise = linear_system(1000)
    with torch.no_grad():
        delta, logvar = fitted(obs, acts)
    predicted = obs + fitted.delta_mean + fitted.delta_std * delta
    assert (predicted - mean).abs().mean() < 0.06
    std = ((0.5 * logvar).exp() * fitted.delta_std).mean((0, 1))
    torch.testing.assert_close(std, torch.tensor([0.5, 0.1]), rtol=0.15, atol=0)
    # Likelihood: at most what the true system gives, and near it; in units of delta_std.
    with torch.no_grad():
        found = fitted.log_prob(obs, acts, mean + noise).mean()
    true_std = torch.tensor([0.5, 0.1]) / fitted.delta_std
    density = torch.distributions.Normal(0.0, true_std)
    true = density.log_prob(noise / fitted.delta_std).sum(-1).mean()
    assert true - 0.1 < found < true + 0.02


def test_samples_have_the_noise_of_the_system(fitted):
    torch.manual_seed(1)
    start = torch.zeros(5000, 2)
    samples, _ = fitted.sample(start, torch.zeros(5000, 1))
    torch.testing.assert_close(samples.std(0), torch.tensor([0.5, 0.1]), rtol=0.15, atol=0)


def test_uncertainty_grows_away_from_the_data(fitted):
    _, near = fitted.sample(torch.zeros(100, 2), torch.zeros(100, 1))
    _, far = fitted.sample(torch.full((100, 2), 30.0), torch.zeros(100, 1))
    assert far.mean() > 1.3 * near.mean()


def test_likelihood_and_uncertainty_by_hand():
    mean, logvar = torch.tensor([[[1.0]], [[3.0]]]), torch.tensor([[[0.0]], [[2.0]]])
    target = torch.tensor([[2.0]])
    nll = dynamics.gaussian_nll(mean, logvar, target)
    expected = torch.tensor([0.5, 0.5 * (np.exp(-2.0) + 2.0)], dtype=torch.float32)
    torch.testing.assert_close(nll.flatten(), expected)
    # Mean variance (1 + e^2) / 2, variance of the means 1.
    hand = torch.tensor([np.sqrt((1 + np.exp(2.0)) / 2 + 1.0)], dtype=torch.float32)
    torch.testing.assert_close(dynamics.uncertainty(mean, logvar), hand)


@pytest.mark.parametrize("env_id", ["HalfCheetah-v4", "Hopper-v4", "Walker2d-v4"])
def test_terminations_are_the_environments_own(env_id):
    env = gym.make(env_id)
    env.action_space.seed(0)
    obs, terminated = [], []
    for seed in range(40):
        env.reset(seed=seed)
        for _ in range(100):
            next_obs, _, ended, _, _ = env.step(env.action_space.sample())
            obs.append(next_obs)
            terminated.append(ended)
            if ended:
                break
    predicted = dynamics.termination(env_id)(torch.as_tensor(np.array(obs)))
    assert predicted.tolist() == terminated
    assert any(terminated) == (env_id != "HalfCheetah-v4")


def test_another_environment_gets_one_line():
    with pytest.raises(irl.UserError, match="--env Ant-v4: what ends its episodes is not known"):
        dynamics.termination("Ant-v4")


class Counter(dynamics.Ensemble):
    """s' = s + 1, for certain."""

    def sample(self, obs, acts):
        return obs + 1, torch.zeros(len(obs))


def test_a_rollout_stops_where_it_ends_and_is_not_terminated_where_it_is_cut():
    ensemble = Counter(1, 1, replace(SMALL))
    starts = torch.tensor([[0.0], [2.0]])
    rows, uncertainty = dynamics.imagine(
        ensemble,
        lambda obs: torch.zeros(len(obs), 1),
        starts,
        3,
        lambda obs: obs[:, 0] >= 4,
        (torch.tensor([-9.0]), torch.tensor([9.0])),
    )
    # 0 -> 1 -> 2 -> 3 is cut, 2 -> 3 -> 4 ends.
    found = {
        (o.item(), n.item(), t.item())
        for o, n, t in zip(rows["obs"], rows["next_obs"], rows["terminated"])
    }
    assert found == {(0, 1, 0), (1, 2, 0), (2, 3, 0), (3, 4, 1)}
    assert len(rows["obs"]) == len(uncertainty) == 5


# ------------------------------------------------------------------------------------------ reward
def linear_reward(weights: list[float]) -> modelbased.RewardNetwork:
    """r(s, a) = clip(weights . (s, a)) with one observation and one action."""
    net = modelbased.RewardNetwork(1, 1)
    net.f = torch.nn.Linear(2, 1, bias=False)
    net.f.weight.data[:] = torch.tensor([weights])
    return net


def test_the_reward_loss_by_hand():
    """Gap 2 x 1 - 3 x 1, slope 3: penalty (3 - 1)^2; squares 4 + 9."""
    net = linear_reward([2.0, -3.0])
    expert, policy = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([[0.0, -1.0]] * 4)
    config = omlirl.Config(gradient_penalty=10.0, l2=0.1)
    loss = modelbased.reward_loss(net, expert, policy, config)
    assert loss.item() == pytest.approx(-(2.0 - 3.0) + 10 * 4.0 + 0.1 * 13.0)
    far = torch.tensor([[100.0, 0.0]])
    assert net.clipped(far).item() == 10.0  # and no gradient beyond the bound


def test_the_baseline_is_a_quantile_of_what_is_imagined():
    net = linear_reward([1.0, 0.0])
    batch = {"obs": torch.linspace(-1, 1, 101)[:, None], "acts": torch.zeros(101, 1)}
    net.rebase(batch, 0.05, 1.0)
    assert net.baseline.item() == pytest.approx(-0.9)
    net.rebase({key: x + 1 for key, x in batch.items()}, 0.05, 0.5)
    assert net.baseline.item() == pytest.approx((-0.9 + 0.1) / 2)
    paid = net(torch.tensor([[0.5]]), torch.zeros(1, 1), torch.zeros(1, 1))
    assert paid.item() == pytest.approx(0.5 + 0.4)


def test_lambda_rises_while_the_policy_is_too_uncertain_and_stays_in_its_range():
    config = omlirl.Config(lambda_rate=0.1, lambda_range=(0.5, 2.0))
    assert omlirl.adapted_lambda(1.0, 2.0, 2.0, config) == 1.0
    assert omlirl.adapted_lambda(1.0, 3.0, 2.0, config) == pytest.approx(np.exp(0.05))
    assert omlirl.adapted_lambda(1.0, 0.0, 2.0, config) == pytest.approx(np.exp(-0.1))
    assert omlirl.adapted_lambda(1.99, 9.0, 2.0, config) == 2.0


def test_the_adversarial_model_moves_to_what_is_worst_and_data_hold_it():
    """One state; s' - s > 0 has the higher advantage, so the model's mean goes below 0."""
    means = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        ensemble = dynamics.Ensemble(1, 1, SMALL)
        optimizer = torch.optim.Adam(ensemble.parameters(), 1e-3)
        obs, acts = torch.zeros(256, 1), torch.zeros(256, 1)
        data = {"obs": obs, "acts": acts, "next_obs": torch.randn(256, 1)}
        for _ in range(100):
            next_obs, _ = ensemble.sample(obs, acts)
            drawn = {"obs": obs, "acts": acts, "next_obs": next_obs}
            loss = rmirl.model_loss(ensemble, data, drawn, next_obs[:, 0], weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        means[weight] = ensemble(obs, acts)[0].mean().item()
    assert abs(means[0.0]) < 0.2 and means[1.0] < means[0.0] - 0.2


# --------------------------------------------------------------------------------------- a learner
TINY = replace(SMALL, max_steps=20, eval_every=10, holdout=0.01)
SHORT = {
    "steps": 25,
    "bc_steps": 5,
    "critic_steps": 5,
    "rollout_every": 10,
    "n_starts": 20,
    "rollout_steps": 3,
    "hidden": (32, 32),
    "dynamics": TINY,
}


def small_mixed(env_id: str) -> dict[str, np.ndarray]:
    """Mixed data of Hopper without a recording: an episode of the expert, backwards."""
    demos = irl.load_demos(ROOT / "demos" / "Hopper-v4.npz", 11, 3, 1, 1)
    arrays = {key: x.numpy()[::-1].copy() for key, x in demos.tensors.items()}
    return {**arrays, "terminated": np.zeros(len(arrays["obs"]), np.float32)}


@pytest.fixture
def learner() -> modelbased.Learner:
    args = irl.Args(env="Hopper-v4", demo_episodes=1)
    demos = irl.load_demos(args.demos_path, 11, 3, 1, 1).tensors
    expert = {**demos, "terminated": torch.zeros(len(demos["obs"]))}
    mixed = {key: torch.as_tensor(x) for key, x in small_mixed("Hopper-v4").items()}
    task = offpolicy.Task(args, expert, mixed, irl.make_env("Hopper-v4"))
    return modelbased.Learner(omlirl.Config(**SHORT), task)


def test_a_batch_has_its_shares_and_only_real_rows_are_certain(learner):
    stats = learner.imagine()
    assert 1 <= stats["matched_length"] <= 3 and 1 <= stats["other_length"] <= 3
    batch = learner.batch()
    assert {len(x) for x in batch.values()} == {256}
    assert (batch["uncertainty"] > 0).sum() == 128


def test_steps_of_the_reward_pay_the_expert_more_than_what_is_imagined(learner):
    learner.imagine()
    before = learner.reward_step()["reward_gap"]
    for _ in range(30):
        after = learner.reward_step()["reward_gap"]
    assert after > before + 0.1


def test_an_end_costs_what_the_lowest_reward_for_ever_would(learner):
    """Values of r - b with 0 for an end, less the constant b / (1 - gamma), are those of `rewards`:
    Q of a row is r + gamma (1 - terminated) V, and an end has V = 0."""
    batch = {**offpolicy.sample(learner.expert, 2), "terminated": torch.tensor([0.0, 1.0])}
    gamma, b = learner.config.gamma, learner.reward_net.baseline.fill_(-2.0)
    value = torch.tensor([7.0, 7.0])
    shifted = learner.reward_net(batch["obs"], batch["acts"], batch["obs"])
    shifted_q = offpolicy.td_target(shifted, batch["terminated"], value - b / (1 - gamma), gamma)
    paid_q = offpolicy.td_target(learner.rewards(batch), batch["terminated"], value, gamma)
    torch.testing.assert_close(paid_q, shifted_q + b / (1 - gamma))


def test_the_actor_rests_while_the_critics_learn(learner):
    learner.imagine()
    batch = learner.batch()
    moved = []
    for step in (SHORT["critic_steps"], SHORT["critic_steps"] + 1):
        before = learner.sac.actor.actor_mean.mean.weight.clone()
        learner.policy_step(step, batch, learner.rewards(batch))
        moved.append(not torch.equal(before, learner.sac.actor.actor_mean.mean.weight))
    assert moved == [False, True]


@pytest.mark.parametrize("name", ["omlirl", "rmirl"])
def test_a_run_says_what_it_used_and_its_reward_loads(name, tmp_path, monkeypatch):
    module = {"omlirl": omlirl, "rmirl": rmirl}[name]
    (tmp_path / "Hopper-v4.npz").write_bytes(b"data")
    monkeypatch.setattr(mixed, "FOLDER", tmp_path)
    monkeypatch.setattr(mixed, "load_mixed", small_mixed)
    more = {"model_every": 10, "model_steps": 2} if name == "rmirl" else {}
    config = module.Config(**SHORT, **more)
    args = irl.Args(env="Hopper-v4", demo_episodes=2, demo_subsample=20, out=tmp_path / name)
    result = offpolicy.run(module.train, config, args, name, uses_mixed=True)
    used = {"expert_transitions": 100, "mixed_transitions": 1000, "environment_steps": 0}
    assert result["data"] == used and result["steps"] == 0
    assert result["hyperparameters"]["steps"] == SHORT["steps"]
    reward = load_reward(args.out)
    rows = {key: x[:5] for key, x in small_mixed("Hopper-v4").items()}
    paid = reward(rows["obs"], rows["acts"], rows["next_obs"])
    assert paid.shape == (5,) and np.isfinite(paid).all() and np.ptp(paid) > 0
    again = {**vars(args), "out": tmp_path / "frozen", "seed": 2, "total_timesteps": 2048}
    again = irl.Args(**again)
    frozen = irl.run(*baselines_frozen(args.out, again)[:2], again, f"{name}-frozen")
    assert frozen["method"] == f"{name}-frozen"


def test_the_anchored_loss_by_hand(learner):
    """Q = 4 everywhere, alpha 0.01: SAC's loss over |Q|, and the squared error of the mode."""
    sac, config = learner.sac, replace(learner.config, q_weight=2.5)
    sac.q = lambda obs, acts: torch.full((2, len(obs)), 4.0)
    batch = offpolicy.sample(learner.expert, 8)
    mode = sac.actor.mode(batch["obs"]).detach()
    expert = {**batch, "acts": mode + 0.5}
    torch.manual_seed(3)
    loss = modelbased.anchored_loss(sac, batch, expert, config)
    torch.manual_seed(3)
    _, logprob = sac.actor.sample(batch["obs"])
    entropy_cost = 0.01 * logprob.mean().item()
    expected = 2.5 / 4 * (entropy_cost - 4) + 3 * 0.25
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    alone = replace(config, bc_weight=0.0)
    torch.manual_seed(3)
    assert modelbased.anchored_loss(sac, batch, expert, alone).item() == pytest.approx(
        entropy_cost - 4, abs=1e-5
    )
