"""The off-policy methods: losses on cases with known answers, ends of episodes, tiny runs."""

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, TanhTransform

import custom_irl as irl
from baselines import dagger, gail_sac, ibc, iqlearn, recoil
from baselines import offpolicy as op
from baselines.frozen import frozen
from benchmark import launch, resume, runs, tables
from benchmark.load import load_reward, load_run

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
    slopes = torch.stack([slope, 0 * slope])
    both = op.gradient_penalty(lambda x: (x * slopes[:, None]).sum(-1), a, b, 2.0, critics=2)
    assert both.item() == pytest.approx(4.5)
    # f(x) = x^2 between 0 and 1: the mean of (2 eps)^2 is 4/3.
    zero, one = torch.zeros(20_000, 1), torch.ones(20_000, 1)
    square = op.gradient_penalty(lambda x: x.square().sum(-1), zero, one, 0.0)
    assert square.item() == pytest.approx(4 / 3, rel=0.03)
    norm = op.gradient_penalty(lambda x: x @ slope, a, b, 2.0, euclidean=True)
    assert norm.item() == pytest.approx((35**0.5 - 2) ** 2, rel=1e-5)


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
    """Reward -(a - 0.5)^2 / 2 at alpha 0.04: the best policy is N(0.5, 0.2^2), hardly squashed."""
    config = op.SACConfig(hidden=(32, 32), lr=3e-3, alpha=0.04, tau=0.05)
    sac = op.SAC(1, 1, torch.tensor([-2.0]), torch.tensor([2.0]), config)
    zeros = torch.zeros(64, 1)
    for _ in range(400):
        acts = 4 * torch.rand(64, 1) - 2
        batch = {"obs": zeros, "acts": acts, "next_obs": zeros, "terminated": torch.ones(64)}
        op.sac_step(sac, batch, -((acts - 0.5) ** 2).squeeze(-1) / 2)
    acts, logprob = sac.actor.sample(torch.zeros(5000, 1))
    assert acts.mean().item() == pytest.approx(0.5, abs=0.1)
    assert acts.std().item() == pytest.approx(0.2, rel=0.3)
    entropy = 0.5 * math.log(2 * math.pi * math.e * acts.var().item())
    assert -logprob.mean().item() == pytest.approx(entropy, abs=0.1)


def test_critics_bootstrap_from_the_next_state_unless_it_is_terminal():
    """Reward 1 for ever is worth 10 at gamma 0.9, with an end after each step 1."""
    for terminated, value in ((0.0, 10.0), (1.0, 1.0)):
        config = op.SACConfig(hidden=(16,), lr=1e-2, alpha=1e-9, gamma=0.9, tau=0.5)
        sac = op.SAC(1, 1, torch.tensor([-1.0]), torch.tensor([1.0]), config)
        zeros = torch.zeros(64, 1)
        for _ in range(400):
            batch = {"obs": zeros, "acts": 2 * torch.rand(64, 1) - 1, "next_obs": zeros}
            op.critic_step(sac, {**batch, "terminated": zeros[:, 0] + terminated}, torch.ones(64))
        values = op.soft_value(sac.actor, sac.q_target, zeros, sac.alpha)
        assert values.mean().item() == pytest.approx(value, rel=0.1)


@pytest.mark.parametrize(("std", "grows"), [(0.01, True), (2.0, False)])
def test_the_temperature_grows_while_there_is_too_little_entropy(std, grows):
    sac = op.SAC(OBS_DIM, ACTION_DIM, -torch.ones(2), torch.ones(2), op.SACConfig(hidden=(8, 8)))
    sac.actor.set_std(std)
    before = sac.alpha
    op.actor_step(sac, torch.randn(64, OBS_DIM))
    assert (sac.alpha > before) == grows


def test_squared_errors_are_weighted_by_advantage_up_to_a_bound():
    modes, acts = torch.zeros(3, 2), torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    advantages = torch.tensor([0.0, 0.1, 9.0])
    expected = (1 * 1 + math.e * 4 + 100 * 2) / 3
    assert op.awr_loss(modes, acts, advantages, 0.1, 100.0).item() == pytest.approx(expected)


