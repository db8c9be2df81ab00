"""The pull step of scheduled runs: they work in a clone of their own, which each of them brings up to date.

A run leaves dvc.lock and metrics/ changed; the next one takes that back, and DVC's run cache still knows
what was made. So the clone must be nobody's workplace, and it is named by whoever starts the worker. From
before it is reset until the run ends it is locked; the next run waits, and after that is skipped.
"""

import logging
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn
from uuid import UUID

import flows
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.locks import LockBusy, holding_group
from flows.run_lock import FLOW_RUN, LOCK, hold_run_lock

VARIABLE = "DIFFCTL_CLONE"
UPSTREAM = "@{upstream}"  # of the branch that the clone has

_held = ExitStack()  # the clone, as long as this process lives


def update_clone(wait: float = 600.0) -> dict[str, str]:
    """Bring the clone that DIFFCTL_CLONE names to its newest commit and work there; returns its directory.

    While another run, or a stage that outlived one, is at work there it waits for up to `wait` seconds; after
    that this run is skipped: its state says so, and its process ends. UsageError when the variable names no
    clone, or when the code that runs is not the clone's own; DiffctlError with the words of a git that fails.
    Both stand in the run's log.
    """
    try:
        return _updated(wait)
    except DiffctlError as error:
        _tell(str(error), logging.ERROR)  # of an error in a pull step Prefect shows the process's exit alone
        raise


def _updated(wait: float) -> dict[str, str]:
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
    if (clone / LOCK).exists() and (who := holding_group(clone / LOCK)):
        _tell(f"another run, or a stage that outlived it, is at work in {clone} ({who}): waiting for it")
    try:
        _held.enter_context(
            hold_run_lock(clone, wait, through_exec=True)
        )  # Prefect's engine takes this place
    except LockBusy as busy:
        _skip(str(busy))
    _git(clone, "reset", "--quiet", "--hard")
    if _git(clone, "remote"):
        _git(clone, "fetch", "--quiet")
        _make_way(clone)
        _git(clone, "merge", "--quiet", "--ff-only", UPSTREAM)
    os.chdir(clone)
    return {"directory": str(clone)}


def _tell(text: str, level: int = logging.INFO) -> None:
    """Say it on the worker's terminal and, as far as it goes, in the run's log."""
    print(text, flush=True)
    if FLOW_RUN in os.environ:
        from prefect.logging import get_logger

        run = os.environ[FLOW_RUN]  # Prefect's format wants a name, too
        get_logger("prefect.flow_runs").log(level, text, extra={"flow_run_id": run, "flow_run_name": run})


def _skip(why: str) -> NoReturn:
    """End this run as Skipped, which is a way of being Cancelled."""
    _tell(f"skipped: {why}")
    if FLOW_RUN in os.environ:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.objects import State, StateType

        state = State(type=StateType.CANCELLED, name="Skipped", message=why)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(os.environ[FLOW_RUN]), state, force=True)
    sys.stdout.flush()
    os._exit(0)  # this is a thread of Prefect's, and an exception would be a crash of the run


def _make_way(clone: Path) -> None:
    """Remove what a run made here and the newest commit brings: Git would not go over the first dvc.lock."""
    new = set(_git(clone, "ls-tree", "-r", "-z", "--name-only", UPSTREAM).split("\0"))
    made = set(_git(clone, "ls-files", "-z", "--others", "--exclude-standard").split("\0"))
    for path in filter(None, made & new):
        (clone / path).unlink()


def _git(clone: Path, *arguments: str) -> str:
    command = ["git", "-C", str(clone), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if not line.startswith("hint:")]
        raise DiffctlError(f"git {arguments[0]} in {clone} failed: {' '.join(' '.join(said).split())}")
    return done.stdout.strip()
