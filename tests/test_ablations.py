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
    potential = after_training("no-value", 12)[0].reward_net.training_value(batch(8)[0])
    torch.testing.assert_close(potential, torch.full((8,), full.reward_net.c))
    assert full.reward_net.training_value(batch(8)[0]).std() > 0.1

    def actor(name, rounds):
        return after_training(name, rounds)[1].actor_mean[0].weight

    for name, clones, climbs in (("full", True, True), ("no-clone", False, True), ("only-cloning", True, False)):
        first, clone, last = actor(name, 1), actor(name, 2), actor(name, 12)
        assert torch.equal(first, clone) != clones and torch.equal(clone, last) != climbs
    assert ablations.NoGradientPenalty.gradient_penalty == 0 != full.gradient_penalty
    assert ablations.OneStep.decay == 0 != full.decay


def moves(name, monkeypatch):
    """How far the mean action goes in three places of its own: where only Q, only what turned out better and only the
    expert's actions ask for another one."""
    algorithm, policy = after_training(name, 1)
    places = [batch(256, seed)[0] for seed in range(3)]
    for i, place in enumerate(places):
        place[:, i] += 20
    algorithm.expert = {"obs": places[2], "acts": torch.ones(256, ACTION_DIM), "next_obs": places[2]}
    monkeypatch.setattr(algorithm, "action_values", lambda q, obs, acts: 10 + acts.sum(1).expand(len(q), -1))
    with torch.no_grad():
        before = [policy.actor_mean(x) for x in places]
    algorithm.optimizer.param_groups[0]["lr"] = 1e-3
    for _ in range(30):
        algorithm.follow(places[1], before[1] - 1.0, places[0])
    with torch.no_grad():
        return [(policy.actor_mean(x) - old).mean().item() for x, old in zip(places, before)]


def test_what_no_longer_moves_the_policy(monkeypatch):
    up, down, expert = moves("full", monkeypatch)
    assert up > 0.05 and down < -0.3 and expert > 0.3
    assert moves("no-q", monkeypatch)[0] < up / 2
    assert moves("no-better", monkeypatch)[1] > down / 2
    assert moves("no-expert-actions", monkeypatch)[2] < expert / 2


@pytest.mark.parametrize(("name", "q", "lag"), [("full", False, 0.9), ("always-q", True, 0), ("no-average", False, 0)])
def test_who_acts_and_whether_q_has_a_say_near_the_expert(name, q, lag, monkeypatch):
    algorithm, policy = after_training(name, 3)
    asked = []
    monkeypatch.setattr(algorithm.reward_net, "g", lambda obs, acts, next_obs: torch.full((len(obs),), 3.0))
    monkeypatch.setattr(algorithm, "survived", lambda next_obs, ended: torch.ones(len(ended)))
    algorithm.judge()
    monkeypatch.setattr(algorithm, "fit_q", lambda *better: asked.append(better))
    before = policy.actor_mean[-1].bias.clone()
    monkeypatch.setattr(algorithm, "learner", [p.clone() + 1 for p in policy.actor_mean.parameters()])
    monkeypatch.setattr(algorithm, "follow", lambda *rows: None)
    algorithm.learn(*batch(64)[:2])
    assert bool(asked) == q
    torch.testing.assert_close(policy.actor_mean[-1].bias.detach(), before + 1 - lag)


def test_a_part_alone_is_there_and_the_others_are_not():
    deadly = batch(64)[0]
    deadly[:, 0] = 6.0
    for name in ("termination", "value", "gradient-penalty", "expert-actions"):
        algorithm, _ = after_training(f"only-{name}", 12)
        net = algorithm.reward_net
        assert (net.alive(deadly).mean() < 0.6) == (name == "termination")
        assert (net.training_value(batch(8)[0]).std() > 0.1) == (name == "value")
        assert (algorithm.gradient_penalty > 0) == (name == "gradient-penalty")
        assert isinstance(algorithm, ablations.NoExpertActions) == (name != "expert-actions")
        assert algorithm.clone_steps == 0


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
    assert f"| no-value | {score} ({score}) |\n| no-gradient-penalty |  |" in (tmp_path / "METHOD.md").read_text()

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
