"""Mixed data: made from a tiny training, recorded again to the same bytes, refused when damaged."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import custom_irl as irl
from conftest import ROOT
from demos import generate, mixed
from demos.formats import DemoError

STORED = ROOT / "demos" / "mixed"
ENVS = ("HalfCheetah-v4", "Hopper-v4", "Walker2d-v4")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """demos/mixed/ of Hopper's recipe cut down to five rollouts, 40 transitions of each policy."""
    home = tmp_path_factory.mktemp("demos")
    shutil.copy(ROOT / "demos" / "Hopper-v4.json", home)
    recipe = replace(generate.RECIPES["Hopper-v4"], total_timesteps=10_240)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "HERE", home)
        patch.setattr(mixed, "TRANSITIONS", 40)
        patch.setitem(generate.RECIPES, "Hopper-v4", recipe)
        config = generate.Config(env="Hopper-v4", mixed=True, out=home)
        generate.main(replace(config, eval_every=1024, eval_episodes=1))
        generate.main(replace(config, record_only=True))
    return home / "mixed"


@pytest.fixture
def folder(made, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(mixed, "TRANSITIONS", 40)
    return shutil.copytree(made, tmp_path / "mixed")


def test_it_is_recorded_on_first_use_to_the_bytes_of_its_card(folder, capsys):
    path = folder / "Hopper-v4.npz"
    before = path.read_bytes()
    path.unlink()
    data = mixed.load_mixed("Hopper-v4", folder)
    assert path.read_bytes() == before and "recording it, once" in capsys.readouterr().err
    assert {key: x.shape for key, x in data.items()} == {
        "obs": (160, 11), "acts": (160, 3), "next_obs": (160, 11), "terminated": (160,)
    }  # fmt: skip
    assert all(x.dtype == np.float32 for x in data.values())
    # A row follows the one before unless that one ended an episode or its policy's rows.
    linked = (data["obs"][1:] == data["next_obs"][:-1]).all(1)
    assert data["terminated"].sum() > 0 and not (linked & (data["terminated"][:-1] == 1)).any()
    starts = np.flatnonzero(~linked) + 1
    assert set(starts) <= set(np.flatnonzero(data["terminated"]) + 1) | {40, 80, 120}
    assert np.abs(data["acts"]).max() <= 1


def test_the_card_states_what_was_played(folder):
    card = json.loads((folder / "Hopper-v4.json").read_text())
    assert card["training"]["seed"] == generate.MIXED_SEED and card["transitions"] == 160
    seeds = [policy["first_seed"] for policy in card["policies"]]
    assert min(seeds) > max(generate.SEEDS.values()) and len(set(seeds)) == 4
    assert len({policy["steps"] for policy in card["policies"]}) == 4
    for name, digest in card["sha256"].items():
        assert irl.sha256(folder / name) == digest


def change(folder: Path, name: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: change(f, "Hopper-v4.npz"), "Hopper-v4.npz: sha256 .* another processor"),
        (lambda f: (f / "Hopper-v4.json").unlink(), "json: no such file; expected mixed data"),
        (lambda f: (f / "Hopper-v4.json").write_text("[]"), "json: not the card of mixed data"),
    ],
)
def test_damaged_data_gets_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(DemoError, match=message):
        mixed.load_mixed("Hopper-v4", folder)


def test_a_damaged_policy_and_another_recording_are_refused_and_leave_no_data(folder, monkeypatch):
    path = folder / "Hopper-v4.npz"
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(mixed, "TRANSITIONS", 41)  # as another processor's would: other bytes
        with pytest.raises(DemoError, match=r"--mixed --record-only"):
            mixed.load_mixed("Hopper-v4", folder)
    policy = json.loads((folder / "Hopper-v4.json").read_text())["policies"][0]["file"]
    change(folder, policy)
    with pytest.raises(DemoError, match=f"{policy}: missing or damaged"):
        mixed.load_mixed("Hopper-v4", folder)
    assert not path.exists()


@pytest.mark.parametrize("env_id", ENVS)
def test_the_stored_policies_are_the_cards_and_stay_below_half_of_the_expert(env_id):
    card = mixed.read_card(STORED / f"{env_id}.json", env_id)
    mixed.check_policies(card, STORED)
    assert card["transitions"] == 100_000
    assert all(policy["share_of_expert"] <= 0.5 for policy in card["policies"])


def test_an_environment_without_mixed_data_gets_one_line():
    with pytest.raises(DemoError, match=r"Ant-v4.json: no such file; expected mixed data, made by"):
        mixed.load_mixed("Ant-v4")
