"""GPU tests over several calls, and on a machine with few packages."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TESTS = """\
from pathlib import Path

def test_fails_until_fixed():
    assert Path("fixed").exists()

def test_passes():
    pass

def test_lacks_a_package():
    import no_such_package.part
"""
CALL = """\
import sys
from pathlib import Path
from tests.gpu.resumable_run import ResumableRun, run
session = ResumableRun(Path("kept.json"), {"code": sys.argv[1]}, float(sys.argv[2]))
sys.exit(run(session, ["--tb=no", *sys.argv[3:]]))
"""
# Hides the named packages.
BARE = """\
import sys
from importlib.machinery import PathFinder

class HiddenPackages(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in sys.argv[1].split(",") else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = HiddenPackages
from pathlib import Path
from tests.gpu.resumable_run import ResumableRun, run
sys.exit(run(ResumableRun(Path("kept.json"), {}), ["-m", "gpu", "--collect-only", sys.argv[2]]))
"""


def called(folder: Path, script: str, *arguments: str) -> tuple[int, str]:
    """Run the script in the folder; return its exit code and output."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    line = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_passed_tests_are_recorded_and_failed_ones_repeated(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    code, output = called(tmp_path, CALL, "a", "0")
    assert code == 0, output
    assert "3 are left: the same command continues" in output
    code, output = called(tmp_path, CALL, "a", "9")
    assert code == 1
    assert "1 failed, 1 passed, 1 skipped" in output
    assert "no_such_package is missing" in output
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert kept["passed"] == ["test_some.py::test_passes"]
    assert kept["failed"] == ["test_some.py::test_fails_until_fixed"]
    (tmp_path / "fixed").touch()
    code, output = called(tmp_path, CALL, "a", "9")
    assert (code, "1 passed, 1 skipped, 1 deselected" in output) == (0, True), output
    assert called(tmp_path, CALL, "a", "9", "-k", "passes or fixed")[0] == 0, "nothing is left"
    (tmp_path / "kept.json").write_text((tmp_path / "kept.json").read_text()[:-9])  # truncated by a kill
    assert "2 passed, 1 skipped" in called(tmp_path, CALL, "a", "9")[1]
    assert "2 passed, 1 skipped" in called(tmp_path, CALL, "b", "9")[1], "other code starts again"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "skipped"),
    [
        ("hypothesis,psutil,sklearn,typer,mlflow,prefect,dvc,ray", []),
        ("hypothesis,psutil,sklearn,PIL", ["test_groups.py", "test_training.py"]),
    ],
)
def test_with_few_packages_every_module_is_collected_or_skipped(tmp_path, missing, skipped) -> None:
    code, output = called(tmp_path, BARE, missing, str(ROOT / "tests/gpu"))
    assert code == 0, output
    assert not re.search(r"\berrors?\b", output, re.IGNORECASE)
    assert all(f"{name}:0: " in output for name in skipped)
    assert "test_steps.py::" in output
