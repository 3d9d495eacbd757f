"""The method with a part left out: that this part is gone, and the table of them."""

import json
import shutil

import pandas as pd
import pytest
import torch
import torch.optim as optim
from test_method import ACTION_DIM, OBS_DIM, batch, make

import custom_irl as irl
import report
from benchmark import ablations
from conftest import command


def after_training(name: str, rounds: int):
    """The algorithm after some rollouts in which states beyond 5 end episodes, and its policy."""
    _, algorithm, _ = make(algorithm_cls=ablations.ABLATIONS[name])
    algorithm.clone_rounds, algorithm.watch_rounds, algorithm.clone_steps = 2, 5, min(algorithm.clone_steps, 50)
    algorithm.q_rounds = 1
    policy = irl.Policy(OBS_DIM, ACTION_DIM)
    algorithm.set_policy(policy, optim.Adam(policy.parameters(), lr=3e-4, eps=1e-5))
    for seed in range(rounds):
        obs, acts, next_obs = batch(512, seed)
        next_obs[:50, 0] = 6.0
        ended = torch.zeros(512)
        ended[:50] = 1
        for _ in range(5):
            report = algorithm.update(obs, acts, next_obs, ended)
    assert all(torch.isfinite(torch.tensor(float(x))) for x in report.values())
    return algorithm, policy


def test_what_is_left_out_is_gone():
    full, _ = after_training("full", 12)
    deadly = batch(64)[0]
    deadly[:, 0] = 6.0
    assert full.reward_net.alive(deadly).mean() < 0.6
    assert after_training("no-termination", 12)[0].reward_net.alive(deadly).min() > 0.999
    obs = batch(8)[0]
    torch.testing.assert_close(after_training("no-value", 12)[0].slow_value(obs), torch.full((8,), full.reward_net.c))
    assert full.slow_value(obs).std() > 0.1

    def acts(name, rounds):
        return after_training(name, rounds)[1].actor_mean(obs)

    for name, clones, climbs in (("full", True, True), ("no-clone", False, True), ("only-cloning", True, False)):
        first, clone, last = acts(name, 1), acts(name, 2), acts(name, 12)
        assert torch.equal(first, clone) != clones and torch.equal(clone, last) != climbs
    assert ablations.NoGradientPenalty.gradient_penalty == 0 != full.gradient_penalty
    assert ablations.OneStep.decay == ablations.NoValue.decay == 0 != full.decay
    assert not after_training("no-clone", 12)[0].doubt.any() and full.doubt.any()
    full.reward_net.score = lambda obs, *_: torch.ones(len(obs))  # a clone as good as the expert
    assert full.clones_worth() == pytest.approx(100) and ablations.NoWorth.clones_worth(full) == 1


