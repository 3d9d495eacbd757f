"""The method with a part left out: that this part is gone, and the table of what that costs."""

import json
import pickle
import shutil
from functools import cache

import pandas as pd
import pytest
import torch
from test_method import batch, with_policy

import custom_irl as irl
from benchmark import ablations, resume, runs, tables

COMMIT = "0123456789abcdef"
TERMINAL = 6.0  # first coordinate of the states that end episodes here


def terminal_states() -> torch.Tensor:
    states = batch(64)[0]
    states[:, 0] = TERMINAL
    return states


@cache
def trained(name: str, rounds: int = 8):
    """As `train`, once in this process: for tests that change nothing."""
    return train(name, rounds)


def train(name: str, rounds: int):
    """Algorithm and policy after some rollouts. BC is in round 2, the actor moves from round 5."""
    cls = ablations.ABLATIONS[name]
    fewer = {
        "bc_rounds": 2,
        "bc_eval_rounds": 2,
        "bc_steps": min(50, cls.hyperparameters.bc_steps),
        "target_refreshes": 1,
        "improvement_interval": 2,
    }
    algorithm, policy, _ = with_policy(algorithm_cls=cls, **fewer)
    algorithm.improvement.estimate_q_share = lambda: 1.0  # the BC actors agree about random data
    for seed in range(rounds):
        obs, acts, next_obs = batch(512, seed)
        next_obs[50:-1] = obs[51:]  # one trajectory, after 50 transitions that end episodes
        next_obs[:50, 0] = TERMINAL
        ended = (torch.arange(512) < 50).float()
        for _ in range(5):
            algorithm.update(obs, acts, next_obs, ended)
    return algorithm, policy


def survival(algorithm) -> float:
    with torch.no_grad():
        return algorithm.reward_net.survival_prob(terminal_states()).mean().item()


def value_spread(algorithm) -> float:
    with torch.no_grad():
        return algorithm.improvement.target_value(batch(8)[0]).std().item()


def one_step_targets(algorithm) -> bool:
    """Whether the returns of the newest rollouts are one-step targets."""
    improvement = algorithm.improvement
    n = improvement.replay.recent(improvement.hp.q_recent_rounds)
    torch.manual_seed(0)
    returns = improvement.recent_returns()
    torch.manual_seed(0)
    return torch.allclose(returns, improvement.td_targets(slice(-n, None)), rtol=1e-4)


def gradient_norms(algorithm) -> float:
    """Mean norm of the critic's gradient at its inputs."""
    net = algorithm.reward_net
    features = net.features(*batch(64)).detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(net.critic(features).sum(), features)
    return grad.norm(dim=1).mean().item()


def test_no_termination_knows_no_terminal_state():
    assert survival(trained("full")[0]) < 0.6
    assert survival(trained("no-termination")[0]) > 0.999


def test_no_value_has_a_constant_potential_and_one_step_returns():
    assert value_spread(trained("full")[0]) > 0.1
    assert not one_step_targets(trained("full")[0])
    without, _ = trained("no-value")
    assert value_spread(without) == 0
    assert without.improvement.target_value(batch(1)[0]).item() == irl.Hyperparameters.terminal_cost
    assert one_step_targets(without)


def test_one_step_has_one_step_returns_of_a_learned_value():
    algorithm, _ = trained("one-step")
    assert one_step_targets(algorithm)
    assert value_spread(algorithm) > 0.1


def test_without_a_penalty_the_critic_gets_steeper():
    steepness = {name: gradient_norms(trained(name)[0]) for name in ("full", "no-gradient-penalty")}
    assert steepness["no-gradient-penalty"] > 1.2 * steepness["full"]


@pytest.mark.parametrize(
    ("name", "cloned", "improved"),
    [("full", True, True), ("no-bc", False, True), ("only-bc", True, False)],
)
def test_what_moves_the_policy(name, cloned, improved):
    """BC in round 2, Q from round 5 on."""
    obs = batch(8)[0]
    before, after_bc, last = (trained(name, rounds)[1].actor_mean(obs) for rounds in (1, 2, 8))
    assert torch.equal(before, after_bc) != cloned
    assert torch.equal(after_bc, last) != improved