def test_actions_near_the_mode_stay_in_the_action_range():
    actor, obs = make_actor(), torch.randn(4000, OBS_DIM)
    acts = op.sample_near_mode(actor, obs, 0.01)
    assert (acts - actor.mode(obs)).std().item() == pytest.approx(0.01, rel=0.1)
    wide = op.sample_near_mode(actor, obs, 10.0)
    assert ((wide >= LOW) & (wide <= HIGH)).all()


# ---------------------------------------------------------------------------------- demonstrations
def write_demos(path, terminated, lengths=(5, 4)):
    rows = sum(lengths) + len(lengths)
    obs = np.arange(rows, dtype=np.float32)[:, None]
    arrays = {"obs": obs, "acts": np.zeros((sum(lengths), 1), np.float32)}
    arrays["lengths"] = np.array(lengths)
    if terminated is not None:
        arrays["terminated"] = np.array(terminated)
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("terminated", "subsample", "expected"),
    [
        (None, 1, [0] * 9),
        ([False, False], 1, [0] * 9),
        ([True, False], 1, [0, 0, 0, 0, 1, 0, 0, 0, 0]),
        ([False, True], 1, [0] * 8 + [1]),
        (
            [True, True],
            2,
            [0, 0, 1, 0, 0],
        ),  # every second step: the second end is not kept
    ],
)
def test_an_end_of_the_demonstrations_is_terminal_where_the_file_says_so(
    terminated, subsample, expected, tmp_path
):
    path = write_demos(tmp_path / "demos.npz", terminated)
    args = irl.Args(demos=path, demo_episodes=2, demo_subsample=subsample)
    assert op.expert_terminated(args).tolist() == expected
    demos = irl.load_demos(path, 1, 1, 2, subsample)
    assert demos.source["transitions"] == len(expected)


def test_ends_under_another_name_are_refused_and_none_are_said(tmp_path, capsys):
    path = write_demos(tmp_path / "demos.npz", None)
    args = irl.Args(demos=path, demo_episodes=2)
    op.expert_terminated(args)
    assert "demos.npz: without a key 'terminated'" in capsys.readouterr().out
    arrays = dict(np.load(path))
    np.savez(path, **arrays, terminals=np.array([True, False]))
    with pytest.raises(irl.UserError, match=r"demos\.npz: key 'terminals': expected none but acts"):
        op.expert_terminated(args)


def test_ends_of_another_shape_are_refused(tmp_path):
    args = irl.Args(demos=write_demos(tmp_path / "demos.npz", [True]), demo_episodes=2)
    with pytest.raises(
        irl.UserError, match=r"demos\.npz: key 'terminated' is bool \(1,\); expected"
    ):
        op.expert_terminated(args)


# ----------------------------------------------------------------------------------------- IBC
def test_info_nce_is_the_cross_entropy_of_the_first_action():
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    expected = -(1 - math.log(math.e + 2) + 0 - math.log(math.e**2 + 2)) / 2
    assert ibc.info_nce_loss(scores).item() == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------------------------- IQ-Learn
def soft_values(q, alpha):
    return alpha * torch.logsumexp(q / alpha, dim=1)


def soft_optimal(reward, transition, gamma, alpha):
    q = torch.zeros_like(reward)
    for _ in range(2000):
        q = reward + gamma * (transition @ soft_values(q, alpha))
    return q


def test_iqlearn_recovers_the_reward_of_a_small_mdp_up_to_shaping():
    """Two rewards with one soft-optimal policy differ by gamma E phi(s') - phi(s) (Ng et al.)."""
    n_states, n_actions, gamma, alpha = 4, 3, 0.9, 2.0
    reward = torch.randn(n_states, n_actions)
    transition = torch.rand(n_states, n_actions, n_states).pow(3)
    transition /= transition.sum(-1, keepdim=True)
    expert = torch.softmax(soft_optimal(reward, transition, gamma, alpha) / alpha, 1)
    n = 40_000
    states = torch.randint(n_states, (n,))
    acts = torch.multinomial(expert[states], 1)[:, 0]
    next_states = torch.multinomial(transition[states, acts], 1)[:, 0]
    q = torch.zeros(n_states, n_actions, requires_grad=True)
    optimizer = torch.optim.Adam([q], lr=0.05)
    for _ in range(600):
        values = soft_values(q, alpha)
        rewards = iqlearn.implied_reward(
            q[states, acts], torch.zeros(n), values[next_states], gamma
        )
        # A small weight of the squared reward: it fixes what shaping leaves free.
        loss = iqlearn.offline_loss(q[states, acts], values[states], rewards, weight=0.995)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    q = q.detach()
    torch.testing.assert_close(torch.softmax(q / alpha, 1), expert, atol=0.03, rtol=0)
    recovered = q - gamma * (transition @ soft_values(q, alpha))
    shaping = gamma * transition - torch.eye(n_states)[:, None]  # (states, actions, phi)
    difference = (recovered - reward).reshape(-1, 1)
    phi = torch.linalg.lstsq(shaping.reshape(-1, n_states), difference).solution
    rest = difference - shaping.reshape(-1, n_states) @ phi
    assert rest.abs().max() < 0.2 * reward.std()
    assert difference.std() > 0.5 * reward.std()  # shaping was needed


