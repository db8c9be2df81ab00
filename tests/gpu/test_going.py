"""How the tests of a GPU go on over several calls, and what they do where there is little beside torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TESTS = """\
from pathlib import Path

def test_fails_until_it_is_mended():
    assert Path("mended").exists()

def test_passes():
    pass

def test_lacks_a_package():
    import no_such_package.part
"""
CALL = """\
import sys
from pathlib import Path
from tests.gpu.going import Going, run
sys.exit(run(Going(Path("kept.json"), {"code": sys.argv[1]}, float(sys.argv[2])), ["--tb=no", *sys.argv[3:]]))
"""
# The packages of that name are as if they were not installed.
BARE = """\
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in sys.argv[1].split(",") else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
from pathlib import Path
from tests.gpu.going import Going, run
sys.exit(run(Going(Path("kept.json"), {}), ["-m", "gpu", "--collect-only", sys.argv[2]]))
"""


def called(folder: Path, script: str, *arguments: str) -> tuple[int, str]:
    """The exit code of such a call in the folder, and what it says."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    line = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_what_has_passed_is_kept_and_what_failed_comes_again(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    code, said = called(tmp_path, CALL, "a", "0")
    assert code == 0, said
    assert "3 are left: the same command goes on" in said
    code, said = called(tmp_path, CALL, "a", "9")
    assert code == 1
    assert "1 failed, 1 passed, 1 skipped" in said
    assert "no_such_package is missing" in said
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert kept["passed"] == ["test_some.py::test_passes"]
    assert kept["failed"] == ["test_some.py::test_fails_until_it_is_mended"]
    (tmp_path / "mended").touch()
    code, said = called(tmp_path, CALL, "a", "9")
    assert (code, "1 passed, 1 skipped, 1 deselected" in said) == (0, True), said
    assert called(tmp_path, CALL, "a", "9", "-k", "passes or mended")[0] == 0, "nothing is left"
    (tmp_path / "kept.json").write_text((tmp_path / "kept.json").read_text()[:-9])  # as a kill may leave it
    assert "2 passed, 1 skipped" in called(tmp_path, CALL, "a", "9")[1]
    assert "2 passed, 1 skipped" in called(tmp_path, CALL, "b", "9")[1], "by other code nothing has passed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "skipped"),
    [
        ("hypothesis,psutil,sklearn,typer,mlflow,prefect,dvc,ray", []),
        ("hypothesis,psutil,sklearn,PIL", ["test_groups.py", "test_training.py"]),
    ],
)
def test_on_a_bare_machine_every_module_is_collected_or_skipped(tmp_path, missing, skipped) -> None:
    code, said = called(tmp_path, BARE, missing, str(ROOT / "tests/gpu"))
    assert code == 0, said
    assert "error" not in said.lower()
    assert all(f"{name}:0: " in said for name in skipped)
    assert "test_steps.py::" in said
