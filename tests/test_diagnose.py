"""The examinations on cases with known answers, and the command as a user types it.

Reacher is the world of most of these: its true reward, -|fingertip - target| - |a|^2, is a function of obs and acts.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import custom_irl as irl
import diagnose
from conftest import ROOT, command
from diagnose import Steps, Subject
from report import BEGIN, END


def true_reward(obs, acts, next_obs):
    return -np.linalg.norm(obs[:, -3:], axis=1) - np.square(acts).sum(1)


def potential(obs):
    return 3.0 * obs[:, 0] - 2.0 * np.square(obs[:, 2])


def shaped(obs, acts, next_obs):
    return 2.0 * true_reward(obs, acts, next_obs) + diagnose.GAMMA * potential(next_obs) - potential(obs)


REWARDS = {
    "learned": shaped, "negated": lambda o, a, n: -true_reward(o, a, n), "true": true_reward,
    "constant": lambda o, a, n: np.ones(len(o)), "untrained": lambda o, a, n: np.sin(5 * o).sum(1),
}  # fmt: skip


@pytest.fixture(scope="module")
def reacher() -> tuple[Subject, dict[str, Steps]]:
    env, rng = irl.make_env("Reacher-v4"), np.random.default_rng(0)
    played = {
        who: diagnose.play(env, lambda obs, scale=scale: scale * rng.uniform(-1, 1, 2), 600, seed=i)
        for i, (who, scale) in enumerate({"expert": 0.1, "own policy": 0.3, "still": 0.0, "random": 1.0}.items())
    }
    return Subject(None, {}, None, "Reacher-v4", None, {k: v for k, v in REWARDS.items() if k != "true"}), played


def test_the_distance_sees_no_potential_and_no_scale_and_tells_the_negation(reacher):
    subject, played = reacher
    env_reward = played["random"].rewards
    np.testing.assert_allclose(env_reward, played["random"].pay(true_reward), rtol=1e-4, atol=1e-5)
    found = diagnose.examine_distance(subject, played, np.random.default_rng(0), n=60)
    assert set(found) == {"expert", "mixed", "random"}
    for row in found.values():
        assert row["learned"]["distance"] < 0.05  # the cut at the horizon leaves gamma^400 = 0.02 of the potential
        assert row["negated"]["distance"] > 0.999
        assert 0.2 < row["untrained"]["distance"] < 0.95
        for d in row.values():
            assert d["low"] <= d["distance"] + 1e-9 and d["distance"] <= d["high"] + 1e-9


def bank_of(played) -> list[Steps]:
    """Episodes of 250 steps, the noisier the worse."""
    episodes = []
    for steps in played.values():
        for first in (0, 250):
            part = slice(first, first + 250)
            arrays = [getattr(steps, key)[part] for key in ("obs", "acts", "next_obs", "rewards", "ended")]
            episodes.append(Steps(*arrays, []))
    return episodes


def test_rankings_of_known_rewards(reacher):
    subject, played = reacher
    subject = replace(subject, rewards={**REWARDS, "learned": lambda o, a, n: 3 * true_reward(o, a, n) + 7})
    found = diagnose.examine_ranking(subject, bank_of(played), np.random.default_rng(0))["scores"]
    for key in ("episodes_spearman", "episodes_kendall", "segments_spearman", "segments_kendall"):
        assert found["learned"][key] == pytest.approx(1) and found["negated"][key] == pytest.approx(-1)
        assert found["constant"][key] == 0
    accuracy = [found[name]["segments_preference"] for name in ("learned", "negated", "constant")]
    assert accuracy == [pytest.approx(1), pytest.approx(0), pytest.approx(0.5)]


def test_length_alone_is_no_merit():
    """Learned return = length = true return, but for noise: perfect until the length is taken out."""
    rng = np.random.default_rng(0)
    lengths = np.arange(1, 60)
    noise = rng.normal(size=(2, 59))
    assert diagnose.partial_spearman(lengths + 0.01 * noise[0], lengths + 0.01 * noise[1], lengths) < 0.3
    assert diagnose.partial_spearman(lengths + 30 * noise[0], lengths + 30 * noise[0], lengths) > 0.9


def test_segments_are_whole_and_stay_within_their_episode():
    values = [np.arange(250.0), np.ones(99), np.full(100, 2.0)]
    assert diagnose.segments(values).tolist() == [4950.0, 14950.0, 200.0]


def test_a_stored_state_is_stepped_as_it_was_played(reacher):
    env = irl.make_env("Hopper-v4")
    env.action_space.seed(0)
    steps = diagnose.play(env, lambda obs: env.action_space.sample(), 50, seed=1)
    for t in (3, 20, 40):
        next_obs, reward, _ = diagnose.step_from(env, steps.states[t], steps.acts[t])
        np.testing.assert_allclose(next_obs, steps.next_obs[t], atol=1e-3)  # MuJoCo's warm start is not part of it
        assert reward == pytest.approx(steps.rewards[t], abs=1e-2)


def test_perturbed_worlds_are_what_they_say():
    for what, field in (("body mass", "body_mass"), ("friction", "geom_friction"), ("actuator gain", "actuator_gear")):
        env = irl.make_env("Hopper-v4")
        before = getattr(env.unwrapped.model, field).copy()
        diagnose.perturb(env, what, 0.7)
        np.testing.assert_allclose(getattr(env.unwrapped.model, field), 0.7 * before)
    env = irl.make_env("Hopper-v4")
    diagnose.perturb(env, "gravity", 1.3)
    np.testing.assert_allclose(env.unwrapped.model.opt.gravity, [0, 0, -9.81 * 1.3])


def found_with(**ranks) -> dict:
    scores = {name: {"segments_spearman": ranks.get(name, 0.0)} for name in ("learned", "constant", "untrained")}
    return {
        "steps": {"expert_above_own": ranks.get("above", 0.6)},
        "ranking": {"scores": scores},
        "distance": {"mixed": {"learned": {"distance": ranks.get("distance", 0.3)}, "constant": {"distance": 0.5}}},
    }


def subject_with(learned=(0, 1), true=(0, 1), returned=3000.0, share=0.8, lengths=1000, extra=0.0) -> Subject:
    """A Hopper run whose learned and true returns go linearly from one number to the other."""
    n = 300
    metrics = pd.DataFrame({
        "steps": np.arange(n), "learned_return": np.linspace(*learned, n), "true_return": np.linspace(*true, n),
        "x": extra,
    })  # fmt: skip
    result = {
        "env": "Hopper-v4", "panel": "none", "eval_return_mean": returned, "normalized_return": share,
        "evaluation": {"deterministic": {"lengths": [lengths] * 10}},
    }  # fmt: skip
    return Subject(ROOT, result, metrics, "Hopper-v4", None, {})


@pytest.mark.parametrize(
    ("subject", "found", "expected"),
    [
        (subject_with(true=(0, 3000)), found_with(learned=0.8, untrained=0.3), set()),
        (subject_with(true=(0, 3000)), found_with(learned=0.0), {"survival_only"}),
        (subject_with(learned=(0, 9), true=(3000, 2000)), found_with(learned=0.8), {"reward_hacking"}),
        (subject_with(learned=(1, 0), true=(3000, 10), returned=20.0), found_with(learned=0.8), {"policy_collapse"}),
        (subject_with(lengths=100), found_with(learned=0.8), {"early_termination"}),
        (subject_with(extra=np.inf), found_with(learned=0.8), {"non_finite"}),
        (subject_with(), found_with(learned=0.8, above=0.995), {"discriminator_saturated"}),
        (subject_with(), found_with(learned=0.8, above=0.3), {"stale_reward"}),
        (subject_with(), found_with(learned=0.8, distance=0.8), {"distant_reward"}),
        (subject_with(), found_with(learned=0.8, distance=0.55), {"distant_reward"}),  # a constant has 0.5
    ],
)
def test_each_failure_is_labelled_and_nothing_else(subject, found, expected):
    labels = diagnose.failure_labels(subject, found)
    assert {label.name for label in labels if label.applies} == expected
    assert {label.name for label in labels if label.applies is None} == {"worse_than_bc", "fails_retraining"}


@pytest.mark.parametrize(("returned", "worse"), [(2930.0, True), (2950.0, False)])
def test_worse_than_cloning_by_a_margin(monkeypatch, returned, worse):
    monkeypatch.setattr(diagnose, "published_bc", lambda result: 3000.0)
    labels = diagnose.failure_labels(subject_with(returned=returned), found_with(learned=0.8))
    assert ["worse_than_bc" in label.name for label in labels if label.applies] == [True] * worse


def test_a_planted_hack_is_caught():
    """A reward for the speed of one joint, on Hopper's bank: ranks no better than an untrained network."""
    hack = Subject(None, {}, None, "Hopper-v4", None, {
        "learned": lambda o, a, n: -np.abs(o[:, -1]), "constant": lambda o, a, n: np.ones(len(o)),
        "untrained": lambda o, a, n: o.sum(1),
    })  # fmt: skip
    found = diagnose.examine_ranking(hack, diagnose.read_bank("Hopper-v4"), np.random.default_rng(0))
    label = next(x for x in diagnose.failure_labels(subject_with(), {**found_with(), "ranking": found})
                 if x.name == "survival_only")  # fmt: skip
    assert label.applies


