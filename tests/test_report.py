"""Tables, statistics and documents: what they say is what result files and committed rows say."""

import json
import shutil
from threading import Thread

import numpy as np
import pandas as pd
import pytest

import custom_irl as irl
from benchmark import page, report, runs, tables

FEW = ("tiny", "one")  # less than 1,000 transitions: the last change of the method is of these


def write_run(results, method="custom", env="Hopper-v4", seed=1, score=1000.0, share=0.5, **config):
    """A finished run's folder without weights."""
    args = irl.Args(env=env, seed=seed)
    config = irl.config_of(args) | config
    labels = runs.labels_of(config)
    folder = runs.folder_of(results, method, labels, env, seed)
    evaluation = {"returns": [score] * 10, "lengths": [1000] * 10, "mean": score, "std": 0.0}
    result = {
        "schema": 2,
        "id": f"{method}{env}{seed}{labels}",
        "method": method,
        "env": env,
        "seed": seed,
        "steps": 999_424,
        "eval_return_mean": score,
        "eval_return_std": 0.0,
        "normalized_return": share,
        "evaluation": {"deterministic": evaluation, "sampled": evaluation},
        "steps_per_second": 800.0,
        "seconds": {"ppo": 60.0},
        "config": config,
        "versions": {"mujoco": "3.15.0"},
        "date": "2026-01-01T00:00:00+00:00",
    }
    folder.mkdir(parents=True)
    irl.write_text(folder / "result.json", json.dumps(result))
    origin = {"git_commit": "a" * 40, "git_clean": True, "hardware": {"cpu": "a cpu"}}
    irl.write_text(folder / "origin.json", json.dumps(origin))
    rows = [{"steps": 2048 * i, "true_return": 10.0 * i} for i in range(1, 30)]
    irl.write_metrics(folder / "metrics.csv", rows)
    return folder


def test_a_row_states_what_the_run_wrote(tmp_path):
    write_run(tmp_path, no_policy_access=True, demo_episodes=20, demo_subsample=20)
    (row,) = tables.read_runs(tmp_path).to_dict("records")
    assert (row["variant"], row["panel"], row["labels"]) == (
        "reward-only",
        "scarce",
        "reward-only scarce",
    )
    assert (row["git_commit"], row["git_clean"], row["minutes"]) == ("a" * 40, True, 1.0)


def test_a_backup_of_a_run_counts_once_and_is_said(tmp_path, capsys):
    folder = write_run(tmp_path, seed=1)
    write_run(tmp_path, seed=2, score=2000.0)
    shutil.copytree(folder, tmp_path / "backup" / "seed1")
    frame = tables.read_runs(tmp_path)
    assert sorted(frame["seed"]) == [1, 2]
    assert str(folder) in capsys.readouterr().out


def test_a_result_of_another_program_is_no_row(tmp_path):
    """Of `python -m mbirl`, whose default folder is below results/, too."""
    folder = tmp_path / "mbirl" / "weighted" / "seed1"
    folder.mkdir(parents=True)
    irl.write_text(folder / "result.json", json.dumps({"cost": "weighted", "method": "ours"}))
    with pytest.raises(irl.UserError, match=r"no result\.json below it"):
        report.main(report.Config(results=tmp_path))
    write_run(tmp_path)
    assert list(tables.read_runs(tmp_path)["method"]) == ["custom"]


def rewrite(folder, **changes):
    path = folder / "result.json"
    irl.write_text(path, json.dumps(runs.read_json(path) | changes))


def test_of_two_runs_of_one_row_and_seed_both_are_drawn(tmp_path):
    write_run(tmp_path)
    rewrite(write_run(tmp_path / "again"), id="another")
    report.main(report.Config(results=tmp_path))
    assert (tmp_path / "curves-Hopper-v4.png").exists()
    (panel,) = page.panels(tables.read_runs(tmp_path))
    assert "mean of 2" in panel["curves"][0]


