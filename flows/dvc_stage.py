"""Run one stage by `dvc repro --single-item`: relay its output, map its exit code, forward signals.

DVC runs in its own session, so a Ctrl-C reaches only this process, which then signals the whole group. DVC
itself ignores SIGINT, and a SIGTERM to DVC alone would leave the stage running.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusion.layout import dvc_stages
from diffusion.system import signals
from diffusion.system.errors import TEMPORARY, DiffctlError, Interrupted, UsageError
from diffusion.system.processes import PYTHON_MODULE
from diffusion.system.signals import StopRequest, stop_request
from flows.output_relay import OutputRelay, echo, open_channel, relay_output
from flows.run_lock import FLOW_RUN, current_run
from flows.run_lock import VARIABLE as WORK
from flows.stage_code import pipeline_stages
from flows.stage_outcome import VARIABLE, StageOutcome, read_outcome

Write = Callable[[str], object]
"""Takes output: full lines, and progress that overwrites itself."""

DVC = (*PYTHON_MODULE, "dvc")
POLL_SECONDS = 0.1
# Seconds that a group gets after each signal. A training saves its state on the first. Prefect's worker kills
# a cancelled run after 30 s, and would leave the group running.
PATIENCE = ((signal.SIGINT, 60.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))
WORKERS_PATIENCE = ((signal.SIGINT, 18.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 2.0))
_EXIT = re.compile(r"exited with (-?\d+)$")


class StageFailed(DiffctlError):
    """A stage or DVC failed. `exit_code` is the stage's, or 1 if it is not one of ours."""

    def __init__(self, stage: str, message: str, exit_code: int = 1, *, retry: bool = False) -> None:
        super().__init__(f"stage {stage}: {message}")
        self.exit_code = exit_code
        self.retry = retry


async def reproduce(stage: str, write: Write = echo, *, force: bool = False) -> None:
    """Bring one stage up to date; its output goes to `write`, by default to standard output.

    Raise StageFailed with its exit code, or Interrupted on a signal, after its processes have ended.
    """
    flags = ["--force"] * force + ["--pull"] * (has_remote() and needs_pull(stage))
    await supervise(stage, [*DVC, "repro", "--single-item", stage, *flags], write)


async def refresh_code() -> None:
    """Write code.yaml in another process, since this one may have loaded other code or plugins."""
    if "code" in dvc_stages():
        await supervise("code", [*PYTHON_MODULE, "cli.entry", "stage", "code"], echo)


def is_unchanged() -> bool:
    """Return whether DVC finds every stage up to date, with its outputs present; False if it fails."""
    return _changes(*pipeline_stages()) == {}


def needs_pull(stage: str) -> bool:
    """Return whether a stage lacks a dependency, or outputs that no change makes again; True if DVC fails.

    `dvc repro --pull` contacts the remote in any case, and fails if it does not answer.
    """
    changes = _changes(stage)
    if changes is None:
        return True
    found: dict[str, Any] = {}
    for change in changes.get(stage, []):
        found |= change if isinstance(change, dict) else {}
    dependencies, outputs = found.get("changed deps", {}), found.get("changed outs", {})
    return "deleted" in dependencies.values() or (not dependencies and "not in cache" in outputs.values())


def _changes(*stages: str) -> dict[str, list[Any]] | None:
    """Return what `dvc status` finds changed, which contacts no remote; None if it fails."""
    command = [*DVC, "status", "--json", *stages]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=child_environment())
    return None if done.returncode else json.loads(done.stdout)


async def supervise(stage: str, command: list[str], write: Write) -> None:
    """Run a command in its own session until it ends, its output to `write`; raise as `reproduce`."""
    relay = OutputRelay(write)
    folder = tempfile.TemporaryDirectory(prefix="diffctl-outcome-", ignore_cleanup_errors=True)
    with folder as private, stop_request(hold=True) as stop:
        place = Path(private) / "outcome.json"
        reader, writer = open_channel()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                env={**child_environment(), VARIABLE: str(place), signals.PATIENCE: str(_patience()[0][1])},
                start_new_session=True,
            )
        finally:
            os.close(writer)
        output = threading.Thread(target=relay_output, args=(reader, relay))
        output.start()
        try:
            while process.poll() is None and stop.signal is None:
                await asyncio.sleep(POLL_SECONDS)
        finally:
            _end_group(process, stop, stage, write)
            output.join()
        outcome = read_outcome(place)
        stop.raise_if_set()
    if process.returncode:
        raise failure(stage, outcome, relay.errors)


def _end_group(process: subprocess.Popen[bytes], stop: StopRequest, stage: str, write: Write) -> None:
    """End the process group: SIGINT, after which a second Ctrl-C may end this process, SIGTERM, SIGKILL."""
    for turn, (number, patience) in enumerate(_patience()):
        if not _alive(process):
            return
        os.killpg(process.pid, number)
        if turn == 0:
            stop.release()
            if stop.signal is not None:
                write(f"\nstopping {stage}, which saves its state first\n")
        for _ in range(round(patience / POLL_SECONDS)):  # counts polls, not time: the machine may sleep
            if not _alive(process):
                break
            time.sleep(POLL_SECONDS)


def _patience() -> tuple[tuple[signal.Signals, float], ...]:
    return WORKERS_PATIENCE if FLOW_RUN in os.environ else PATIENCE


def _alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reaps the leader, which would count as alive
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def child_environment() -> dict[str, str]:
    """Return the environment for a child: it finds this `diffctl`, and is not part of this Prefect run."""
    values = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT__")}
    if FLOW_RUN in os.environ:
        values.setdefault(WORK, current_run())
    scripts = str(Path(sys.executable).parent)
    values["PATH"] = os.pathsep.join([scripts, values.get("PATH", os.defpath)])
    values["PYTHONUNBUFFERED"] = "1"
    return values


def has_remote() -> bool:
    """Return whether the project has a default DVC remote; UsageError if DVC's settings are invalid."""
    from dvc.config import Config, ConfigError

    try:
        return bool(Config(dvc_dir=".dvc")["core"].get("remote"))
    except ConfigError as error:
        why = " ".join(str(error).split())
        raise UsageError(f"DVC does not read its settings ({why}): correct .dvc/config") from None


def failure(stage: str, outcome: StageOutcome | None, errors: list[str]) -> DiffctlError | Interrupted:
    """Return the error of a failed stage: from its outcome file, else from DVC's error lines."""
    is_retryable = stage != "data"  # bad raw files stay bad
    if outcome is not None:
        if outcome.kind == "interrupted":
            return Interrupted(f"stage {stage}: {outcome.sentence}", outcome.exit_code - 128)
        again = outcome.kind == "temporary" or (outcome.kind != "refused" and is_retryable)
        return StageFailed(stage, outcome.sentence, outcome.exit_code, retry=again)
    text = " ".join(errors)
    if match := _EXIT.search(text):  # it was killed, or is not a command of diffctl
        code = int(match[1])
        number = -code if code < 0 else code - 128
        if number in (signal.SIGINT, signal.SIGTERM):
            return Interrupted(f"{stage} was stopped; `diffctl run` resumes from its saved state", number)
        if code < 0 or number == signal.SIGKILL:
            return StageFailed(stage, f"killed by signal {number} (out of memory?)", retry=True)
        return StageFailed(stage, f"its command failed (exit {code})", retry=is_retryable)
    if "is busy" in text or "Unable to acquire lock" in text:
        busy = f"another DVC command is running in this folder ({text}): wait for it to end"
        return StageFailed(stage, busy, TEMPORARY, retry=True)
    return StageFailed(stage, text or "DVC failed: see its output above")
