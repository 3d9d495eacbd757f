"""The examinations on cases with known answers, the labels, and the command's outputs.

Reacher is the world of most: its reward, -|fingertip - target| - |a|^2, is a function of obs, acts.
"""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import custom_irl as irl
from benchmark.diagnose import __main__ as diagnose
from benchmark.diagnose import (
    ambiguity,
    counterfactuals,
    distance,
    labels,
    outputs,
    perturbed,
    ranking,
    retraining,
    steps,
    subject,
)
from benchmark.diagnose.subject import NotApplicable, Subject
from benchmark.diagnose.table import as_json, number, with_interval
from demos.expert import play
from demos.formats import Episode, write


def true_reward(obs, acts, next_obs):
    return -np.linalg.norm(obs[:, -3:], axis=1) - np.square(acts).sum(1)


def potential(obs):
    return 3.0 * obs[:, 0] - 2.0 * np.square(obs[:, 2])


def shaped(obs, acts, next_obs):
    return 2.0 * true_reward(obs, acts, next_obs) + 0.99 * potential(next_obs) - potential(obs)


REWARDS = {
    "learned": shaped,
    "negated": lambda o, a, n: -true_reward(o, a, n),
    "untrained": lambda o, a, n: np.sin(5 * o).sum(1),
    "constant": lambda o, a, n: np.ones(len(o)),
}


def a_subject(**attributes) -> Subject:
    """Without a run: what an examination asks of it."""
    config = irl.config_of(irl.Args())
    result = {"env": "Reacher-v4", "config": config, "demos": {"sha256": None}}
    examined = Subject.__new__(Subject)
    vars(examined).update({"result": result, "seed": 0, "retrain_steps": 0, "rewards": REWARDS})
    vars(examined).update(attributes)
    return examined


@pytest.fixture(scope="module")
def reacher() -> Subject:
    """Its behaviour: actions between none and wild, which make its bank as well."""
    rng = np.random.default_rng(0)
    env = irl.make_env("Reacher-v4", 300)
    scales = {"expert": 0.1, "own policy": 0.0, "still": 0.3, "random": 1.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "PLAYED_STEPS", 600)
        played = {
            who: subject.play_steps(env, lambda obs, s=scale: s * rng.uniform(-1, 1, 2), seed)
            for seed, (who, scale) in enumerate(scales.items())
        }
    bank = [episode for episodes in played.values() for episode in episodes]
    others = [REWARDS["untrained"]]
    return a_subject(played=played, bank=bank, act=lambda obs: np.zeros(2), untrained=others)


# ------------------------------------------------------------------------------------ examinations
def test_the_distance_sees_no_potential_and_no_scale_and_tells_the_negation(reacher, monkeypatch):
    monkeypatch.setattr(distance, "TRANSITIONS", 30)
    wild = reacher.played["random"]
    for true, paid in zip(subject.paid(None, wild), subject.paid(true_reward, wild), strict=True):
        np.testing.assert_allclose(true, paid, rtol=1e-4, atol=1e-5)
    table = distance.examine(reacher, np.random.default_rng(0))
    for where in ("still", "random", "mixed"):
        assert table.loc["learned", where] < 0.02
        assert table.loc["negated", where] > 0.999
        assert table.loc["constant", where] == pytest.approx(np.sqrt(0.5))
        assert 0.2 < table.loc["untrained", where] < 0.95
        low, high = table.loc["learned", f"{where} low"], table.loc["learned", f"{where} high"]
        assert low <= table.loc["learned", where] <= high


def test_rankings_of_known_rewards(reacher):
    rewards = {**REWARDS, "learned": lambda o, a, n: 3 * true_reward(o, a, n) + 7}
    examined = a_subject(bank=reacher.bank, rewards=rewards, untrained=reacher.untrained)
    table = ranking.examine(examined, np.random.default_rng(0))
    for column in ("episodes", "segments"):
        assert table.loc["learned", column] == pytest.approx(1)
        assert table.loc["negated", column] == pytest.approx(-1)
        assert table.loc["constant", column] == 0
    expected = {"learned": 1, "negated": 0, "constant": 0.5}
    assert table["preferences"][list(expected)].to_dict() == pytest.approx(expected)
    assert table.loc["untrained", "segments low"] == table.loc["untrained", "segments"]


