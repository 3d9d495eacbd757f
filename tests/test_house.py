"""The rule of what imports what, and the file that runs alone."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

FOLDERS = ("baselines", "benchmark", "demos", "mbirl")
TOP_LEVEL = {
    "custom_irl.py", "run_all.sh", "requirements.txt", "README.md", "LICENSE", "CITATION.cff",
    "baselines", "benchmark", "demos", "mbirl", "tests",
}  # fmt: skip


def modules() -> dict[str, Path]:
    """Our modules by their dotted names."""
    files = [ROOT / "custom_irl.py"]
    for folder in FOLDERS:
        files += sorted((ROOT / folder).rglob("*.py"))
    names = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = file
    return names


def imports_of(file: Path, ours: set[str]) -> set[str]:
    """Our modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found & ours


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    ours = modules()
    return {name: imports_of(file, set(ours)) for name, file in ours.items()}


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen, waiting = set(), [start]
    while waiting:
        for name in graph[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def test_nothing_imports_in_a_circle(graph):
    assert [name for name in graph if name in reachable(graph, name)] == []


def test_custom_irl_imports_nothing_of_ours(graph):
    assert graph["custom_irl"] == set()


def test_formats_imports_its_readers_alone_and_runs_only_the_core(graph):
    readers = {f"demos.{name}" for name in ("arrow", "columns", "hdf5", "transitions")}
    assert reachable(graph, "demos.formats") <= readers
    assert graph["benchmark.runs"] <= {"custom_irl", "demos.formats"}


def test_the_top_level_is_the_one_that_was_asked_for():
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True
    )
    names = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


BLOCKER = """
import importlib.abc, runpy, sys

allowed = {"torch", "gymnasium", "mujoco", "numpy", "tyro", "tqdm"}

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        caller = sys._getframe(1)
        while "importlib" in caller.f_code.co_filename:
            caller = caller.f_back
        top = name.split(".")[0]
        if top in allowed or top in sys.stdlib_module_names:
            return None
        if caller.f_code.co_filename.endswith("custom_irl.py"):
            raise ImportError(f"custom_irl.py imports {name}")
        return None

sys.meta_path.insert(0, Blocker())
for name in ("baselines", "benchmark", "demos", "imitation", "pandas", "stable_baselines3"):
    sys.modules[name] = None  # as if it were not installed
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_file_runs_alone(tmp_path):
    """In an empty folder beside one .npz, where other packages cannot be imported."""
    (tmp_path / "custom_irl.py").write_text((ROOT / "custom_irl.py").read_text())
    (tmp_path / "demos.npz").write_bytes((ROOT / "demos" / "Hopper-v4.npz").read_bytes())
    (tmp_path / "blocker.py").write_text(BLOCKER)
    words = [sys.executable, "-I", "blocker.py", "custom_irl.py", "--env", "Hopper-v4"]
    words += ["--demos", "demos.npz", "--total-timesteps", "2048", "--out", "run"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {".lock", "metrics.csv", "policy.pt", "reward_net.pt", "result.json"}
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["normalized_return"] is None  # there is no card
    assert done.stdout.splitlines()[0].startswith("demos.npz: 50000 of 50000 transitions")
