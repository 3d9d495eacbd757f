"""The examinations on cases with known answers, the labels, and the command's outputs.

Reacher is the world of most: its reward, -|fingertip - target| - |a|^2, is a function of obs, acts.
"""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import custom_irl as irl
from benchmark.diagnose import __main__ as diagnose
from benchmark.diagnose import (
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
from benchmark.diagnose.subject import NotApplicable, Steps, Subject
from benchmark.tables import block_marks
from demos.expert import play
from demos.formats import write

CONFIG = irl.config_of(irl.Args(env="Reacher-v4"))


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


def a_subject(env_id: str = "Reacher-v4", rewards=REWARDS, **fields) -> Subject:
    result = {"env": env_id, "config": CONFIG, "demos": {"sha256": None}, "dims": [11, 2]}
    empty = {"folder": None, "metrics": None, "act": None, "nets": {}}
    return Subject(**empty | {"result": result, "rewards": rewards, "untrained": []} | fields)


@pytest.fixture(scope="module")
def reacher() -> Subject:
    """Its played behaviour: actions between none and wild."""
    rng = np.random.default_rng(0)
    env = irl.make_env("Reacher-v4")
    scales = {"expert": 0.1, "own policy": 0.0, "still": 0.3, "random": 1.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "PLAYED_STEPS", 600)
        played = {
            who: subject.play_steps(env, lambda obs, s=scale: s * rng.uniform(-1, 1, 2), seed)
            for seed, (who, scale) in enumerate(scales.items())
        }
    examined = a_subject(untrained=[REWARDS["untrained"]], act=lambda obs: np.zeros(2))
    examined.__dict__["played"] = played
    return examined


# ------------------------------------------------------------------------------------ examinations
def test_the_distance_sees_no_potential_and_no_scale_and_tells_the_negation(reacher, monkeypatch):
    monkeypatch.setattr(distance, "TRANSITIONS", 30)
    played = reacher.played["random"]
    np.testing.assert_allclose(played.rewards, played.paid(true_reward), rtol=1e-4, atol=1e-5)
    table = distance.examine(reacher, np.random.default_rng(0))
    for where in ("expert", "still", "random", "mixed"):
        assert table.loc["learned", where] < 0.02
        assert table.loc["negated", where] > 0.999
        assert table.loc["constant", where] == pytest.approx(np.sqrt(0.5))
        assert 0.2 < table.loc["untrained", where] < 0.95
        low, high = table.loc["learned", f"{where} low"], table.loc["learned", f"{where} high"]
        assert low <= table.loc["learned", where] <= high


def banked(played: dict[str, Steps]) -> list[Steps]:
    """Episodes of 250 steps, the wilder the worse."""
    names = ("obs", "acts", "next_obs", "rewards", "terminated", "episode")
    return [
        Steps(*(getattr(played_steps, name)[first : first + 250] for name in names))
        for played_steps in played.values()
        for first in (0, 250)
    ]


def test_rankings_of_known_rewards(reacher):
    rewards = {**REWARDS, "learned": lambda o, a, n: 3 * true_reward(o, a, n) + 7}
    examined = replace(reacher, rewards=rewards)
    examined.__dict__["bank"] = banked(reacher.played)
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
    played = subject.play_steps(env, lambda obs: env.action_space.sample(), seed=1)
    for t in (3, 20, 40):
        step = subject.play_from(env, played.states[t], lambda *_, t=t: played.acts[t], 1)
        # MuJoCo's warm start is not part of the state.
        np.testing.assert_allclose(step.next_obs[0], played.next_obs[t], atol=1e-3)
        assert step.rewards[0] == pytest.approx(played.rewards[t], abs=1e-2)


def test_actions_are_delayed_by_a_step():
    late = perturbed.delayed(lambda obs: obs, 1)
    assert [late(np.array([x])).item() for x in (1.0, 2.0, 3.0)] == [0.0, 1.0, 2.0]


def test_perturbed_worlds_are_what_they_say():
    env = irl.make_env("Hopper-v4")
    before = env.unwrapped.model.body_mass.copy()
    perturbed.perturb(env, "body mass", 0.7)
    perturbed.perturb(env, "gravity", 1.3)
    np.testing.assert_allclose(env.unwrapped.model.body_mass, 0.7 * before)
    np.testing.assert_allclose(env.unwrapped.model.opt.gravity, [0, 0, -9.81 * 1.3])


def test_starts_lie_within_an_episode():
    n = 30
    arrays = [np.zeros((n, 1))] * 3 + [np.zeros(n), np.zeros(n, bool), np.repeat([0, 1], 15)]
    starts = counterfactuals.starts_of(Steps(*arrays), np.random.default_rng(0))
    assert sorted(starts) == [1, 2, 3, 4, 16, 17, 18, 19]


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
    table = retraining.examine(a_subject("Hopper-v4", folder=folder), None)
    expected = {"learned": 2000.0, "true": 3000.0, "constant": 1000.0}
    assert table["loop"].to_dict() == expected
    assert table["sb3"].dropna().to_dict() == {"learned": 2500.0, "true": 2600.0}
    assert "finished runs, 4,096 steps" in table.attrs["note"]
    (folder / "reward_net.pt").write_bytes(b"other weights")
    with pytest.raises(NotApplicable, match="no finished run on this reward"):
        retraining.examine(a_subject("Hopper-v4", folder=folder), None)


def test_without_any_fresh_policies_are_trained(tiny_run, monkeypatch):
    monkeypatch.setattr(retraining, "SEEDS", (5,))
    monkeypatch.setattr(retraining, "LEARNERS", {})
    monkeypatch.setattr(retraining, "ProcessPoolExecutor", InThisProcess)
    examined = subject.load_subject(tiny_run[0], retrain_steps=2048)
    assert set(examined.nets) == {"learned", "untrained", "constant"}
    nets = {"learned": examined.nets["learned"]}
    table = retraining.examine(replace(examined, nets=nets), None)
    args = irl.Args(env="Hopper-v4", seed=5, total_timesteps=2048, true_reward=True)
    irl.seed_everything(5)
    envs = irl.VectorEnv(args)
    training = irl.start_training(None, None, args, envs, None)
    irl.train(training, envs, args, "")
    oracle = irl.evaluate(training.policy, args, 10, deterministic=True)["mean"]
    assert table.loc["true", "loop"] == oracle
    assert table.loc["learned", "loop"] != oracle


class InThisProcess:
    def __init__(self, jobs, mp_context):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    map = staticmethod(map)


# ------------------------------------------------------------------------------------------ labels
def tables_with(**numbers) -> dict:
    """Tables of a reward without a fault, but for `numbers`."""
    x = {
        "above": 0.6,
        "true_above": 0.6,
        "spearman": 0.8,
        "random": 0.5,
        "distance": 0.3,
        "fresh": 2400,
    }
    x |= numbers

    def row(column: str, value: float, margin: float = 0.02) -> dict:
        return {column: value, f"{column} low": value - margin, f"{column} high": value + margin}

    above = {"learned": x["above"], "untrained": 0.5, "true": x["true_above"]}
    spearman = {"learned": x["spearman"], "untrained": x["random"], "constant": 0.0}
    distances = {"learned": x["distance"], "untrained": 0.6, "constant": 0.5}
    fresh = {"learned": x["fresh"], "constant": 1000, "untrained": 900, "true": 2500}
    frames = {
        "steps": {name: row(steps.ABOVE, value) for name, value in above.items()},
        "ranking": {name: row("segments", value) for name, value in spearman.items()},
        "distance": {name: row("mixed", value) for name, value in distances.items()},
        "retraining": {name: row("loop", value, 100) for name, value in fresh.items()},
    }
    return {name: pd.DataFrame.from_dict(rows, orient="index") for name, rows in frames.items()}


def run_with(
    learned=(0, 1), true=(0, 3000), returned=3000.0, score=0.8, length=1000, extra=0.0
) -> Subject:
    """A Hopper run whose learned and true returns go linearly from one number to the other."""
    n = 300
    metrics = pd.DataFrame(
        {"learned_return": np.linspace(*learned, n), "true_return": np.linspace(*true, n)}
    )
    metrics["x"] = extra
    config = irl.config_of(irl.Args(demo_episodes=3))  # of which nothing is published
    deterministic = {"lengths": [length] * 10, "returns": [returned] * 10}
    result = {
        "env": "Hopper-v4",
        "config": config,
        "demos": {"sha256": None},
        "eval_return_mean": returned,
        "normalized_return": score,
        "evaluation": {"deterministic": deterministic},
    }
    examined = a_subject("Hopper-v4", result=result, metrics=metrics)
    blank = np.zeros(2000)
    examined.__dict__["expert_steps"] = Steps(*[blank] * 5, np.repeat([0, 1], 1000))
    return examined


HEALTHY = run_with()


@pytest.mark.parametrize(
    ("examined", "tables", "expected"),
    [
        (HEALTHY, tables_with(), set()),
        (HEALTHY, tables_with(spearman=0.01), {"survival_only"}),  # a constant has 0
        (HEALTHY, tables_with(spearman=0.5), {"survival_only"}),  # one untrained network has 0.52
        (HEALTHY, tables_with(above=0.995, true_above=0.9), {"discriminator_saturated"}),
        (HEALTHY, tables_with(above=0.3), {"stale_reward"}),
        (HEALTHY, tables_with(above=0.3, true_above=0.2), set()),  # the policy is the better one
        (HEALTHY, tables_with(distance=0.49), {"distant_reward"}),  # a constant has 0.5
        (HEALTHY, tables_with(distance=0.45), set()),
        (HEALTHY, tables_with(fresh=1700), {"fails_retraining"}),  # half way: 1750
        (HEALTHY, tables_with(fresh=1800), set()),
        (run_with(true=(3000, 2000), learned=(0, 9)), tables_with(), {"reward_hacking"}),
        (
            run_with(learned=(1, 0), true=(3000, 10), returned=20.0),
            tables_with(),
            {"policy_collapse"},
        ),
        (run_with(true=(-300, -290), returned=-290.0), tables_with(), set()),  # negative returns
        (run_with(length=100), tables_with(), {"early_termination"}),
        (run_with(extra=np.inf), tables_with(), {"non_finite"}),
    ],
)
def test_each_failure_is_labelled_and_nothing_else(examined, tables, expected):
    found = labels.judge(examined, tables)
    assert {label.name for label in found if label.applies} == expected
    assert {label.name for label in found if label.applies is None} == {"worse_than_bc"}


def test_what_cannot_be_compared_is_unknown():
    tables = {name: NotApplicable("no bank") for name in tables_with()}
    found = {label.name: label for label in labels.judge(run_with(score=None), tables)}
    assert found["survival_only"].applies is None and found["survival_only"].evidence == "no bank"
    assert found["discriminator_saturated"].applies is None
    learner_without_signal = tables_with()
    learner_without_signal["retraining"].loc["true"] = 1000.0
    found = {label.name: label for label in labels.judge(HEALTHY, learner_without_signal)}
    assert found["fails_retraining"].applies is None


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
    examined = a_subject("Hopper-v4", rewards, untrained=[lambda o, a, n: o.sum(1)])
    tables = {"ranking": ranking.examine(examined, np.random.default_rng(0))}
    assert labels.survival_only(examined, tables)[0]


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
            assert f"| {row} | {outputs.number(next(iter(numbers.values())))}" in text
    assert "not_applicable" in found["examinations"]["retraining"]
    for label in found["labels"]:
        assert f"| {label['name']} | {outputs.APPLIES[label['applies']]} | " in text
    row = (tmp_path / "table.md").read_text().splitlines()[-1]
    assert row.startswith("| custom Hopper-v4 |")
    assert all(label["name"] in row for label in found["labels"] if label["applies"])
    page = tmp_path / "page.md"
    begin, end = block_marks("rewards")
    page.write_text(f"# Mine\n\n{begin}\nold\n{end}\n\nAfterwards.\n")
    diagnose_in_process(monkeypatch, folder, "--table", page, "--table-only")
    table = (tmp_path / "table.md").read_text()
    assert page.read_text() == f"# Mine\n\n{begin}\n{table}{end}\n\nAfterwards.\n"


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
    assert "| custom Pendulum-v1 |  | " in (folder / "table.md").read_text()


def test_bad_input_gets_one_line_and_nothing_is_written(tiny_run, tmp_path, monkeypatch):
    with pytest.raises(
        irl.UserError, match=r"nowhere.* no such file; expected the folder of a fin"
    ):
        diagnose_in_process(monkeypatch, tiny_run[0], tmp_path / "nowhere")
    assert not (tiny_run[0] / "diagnosis.json").exists()
    with pytest.raises(irl.UserError, match="no such file; expected a run that was examined"):
        diagnose_in_process(monkeypatch, tiny_run[0], "--table-only", "--table", tmp_path / "t.md")
    with pytest.raises(irl.UserError, match="expected --table FILE"):
        diagnose_in_process(monkeypatch, tiny_run[0], "--table-only")
    without_reward = tmp_path / "run"
    shutil.copytree(tiny_run[0], without_reward)
    (without_reward / "reward_net.pt").unlink()
    with pytest.raises(irl.UserError, match="expected a finished run of a method with a reward"):
        diagnose_in_process(monkeypatch, without_reward)


def test_untrained_networks_see_inputs_as_the_learned_one(tiny_run):
    examined = subject.load_subject(tiny_run[0])
    learned, untrained = examined.nets["learned"], examined.nets["untrained"]
    torch.testing.assert_close(learned.obs_std, untrained.obs_std)
    assert not torch.equal(learned.critic[0].weight, untrained.critic[0].weight)