def test_length_alone_is_no_merit():
    """Learned return = length = true return, but for noise."""
    noise = np.random.default_rng(0).normal(size=(2, 59))
    lengths = np.arange(1, 60)
    with_length = [lengths + 0.01 * x for x in noise]
    assert ranking.correlation(*with_length) > 0.99
    assert ranking.correlation(*with_length, lengths) < 0.3
    assert ranking.correlation(lengths + 30 * noise[0], lengths + 30 * noise[0], lengths) > 0.9


def test_segments_are_whole():
    assert ranking.segments(np.arange(250.0)).tolist() == [4950.0, 14950.0]
    assert ranking.segments(np.ones(99)).tolist() == []


@pytest.mark.parametrize(("shift", "expected"), [(1e6, 1.0), (-1e6, 0.0), (0.0, 0.5)])
def test_how_often_a_step_is_paid_more(shift, expected):
    x = np.random.default_rng(0).normal(size=350)
    blocks = steps.block_preferences(x + shift, x[:230])
    assert blocks.shape == (4, 3)
    assert blocks.mean() == pytest.approx(expected, abs=0.05)
    assert steps.block_preferences(np.zeros(5), np.zeros(5)).tolist() == [[0.5]]  # ties


def test_a_stored_state_is_stepped_as_it_was_played(monkeypatch):
    monkeypatch.setattr(subject, "PLAYED_STEPS", 50)
    env = irl.make_env("Hopper-v4")
    env.action_space.seed(0)
    for played in subject.play_steps(env, lambda obs: env.action_space.sample(), seed=1):
        for t in (0, 3, len(played.acts) - 1):
            step = subject.play_from(env, played.states[t], lambda obs, a=played.acts[t]: a, 1)
            # MuJoCo's warm start is not part of the state.
            np.testing.assert_allclose(step.obs[1], played.obs[t + 1], atol=1e-3)
            assert step.rewards[0] == pytest.approx(played.rewards[t], abs=1e-2)
            assert step.terminated == (played.terminated and t == len(played.acts) - 1)


def test_actions_are_delayed_by_a_step():
    late = subject.delayed(lambda obs: 10 * obs, 0)
    assert [late(obs) for obs in (1, 2, 3)] == [0, 10, 20]


def test_perturbed_worlds_are_what_they_say():
    env = irl.make_env("Hopper-v4")
    before = env.unwrapped.model.body_mass.copy()
    perturbed.perturb(env, "body mass", 0.7)
    perturbed.perturb(env, "gravity", 1.3)
    np.testing.assert_allclose(env.unwrapped.model.body_mass, 0.7 * before)
    np.testing.assert_allclose(env.unwrapped.model.opt.gravity, [0, 0, -9.81 * 1.3])


def test_starts_lie_within_an_episode():
    episodes = [Episode(np.zeros((n + 1, 1)), np.zeros((n, 1)), False) for n in (15, 11, 13)]
    starts = counterfactuals.starts_of(episodes, np.random.default_rng(0))
    numbers = [(len(episode.acts), t) for episode, t in starts]
    assert sorted(numbers) == [(13, 1), (13, 2), (15, 1), (15, 2), (15, 3), (15, 4)]


def test_counterfactuals_of_a_known_reward(monkeypatch):
    """The expert always acts alike, and the reward is for acting little."""

    def expert(obs):
        return np.full(2, 0.2, np.float32)

    monkeypatch.setattr(subject, "PLAYED_STEPS", 100)
    examined = a_subject(
        rewards={"learned": lambda o, a, n: -np.square(a).sum(1)},
        expert=expert,
        expert_episodes=subject.play_steps(irl.make_env("Reacher-v4"), expert, 0),
    )
    table = counterfactuals.examine(examined, np.random.default_rng(0))
    row = table.loc["learned"].to_dict()
    assert row.pop("noise 0.5") > 0.95
    assert row == {
        "half the speed": 0.5,
        "negated": 0.5,
        "a step late": 0.5,
        "half as strong": 0.0,
        "nothing": 0.0,
        "s' half way": 0.5,
        "s' = s": 0.5,
        "s' to s": 0.5,
    }
    assert np.isfinite(table.loc["true", "nothing"]) and np.isnan(table.loc["true", "s' = s"])