def test_the_command_leaves_its_files(tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run[0], folder)
    done = command("diagnose.py", folder, "--retrain-steps", "2048", "--table", tmp_path / "table.md")
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "diagnosis.json").read_text())
    assert {"steps", "ranking", "distance", "counterfactuals", "ambiguity", "perturbed", "retraining", "labels"} <= set(
        found
    )
    fresh = found["retraining"]["returns"]
    assert set(fresh["loop"]) == {"learned", "true", "constant", "untrained", "g alone", "h alone"}
    assert set(fresh["sb3"]) == {"learned", "true", "constant", "untrained"}
    assert all(len(returns) == 2 for row in fresh.values() for returns in row.values())
    text = (folder / "diagnosis.md").read_text()
    for label in found["labels"]:
        assert f"| {label['name']} | " in text
    assert f"{found['ranking']['scores']['learned']['segments_spearman']:.2f}" in text
    assert len(list(folder.glob("diagnosis-*.png"))) == 6
    row = (tmp_path / "table.md").read_text().splitlines()[-1]
    assert row.startswith("| custom Hopper-v4 |") and all(x["name"] in row for x in found["labels"] if x["applies"])
    page = tmp_path / "page.md"
    page.write_text(f"# Mine\n\n{BEGIN}\nold\n{END}\n\nAfterwards.\n")
    again = command("diagnose.py", folder, "--table", page, "--table-only")
    assert again.returncode == 0 and not again.stdout
    assert page.read_text() == f"# Mine\n\n{BEGIN}\n{(tmp_path / 'table.md').read_text()}{END}\n\nAfterwards.\n"
    assert (done.stderr == "") and diagnose.verdict(found).split(":")[0] in " ".join(done.stdout.split())


