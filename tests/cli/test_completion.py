"""A shell completes commands, options, and the names that registries and profiles/ have."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

DIFFCTL = "import sys; sys.argv[0] = 'diffctl'; from cli.main import main; main()"
HERE = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # the shell is named, not looked for


def run(folder: Path, *arguments: str, **variables: str) -> str:
    """What the command says, as the installed script of that name would."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", DIFFCTL, *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    return done.stdout


def completed(folder: Path, *words: str) -> list[str]:
    asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    return run(folder, _DIFFCTL_COMPLETE="complete_bash", **asked).split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("diffctl", "sho"), ["show"]),
        (("diffctl", "show", "re"), ["reverse"]),
        (("diffctl", "sample", "--sampler", "dpm"), ["dpm-solver++"]),
        (("diffctl", "use", "cifar"), ["cifar10", "cifar100"]),
        (("diffctl", "show", "model", "--profile", "fash"), ["fashion-mnist"]),
    ],
)
def test_what_begins_so(tmp_path: Path, words: tuple[str, ...], found: list[str]) -> None:
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    assert completed(tmp_path, *words) == found


def test_the_shell_is_taught_by_one_command(tmp_path: Path) -> None:
    said = run(tmp_path, "--install-completion", "bash", HOME=str(tmp_path), **HERE)
    assert "completion installed" in said
    script = next(file for file in tmp_path.rglob("*") if file.is_file() and file.name != ".bashrc")
    assert "_DIFFCTL_COMPLETE=complete_bash" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()
