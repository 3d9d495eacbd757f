"""What a run survives: broken runs of the real worker, locks, checkpoints, files from strangers."""

import ast
import json
import os
import pickle
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import custom_irl as irl
from benchmark import checkpoint, faults, report, resume, runs, watch
from benchmark.diagnose import __main__ as diagnose
from benchmark.load import load_run
from conftest import ROOT, command
from demos import generate

HERE = runs.Holder.of_this_process()


# ------------------------------------------------------------------------------------ broken runs
def test_broken_runs_resume_and_end_as_a_whole_one(tmp_path):
    out = tmp_path / "faults.json"
    words = ["--only", "kill", "disk", "folder", "checkpoints", "--seed", "3"]
    words += ["--kills", "3", "--full-disks", "1", "--repeats", "1", "--out", str(out)]
    done = command("-m", "benchmark.faults", *words)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert figures["kill"]["kills"] == sum(figures["kill"]["phases"].values()) == 3
    assert figures["disk"]["full"] == 1
    assert figures["checkpoints"]["refused"].keys() == faults.DAMAGE.keys()


def test_the_published_figures_have_no_problem_and_are_those_of_readme():
    figures = json.loads(faults.JSON.read_text())
    assert [line for part in figures.values() for line in part["problems"]] == []
    readme = (ROOT / "benchmark" / "README.md").read_text()
    assert faults.block(figures).strip() in readme
    assert figures["cost"]["share"] < 0.02
    assert figures["cost"]["largest_mb"] < 50


def test_a_launcher_that_fails_beside_another_is_a_problem(tmp_path, monkeypatch):
    folder = tmp_path / "results" / "run"
    folder.mkdir(parents=True)
    for name in ("metrics.csv", "result.json"):
        (folder / name).touch()
    (folder / "log.txt").write_text("held by process 1\nheld by process 1\n")
    codes = iter((-9, 0, 1, 0))

    def start(*_, **__):
        code = next(codes)
        said = ("", "reason" if code else "")
        return SimpleNamespace(returncode=code, kill=lambda: 0, communicate=lambda **_: said)

    monkeypatch.setattr(faults, "subprocess", SimpleNamespace(Popen=start, PIPE=None))
    found = faults.launcher(None, None, tmp_path, None)
    assert found["problems"] == ["a launcher beside the run ended with 1: reason"]


@pytest.fixture
def whole(tmp_path):
    """A folder as of a finished run, and what other folders are compared with."""
    whole = faults.Whole.__new__(faults.Whole)
    whole.folder = tmp_path / "whole"
    whole.folder.mkdir()
    (whole.folder / "result.json").write_text('{"id": "a", "mean": 1.5}')
    rows = [{"round": i, "loss": 0.1 * i, "steps_per_second": i} for i in range(3)]
    irl.write_metrics(whole.folder / "metrics.csv", rows)
    for name in ("policy", "reward_net"):
        torch.save({"weight": torch.ones(2)}, whole.folder / f"{name}.pt")
    whole.result = whole.read_result(whole.folder)
    whole.rows = whole.read_rows(whole.folder)
    return whole


def test_the_comparison_sees_what_is_half_written_or_other(whole, tmp_path):
    def problems(name, change, finished=True):
        copy = tmp_path / name
        copy.mkdir()
        for path in whole.folder.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        change(copy)
        return whole.problems(copy, finished)

    assert problems("same", lambda copy: None) == []
    text = (whole.folder / "metrics.csv").read_text()
    for name, content, finished in (("cut", text[:-4], False), ("short", text[:-9], True)):

        def cut(copy, content=content):
            (copy / "metrics.csv").write_text(content)

        assert problems(name, cut, finished) == ["metrics.csv differs"]
    other = {"weight": torch.zeros(2)}
    assert problems("net", lambda c: torch.save(other, c / "policy.pt")) == ["policy.pt differs"]
    missing = problems("none", lambda copy: (copy / "result.json").unlink())
    assert "result.json is missing" in missing
    left = problems("left", lambda copy: (copy / "policy.pt.tmp").touch())
    assert left == ["policy.pt.tmp was left"]


# ------------------------------------------------------------------------------------------- locks
def test_a_folder_is_held_by_one_and_free_afterwards(tmp_path):
    said = f"process {os.getpid()} on host {HERE.host}"
    with runs.locked(tmp_path), pytest.raises(runs.Held, match=said), runs.locked(tmp_path):
        pass
    with runs.locked(tmp_path):
        pass
    assert (tmp_path / irl.LOCK).read_text() == ""


