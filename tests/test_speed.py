"""benchmark/speed.py: what it counts, and that its tables say what it measured."""

import shutil
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from tqdm import tqdm

import custom_irl as irl
from benchmark import speed, tables


def test_the_products_of_a_layer_and_its_gradients_are_counted():
    """2 n m k each: forward, and in the weight and in the input backward; a bias is no product."""
    layer = torch.nn.Linear(32, 48)
    x = torch.randn(64, 32, requires_grad=True)
    with speed.ProductCounter() as counter:
        layer(x).sum().backward()
    assert counter.flops == 3 * 2 * 64 * 32 * 48


def test_the_tables_are_medians_and_ratios_of_the_rows():
    rows = [
        {"env": "E", "repeat": repeat, "what": what, "steps_per_second": rate, "machine": "M"}
        for repeat, rates in enumerate([(100, 120, 50), (300, 200, 100), (200, 220, 200)])
        for what, rate in zip(("custom", "custom-reward-only", "plain", "gail"), (*rates, rates[2]))
    ]
    phases = [(phase, 1e6 / (i + 1)) for i, phase in enumerate(speed.PHASES)]
    rows += [
        {"env": "E", "repeat": None, "what": f"phase {p}", "steps_per_second": r, "machine": "M"}
        for p, r in phases
    ]
    block = speed.speed_block(pd.DataFrame(rows))
    assert "| custom | 200 |" in block
    assert "| plain | 100 |" in block
    of_custom, of_reward_only = block.split("`custom-reward-only` over ...")
    assert "| plain | 2.00 [1.00, 3.00] |" in of_custom
    assert "| gail | 2.00 [1.10, 2.40] |" in of_reward_only
    assert "plain" not in of_reward_only  # which trains Q, too
    assert "| PPO | 5 |" in block
    assert "M. Median of 3 repeats" in block


def test_the_document_shows_the_published_measurements():
    block = speed.speed_block(pd.read_csv(speed.CSV))
    assert tables.read_block(speed.README, "speed") == block.strip()


def test_every_candidate_is_measured(monkeypatch):
    """With few gradient steps, on small rollouts. At one operation a second the roofline says how
    many a step was counted to take: as in any whole intervals from one improvement to the next.
    """
    monkeypatch.setattr(speed, "product_rate", lambda: 1.0)
    short = replace(speed.Improving.hyperparameters, target_refreshes=1)
    monkeypatch.setattr(speed.Improving, "hyperparameters", short)
    small = {"num_envs": 4, "num_steps": 16, "num_minibatches": 2, "update_epochs": 1}
    small |= {"demo_episodes": 4, "irl_batch_size": 32, "n_irl_updates_per_round": 1}
    config = speed.Config(repeats=1, rounds=2)
    with tqdm(disable=True) as bar:
        rows = pd.DataFrame(speed.measure(irl.Args("Hopper-v4", **small), config, bar))
    is_phase = rows["what"].str.startswith("phase ")
    rate = rows[~is_phase].set_index("what")["steps_per_second"]
    assert (rate > 0).all()
    loop = speed.OurLoop(irl.Args("Hopper-v4", **small), irl.RewardNetwork, speed.Improving)
    loop(speed.WARM_UP)
    with speed.ProductCounter() as counter:
        steps = loop(2 * irl.Hyperparameters.improvement_interval)
    assert 1 / rate["roofline"] == pytest.approx(counter.flops / steps, rel=0.05)
    block = speed.speed_block(rows)
    for what in rate.index:
        assert f"| {what} | {rate[what]:.0f} |" in block


@pytest.mark.parametrize("words", [("--rounds", "0"), ("--repeats", "0")])
def test_nothing_to_measure_is_one_line(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["speed", "--out", "nowhere.csv", *words])
    with pytest.raises(irl.UserError, match="--repeats, --rounds, --envs: expected at least one"):
        speed.main()


def test_tables_are_written_from_a_file_without_measuring(tmp_path, monkeypatch, capsys):
    copy = shutil.copy(speed.CSV, tmp_path / "speed.csv")
    monkeypatch.setattr(sys, "argv", ["speed", "--table-only", "--out", str(copy)])
    speed.main()
    assert capsys.readouterr().out.strip() == speed.speed_block(pd.read_csv(copy)).strip()
