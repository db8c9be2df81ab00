"""Servers that outlive the command that started them, recorded by name in runs/servers/.

A record has the process's id and start time, so a later process with the same id is not mistaken for it.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field

from diffusion.system.errors import DiffctlError
from diffusion.system.files import write_json
from diffusion.system.json_files import read_json
from diffusion.system.processes import group_processes, start_time, terminate
from diffusion.system.section import Section

FOLDER = Path("runs/servers")
MAX_BYTES = 10_000  # of a record
LAST_LINES = 5  # of the log, shown if a server fails to start


class BackgroundProcess(Section):
    """A background process, the leader of its own session, and the port that it serves."""

    name: Annotated[str, Field(pattern=r"^[a-z]{1,20}$")]
    pid: Annotated[int, Field(gt=1, lt=2**31)]
    start: Annotated[str, Field(max_length=100)]
    port: Annotated[int, Field(gt=0, lt=2**16)]

    @property
    def alive(self) -> bool:
        """Whether the started process still exists."""
        return start_time(self.pid) == self.start

    def stop(self) -> None:
        """End the process and its children, and delete the record."""
        terminate(self.processes())
        _record(self.name).unlink(missing_ok=True)

    def processes(self) -> list[psutil.Process]:
        """Return the process group; if its leader was killed, the members that run in this folder."""
        leader = start_time(self.pid)
        if leader == self.start:
            return group_processes(self.pid)
        # No other process can get the leader's id while its group exists.
        return [process for process in group_processes(self.pid) if leader is None and _runs_here(process)]

    def end_of_log(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(log_of(self.name).read_text(errors="replace").splitlines()[-LAST_LINES:])


def start(name: str, command: Sequence[str], variables: Mapping[str, str], port: int) -> BackgroundProcess:
    """Start the command in its own session, log to runs/servers/NAME.log, and record it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(log_of(name), "wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **variables},
            start_new_session=True,
        )
    began = start_time(process.pid)
    if began is None:
        raise DiffctlError(f"{name} did not start: see {log_of(name)}")
    made = BackgroundProcess(name=name, pid=process.pid, start=began, port=port)
    write_json(_record(name), made.model_dump())
    return made


def recorded(name: str) -> BackgroundProcess | None:
    """Return the process last started under this name, alive or not; None if there is none or it was stopped.

    Raise DiffctlError if the record is damaged.
    """
    try:
        return read_json(_record(name), BackgroundProcess, max_bytes=MAX_BYTES)
    except FileNotFoundError:
        return None


def running(name: str) -> BackgroundProcess | None:
    """Return the process started under this name if it is alive."""
    found = recorded(name)
    return found if found is not None and found.alive else None


def log_of(name: str) -> Path:
    """Return the path of a server's log."""
    return FOLDER / f"{name}.log"


def _record(name: str) -> Path:
    return FOLDER / f"{name}.json"


def _runs_here(process: psutil.Process) -> bool:
    try:
        return process.cwd() == str(Path.cwd())
    except psutil.Error:
        return False