def test_without_bc_the_bc_actors_agree_everywhere():
    assert trained("full")[0].improvement.disagreement.any()
    assert not trained("no-bc")[0].improvement.disagreement.any()


@pytest.mark.parametrize(("name", "scale"), [("full", 100), ("fixed-bc-scale", 1)])
def test_bc_scale_of_a_bc_actor_as_good_as_the_expert(name, scale, monkeypatch):
    algorithm, _ = trained(name, rounds=1)
    expert = lambda obs, acts, next_obs, baseline: torch.ones(len(obs))  # noqa: E731
    monkeypatch.setattr(algorithm.reward_net, "normalized_score", expert)
    assert algorithm.improvement.estimate_bc_scale() == pytest.approx(scale)


def test_no_average_acts_with_the_actor_itself():
    for name, same in (("full", False), ("no-average", True)):
        algorithm, policy = trained(name)
        actor = algorithm.improvement.actor
        assert torch.equal(actor[-1].weight, policy.actor_mean[-1].weight) == same


# ---------------------------------------------------------------------------------- disagreement
def half_disagreed(name: str):
    """The improvement when the BC actors agree on the first half of the rows alone, and Q is flat.

    The BC actor's actions are 1 larger than the actor's.
    """
    improvement = train(name, rounds=3)[0].improvement
    obs = improvement.replay.obs
    half = len(obs) // 2
    improvement.disagreement[:half] = 0.0
    improvement.disagreement[half:] = 1000.0
    improvement.actor_optimizer.param_groups[0]["lr"] = 1e-3
    with torch.no_grad():
        improvement.bc_acts = improvement.actor(obs) + 1
    improvement.q_values = lambda nets, obs, acts: torch.ones(2, len(obs)) + 0 * acts.sum()
    return improvement, half


def test_uncertainty_costs_q_a_penalty():
    for name, penalised in (("full", True), ("no-uncertainty-penalty", False)):
        improvement, half = half_disagreed(name)
        rows = torch.arange(len(improvement.disagreement))
        g = improvement.reward_net.g(*improvement.replay.transitions(rows))
        penalty = (g - improvement.q_rewards(rows)).detach()
        assert penalty[:half].abs().max() < 1e-5
        assert (penalty[half:] > 0.5).all() == penalised


@pytest.mark.parametrize(("name", "least", "most"), [("full", 0, 0.1), ("uniform-rows", 0.3, 0.7)])
def test_the_share_of_rows_without_disagreement_in_the_actors_batches(name, least, most):
    improvement, half = half_disagreed(name)
    batches = []
    improvement.actor.register_forward_hook(lambda net, inputs, output: batches.append(inputs[0]))
    improvement.actor_step(torch.arange(2 * half))
    agreed = (batches[0][:, None] == improvement.replay.obs[:half]).all(-1).any(1)
    assert least <= agreed.float().mean() <= most


def test_the_bc_term_draws_the_actor_to_the_bc_actor():
    for name, drawn in (("full", True), ("ungated-q", True), ("no-bc-term", False)):
        improvement, half = half_disagreed(name)
        obs = improvement.replay.obs[:half]
        before = improvement.actor(obs)
        for _ in range(20):
            improvement.actor_step(torch.arange(half))
        assert ((improvement.actor(obs) - before).mean() > 0.05) == drawn


@pytest.mark.parametrize(("name", "weight"), [("full", 0), ("ungated-q", 1), ("no-bc-term", 1)])
def test_the_weight_of_q_where_the_bc_actors_agree(name, weight):
    assert trained(name, rounds=1)[0].improvement.q_weight(torch.zeros(3)).tolist() == [weight] * 3


# ------------------------------------------------------------------------------------- whole rows
@pytest.mark.parametrize("name", ["termination", "value", "gradient-penalty"])
def test_a_part_alone_is_there_and_the_others_are_not(name):
    algorithm, _ = trained(f"only-{name}")
    assert (survival(algorithm) < 0.6) == (name == "termination")
    assert (value_spread(algorithm) > 0.1) == (name == "value")
    assert one_step_targets(algorithm) == (name != "value")
    hp = algorithm.hyperparameters
    assert (hp.gradient_penalty > 0) == (name == "gradient-penalty")
    assert hp.bc_coef == 0
    assert not algorithm.improvement.disagreement.any()


