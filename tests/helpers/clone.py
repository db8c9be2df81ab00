"""A clone of this checkout, uncommitted edits included, with an environment that is set up already."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.conftest import environment
from tests.newest import copy_checkout

SCRIPTS = {"diffctl": "cli.entry", "dvc": "dvc"}


def origin(folder: Path) -> Path:
    """The repository that a newcomer clones."""
    folder.mkdir()
    copy_checkout(folder)
    return folder


def set_up(clone: Path) -> None:
    """What `make install` makes in minutes: here with the packages of this interpreter, in a second."""
    folder = clone / ".venv"
    venv.create(folder, with_pip=False)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (own / "packages.pth").write_text(f"{clone}\n{sysconfig.get_path('purelib')}\n")
    for name, module in SCRIPTS.items():
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m {module} "$@"\n')
        script.chmod(0o755)
    (folder / ".installed").touch()  # newer than what it is made of


def shell(script: str, folder: Path) -> str:
    """What a script says that runs as a person's lines do; AssertionError where a line fails."""
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
