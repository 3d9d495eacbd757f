"""Own demonstrations on an environment that is not the benchmark's, from the file to the film."""

import json
import sys

import gymnasium as gym
import numpy as np
import pytest

import custom_irl as irl
from benchmark import page, report, resume, watch
from benchmark.diagnose import __main__ as diagnose
from demos import check, convert

ENV = "Pendulum-v1"


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Six episodes of a policy that swings up and holds, as flat transitions in float64."""
    env = gym.make(ENV)
    columns = {key: [] for key in ("obs", "acts", "next_obs", "rewards", "terminated", "truncated")}
    for seed in range(6):
        obs, _ = env.reset(seed=seed)
        done = False
        while not done:
            cos, _, speed = obs
            hold = -10 * obs[1] - 2 * speed
            action = np.clip([hold if cos > 0.9 else 2 * np.sign(speed or 1)], -2, 2)
            next_obs, reward, terminated, truncated, _ = env.step(action)
            row = (obs, action, next_obs, reward, terminated, truncated)
            for key, value in zip(columns, row):
                columns[key].append(np.array(value, np.float64))
            obs, done = next_obs, terminated or truncated
    folder = tmp_path_factory.mktemp("own")
    np.savez(folder / "mine.npz", **{key: np.array(x) for key, x in columns.items()})
    (folder / "ready.json").write_text('{"collected_by": "me"}')  # not a card
    return folder


def test_every_tool_works_on_own_demonstrations(recording, monkeypatch, capsys):
    monkeypatch.chdir(recording)
    convert.main(convert.Config(recording / "mine.npz", recording / "ready.npz"))
    status = check.main(check.Config(recording / "ready.npz", ENV, json=recording / "check.json"))
    assert status == 0
    assert json.loads((recording / "check.json").read_text())["episodes"] == 6

    results = recording / "results"
    folder = results / "custom" / ENV / "seed1"
    flags = {"demos": recording / "ready.npz", "demo_episodes": 6, "total_timesteps": 4096}
    args = irl.Args(env=ENV, out=folder, **flags)
    result = resume.run(irl.RewardNetwork, irl.IRLAlgorithm, args, "custom")
    assert result["normalized_return"] is None
    assert "ready.json: ignored" in capsys.readouterr().err

    monkeypatch.setattr(sys, "argv", ["diagnose", str(folder), "--fast"])
    diagnose.main()
    diagnosis = json.loads((folder / "diagnosis.json").read_text())
    assert diagnosis["labels"]
    assert "NaN" not in (folder / "diagnosis.json").read_text()

    report.main(report.Config(results=results))
    assert f"| final policy | {ENV} |" in (results / "summary.md").read_text()
    assert ENV in page.write_page(results, False).read_text()
    film = watch.watch(watch.Config((folder,), seconds=0.2, out=recording / "film.gif"))
    assert film.stat().st_size > 1000