def test_progress_alone_sides_with_the_one_that_weighs_it_more(reacher):
    table = ambiguity.examine(reacher, np.random.default_rng(0))
    rates = {"negated": 0.0, "constant": 0.5}
    assert table["sides with A"][list(rates)].to_dict() == rates


# -------------------------------------------------------------------------------------- retraining
def leave_run(results, name: str, method: str, returned: float, reward=None, **flags) -> None:
    """What a finished run leaves of itself."""
    folder = results / name / "Hopper-v4" / "seed1"
    folder.mkdir(parents=True)
    config = irl.config_of(irl.Args(env="Hopper-v4", total_timesteps=4096, **flags))
    result = {"schema": 2, "method": method, "steps": 4096, "config": config}
    (folder / "result.json").write_text(json.dumps({**result, "eval_return_mean": returned}))
    origin = {"identity": {"frozen_reward": {"sha256": reward}}}
    (folder / "origin.json").write_text(json.dumps(origin))


def test_fresh_policies_come_from_finished_runs_of_this_reward_and_its_controls(tmp_path):
    folder = tmp_path / "custom" / "Hopper-v4" / "seed1"
    folder.mkdir(parents=True)
    (folder / "reward_net.pt").write_bytes(b"weights")
    digest = irl.sha256(folder / "reward_net.pt")
    leave_run(tmp_path, "a", "custom-frozen", 2000.0, digest, seed=2, demo_episodes=4)
    leave_run(tmp_path, "b", "custom-frozen", 9.0, "another")
    leave_run(tmp_path, "c", "oracle", 3000.0, true_reward=True)
    leave_run(tmp_path, "d", "oracle", 1.0, true_reward=True, gamma=0.5)  # another learner
    leave_run(tmp_path, "e", "constant", 1000.0)
    leave_run(tmp_path, "f", "sb3-custom-frozen", 2500.0, digest)
    leave_run(tmp_path, "g", "sb3-oracle", 2600.0, true_reward=True)
    (tmp_path / "c" / "Hopper-v4" / "seed9").mkdir()  # unfinished
    (tmp_path / "c" / "Hopper-v4" / "seed9" / "origin.json").write_text("{}")
    examined = a_subject(folder=folder, result={"env": "Hopper-v4"})
    table = retraining.examine(examined, None)
    expected = {"learned": 2000.0, "true": 3000.0, "constant": 1000.0}
    assert table["loop"].to_dict() == expected
    assert table["sb3"].dropna().to_dict() == {"learned": 2500.0, "true": 2600.0}
    note = "finished runs of loop (4,096 steps): learned 1, true 1, constant 1; sb3 (4,096 steps): "
    assert table.attrs["note"] == note + "learned 1, true 1"
    (folder / "reward_net.pt").write_bytes(b"other weights")
    with pytest.raises(NotApplicable, match="no finished run on this reward"):
        retraining.examine(examined, None)