def test_a_row_of_different_demonstrations_is_said(tmp_path, capsys):
    for seed, digest in ((1, "a"), (2, "a"), (3, "b")):
        folder = write_run(tmp_path, seed=seed, demos=f"/{digest}/mine.npz")
        rewrite(folder, demos={"sha256": digest, "transitions": 10})
        tables.read_runs(tmp_path)
        said = capsys.readouterr().out
        assert ("one row, but different demonstrations" in said) == (digest == "b")
    assert str(folder) in said


def test_rows_are_compared_within_a_panel(tmp_path):
    """Of `bc` each run is below each of `custom` in its panel, and above those of the other."""
    scarce = {"demo_episodes": 20, "demo_subsample": 20}
    for env in runs.ENVS:
        for seed in (1, 2):
            write_run(tmp_path, env=env, seed=seed, share=0.1)
            write_run(tmp_path, env=env, seed=seed, share=0.9, **scarce)
            write_run(tmp_path, "bc", env=env, seed=seed, share=0.5, **scarce)
    text = report.summary(tables.read_runs(tmp_path))
    assert "**scarce: 20 episodes, every 20th transition**" in text
    assert "| bc | 6 | 0.500 [0.500, 0.500] | 1.00 |" in text


def test_a_run_of_a_single_command_has_no_commit_and_is_never_published(tmp_path, capsys):
    folder = write_run(tmp_path)
    (folder / "origin.json").unlink()
    frame = tables.read_runs(tmp_path)
    assert not frame["git_clean"].any()
    with pytest.raises(irl.UserError, match="no run to publish"):
        report.publish(frame)
    assert "not published: 1 of 1 runs" in capsys.readouterr().out
    with pytest.raises(irl.UserError, match="--blocks and --publish: expected one"):
        report.main(report.Config(results=tmp_path, publish=True, blocks=True))


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1}', '{"schema": 2, "method": "custom"}'])
def test_a_broken_result_is_named(tmp_path, text):
    folder = write_run(tmp_path)
    (folder / "result.json").write_text(text)
    with pytest.raises(irl.UserError, match=r"result\.json: "):
        tables.read_runs(tmp_path)


UNUSABLE = {
    "eval_return_mean": "abc",
    "eval_return_std": None,
    "normalized_return": float("nan"),
    "steps_per_second": "fast",
    "env": 5,
    "seed": "one",
    "id": [1],
}


@pytest.mark.parametrize("key", UNUSABLE)
@pytest.mark.parametrize("missing", [False, True])
def test_a_value_that_no_table_can_hold_is_named_by_file_and_key(tmp_path, key, missing):
    path = write_run(tmp_path) / "result.json"
    result = runs.read_json(path) | {key: UNUSABLE[key]}
    if missing:
        del result[key]
    irl.write_text(path, json.dumps(result))
    with pytest.raises(irl.UserError, match=rf"result\.json: .*{key}"):
        tables.read_runs(tmp_path)


def test_a_run_that_asked_the_expert_is_reported_without_a_curve(tmp_path):
    """DAgger's episodes while it trains are partly the expert's: it writes no true_return."""
    folder = write_run(tmp_path, method="dagger")
    result = runs.read_json(folder / "result.json") | {"data": {"expert_queries": 30_000}}
    irl.write_text(folder / "result.json", json.dumps(result))
    (folder / "metrics.csv").write_text("steps,mixture_return\n2000,3696.4\n")
    write_run(tmp_path)
    frame = tables.read_runs(tmp_path)
    assert set(frame["method"]) == {"custom", "dagger"}
    assert set(tables.read_curves(frame)["method"]) == {"custom"}


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "steps,true_return\n1,x\n", "\0\1"])
def test_metrics_that_cannot_be_drawn_are_named(tmp_path, text):
    (write_run(tmp_path) / "metrics.csv").write_text(text)
    with pytest.raises(irl.UserError, match=r"metrics\.csv: expected columns steps"):
        report.main(report.Config(results=tmp_path))