def test_the_implied_reward_of_a_terminal_transition_is_q():
    q, ended = torch.tensor([[5.0, 5.0]]), torch.tensor([0.0, 1.0])
    rewards = iqlearn.implied_reward(q, ended, torch.tensor([10.0, 10.0]), 0.9)
    torch.testing.assert_close(rewards, torch.tensor([[-4.0, 5.0]]))


def test_the_online_loss_by_hand():
    rewards, is_expert = torch.tensor([[1.0, 3.0, 5.0, 7.0]]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    values, discounted = torch.tensor([[2.0, 2.0, 4.0, 4.0]]), torch.tensor([1.0, 1.0, 1.0, 1.0])
    expected = -2 + 2 + (1 + 9 + 25 + 49) / 4 / (4 * 0.5)
    loss = iqlearn.online_loss(rewards, values, discounted, is_expert, beta=0.5)
    assert loss.item() == pytest.approx(expected)
    twice = [x.repeat(2, 1) for x in (rewards, values)]
    again = iqlearn.online_loss(*twice, discounted, is_expert, beta=0.5)
    assert again.item() == pytest.approx(expected)


# --------------------------------------------------------------------------------------- ReCOIL
def test_recoils_terms_by_hand():
    expert_q, policy_q = torch.tensor([[190.0, 210.0]]), torch.tensor([[0.0, -230.0]])
    assert recoil.contrast(policy_q, expert_q).item() == -115 - 200
    assert recoil.bound_loss(expert_q, policy_q, 200.0).item() == 100 + (200 + 230) / 2
    td = recoil.bellman_error(
        torch.tensor([[9.0, 2.0]]), torch.tensor([0.0, 1.0]), torch.tensor([8.0, 50.0]), 0.5
    )
    assert td.item() == pytest.approx(((9 - 4) ** 2 + 2**2) / 2)  # the end's next value counts 0


def test_an_end_counts_as_the_absorbing_steps_after_it():
    assert recoil.absorbing_share(torch.zeros(8), 0.9) == 0
    assert recoil.absorbing_share(torch.tensor([1.0] + 9 * [0.0]), 0.9) == pytest.approx(0.5)
    mean = recoil.replay_term(torch.tensor([[2.0, 4.0]]), torch.tensor([[-5.0]]), 0.25)
    assert mean.item() == pytest.approx(0.75 * 3 - 0.25 * 5)


def demonstrated(shift: float, n: int = 64) -> op.Batch:
    """Transitions whose actions are around `shift`, none terminal."""
    obs = torch.randn(n, OBS_DIM)
    acts = shift + 0.1 * torch.randn(n, ACTION_DIM)
    return {"obs": obs, "acts": acts, "next_obs": obs, "terminated": torch.zeros(n)}


def test_recoils_q_becomes_high_on_the_expert_and_low_elsewhere():
    config = recoil.Config(hidden=(32, 32), lr=3e-3)
    q = op.TwinQ(OBS_DIM, ACTION_DIM, (32, 32), 200.0)
    sac = op.SAC(OBS_DIM, ACTION_DIM, -torch.ones(2), torch.ones(2), config, q=q)
    for _ in range(100):
        report = recoil.offline_step(sac, demonstrated(0.5), demonstrated(-0.5), config, 0.0)
    assert report["expert_q"] > report["mixed_q"] + 20


def test_iqlearns_reward_becomes_high_on_the_expert_and_low_on_the_replay():
    config = iqlearn.Config(hidden=(32, 32), lr=3e-3, online=True)
    sac = op.SAC(OBS_DIM, ACTION_DIM, -torch.ones(2), torch.ones(2), config, alpha=0.01)
    is_expert = (torch.arange(128) < 64).float()
    for _ in range(100):
        batch = op.concatenate(demonstrated(0.5), demonstrated(-0.5))
        report = iqlearn.online_step(sac, {**batch, "is_expert": is_expert}, config)
    assert report["expert_reward"] > report["replay_reward"] + 0.2


def test_online_an_end_is_worth_what_the_replays_reward_for_ever_is():
    """-2 beta / (1 - gamma) = -100, whatever the state; Q is about 0 before training."""
    config = iqlearn.Config(hidden=(8, 8), online=True, chi2_beta=0.5)
    sac = op.SAC(OBS_DIM, ACTION_DIM, -torch.ones(2), torch.ones(2), config, alpha=1e-6)
    batch = op.concatenate(demonstrated(0.5), demonstrated(-0.5))
    ends = {**batch, "terminated": torch.ones(128), "next_obs": torch.full((128, OBS_DIM), 1e3)}
    is_expert = (torch.arange(128) < 64).float()
    report = iqlearn.online_step(sac, {**ends, "is_expert": is_expert}, config)
    assert report["expert_reward"] == pytest.approx(99, abs=1)
    assert report["replay_reward"] == pytest.approx(99, abs=1)


def test_the_absorbing_state_is_an_input_of_its_own():
    q = recoil.AbsorbingTwinQ(OBS_DIM, ACTION_DIM, (8, 8), unit=200.0)
    inputs = q.inputs(torch.randn(5, OBS_DIM), torch.randn(5, ACTION_DIM))
    assert (inputs[:, -1] == 0).all()
    assert q.absorbing.shape == (1, inputs.shape[1])
    assert q.absorbing[0, -1] == 1 and q.absorbing[0, :-1].abs().sum() == 0


# ----------------------------------------------------------------------------------------- GAIL
def test_the_reward_is_high_on_the_expert_and_knows_ends():
    net = gail_sac.GAILReward(OBS_DIM, ACTION_DIM)
    optimizer = op.adam(net.layers.parameters(), 3e-3)

    def batch(shift, ended):
        obs = torch.randn(64, OBS_DIM)
        return {"obs": obs, "acts": torch.randn(64, ACTION_DIM) + shift, "terminated": ended}

    ended = (torch.arange(64) % 2).float()
    for _ in range(150):
        terms = gail_sac.reward_step(
            net, optimizer, batch(1, torch.zeros(64)), batch(0, ended), gail_sac.Config()
        )
    assert terms["expert_reward"] > terms["policy_reward"] + 0.5
    state = batch(0, torch.zeros(64))
    alive = net.reward(state["obs"], state["acts"], torch.zeros(64))
    assert (alive > net.reward(state["obs"], state["acts"], torch.ones(64))).all()


def test_an_end_is_paid_less_than_any_step_however_like_the_experts_it_is():
    """Or else falling in front of the expert's states, paid for ever, is the best there is."""
    net = gail_sac.GAILReward(OBS_DIM, ACTION_DIM)
    optimizer = op.adam(net.layers.parameters(), 3e-3)
    ended = (torch.arange(64) % 4 == 0).float()

    def batches():
        expert, policy = demonstrated(0.5), demonstrated(-0.5)
        acts = torch.where(ended[:, None] > 0, expert["acts"], policy["acts"])
        return expert, {**policy, "acts": acts, "terminated": ended}

    for _ in range(300):
        gail_sac.reward_step(net, optimizer, *batches(), gail_sac.Config())
    expert, policy = batches()
    ends = net.reward(expert["obs"], expert["acts"], torch.ones(64))
    alive = net.reward(policy["obs"], policy["acts"], torch.zeros(64))[ended == 0]
    assert ends.max() < alive.min()


def test_the_wasserstein_loss_and_the_absorbing_reward_by_hand():
    loss = gail_sac.reward_loss(torch.tensor([3.0]), torch.tensor([1.0]), 0.1)
    assert loss.item() == pytest.approx(1 - 3 + 0.1 * (9 + 1) / 2)
    rewards = gail_sac.absorbing_rewards(torch.tensor([2.0, -2.0]), torch.tensor([0.0, 1.0]), 0.9)
    torch.testing.assert_close(rewards, torch.tensor([2.0, -20.0]))
    # A constant added to the reward shifts every value by the same, at an end too.
    ended = torch.tensor([0.0, 1.0])
    values = [
        op.td_target(
            gail_sac.absorbing_rewards(torch.full((2,), c), ended, 0.9), ended, c / (1 - 0.9), 0.9
        )
        for c in (1.0, -1.0)
    ]
    torch.testing.assert_close(values[0], torch.tensor([10.0, 10.0]))
    torch.testing.assert_close(values[1], -values[0])


def test_the_saved_reward_recognises_terminal_states_and_pays_them_as_sac_was_paid():
    net = gail_sac.GAILReward(OBS_DIM, ACTION_DIM)
    next_obs = torch.randn(2000, OBS_DIM)
    replay = {"next_obs": next_obs, "terminated": (next_obs[:, 0] < -1.5).float()}
    batch = torch.randn(500, OBS_DIM), torch.randn(500, ACTION_DIM), torch.randn(500, OBS_DIM)
    torch.testing.assert_close(net(*batch), net.reward(*batch[:2], torch.zeros(500)))
    gail_sac.fit_termination(net, {**replay, "terminated": torch.zeros(2000)}, 5)
    assert net.knows_ends == 0
    gail_sac.fit_termination(net, replay, 300)
    for value in (0.0, -3.0):
        next_state = torch.cat([torch.full((500, 1), value), batch[2][:, 1:]], 1)
        ended = torch.full((500,), float(value < -1.5))
        expected = gail_sac.absorbing_rewards(net.reward(*batch[:2], ended), ended, 0.99)
        agree = torch.isclose(net(*batch[:2], next_state), expected, rtol=1e-4)
        assert agree.float().mean() > 0.95


# ------------------------------------------------------------------------------------------- runs
FEW = {"updates": 3, "env_steps": 40, "random_steps": 20, "rounds": 1, "round_steps": 50}
FEW |= {"termination_steps": 2}
TINY = {"demo_episodes": 4, "demo_subsample": 20, "max_episode_steps": 100}


def few(trainer: runs.Trainer, module):
    config = module.Config(online=True) if trainer.online else module.Config()
    known = {field.name for field in fields(config)}
    return replace(config, **{key: n for key, n in FEW.items() if key in known})


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """A small file of mixed data in place of the project's."""
    import demos.mixed

    n = 300
    arrays = {"obs": np.random.randn(n, 11), "acts": np.random.rand(n, 3) * 2 - 1}
    arrays |= {"next_obs": np.random.randn(n, 11), "terminated": np.arange(n) % 10 == 9}
    path = tmp_path / "Hopper-v4.npz"
    np.savez(path, **arrays)
    monkeypatch.setattr(demos.mixed, "FOLDER", tmp_path)
    monkeypatch.setattr(demos.mixed, "load_mixed", lambda env_id: dict(np.load(path)))


OURS = ("ibc", "iqlearn", "iqlearn-online", "recoil", "recoil-online", "gail-sac", "dagger")


@pytest.mark.parametrize("method", OURS)
def test_each_method_leaves_the_result_of_any_run(method, tmp_path, mixed):
    trainer = runs.TRAINERS[method]
    module = __import__(trainer.module, fromlist=["Config"])
    config = few(trainer, module)
    args = irl.Args("Hopper-v4", out=tmp_path / "run", **TINY)
    train = getattr(module, "train", None) or (
        module.train_online if trainer.online else module.train_offline
    )
    result = op.run(train, config, args, method, uses_mixed=method == "recoil")
    assert result == runs.read_result(args.out)
    online = trainer.online or method in ("gail-sac", "dagger")
    assert (result["steps"] > 0) == online
    used = {"expert_transitions": 200, "environment_steps": result["steps"]}
    used["mixed_transitions"] = 300 if method == "recoil" else 0
    used |= {"expert_queries": result["steps"]} if method == "dagger" else {}
    assert result["data"] == used
    assert result["hyperparameters"] == runs.as_json(vars(config))
    assert op.run(train, config, args, method, uses_mixed=method == "recoil") == result  # read
    with pytest.raises(irl.UserError, match="another run"):
        other = replace(config, lr=0.5)
        op.run(train, other, args, method, uses_mixed=method == "recoil")
    policy, net = load_run(args.out)
    obs = torch.randn(7, 11)
    assert policy.actor_mean(obs).shape == (7, 3)
    assert policy.actor_logstd.shape == (1, 3)
    row = tables.read_row(args.out)
    assert "lr" not in row["labels"] and any(key.replace("_", "-") in row["labels"] for key in FEW)
    if not trainer.reward:
        assert net is None
        return
    batch = (obs.numpy(), np.zeros((7, 3)), obs.numpy())
    rewards = load_reward(args.out)(*batch)
    assert rewards.shape == (7,) and np.isfinite(rewards).all()
    make_net, _, name = frozen(args.out, args)
    irl.check_size(make_net(11, 3), 11, 3)
    assert name == f"{method}-frozen"


def test_the_implicit_reward_is_q_minus_the_next_value():
    config = iqlearn.Config()
    sac = op.SAC(OBS_DIM, ACTION_DIM, -torch.ones(2), torch.ones(2), config)
    net = iqlearn.saved_reward(sac, (OBS_DIM, ACTION_DIM))
    obs, acts, next_obs = (torch.randn(9, d) for d in (OBS_DIM, ACTION_DIM, OBS_DIM))
    next_value = sac.q(next_obs, sac.actor.mode(next_obs)).amin(0)
    expected = sac.q(obs, acts).amin(0) - 0.99 * next_value
    torch.testing.assert_close(net(obs, acts, next_obs), expected)


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        (ibc, ["--total-timesteps", "1000000"], "--total-timesteps: not read by this method"),
        (ibc, ["--gamma", "0.9"], "--gamma: not read by this method"),
        (iqlearn, ["--irl_lr=0.1"], "--irl-lr: not read by this method"),
        (gail_sac, ["--env-steps", "2000"], "--env-steps 2000: expected more than the 2000"),
    ],
)
def test_flags_that_a_method_does_not_read_are_refused(module, words, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["method", "--env", "Hopper-v4", *words])
    with pytest.raises(irl.UserError, match=message):
        op.parse(module.Config, "")