LEFT = {  # locks that a process left, and whether the folder is taken over from it
    "one that died here": (HERE, True),
    "this machine before a restart": (replace(HERE, boot="other"), True),
    "another container here": (replace(HERE, host="other"), True),
    "another host": (replace(HERE, host="other", boot="other"), False),
    "another host without boot ids": (replace(HERE, host="other", boot="-"), False),
    "the same job of Slurm elsewhere": (runs.Holder("other", "1", "other", "7", "0"), False),
    "that job before it was requeued": (runs.Holder("other", "1", "other", "7", "1"), True),
    "another job of Slurm": (runs.Holder("other", "1", "other", "8", "1"), False),
}


@pytest.mark.parametrize("name", LEFT)
def test_a_lock_that_was_left_is_taken_over_if_its_holder_is_surely_gone(
    name, tmp_path, monkeypatch
):
    left, gone = LEFT[name]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    text = " ".join([left.host, left.pid, left.boot, left.job, left.restarts])
    (tmp_path / irl.LOCK).write_text(text)
    if gone:
        with runs.locked(tmp_path):
            assert HERE.host in (tmp_path / irl.LOCK).read_text()
        return
    said = r"host other did not end properly.* remove .*\.lock"
    with pytest.raises(irl.UserError, match=said), runs.locked(tmp_path):
        pass
    assert (tmp_path / irl.LOCK).read_text() == text


def test_a_single_command_takes_the_same_lock(tmp_path):
    held = f"held by process {os.getpid()} on host"
    with irl.locked(tmp_path), pytest.raises(runs.Held, match=held), runs.locked(tmp_path):
        pass
    with runs.locked(tmp_path), pytest.raises(irl.UserError, match=held), irl.locked(tmp_path):
        pass
    with irl.locked(tmp_path):  # free again
        pass


def test_a_held_folder_is_one_line_and_its_exit_code(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped, runs.locked(tmp_path):
        runs.command_line(runs.locked(tmp_path).__enter__)
    assert stopped.value.code == 75
    assert capsys.readouterr().err.count("\n") == 1


def test_a_result_of_another_command_is_not_taken_for_the_runs_own(tmp_path):
    identity = {"config": {"method": "custom", "seed": 1}}
    assert runs.open_folder(tmp_path, identity, quick=False, overwrite=False) is None
    result = {"method": "custom", "config": {"seed": 1}}
    irl.write_text(tmp_path / "result.json", json.dumps(result))
    assert runs.open_folder(tmp_path, identity, quick=False, overwrite=False) == result
    irl.write_text(tmp_path / "result.json", json.dumps({**result, "config": {"seed": 2}}))
    with pytest.raises(irl.UserError, match=r"another run \(result.json differ\)"):
        runs.open_folder(tmp_path, identity, quick=False, overwrite=False)
    assert (tmp_path / "result.json").exists()
    assert runs.open_folder(tmp_path, identity, quick=False, overwrite=True) is None
    assert not (tmp_path / "result.json").exists()
    assert runs.open_folder(tmp_path, {"config": {}}, quick=False, overwrite=False) is None
    (tmp_path / "origin.json").write_text("{}")
    with pytest.raises(irl.UserError, match=r"origin.json: key 'identity' is missing"):
        runs.open_folder(tmp_path, identity, quick=False, overwrite=False)


def test_signals_of_a_closed_terminal_stop_unless_they_are_ignored():
    handler = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        assert signal.SIGHUP not in resume.stop_signals()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert {signal.SIGHUP, signal.SIGINT, signal.SIGTERM} == set(resume.stop_signals())
    finally:
        signal.signal(signal.SIGHUP, handler)


# ------------------------------------------------------------------------------------- checkpoints
class Envs:
    """Environments without a state."""

    history = ()

    def restore(self, history) -> None:
        assert history == ()


def training_of(**tensors) -> irl.Training:
    training = irl.Training(policy=None)
    training.algorithm = tensors
    return training


def test_rows_appended_to_a_tensor_are_written_once_and_the_rest_is_read_from_before(tmp_path):
    rows = torch.randn(500_000, 4)  # 8 MB
    first = checkpoint.save(tmp_path, {"a": 1}, training_of(rows=rows), Envs())
    rows = torch.cat([rows, torch.randn(1000, 4)])
    state = np.random.get_state()[1].copy()
    second = checkpoint.save(tmp_path, {"a": 1}, training_of(rows=rows, view=rows[5:]), Envs())
    assert first > 8e6
    assert second < 1.2e6
    kept = sum(path.stat().st_size for path in (tmp_path / runs.PIECES).iterdir())
    assert kept < 8.1e6  # nothing of the first but what the second has, too
    np.random.random(7)
    read = checkpoint.load(tmp_path, {"a": 1}, Envs()).algorithm
    assert torch.equal(read["rows"], rows)
    assert read["view"].data_ptr() == read["rows"][5:].data_ptr()  # one memory, as before
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    runs.remove_checkpoint(tmp_path)
    assert list(tmp_path.iterdir()) == []


class Harmful:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_strangers_checkpoint_is_refused_before_it_is_unpickled(tmp_path, monkeypatch):
    marker = tmp_path / "code-ran"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "stranger"))
    checkpoint.save(tmp_path / "run", {}, training_of(harm=Harmful(marker)), Envs())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "own"))
    with pytest.raises(irl.UserError, match=r"checkpoint.json: not signed .* go on where it was"):
        checkpoint.load(tmp_path / "run", {}, Envs())
    assert not marker.exists()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "stranger"))
    checkpoint.load(tmp_path / "run", {}, Envs())
    assert marker.exists()  # so it would have been seen