def test_without_any_fresh_policies_are_trained(tiny_run, monkeypatch):
    monkeypatch.setattr(retraining, "SEEDS", (5,))
    monkeypatch.setattr(retraining, "LEARNERS", {"loop": retraining.train_loop})
    monkeypatch.setattr(retraining, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    examined = Subject(tiny_run[0], retrain_steps=2048)
    assert set(examined.nets) == {"learned", "untrained", "constant"}
    examined.nets = {"learned": examined.nets["learned"]}
    table = retraining.examine(examined, None)
    args = irl.Args(env="Hopper-v4", seed=5, total_timesteps=2048, true_reward=True)
    irl.seed_everything(5)
    envs = irl.VectorEnv(args)
    training = irl.start_training(None, None, args, envs, None)
    irl.train(training, envs, args, "")
    oracle = irl.evaluate(training.policy, args, 10, deterministic=True)["mean"]
    assert table.loc["true", "loop"] == oracle
    assert table.loc["learned", "loop"] != oracle


# ------------------------------------------------------------------------------------------ labels
def column(name: str, margin: float, **values: float) -> dict:
    rows = {row: with_interval(name, x, x - margin, x + margin) for row, x in values.items()}
    return {"note": "", "table": rows}


def found_with(
    above=0.6, truly=0.6, ranking=0.8, untrained=0.5, distance=0.3, fresh=2400, by_true=2500
) -> dict[str, dict]:
    """What examinations find of a reward: by default of one without a fault."""
    return {
        "steps": column(steps.ABOVE, 0.02, learned=above, untrained=0.5, true=truly),
        "ranking": column("segments", 0.02, learned=ranking, untrained=untrained, constant=0.0),
        "distance": column("mixed", 0.02, learned=distance, untrained=0.6, constant=0.5),
        "retraining": column(
            "loop", 100, learned=fresh, constant=1000, untrained=900, true=by_true
        ),
    }


def run_with(
    learned=(0, 1), true=(0, 3000), returned=3000.0, score=0.8, length=1000, extra=0.0
) -> Subject:
    """A Hopper run whose learned and true returns go linearly from one number to the other."""
    curves = {"learned_return": np.linspace(*learned, 300), "true_return": np.linspace(*true, 300)}
    deterministic = {"lengths": [length] * 10, "returns": [returned] * 10}
    result = {
        "env": "Hopper-v4",
        "config": irl.config_of(irl.Args(demo_episodes=3)),  # of which nothing is published
        "demos": {"sha256": None},
        "eval_return_mean": returned,
        "normalized_return": score,
        "evaluation": {"deterministic": deterministic},
    }
    expert = [Episode(np.zeros((1001, 1)), np.zeros((1000, 1)), False)] * 2
    metrics = pd.DataFrame({**curves, "x": extra})
    return a_subject(result=result, metrics=metrics, expert_episodes=expert)


HEALTHY = run_with()


@pytest.mark.parametrize(
    ("examined", "found", "expected"),
    [
        (HEALTHY, found_with(), set()),
        (HEALTHY, found_with(ranking=0.01), {"survival_only"}),  # a constant has 0
        (HEALTHY, found_with(ranking=0.5), {"survival_only"}),  # one untrained network has 0.52
        (HEALTHY, found_with(above=0.995, truly=0.9), {"discriminator_saturated"}),
        (HEALTHY, found_with(above=0.3), {"stale_reward"}),
        (HEALTHY, found_with(above=0.3, truly=0.2), set()),  # the policy is the better one
        (HEALTHY, found_with(distance=0.49), {"distant_reward"}),  # a constant has 0.5
        (HEALTHY, found_with(distance=0.45), set()),
        (HEALTHY, found_with(fresh=1700), {"fails_retraining"}),  # half way: 1750
        (HEALTHY, found_with(fresh=1800), set()),
        (run_with(true=(3000, 2000), learned=(0, 9)), found_with(), {"reward_hacking"}),
        (
            run_with(learned=(1, 0), true=(3000, 10), returned=20.0),
            found_with(),
            {"policy_collapse"},
        ),
        (run_with(true=(-300, -290), returned=-290.0), found_with(), set()),  # negative returns
        (run_with(length=100), found_with(), {"early_termination"}),
        (run_with(extra=np.inf), found_with(), {"non_finite"}),
    ],
)
def test_each_failure_is_labelled_and_nothing_else(examined, found, expected):
    judged = labels.judge(examined, found)
    assert {label["name"] for label in judged if label["applies"]} == expected
    assert {label["name"] for label in judged if label["applies"] is None} == {"worse_than_bc"}


def test_what_cannot_be_compared_is_unknown():
    def unknown(examined, found) -> dict[str, str]:
        judged = labels.judge(examined, found)
        return {x["name"]: x["evidence"] for x in judged if x["applies"] is None}

    without_bank = {name: {"not_applicable": "no bank"} for name in found_with()}
    reasons = unknown(run_with(score=None), without_bank)
    assert reasons["survival_only"] == "no bank"
    assert "normalised" in reasons["discriminator_saturated"]
    assert "fails_retraining" in unknown(HEALTHY, found_with(by_true=1000))  # no signal
    constant = unknown(run_with(true=(3000, 100), learned=(0, 0)), found_with())
    assert constant["reward_hacking"] == "PPO was paid a constant"
    short = run_with()
    short.metrics = pd.DataFrame({"learned_return": [1.0] * 9})
    assert {"reward_hacking", "policy_collapse"} <= set(unknown(short, found_with()))


@pytest.mark.parametrize(("returned", "worse"), [(2930.0, True), (2950.0, False)])
def test_worse_than_cloning_by_a_margin(monkeypatch, returned, worse):
    monkeypatch.setattr(labels, "bc_returns", lambda run: pd.Series({"bc": 3000.0}))
    assert labels.worse_than_bc(run_with(returned=returned), {})[0] == worse


def test_cloning_of_other_demonstrations_is_no_control(tmp_path):
    run = run_with()
    run.result["config"] |= {"demos": str(tmp_path / "mine.npz"), "demo_episodes": 50}
    run.result["demos"]["sha256"] = "mine"
    with pytest.raises(NotApplicable, match="no behaviour cloning of these demonstrations"):
        labels.bc_returns(run)


def test_a_planted_hack_is_caught():
    """A reward for the speed of one joint, on Hopper's bank."""
    rewards = {**REWARDS, "learned": lambda o, a, n: -np.abs(o[:, -1])}
    others = [lambda o, a, n: o.sum(1)]
    examined = a_subject(result={"env": "Hopper-v4"}, rewards=rewards, untrained=others)
    table = ranking.examine(examined, np.random.default_rng(0))
    assert labels.survival_only(examined, {"ranking": as_json(table)})[0]


# ----------------------------------------------------------------------------------------- command
@pytest.fixture
def quick_examination(monkeypatch):
    for module, name, value in (
        (subject, "PLAYED_STEPS", 200),
        (subject, "UNTRAINED", 2),
        (distance, "TRANSITIONS", 10),
        (distance, "RESAMPLES", 20),
        (ranking, "RESAMPLES", 20),
        (counterfactuals, "STARTS", 10),
        (perturbed, "EPISODES", 1),
        (perturbed, "FACTORS", (0.7,)),
    ):
        monkeypatch.setattr(module, name, value)


def diagnose_in_process(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["diagnose", *map(str, words)])
    diagnose.main()


def test_the_command_leaves_its_files(tiny_run, tmp_path, monkeypatch, capsys, quick_examination):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run[0], folder)
    diagnose_in_process(monkeypatch, folder, "--fast", "--table", tmp_path / "table.md")
    found = json.loads((folder / "diagnosis.json").read_text())
    assert found["verdict"] in capsys.readouterr().out
    text = (folder / "diagnosis.md").read_text()
    assert len(found["examinations"]) == len(diagnose.EXAMINATIONS)
    for name, examination in found["examinations"].items():
        assert f"## {examination['title']}" in text
        assert (folder / f"diagnosis-{name}.png").exists() == ("table" in examination)
        for row, numbers in examination.get("table", {}).items():
            assert f"| {row} | {number(next(iter(numbers.values())))}" in text
    assert "not_applicable" in found["examinations"]["retraining"]
    for label in found["labels"]:
        assert f"| {label['name']} | {outputs.APPLIES[label['applies']]} | " in text
    row = (tmp_path / "table.md").read_text().splitlines()[-1]
    assert row.startswith("| custom Hopper-v4 1 |")
    assert all(label["name"] in row for label in found["labels"] if label["applies"])
    diagnose_in_process(monkeypatch, folder, "--table", tmp_path / "table.csv", "--table-only")
    saved = pd.read_csv(tmp_path / "table.csv").fillna({"failures": ""})
    assert outputs.overview_table(saved) == (tmp_path / "table.md").read_text()


