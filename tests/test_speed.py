"""benchmark/speed.py: what it counts, and that its page says what it measured."""

import sys

import pandas as pd
import torch

from benchmark import speed


def test_the_products_of_a_layer_and_its_gradients_are_counted():
    """2 n m k each: forward, and in the weight and in the input backward; adding a bias is not a product."""
    layer, x = torch.nn.Linear(32, 48), torch.randn(64, 32, requires_grad=True)
    with speed.ProductCounter() as counter:
        layer(x).sum().backward()
    assert counter.flops == 3 * 2 * 64 * 32 * 48


def test_the_plain_loop_and_the_environment_advance_a_rollout():
    for make in (speed.plain_loop, speed.environment_alone):
        assert make("Hopper-v4")() == 2048


def test_a_run_that_gets_slower_is_seen(tmp_path):
    for seed, last in ((1, 1000.0), (2, 500.0)):
        folder = tmp_path / "Hopper-v4" / f"seed{seed}"
        folder.mkdir(parents=True)
        pd.DataFrame({"steps_per_second": [50.0] * 31 + [1000.0] * 400 + [last] * 57}).to_csv(folder / "metrics.csv")
    unfinished = tmp_path / "Hopper-v4" / "seed3"
    unfinished.mkdir()
    pd.DataFrame({"steps_per_second": [1.0] * 90}).to_csv(unfinished / "metrics.csv")
    assert speed.late_over_early(tmp_path).to_dict() == {"Hopper-v4 seed1": 1.0, "Hopper-v4 seed2": 0.5}


def test_the_command_measures_and_its_page_keeps_what_people_wrote(tmp_path, monkeypatch):
    """Within this process, where the method's own updates are short (conftest.py)."""
    page = tmp_path / "SPEED.md"
    page.write_text(f"# Mine\n\n{speed.BEGIN}\nold\n{speed.END}\n\nAfterwards.\n")
    words = ["speed", "--envs", "Hopper-v4", "--repeats", "1", "--rounds", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    speed.main()
    rows = pd.read_csv(tmp_path / "speed.csv")
    rate = rows[~rows["what"].str.startswith("phase ")].set_index("what")["steps_per_second"]
    assert set(rate.index) == {"custom", "airl", "imitation", "imitation-1", "plain", "environment", "roofline"}
    assert rate["environment"] > rate["roofline"] > 0 and (rate > 0).all()
    text = page.read_text()
    assert text.startswith("# Mine") and text.endswith("Afterwards.\n") and "old" not in text
    for name in rate.index:
        assert f"| {name} | {rate[name]:.0f} |" in text
    ratio = rate["custom"] / rate["plain"]
    assert f"| plain | 2.5 | {ratio:.2f} [{ratio:.2f}, {ratio:.2f}] |" in text
