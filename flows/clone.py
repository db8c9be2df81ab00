"""The pull step of scheduled runs: update the clone that only they use.

A run changes dvc.lock and metrics/; the next run resets them, and DVC's run cache still has the results. So
the clone must serve no other purpose, and DIFFCTL_CLONE names it. The clone is locked from before the reset
until the run ends. The next run waits for the lock and is skipped after that.
"""

import logging
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import flows
from diffusion.project import version_problem
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.locks import LockBusy, holding_group
from flows.dvc_pull import update_tracked_files
from flows.run_lock import FLOW_RUN, LOCK, hold_run_lock

VARIABLE = "DIFFCTL_CLONE"
GIT_SECONDS = 900.0  # for a command of git
UPSTREAM = "@{upstream}"  # of the branch that the clone has

_held = ExitStack()  # the lock, for the lifetime of this process


def update_clone(wait: float = 600.0) -> dict[str, str]:
    """Update the clone in DIFFCTL_CLONE to its newest commit and change into it; return its directory.

    Wait up to `wait` seconds for another run, or a stage that outlived one. After that this run is skipped:
    its state becomes Skipped, and the process exits. Raise UsageError if the variable names no clone or this
    code is not that of a clone with code, DiffctlError if git fails. Both are logged in the run.
    """
    try:
        clone = _named_clone()
        _lock(clone, wait)
        _git(clone, "reset", "--quiet", "--hard")
        if _git(clone, "remote"):
            _git(clone, "fetch", "--quiet", "--prune")  # an upstream that was removed ends the run
            if _git(clone, "rev-list", f"{UPSTREAM}..HEAD"):
                raise DiffctlError(
                    f"{clone} has commits that its upstream lacks: push them, or remove them with "
                    f"`git reset --hard {UPSTREAM}`, also if the upstream was rewritten"
                )
            _git(clone, "reset", "--quiet", "--hard", UPSTREAM)  # over untracked files of the new commit too
        update_tracked_files(clone)
        if problem := version_problem(clone):
            raise UsageError(f"{problem[0]} for the worker: {problem[1]}")
    except DiffctlError as error:
        _log(str(error), logging.ERROR)  # Prefect shows only the exit code of a failed pull step
        raise
    os.chdir(clone)
    return {"directory": str(clone)}


def _named_clone() -> Path:
    named = os.environ.get(VARIABLE, "")
    clone = Path(named).expanduser().resolve()
    if not named or not (clone / "dvc.yaml").is_file():
        raise UsageError(f"{VARIABLE} must name a clone that only scheduled runs use (got {named!r})")
    installed = Path(flows.__file__).resolve()
    if (clone / "flows/clone.py").is_file() and not installed.is_relative_to(clone):  # a clone of diffctl
        raise UsageError(f"start the worker from the environment of {VARIABLE}={clone}, not of {installed}")
    return clone


def _lock(clone: Path, wait: float) -> None:
    """Hold the run lock until the end of the process that replaces this one: Prefect's engine.

    If it stays busy, end this run with the state Skipped, a kind of Cancelled.
    """
    if (clone / LOCK).exists() and (who := holding_group(clone / LOCK)):
        _log(f"another run, or a stage that outlived it, is running in {clone} ({who}): waiting for it")
    try:
        _held.enter_context(hold_run_lock(clone, wait, through_exec=True))
        return
    except LockBusy as busy:
        why = str(busy)
    _log(f"skipped: {why}")
    if FLOW_RUN in os.environ:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.objects import State, StateType

        state = State(type=StateType.CANCELLED, name="Skipped", message=why)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(os.environ[FLOW_RUN]), state, force=True)
    os._exit(0)  # in a thread of Prefect an exception would crash the run


def _log(text: str, level: int = logging.INFO) -> None:
    """Log to the worker's terminal and to the run's log."""
    print(text, flush=True)
    if FLOW_RUN in os.environ:
        from prefect.logging import get_logger

        run = os.environ[FLOW_RUN]  # Prefect's format requires a name
        get_logger("prefect.flow_runs").log(level, text, extra={"flow_run_id": run, "flow_run_name": run})


def _git(clone: Path, *arguments: str) -> str:
    """Run git without prompts; DiffctlError if it fails, or after GIT_SECONDS, while the lock is held."""
    try:
        done = subprocess.run(
            ["git", "-C", str(clone), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=GIT_SECONDS,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
        )
    except subprocess.TimeoutExpired:
        raise DiffctlError(f"git {arguments[0]} in {clone} did not end in {GIT_SECONDS:g} s") from None
    if done.returncode:
        raise DiffctlError(f"git {arguments[0]} in {clone} failed: {' '.join(done.stderr.split())}")
    return done.stdout.strip()