def test_the_published_table_is_of_means_over_seeds():
    names = [f"{head}: {name}" for head, (_, _, rows) in outputs.HEADLINES.items() for name in rows]
    run = {"method": "custom", "variant": "full", "panel": "dense", "env": "Hopper-v4"}
    numbers = dict.fromkeys(names)
    ranked = [n for n in names if n.startswith("ranking")]
    rows = [
        {
            **run,
            "seed": seed,
            "normalized_return": share,
            **numbers,
            ranked[0]: share,
            "failures": x,
        }
        for seed, share, x in ((1, 0.5, "stale_reward"), (2, 0.7, "stale_reward early_end"))
    ]
    rows[1] |= {ranked[1]: 0.3}  # measured of one seed alone
    header, _, line = outputs.published_table(pd.DataFrame(rows)).strip().splitlines()
    failures = "early_end 1/2, stale_reward 2/2"
    assert line == f"| full, Hopper-v4 | 0.60 | 0.60 / 0.30 (1 of 2) | {failures} |"
    assert "distance" not in header  # not measured in any run


@pytest.fixture
def own_run(tmp_path):
    """A run on own demonstrations without rewards, in an environment that is not of MuJoCo."""
    env = irl.make_env("Pendulum-v1")
    episodes = [play(env, lambda obs: -obs[1:2], seed) for seed in range(2)]
    demos = tmp_path / "mine.npz"
    write("irl", demos, [replace(episode, rewards=None) for episode in episodes])
    args = irl.Args(
        env="Pendulum-v1",
        total_timesteps=2048,
        demos=demos,
        demo_episodes=2,
        out=tmp_path / "custom" / "Pendulum-v1" / "seed1",
    )
    irl.run(irl.RewardNetwork, irl.IRLAlgorithm, args, "custom")
    return args.out, demos


