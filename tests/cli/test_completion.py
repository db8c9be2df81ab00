"""Shell completion of commands, options and the names in registries and profiles/."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

DIFFCTL = "import sys; sys.argv[0] = 'diffctl'; from cli.main import main; main()"


def run(folder: Path, *arguments: str, **variables: str) -> str:
    """Return the output of the installed script of that name."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", DIFFCTL, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("diffctl show re", ["reverse"]),
        ("diffctl sample --sampler uni", ["unipc"]),
        ("diffctl use cifar", ["cifar10", "cifar100"]),
    ],
)
def test_completes_commands_choices_and_profiles(tmp_path: Path, words: str, found: list[str]) -> None:
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    variables_of_completion = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    assert run(tmp_path, _DIFFCTL_COMPLETE="complete_bash", **variables_of_completion).split() == found


def test_one_command_installs_completion(tmp_path: Path) -> None:
    variables = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    run(tmp_path, "--install-completion", "bash", **variables)
    script = next(file for file in tmp_path.rglob("*") if file.is_file() and file.name != ".bashrc")
    assert "_DIFFCTL_COMPLETE=complete_bash" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()
