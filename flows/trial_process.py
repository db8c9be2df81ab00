"""A search's trial as a process: started, told to stop, and what its end means."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from diffusion.search.folder import read_ended
from diffusion.search.trial import Ended
from diffusion.system.errors import TEMPORARY, DiffctlError, TemporaryError
from diffusion.system.signals import StopRequest

STARTER = "DIFFCTL_SEARCH"  # the process whose trial it is, with which it dies
POLL_SECONDS = 0.1


class TrialKilled(DiffctlError):
    """A signal that nobody here sent has ended a trial's process."""


def run_process(
    command: Sequence[str],
    folder: Path,
    stop: StopRequest,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] = os.environ,
    log: IO[bytes] | None = None,
) -> Ended | None:
    """Run the `command` of the trial in `folder` to its end; a stop is passed on, and the end waited for.

    Returns how the trial ended; None where it was stopped before. What it says goes into `log`, if that is
    given. DiffctlError, TrialKilled or TemporaryError where the process ended and the trial did not.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**env, STARTER: str(os.getpid())},
        stdin=None if log is None else subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        process_group=0,  # a Ctrl-C is the search's, which passes it on
    )
    code = _waited_for(process, stop)
    ended = read_ended(folder)
    if ended is None and stop.signal is None:
        raise _lost(folder, code)
    return ended


def _waited_for(process: "subprocess.Popen[bytes]", stop: StopRequest) -> int:
    """The exit code of the process, which hears of a stop once."""
    told = False
    while True:
        try:
            return process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if stop.signal is not None and not told:
                process.send_signal(signal.SIGTERM)
                told = True


def _lost(folder: Path, code: int) -> DiffctlError:
    if code < 0:
        how = signal.Signals(-code).name
        return TrialKilled(f"the trial in {folder} ended with {how}: the same command goes on with it")
    kind = TemporaryError if code == TEMPORARY else DiffctlError
    return kind(f"the trial in {folder} ended with exit code {code}: the same command goes on with it")