def test_reports_of_two_launchers_that_end_together_are_both_whole(tmp_path):
    for seed in range(4):
        write_run(tmp_path, seed=seed)
    second = Thread(target=report.main, args=[report.Config(results=tmp_path)])
    with report.one_at_a_time(tmp_path):
        second.start()
        second.join(timeout=5)
        assert second.is_alive()
        assert not (tmp_path / "summary.csv").exists()
    second.join(timeout=60)
    assert len(pd.read_csv(tmp_path / "summary.csv")) == 4


def test_the_projects_expert_is_shown_beside_runs_that_it_normalises_alone(tmp_path):
    card = tables.project_card("Hopper-v4")
    write_run(tmp_path, seed=1, share=None)
    assert "expert" not in tables.headline_table(tables.read_runs(tmp_path))
    write_run(tmp_path, seed=2, score=1000.0, share=irl.normalized(1000.0, card))
    assert "expert" in tables.headline_table(tables.read_runs(tmp_path))


def test_runs_of_an_own_environment_without_a_card_are_reported(tmp_path, capsys):
    for seed in (1, 2, 3):
        write_run(tmp_path, env="Own-v0", seed=seed, score=-5.0 * seed, share=None)
    report.main(report.Config(results=tmp_path))
    text = capsys.readouterr().out
    assert "| final policy | Own-v0 |" in text
    assert "| **custom** | -10 ± 5 |" in text
    assert "nan" not in text
    assert "expert" not in text.split("## ")[0].split("|", 1)[1]
    assert (tmp_path / "curves-Own-v0.png").exists()


def test_another_experts_card_never_normalises(tmp_path):
    """A run on Hopper-v4 with own demonstrations without a card has no normalised return."""
    for seed in (1, 2):
        write_run(tmp_path, seed=seed, share=None)
    frame = tables.read_runs(tmp_path)
    assert "| **custom** |  | 1000 ± 0, 2 runs |" in tables.headline_table(frame)
    assert tables.aggregate_table(frame) == ""


def test_a_short_look_is_marked(tmp_path):
    folder = write_run(tmp_path, total_timesteps=40_960)
    origin = runs.read_json(folder / "origin.json") | {"quick": True}
    irl.write_text(folder / "origin.json", json.dumps(origin))
    frame = tables.read_runs(tmp_path)
    assert "Rows with -quick in their name are a short look" in report.summary(frame)
    assert "**custom-quick**" in report.summary(frame)
    assert report.official(frame).empty


def test_only_the_benchmarks_own_runs_are_published(tmp_path):
    """Neither development seeds nor other settings, also not of other libraries' trainers."""
    write_run(tmp_path, seed=42)
    write_run(tmp_path, seed=1)
    write_run(tmp_path, seed=123, irl_lr=0.01)
    write_run(tmp_path, "custom-frozen", seed=43)
    write_run(tmp_path, "imitation-gail", seed=42, total_timesteps=300_000)
    write_run(tmp_path, "imitation-gail", seed=123, total_timesteps=300_000, learning_rate=0.001)
    rows = report.official(tables.read_runs(tmp_path))
    published = [*zip(rows["method"], rows["seed"])]
    assert published == [("custom", 42), ("custom-frozen", 43), ("imitation-gail", 42)]


# -------------------------------------------------------------------------------------- statistics
def test_statistics_on_cases_with_known_answers():
    scores = [np.array([0.0, 1.0]), np.array([2.0, 3.0]), np.array([4.0, 100.0])]
    assert tables.interquartile_mean(*scores) == pytest.approx((1 + 2 + 3 + 4) / 4)
    mean, low, high = tables.iqm_interval(scores)
    assert low <= mean <= high
    constant = [np.full(3, 0.5)] * 3
    assert tables.iqm_interval(constant) == (0.5, 0.5, 0.5)
    ours, theirs = [np.array([2.0, 3.0])], [np.array([1.0, 2.0])]
    assert tables.probability_of_improvement(ours, theirs) == pytest.approx((2 + 0.5 + 1) / 4)


