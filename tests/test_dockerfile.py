"""The Dockerfile without Docker: its steps are the Makefile's, and they set up what the project runs in."""

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from tests.conftest import ROOT, environment

TEXT = (ROOT / "Dockerfile").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
ARGUMENTS = dict(re.findall(r"^ARG (\w+)=(\S+)$", TEXT, re.MULTILINE))
IMAGES_OWN = ("apt-get", "rm", "git")  # programs that are no business of the Makefile's


def steps(name: str) -> Iterator[list[str]]:
    """The words of each such instruction; a RUN's commands one by one, with the build's arguments in them."""
    for line in re.findall(rf"^{name} (.+)$", TEXT, re.MULTILINE):
        for argument, value in ARGUMENTS.items():
            line = line.replace(f"${{{argument}}}", value)
        yield from map(shlex.split, line.split(" && "))


def ignored() -> list[str]:
    return [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] != "#"]


def test_every_step_is_a_target_of_the_makefile_with_variables_that_it_reads() -> None:
    made = [words for words in steps("RUN") if words[0] not in IMAGES_OWN]
    assert made
    for program, target, *variables in made:
        assert program == "make"
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)
        for variable in variables:
            assert f"$({variable.partition('=')[0]})" in MAKEFILE


def test_what_is_copied_is_there_and_not_ignored() -> None:
    for *sources, _ in steps("COPY"):
        for source in sources:
            assert (ROOT / source).exists()
            assert not any(PurePosixPath(source).match(pattern) for pattern in ignored())


def test_what_a_command_makes_stays_out_of_the_image() -> None:
    made = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line[0] != "#"}
    inside = {pattern.removeprefix("**/") for pattern in ignored()}
    assert made - inside <= {".venv", ".venv-newest"}
    assert {".git", ".venv*"} <= inside


def test_the_python_is_one_that_the_project_takes() -> None:
    version = re.search(r"^FROM python:(\d+\.\d+)-slim$", TEXT, re.MULTILINE)
    assert version
    assert f'requires-python = ">={version[1]}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.long
def test_its_steps_set_up_an_environment_in_which_the_project_works(tmp_path: Path) -> None:
    """In order, in a folder and an environment of their own that see what is installed here."""
    folder, venv = tmp_path / "diffctl", tmp_path / "environment"
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    here, there = (Path(sysconfig.get_path("purelib", vars=place)) for place in (None, {"base": str(venv)}))
    (there / "here.pth").write_text(f"{here}\n")
    env = environment({"PATH": f"{venv}/bin:/usr/bin:/bin", "PYTHONPATH": str(folder), "MAKEFLAGS": ""})
    for line in re.findall(r"^(?:COPY|RUN) .+$", TEXT, re.MULTILINE):
        if line.startswith("COPY"):
            copy(line.split()[1:-1], folder)
        elif line.startswith("RUN make"):
            (words,) = (words for words in steps("RUN") if words[0] == "make")
            run([word.replace("/opt/diffctl", str(venv)) for word in words], folder, env)
        elif "git init" in line:
            run(["git", "init", "--quiet"], folder, env)
    code = run([f"{venv}/bin/python", "-c", "import cli; print(cli.__file__)"], folder, env)
    assert code == f"{folder}/cli/__init__.py\n"
    assert "data/prepared" in run(
        [f"{venv}/bin/python", "-m", "dvc", "repro", "--single-item", "data"], folder, env
    )
    assert (folder / "data/prepared").is_dir()


def copy(sources: list[str], folder: Path) -> None:
    """As COPY does: what Git knows of the sources."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *sources],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def run(words: list[str], folder: Path, env: dict[str, str]) -> str:
    """What a command says; it must not fail."""
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout
