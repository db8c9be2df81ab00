"""A clone of this checkout, with uncommitted edits and a prepared environment."""

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
    """Return the repository that a new user clones."""
    folder.mkdir()
    copy_checkout(folder)
    return folder


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