def test_a_row_of_different_code_or_settings_is_said(tmp_path, capsys):
    said = []
    for seed, code, settings in ((1, "a", 10), (2, "a", 10), (3, "b", 10), (4, "a", 0)):
        folder = write_run(tmp_path / str(seed), seed=seed)
        rewrite(folder, hyperparameters={"gradient_penalty": settings})
        origin = {"identity": {"code": {"custom_irl.py": code}}, "quick": False}
        (folder / "origin.json").write_text(json.dumps(origin))
    for seeds in ((1, 2), (1, 3), (1, 4)):
        together = tmp_path / "-".join(map(str, seeds))
        for seed in seeds:
            shutil.copytree(tmp_path / str(seed), together / str(seed))
        tables.read_runs(together)
        said.append("one row, but different code or settings" in capsys.readouterr().out)
    assert said == [False, True, True]


def test_the_mean_of_curves_covers_the_steps_that_all_have():
    curves = [pd.Series([0.0, 10.0], index=[0, 10]), pd.Series([5.0, 5.0, 5.0], index=[5, 8, 20])]
    mean = tables.mean_curve(curves)
    assert mean.to_dict() == {5: 5.0, 8: 6.5, 10: 7.5}


# --------------------------------------------------------------------------------------- documents
def test_a_cell_of_readmes_table_is_of_all_seeds(tmp_path):
    missing = "Not run yet: custom, with policy access with 50 episodes;"
    for seed, complete in ((42, False), (123, False), (456, True)):
        for env in runs.ENVS:
            write_run(tmp_path, env=env, seed=seed)
        text = tables.readme_table(tables.read_runs(tmp_path))
        assert ("| **custom, with policy access** | 0.50 [0.50, 0.50] |" in text) == complete
        assert (missing in text) != complete


def test_the_ten_fresh_seeds_take_the_cell_when_all_have_been_run(tmp_path):
    for env in runs.ENVS:
        for seed in runs.SEEDS + runs.FRESH_SEEDS[:-1]:
            write_run(tmp_path, env=env, seed=seed, share=0.5 if seed in runs.SEEDS else 0.8)
    before = tables.readme_table(tables.read_runs(tmp_path))
    for env in runs.ENVS:
        write_run(tmp_path, env=env, seed=runs.FRESH_SEEDS[-1], share=0.8)
    frame = tables.read_runs(tmp_path)
    after = tables.readme_table(frame)
    assert "| **custom, with policy access** | 0.50 [0.50, 0.50] |" in before
    assert "| **custom, with policy access** | 0.80 [0.80, 0.80] |" in after
    assert "instead, on which nothing was tuned: custom, with policy access with 50 ep" in after
    assert "on which nothing was tuned" not in before
    for seed in runs.SEEDS:
        for env in runs.ENVS:
            write_run(tmp_path, env=env, seed=seed, no_policy_access=True)
    mixed = tables.readme_table(tables.read_runs(tmp_path))
    assert "`bash run_all.sh --study benchmark/studies/ten-seeds.toml` makes" in after
    assert "ten-seeds.toml` and `bash run_all.sh` make the first column" in mixed
    write_run(tmp_path, "custom-frozen", seed=runs.FRESH_SEEDS[-1] + 1)
    (frozen,) = tables.read_runs(tmp_path).query("method == 'custom-frozen'")["labels"]
    assert frozen == "fresh-seeds"  # as the run that learned the reward
    names = tables.named(report.official(frame)).groupby("name")["seed"].nunique().to_dict()
    assert names == {"custom": 3, "custom-fresh-seeds": 10}  # rows of their own in all tables