def test_a_constant_reward_is_called_survival_only(tmp_path):
    run = ("-m", "baselines.constant", "--env", "Hopper-v4", "--total-timesteps", "2048", "--out", tmp_path / "run")
    assert command(*run).returncode == 0
    done = command("diagnose.py", tmp_path / "run", "--fast")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "diagnosis.json").read_text())
    assert "survival_only" in [label["name"] for label in found["labels"] if label["applies"]]
    assert "retraining" not in found and "survival_only" in done.stdout


@pytest.mark.parametrize(
    ("learned", "expected"),
    [(1000, {"survival_only", "fails_retraining"}), (2000, {"fails_retraining"}), (3000, set())],
)
def test_what_retraining_says_of_a_reward(learned, expected):
    """By both learners: constant 1000, true 2500."""
    returns = {"learned": [learned, learned], "constant": [900, 1100], "true": [2400, 2600]}
    found = {**found_with(learned=0.8), "retraining": {"returns": {"loop": returns, "sb3": returns}}}
    labels = diagnose.failure_labels(subject_with(), found)
    assert {label.name for label in labels if label.applies} == expected


def test_retraining_on_the_true_reward_is_the_oracle(tiny_run):
    """The same policy as `--true-reward` trains; and a perturbed world is really entered."""
    job = diagnose.Retraining(tiny_run[0], "true", "loop", 5, 2048)
    args = irl.Args("Hopper-v4", 5, 2048, true_reward=True)
    torch.manual_seed(5), np.random.seed(5)
    envs = irl.VectorEnv("Hopper-v4", args.num_envs, 5)
    state = irl.start_training(None, None, args, envs, None)
    irl.train_round(state, envs, args)
    env = irl.make_env("Hopper-v4")
    act = diagnose.policy_action(state["policy"], env.action_space)
    expected = diagnose.mean_return(env, act, 10, 5)
    assert diagnose.retrain(job) == pytest.approx(expected, rel=1e-6)
    assert diagnose.retrain(replace(job, world=("gravity", 0.7))) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("path", ["nowhere", "demos"])
def test_bad_input_gets_one_line(path):
    done = command("diagnose.py", ROOT / path)
    assert (
        done.returncode == 1 and done.stderr.count("\n") == 1 and "expected the folder of a finished run" in done.stderr
    )