def test_the_key_is_its_users_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    key = checkpoint.signing_key()
    assert checkpoint.signing_key() == key
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(irl.UserError, match=r"signing.key: not 32 bytes of yours alone"):
        checkpoint.signing_key()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with pytest.raises(irl.UserError, match="set XDG_STATE_HOME to a folder of your own"):
        checkpoint.signing_key()


def test_the_generators_pickles_are_read_only_as_they_were_signed(tmp_path):
    for name in ("model-1.zip", "normalizer-1.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(Harmful(tmp_path / "code-ran")))
    hashes = {"model-1.zip": irl.sha256(tmp_path / "model-1.zip"), "normalizer-1.pkl": "other"}
    (tmp_path / "checkpoint.json").write_text(json.dumps(hashes))
    with pytest.raises(irl.UserError, match="not signed with this user's key"):
        generate.load_checkpoint(tmp_path, None)
    checkpoint.write_signed(tmp_path / "checkpoint.json", hashes)
    with pytest.raises(irl.UserError, match=r"normalizer-1.pkl: missing or damaged"):
        generate.load_checkpoint(tmp_path, None)
    assert not (tmp_path / "code-ran").exists()


# ----------------------------------------------------------------------------- folders of strangers
@pytest.fixture
def strangers(tiny_run, tmp_path):
    """The folder of a finished run whose weights are pickles with code in them, and the marker."""
    folder = tmp_path / "results" / "custom" / "Hopper-v4" / "seed1"
    folder.mkdir(parents=True)
    for path in tiny_run[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    marker = tmp_path / "code-ran"
    for name in ("policy.pt", "reward_net.pt"):
        torch.save({"weight": Harmful(marker)}, folder / name)
    (folder / runs.CHECKPOINT).write_bytes(pickle.dumps(Harmful(marker)))
    return folder, marker


def test_a_strangers_folder_runs_no_code(strangers, monkeypatch, capsys):
    folder, marker = strangers
    report.main(report.Config(results=folder.parents[2]))  # reads no weights
    monkeypatch.setattr(sys, "argv", ["diagnose", str(folder), "--fast"])
    readers = (
        lambda: load_run(folder),
        lambda: watch.watch(watch.Config((folder,), seconds=0.2, out=folder / "film.gif")),
        diagnose.main,
    )
    for read in readers:
        with pytest.raises((irl.UserError, SystemExit), match=r"does not fit Policy|^1$") as raised:
            read()
        said = f"{raised.value}{capsys.readouterr().err}"
        assert "policy.pt: does not fit Policy" in said
    assert not marker.exists()


def sources() -> dict[Path, ast.AST]:
    files = [ROOT / "custom_irl.py"]
    for name in ("baselines", "benchmark", "demos", "mbirl"):
        files += (ROOT / name).rglob("*.py")
    return {file.relative_to(ROOT): ast.parse(file.read_text()) for file in files}


def calls(tree: ast.AST, name: str) -> list[dict[str, str]]:
    """The keyword arguments of every call of `name`, such as torch.load."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    nodes = [node for node in nodes if ast.unparse(node.func) == name]
    return [{k.arg: ast.unparse(k.value) for k in node.keywords} for node in nodes]


def test_pickles_are_read_where_they_are_signed_and_nowhere_else():
    unpickle = ("pickle.load", "pickle.loads", "cloudpickle.load", "joblib.load", "pd.read_pickle")
    readers = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False")}
    found = {"torch.load": set(), "np.load": set()}
    for file, tree in sources().items():
        assert [call for name in unpickle for call in calls(tree, name)] == [], file
        for name, (key, value) in readers.items():
            if any(call.get(key) != value for call in calls(tree, name)):
                found[name].add(str(file))
    assert found == {"torch.load": {"benchmark/checkpoint.py"}, "np.load": set()}


def test_no_length_of_time_is_read_from_the_wall_clock():
    """time.time() jumps when the clock is set; faults.py turns it back on purpose."""
    for file, tree in sources().items():
        if file.name != "faults.py":
            assert calls(tree, "time.time") == [], file