def test_doubt_and_the_clone_no_longer_say_where_to_go(monkeypatch):
    """By what a state in doubt costs Q, by which weight it is drawn to learn from, and by how far the clone pulls."""
    draw, weights, says = torch.multinomial, [], {}
    monkeypatch.setattr(torch, "multinomial", lambda w, n: weights.append(w) or draw(w, n))
    for name in ("full", "no-doubt-cost", "even-rows", "no-loyalty"):
        algorithm, _ = after_training(name, 3)
        algorithm.doubt[:], algorithm.doubt[: len(algorithm.doubt) // 2] = 0.0, 1000.0
        monkeypatch.setattr(
            algorithm, "action_values", lambda q, obs, acts: torch.ones(len(q), len(obs)) + 0 * acts.sum()
        )
        with torch.no_grad():
            obs, acts, next_obs, _ = algorithm.remembered(slice(0, None))
            cost = algorithm.reward_net.g(obs, acts, next_obs) - algorithm.q_rewards(slice(0, None))
            algorithm.clone_acts += 1.0
            before = algorithm.learner(obs)
        algorithm.optimizer.param_groups[0]["lr"] = 1e-3
        for _ in range(20):
            algorithm.follow(torch.arange(len(obs)))
        with torch.no_grad():
            says[name] = cost.max(), weights[-1].max() / weights[-1].min(), (algorithm.learner(obs) - before).mean()
    assert all(says["full"][i] > least for i, least in enumerate((0.5, 10, 0.1)))
    for cls, heard in ((ablations.Full, 0), (ablations.HeardEverywhere, 1), (ablations.NoLoyalty, 1)):
        assert (cls.heard(algorithm, torch.zeros(3)) == heard).all()
    assert says["no-doubt-cost"][0] < 1e-5 and says["even-rows"][1] < 1.001 and says["no-loyalty"][2].abs() < 1e-3


def test_who_acts_without_an_average_is_who_learns():
    for name, same in (("full", False), ("no-average", True)):
        algorithm, policy = after_training(name, 12)
        assert torch.equal(algorithm.learner[-1].weight, policy.actor_mean[-1].weight) == same


def test_a_part_alone_is_there_and_the_others_are_not():
    deadly = batch(64)[0]
    deadly[:, 0] = 6.0
    for name in ("termination", "value", "gradient-penalty"):
        algorithm, _ = after_training(f"only-{name}", 12)
        assert (algorithm.reward_net.alive(deadly).mean() < 0.6) == (name == "termination")
        assert (algorithm.slow_value(batch(8)[0]).std() > 0.1) == (name == "value")
        assert (algorithm.gradient_penalty > 0) == (name == "gradient-penalty")
        assert algorithm.clone_steps == algorithm.loyalty == 0


def test_the_table_holds_every_ablation_of_a_clean_tree_nothing_else_and_grows(tiny_run, tmp_path):
    folder, result, _ = tiny_run
    with pytest.raises(irl.UserError, match="expected some of a committed, clean tree"):
        ablations.publish(folder.parents[2], tmp_path)
    for name, clean in (("full", True), ("no-value", True), ("no-clone", False)):
        run = tmp_path / "results" / name
        shutil.copytree(folder, run)
        changed = result | {"method": f"ablation-{name}", "git_clean": clean}
        (run / "result.json").write_text(json.dumps(changed))
    shutil.copytree(folder, tmp_path / "results" / "custom")
    (tmp_path / "METHOD.md").write_text(f"before\n{report.BEGIN}\n{report.END}\nafter\n")
    ablations.publish(tmp_path / "results", tmp_path)
    rows = pd.read_csv(tmp_path / "ablations.csv")
    assert list(rows["method"]) == ["ablation-full", "ablation-no-value"]
    assert list(rows["eval_return_mean"]) == pytest.approx([result["eval_return_mean"]] * 2)
    assert (tmp_path / "ablations.png").stat().st_size > 5000
    score = f"{result['normalized_return']:.2f}"
    commit = result["git_commit"][:7]
    assert f"| no-value | {score} ({score}) | {commit} |\n| one-step |  |  |" in (tmp_path / "METHOD.md").read_text()

    shutil.rmtree(tmp_path / "results" / "full")
    again = tmp_path / "results" / "no-value" / "result.json"
    again.write_text(json.dumps(json.loads(again.read_text()) | {"eval_return_mean": 7.0}))
    ablations.publish(tmp_path / "results", tmp_path)
    kept, replaced = pd.read_csv(tmp_path / "ablations.csv")["eval_return_mean"]
    assert (kept, replaced) == (pytest.approx(result["eval_return_mean"]), 7.0)


def test_the_methods_table_is_what_the_committed_runs_say():
    published = report.read_published(irl.ROOT / "benchmark" / "ablations.csv")
    assert report.read_block(irl.ROOT / "benchmark" / "METHOD.md") == ablations.table(published).strip()


def test_the_command_runs_one_and_names_all(tmp_path):
    flags = ("--env", "Hopper-v4", "--total-timesteps", "2048", "--out", tmp_path / "run")
    done = command("-m", "benchmark.ablations", "only-cloning", *flags)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["method"] == "ablation-only-cloning"
    done = command("-m", "benchmark.ablations", "no-such")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no-termination" in done.stderr
