"""The pull step of scheduled runs: they work in a clone of their own, which each of them brings up to date.

A run leaves dvc.lock and metrics/ changed; the next one takes that back, and DVC's run cache still knows
what was made. So the clone must be nobody's workplace, and it is named by whoever starts the worker.
"""

import os
import subprocess
from pathlib import Path

import flows
from diffusion.system.errors import UsageError

VARIABLE = "DIFFCTL_CLONE"


def update_clone() -> dict[str, str]:
    """Bring the clone that DIFFCTL_CLONE names to its newest commit and work there; returns its directory.

    UsageError when the variable names no clone, or when the code that runs is not the clone's own; a failing
    git raises CalledProcessError with its message in the run's log.
    """
    named = os.environ.get(VARIABLE, "")
    clone = Path(named).expanduser().resolve()
    if not named or not (clone / "dvc.yaml").is_file():
        raise UsageError(
            f"{VARIABLE} must name a clone of the project that only scheduled runs use: {named!r}"
        )
    installed = Path(flows.__file__).resolve()
    if not installed.is_relative_to(clone):
        raise UsageError(
            f"this worker runs the code in {installed.parent.parent}, not that of {VARIABLE}={clone}: "
            "start it from the clone's own environment"
        )
    _git(clone, "reset", "--quiet", "--hard")
    if _git(clone, "remote"):
        _git(clone, "pull", "--quiet", "--ff-only")
    os.chdir(clone)
    return {"directory": str(clone)}


def _git(clone: Path, *arguments: str) -> str:
    command = ["git", "-C", str(clone), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