def test_flags_of_both_kinds_are_read(monkeypatch):
    monkeypatch.setattr("sys.argv", ["ibc", "--env", "Walker2d-v4", "--updates", "3", "--seed=7"])
    config, args = op.parse(ibc.Config, "")
    assert (config.updates, args.env, args.seed) == (3, "Walker2d-v4", 7)


def test_methods_with_a_loop_of_their_own_are_not_run_by_the_loops_commands(tmp_path):
    monkey = ["ibc", "--env", "Hopper-v4"]
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(irl.UserError, match="loop of its own; expected python -m baselines"),
    ):
        patch.setattr("sys.argv", ["resume", *monkey])
        resume.main()
    for flags, message in (
        (["--true-reward"], "gail-sac: not with variant true-reward"),
        (["--no-policy-access"], "gail-sac: not with variant reward-only"),
        ([], "--quick"),
    ):
        config = launch.Config(method="gail-sac", quick=not flags)
        with pytest.raises(irl.UserError, match=message):
            launch.runs_of(config, flags)


def test_the_launcher_starts_each_method_by_its_own_module():
    config = launch.Config(method="recoil-online", seeds=(1,), envs=("Hopper-v4",), panel="tiny")
    (job,) = launch.make_jobs(launch.runs_of(config, []), config.results)
    words = " ".join(job.command)
    assert "-m baselines.recoil --online --env Hopper-v4 --seed 1 --demo-episodes 4" in words
    assert job.folder.parts[-3] == "recoil-online-tiny"


def test_dagger_starts_from_the_demonstrations_by_episode():
    demos = {"obs": torch.arange(5.0)[:, None], "next_obs": torch.arange(5.0)[:, None] + 0.5}
    first, second = dagger.trajectories({**demos, "acts": torch.zeros(5, 1)}, np.array([3, 2]))
    assert first.obs[:, 0].tolist() == [0, 1, 2, 2.5]
    assert second.obs[:, 0].tolist() == [3, 4, 4.5]
    assert json.dumps(second.acts.tolist()) == "[[0.0], [0.0]]"
