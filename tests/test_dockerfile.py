"""The Dockerfile, tested without Docker: its steps set up a working environment."""

import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment
from tests.newest import copy_files

TEXT = (ROOT / "Dockerfile").read_text()
ARGUMENTS = dict(re.findall(r"^ARG (\w+)=(\S+)$", TEXT, re.MULTILINE))


def steps(name: str) -> Iterator[list[str]]:
    """Yield the words of each instruction of that name, or of each command in a RUN, with ARG values."""
    for line in re.findall(rf"^{name} (.+)$", TEXT, re.MULTILINE):
        for argument, value in ARGUMENTS.items():
            line = line.replace(f"${{{argument}}}", value)
        yield from map(shlex.split, line.split(" && "))


def test_outputs_of_commands_are_excluded_from_the_image() -> None:
    made = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line[0] != "#"}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    inside = {pattern.removeprefix("**/") for pattern in ignored if pattern[0] != "#"}
    assert made - inside <= {".venv", ".venv-newest"}
    assert {".git", ".venv*"} <= inside


@pytest.mark.long
def test_steps_set_up_a_working_environment(tmp_path: Path) -> None:
    """Run the steps in order, in a new folder and a new environment with access to the packages here."""
    folder, venv = tmp_path / "diffctl", tmp_path / "environment"
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    here, there = (Path(sysconfig.get_path("purelib", vars=place)) for place in (None, {"base": str(venv)}))
    (there / "here.pth").write_text(f"{here}\n")
    env = environment({"PATH": f"{venv}/bin:/usr/bin:/bin", "PYTHONPATH": str(folder), "MAKEFLAGS": ""})
    for line in re.findall(r"^(?:COPY|RUN) .+$", TEXT, re.MULTILINE):
        if line.startswith("COPY"):
            copy_files(folder, *line.split()[1:-1])
        elif line.startswith("RUN make"):
            (words,) = (words for words in steps("RUN") if words[0] == "make")
            run([word.replace("/opt/diffctl", str(venv)) for word in words], folder, env)
        elif "git init" in line:
            run(["git", "init", "--quiet"], folder, env)
    python = f"{venv}/bin/python"
    code = run([python, "-c", "import cli; print(cli.__file__)"], folder, env)
    assert code == f"{folder}/cli/__init__.py\n"
    assert "data/prepared" in run([python, "-m", "dvc", "repro", "--single-item", "data"], folder, env)
    assert (folder / "data/prepared").is_dir()


def run(words: list[str], folder: Path, env: dict[str, str]) -> str:
    """Run a command that must succeed, and return its stdout."""
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout
