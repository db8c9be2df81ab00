"""Run docs/tutorial.md and the README's commands in a fresh clone."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT, environment
from tests.newest import copy_checkout

pytestmark = pytest.mark.long
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.M | re.S)
TUTORIAL = BLOCK.findall((ROOT / "docs/tutorial.md").read_text(encoding="utf-8"))
NOT_RUN = {  # lines of the commands of README and tutorial, by how they begin
    "diffctl use": "data that is fetched",
    "diffctl run  ": "the tutorial does",
    "diffctl set": "the tutorial does",
    "dvc exp": "tests/cli/test_project_folder.py",
    "diffctl sample --run-id": "a run of one's own",
    "diffctl edit": "pictures of one's own: tests/cli/test_edit.py",
    "diffctl search": "tests/search/",
    "diffctl verdict": "an hour: tests/verdict/",
    "diffctl publish": "the hub: tests/cli/test_publish.py",
    "diffctl serve": "until Ctrl-C: tests/serving/",
    "diffctl playground": "until Ctrl-C: tests/serving/",
    "diffctl up": "tests/cli/test_servers.py",
    "diffctl deploy": "tests/flows/test_deployment.py",
    "diffctl evaluate": "images of one's own, a paper's sweep: tests/evaluate/",
    "diffctl compare": "runs of one's own; the tutorial compares",
    "diffctl --install-completion": "changes the user's shell",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clone after the tutorial's first block, with its environment."""
    home = tmp_path_factory.mktemp("tutorial")
    source = home / "origin"  # the repository that a new user clones
    source.mkdir()
    copy_checkout(source)
    shell(TUTORIAL[0].replace("<this repository>", f"'{source}'"), home)
    set_up(home / "diffctl")
    return home / "diffctl"


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    """Return the output of the tutorial's commands, which make the project `digits` next to the clone."""
    return shell("\n".join(TUTORIAL[1:]), folder)


def test_the_tutorial_ends_with_two_models_and_their_images(folder: Path, output: str) -> None:
    project = folder.parent / "digits"
    assert "diffctl-digits version 1: " in output
    assert "diffctl-digits version 2: promoted" in output  # three times the steps are not chance
    assert "champion is version 2; `diffctl rollback` goes to version 1" in output
    for name in ("digits.png", "seventh.png", "threes.gif", "champion.png"):
        with Image.open(project / name) as picture:
            picture.verify()
    assert (project / "report/index.html").stat().st_size > 10_000
    assert (project / "way.svg").exists()
    assert "excess" in output
    assert "train 200/200" in output, "the first lines shorten the training"
    assert "train 600/600" in output


def test_the_listed_commands_run(folder: Path, output: str) -> None:
    pages = (ROOT / "README.md", "## Use"), (ROOT / "docs/tutorial.md", "## Other commands")
    texts = [page.read_text(encoding="utf-8").split(f"\n{heading}\n")[1] for page, heading in pages]
    sections = [text.split("\n## ")[0] for text in texts]
    lines = [line.strip() for line in re.findall(r"^    (\S.*)$", "\n".join(sections), re.M)]
    assert all(any(line.startswith(begin) for line in lines) for begin in NOT_RUN)
    wanted = [line for line in lines if not any(line.startswith(begin) for begin in NOT_RUN)]
    assert len(wanted) > 8
    project = folder.parent / "digits"
    shell("\n".join(["source ../diffctl/.venv/bin/activate", *wanted]), project)
    assert (project / "sevens.gif").exists()


SCRIPTS = {"diffctl": "cli.entry", "dvc": "dvc"}


def set_up(clone: Path) -> None:
    """Create the environment of `make install` from this interpreter's packages, in a second."""
    folder = clone / ".venv"
    venv.create(folder, with_pip=False)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (own / "packages.pth").write_text(f"{clone}\n{sysconfig.get_path('purelib')}\n")
    for name, module in SCRIPTS.items():
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m {module} "$@"\n')
        script.chmod(0o755)
    (folder / ".installed").touch()  # newer than its prerequisites


def shell(script: str, folder: Path) -> str:
    """Run a script's lines as a shell does and return the output; AssertionError if a line fails."""
    env = environment({"MLFLOW_TRACKING_URI": "", "PREFECT_API_URL": "", "MAKEFLAGS": "", "TZ": "UTC"})
    env = {name: value for name, value in env.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    done = subprocess.run(
        ["bash", "-euxc", script],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout
