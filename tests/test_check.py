"""What is said about demonstrations: the facts, every kind of finding with its rows, the report."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from test_formats import same_step, save, walks

from conftest import ROOT, command
from demos import check
from demos.formats import DemoError, Episode, read, to_transitions, write

HOPPER = ROOT / "demos" / "Hopper-v4.npz"
BANK = ROOT / "demos" / "Hopper-v4.bank.npz"


def kinds(episodes, env_id=None) -> dict[str, check.Finding]:
    return {one.kind: one for one in check.problems(episodes, env_id)}


@pytest.mark.parametrize("env_id", ["HalfCheetah-v4", "Hopper-v4", "Walker2d-v4"])
@pytest.mark.parametrize("kind", ["npz", "bank.npz"])
def test_nothing_is_wrong_with_our_own_demonstrations(env_id, kind):
    episodes = read(ROOT / "demos" / f"{env_id}.{kind}")
    assert check.problems(episodes, env_id) == [] and episodes.notes == []


def test_what_is_planted_is_found():
    good = read(HOPPER)[:3]
    obs = good[0].obs.copy()
    obs[5, 2], obs[:, 7] = np.nan, obs[0, 7]
    broken = replace(good[0], obs=obs, acts=good[0].acts * 3)
    cut = Episode(good[1].obs[:11], good[1].acts[:10], False)
    long = Episode(np.tile(good[2].obs, (2, 1)), np.tile(good[2].acts, (2, 1))[:-1], False)
    acts = np.concatenate([long.acts, long.acts[:2]])[: len(long.obs) - 1]
    found = kinds([broken, good[1], cut, replace(long, acts=acts)], "Hopper-v4")
    for kind, text in (
        ("not-finite", "2 transitions hold NaN"),
        ("repeated", "transitions repeat another one exactly"),
        ("outside", "acts: "),
        ("too-long", "1 episodes are longer than the 1000 steps"),
        ("cut-short", "1 episodes stop before the 1000 steps"),
    ):
        assert text in found[kind].text
    assert found["not-finite"].rows == (4, 5)
    assert found["repeated"].rows[:10] == tuple(range(2000, 2010))
    assert found["cut-short"].rows == (2009,) and found["too-long"].rows == (2010 + 2000,)
    still = [replace(e, obs=np.where(np.arange(11) == 7, np.float32(1), e.obs)) for e in good]
    assert "observation 7: the same number everywhere" in kinds(still)["constant"].text
    texts = [str(one) for one in check.problems(good, "Walker2d-v4")]
    assert "obs: 11 numbers; Walker2d-v4 has 17" in texts


def test_an_episode_that_runs_into_the_next_is_a_jump():
    good = read(HOPPER)[:6]
    joined = Episode(
        np.concatenate([good[0].obs[:-1], good[1].obs]),
        np.concatenate([good[0].acts, good[1].acts]),
        False,
    )
    assert kinds([joined, *good[2:]])["jump"].rows == (999,)
    gap = replace(good[0], obs=np.delete(good[0].obs, range(400, 450), 0), acts=good[0].acts[50:])
    assert kinds([gap, *good[1:]])["jump"].rows == (399,)


def test_turns_of_an_angle_are_no_jumps():
    angle = np.float32(np.arange(400)[:, None] * 0.1 + np.array([0.0, 1.0]))
    obs = np.concatenate([(angle + np.pi) % (2 * np.pi) - np.pi, np.sin(angle)], 1)
    obs = np.float32(obs)
    assert "jump" not in kinds([Episode(obs, np.float32(np.sin(angle[1:])), False)])


def test_the_next_episodes_first_observation_is_found():
    episodes = walks((30, 20, 25))
    for i in (0, 1):
        episodes[i].obs[-1] = episodes[i + 1].obs[0]
    found = kinds(episodes)
    assert found["fresh-start"].rows == (29, 49)
    assert set(found["jump"].rows) == {29, 49}


def test_rows_that_do_not_follow_each_other_are_found():
    flat = to_transitions(walks())
    singles = [
        Episode(np.stack([o, n]), a[None], False)
        for o, n, a in zip(flat["obs"][:10], flat["next_obs"][:10], flat["acts"][:10])
    ]
    assert kinds(singles)["one-step"].rows == tuple(range(10))


def test_normalised_observations_are_found(tmp_path):
    episodes = read(BANK)
    obs = np.concatenate([e.obs for e in episodes])
    mean, std = obs.mean(0), obs.std(0)
    normal = [replace(e, obs=(e.obs - mean) / std) for e in episodes]
    found = kinds(normal, "Hopper-v4")["first-observations"]
    assert "30 of 30 episodes are far from the resets of Hopper-v4" in found.text
    assert found.rows[:2] == (0, len(episodes[0].acts))
    middle = [Episode(e.obs[50:], e.acts[50:], e.terminated) for e in episodes if len(e.acts) > 60]
    assert "first-observations" in kinds(middle, "Hopper-v4")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38, 0.0])
def test_any_numbers_can_be_checked_and_drawn(tmp_path, value):
    obs, acts = np.full((4, 2), value, np.float32), np.full((3, 1), value, np.float32)
    write("irl", tmp_path / "demos.npz", [Episode(obs, acts, False)] * 2)
    config = check.Config(tmp_path / "demos.npz", picture=tmp_path / "p.png")
    assert check.main(config) == 0
    assert (tmp_path / "p.png").exists()


def test_the_report_has_every_note_and_the_rows_of_every_finding(tmp_path, capsys):
    columns = same_step(walks((30, 20, 25, 28)))
    columns["acts"][7, 0] = np.nan
    path = save(tmp_path / "demos.npz", **columns)
    config = check.Config(path, picture=tmp_path / "p.png", json=tmp_path / "report.json")
    assert check.main(config) == 0
    assert check.main(replace(config, strict=True)) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["format"], report["episodes"], report["transitions"]) == ("flat", 4, 99)
    assert report["notes"][0]["rows"] == [29, 49, 74, 102]
    assert {"kind": "not-finite", "text": "1 transitions hold NaN or infinity", "rows": [7]} in (
        report["findings"]
    )
    printed = capsys.readouterr().out
    for text in (*(n["text"] for n in report["notes"]), *(f["text"] for f in report["findings"])):
        assert text in printed


def test_strict_accepts_clean_demonstrations(tmp_path):
    config = check.Config(BANK, "Hopper-v4", picture=tmp_path / "p.png", strict=True)
    assert check.main(config) == 0


def test_a_picture_or_report_replaces_only_an_earlier_one(tmp_path):
    path = tmp_path / "demos.npz"
    card = tmp_path / "demos.json"
    shutil.copy(BANK, path)
    card.write_text('{"schema": "irl-card-1"}')
    before = path.read_bytes()
    for wrong in ({"picture": path}, {"json": path}, {"json": card}):
        with pytest.raises(DemoError, match=r"exists and is no (picture|report); expected another"):
            check.main(check.Config(path, **{"picture": tmp_path / "p.png", **wrong}))
    assert path.read_bytes() == before and "card" in card.read_text()
    for _ in range(2):
        again = check.Config(path, picture=tmp_path / "p.png", json=tmp_path / "report.json")
        assert check.main(again) == 0


def test_a_picture_or_report_that_cannot_be_written_gets_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "x"
    for config in (
        check.Config(BANK, picture=inside),
        check.Config(BANK, picture=tmp_path / "p.png", json=inside),
    ):
        with pytest.raises(DemoError, match="cannot be written"):
            check.main(config)


@pytest.mark.parametrize("words", [["demos/check.py"], ["-m", "demos.check"]])
def test_check_as_a_user_types_it(tmp_path, words):
    done = command(*words, BANK, "--picture", tmp_path / "p.png")
    assert done.returncode == 0, done.stderr
    returns = [e.rewards.sum(dtype=np.float64) for e in read(BANK)]
    assert f"{np.mean(returns):.6g} ±" in done.stdout and "obs[10]" in done.stdout
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_an_environment_that_is_none_gets_one_line():
    with pytest.raises(DemoError, match="--env Nothing-v0"):
        check.problems(read(HOPPER)[:1], "Nothing-v0")


def test_a_time_limit_that_is_given_counts_in_place_of_the_environments():
    found = [str(one) for one in check.problems(read(HOPPER)[:2], "Hopper-v4", 500)]
    assert any("2 episodes are longer than the 500 steps of Hopper-v4" in text for text in found)