def test_own_demonstrations_in_an_own_environment(own_run, monkeypatch, quick_examination):
    folder, demos = own_run
    diagnose_in_process(monkeypatch, folder, "--fast")
    found = json.loads((folder / "diagnosis.json").read_text())
    applicable = {name for name, x in found["examinations"].items() if "table" in x}
    assert applicable == {"steps", "counterfactuals", "perturbed"}
    rewards = found["examinations"]["steps"]["table"]
    assert rewards["learned"]["expert"] is not None  # of the demonstrations
    assert rewards["true"]["expert"] is None and rewards["true"]["own policy"] < 0
    assert found["run"]["normalized_return"] is None
    demos.unlink()
    diagnose_in_process(monkeypatch, folder, "--fast", "--table", folder / "table.md")
    found = json.loads((folder / "diagnosis.json").read_text())
    assert "are gone" in found["examinations"]["counterfactuals"]["not_applicable"]
    unknown = {label["name"] for label in found["labels"] if label["applies"] is None}
    assert {"early_termination", "stale_reward", "distant_reward"} <= unknown
    assert "| custom Pendulum-v1 1 |  | " in (folder / "table.md").read_text()


def test_bad_input_gets_one_line_and_nothing_is_written(tiny_run, tmp_path, monkeypatch):
    with pytest.raises(
        irl.UserError, match=r"nowhere.* no such file; expected the folder of a fin"
    ):
        diagnose_in_process(monkeypatch, tiny_run[0], tmp_path / "nowhere")
    assert not (tiny_run[0] / "diagnosis.json").exists()
    with pytest.raises(irl.UserError, match="no such file; expected a run that was examined"):
        diagnose_in_process(monkeypatch, tiny_run[0], "--table-only", "--table", tmp_path / "t.md")
    for words in (("--seed", "-1"), ("--jobs", "0")):
        with pytest.raises(irl.UserError, match=f"{' '.join(words)}: expected"):
            diagnose_in_process(monkeypatch, tiny_run[0], *words)
    with pytest.raises(irl.UserError, match="expected --table FILE"):
        diagnose_in_process(monkeypatch, tiny_run[0], "--table-only")
    without_reward = tmp_path / "run"
    shutil.copytree(tiny_run[0], without_reward)
    (without_reward / "reward_net.pt").unlink()
    with pytest.raises(irl.UserError, match="expected a finished run of a method with a reward"):
        diagnose_in_process(monkeypatch, without_reward)


def test_untrained_networks_see_inputs_as_the_learned_one(tiny_run):
    examined = Subject(tiny_run[0])
    learned, untrained = examined.nets["learned"], examined.nets["untrained"]
    torch.testing.assert_close(learned.obs_std, untrained.obs_std)
    assert not torch.equal(learned.critic[0].weight, untrained.critic[0].weight)