def test_each_is_a_method_of_its_own_that_a_checkpoint_can_name():
    for name, cls in ablations.ABLATIONS.items():
        assert runs.method_named(f"ablation-{name}").classes() == (irl.RewardNetwork, cls)
        for one in (cls, cls.policy_improvement_cls):
            assert pickle.loads(pickle.dumps(one)) is one
    assert len(set(ablations.ABLATIONS.values())) == len(ablations.ABLATIONS)


def test_a_quick_look_leaves_out_what_the_ablation_leaves_out():
    class Shortened(ablations.NoBC):
        pass

    resume.shorten(Shortened)
    assert Shortened.hyperparameters.bc_steps == 0


# ------------------------------------------------------------------------------------------- table
@pytest.fixture
def published(tmp_path):
    """Where the table goes, and a page with the block."""
    table = tmp_path / "ablations.csv"
    page = tmp_path / "METHOD.md"
    page.write_text("before\n<!-- begin: ablations -->\n<!-- end: ablations -->\nafter\n")
    return table, page


@pytest.fixture
def results(tmp_path):
    """A folder of results, and a function that adds a finished run of some method to it."""
    folder = tmp_path / "run"
    args = irl.Args(total_timesteps=2048, update_epochs=1, out=folder)
    result = irl.run(irl.RewardNetwork, irl.IRLAlgorithm, args, "custom")
    origin = {"schema": 1, "quick": False, "hardware": runs.hardware(), "identity": {}}

    def add(method: str, clean: bool = True, commit: str = COMMIT, **changes) -> dict:
        run = tmp_path / "results" / f"{method}-{clean}"
        shutil.copytree(folder, run, dirs_exist_ok=True)
        changed = {**result, "id": f"{method}-{clean}", "method": method, **changes}
        (run / "result.json").write_text(json.dumps(changed))
        code = {"git_commit": commit, "git_clean": clean}
        (run / "origin.json").write_text(json.dumps(origin | code))
        return changed

    return tmp_path / "results", add


def test_the_table_holds_the_ablations_of_committed_code_and_grows(published, results):
    table, page = published
    folder, add = results
    add("custom")
    add("ablation-no-bc", clean=False)
    with pytest.raises(irl.UserError, match="no run of an ablation"):
        ablations.publish(folder, table)
    add("ablation-full")
    result = add("ablation-no-value")
    ablations.publish(folder, table)
    ablations.write_blocks(table, page)
    assert list(pd.read_csv(table)["method"]) == ["ablation-full", "ablation-no-value"]
    score = f"{result['normalized_return']:.2f}"
    rows = f"| full | {score} ({score}) |\n| no-value | {score} ({score}) |\n"
    assert f"| commit 0123456 | {result['env']}, dense, 2,048 steps |" in page.read_text()
    assert rows in page.read_text()
    assert table.with_suffix(".png").stat().st_size > 5000

    shutil.rmtree(folder)
    add("ablation-no-value", eval_return_mean=7.0)
    ablations.publish(folder, table)
    kept, replaced = pd.read_csv(table)["eval_return_mean"]
    assert (kept, replaced) == (pytest.approx(result["eval_return_mean"]), 7.0)


def test_the_runs_of_every_commit_are_a_table_of_their_own_the_newest_first(published, results):
    table, page = published
    folder, add = results
    add("ablation-full", date="2026-01-01T00:00:00+00:00")
    add("ablation-no-value", date="2026-01-01T00:00:00+00:00")
    ablations.publish(folder, table)
    shutil.rmtree(folder)
    add("ablation-full", commit="fedcba9", date="2026-02-01T00:00:00+00:00", normalized_return=0.5)
    ablations.publish(folder, table)
    assert len(pd.read_csv(table)) == 3
    ablations.write_blocks(table, page)
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    names = [line.split(" | ")[0].strip("| ") for line in lines]
    assert names == ["commit fedcba9", "---", "full", "commit 0123456", "---", "full", "no-value"]


def test_the_methods_table_is_what_the_committed_runs_say():
    table = tables.read_published(ablations.TABLE)
    block = tables.read_block(ablations.METHOD_PAGE, "ablations")
    assert block == ablations.markdown(table).strip()
    assert set(table["method"]) <= {f"ablation-{name}" for name in ablations.ABLATIONS}