def test_of_two_versions_of_a_baseline_the_better_one_is_in_readmes_table(tmp_path):
    for env in runs.ENVS:
        for seed in runs.SEEDS:
            write_run(tmp_path, method="gail", env=env, seed=seed, share=0.1)
            write_run(tmp_path, method="gail-v2", env=env, seed=seed, share=0.3)
            write_run(tmp_path, method="airl", env=env, seed=seed, share=0.2)
    write_run(tmp_path, method="airl-v2", share=0.9)
    text = tables.readme_table(tables.read_runs(tmp_path))
    assert "| GAIL | 0.30 [0.30, 0.30] | — |" in text
    assert "| AIRL | 0.20 [0.20, 0.20] | — |" in text  # airl-v2 lacks seeds
    assert "two versions have been run: `gail-v2` with 50 episodes." in text


def test_cleanils_methods_stand_beside_what_is_published_of_them(tmp_path):
    for seed, share in ((42, 0.9), (123, 0.7)):
        write_run(tmp_path, method="iqlearn", seed=seed, share=share)
    write_run(tmp_path, method="iqlearn", seed=456, share=0.1, demo_episodes=4, demo_subsample=20)
    lines = tables.cleanil_table(tables.read_runs(tmp_path)).splitlines()
    (line,) = (line for line in lines if line.startswith("| iqlearn |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:5] == ["not run", "0.80 (0.70)", "not run", "1"]  # dense runs alone
    assert cells[5:] == ["0.11", "0.84", "0.81", "500,000 updates"]


@pytest.mark.parametrize("path_and_name", list(report.blocks()), ids=lambda key: key[1])
def test_the_documents_say_what_the_committed_rows_say(path_and_name):
    assert tables.read_block(*path_and_name) == report.blocks()[path_and_name].strip()


def test_published_rows_are_full_runs_of_clean_commits():
    published = tables.read_published()
    own = published[~published["method"].isin(tables.CONTROLS)]
    assert own["git_clean"].astype(bool).all()
    assert own["git_commit"].str.fullmatch("[0-9a-f]{40}").all()
    assert not own["labels"].str.contains("quick").any()
    assert not own[tables.KEY].duplicated().any()


@pytest.mark.parametrize("few", [False, True])
def test_the_methods_own_rows_are_of_one_commit(few):
    """Both variants, on the panels of many and on those of few demonstrations."""
    published = tables.read_published()
    own = published[(published["method"] == "custom") & (published["panel"].isin(FEW) == few)]
    assert len(own) >= 36
    assert own["git_commit"].nunique() == 1


def test_publishing_replaces_rows_of_the_same_run_and_keeps_the_others(tmp_path):
    write_run(tmp_path, seed=1, score=1.0)
    write_run(tmp_path, seed=2, score=2.0)
    file = tmp_path / "rows.csv"
    tables.merge_published(file, tables.read_runs(tmp_path))
    shutil.rmtree(tmp_path / "custom")
    write_run(tmp_path, seed=2, score=20.0)
    merged = tables.merge_published(file, tables.read_runs(tmp_path))
    assert dict(zip(merged["seed"], merged["eval_return_mean"])) == {1: 1.0, 2: 20.0}


def test_of_two_different_runs_of_one_seed_none_is_published_unasked(tmp_path):
    folders = [write_run(tmp_path / name, seed=1) for name in ("one", "two")]
    path = folders[1] / "result.json"
    irl.write_text(path, json.dumps(runs.read_json(path) | {"id": "another"}))
    with pytest.raises(irl.UserError, match="expected one of them") as error:
        tables.merge_published(tmp_path / "rows.csv", tables.read_runs(tmp_path))
    assert all(str(folder) in str(error.value) for folder in folders)
    assert not (tmp_path / "rows.csv").exists()


def test_a_document_without_the_marks_is_named(tmp_path):
    (tmp_path / "page.md").write_text("text\n")
    with pytest.raises(irl.UserError, match=r"page\.md: no block speed"):
        tables.write_block(tmp_path / "page.md", "speed", "a table")
