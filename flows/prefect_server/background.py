"""Servers that outlive the command that started them: one a name in this folder, recorded in runs/servers/.

A record names the process by id and start, so that another one that got the id later is never taken for it.
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
LAST_LINES = 5  # of a log, where a server ended as it began


class BackgroundProcess(Section):
    """A process in the background, the leader of its own session, and the port that it serves."""

    name: Annotated[str, Field(pattern=r"^[a-z]{1,20}$")]
    pid: Annotated[int, Field(gt=1, lt=2**31)]
    start: Annotated[str, Field(max_length=100)]
    port: Annotated[int, Field(gt=0, lt=2**16)]

    @property
    def alive(self) -> bool:
        """Whether the process that was started is there."""
        return start_time(self.pid) == self.start

    def stop(self) -> None:
        """End it with all that it started, and forget it."""
        terminate(self.processes())
        _record(self.name).unlink(missing_ok=True)

    def processes(self) -> list[psutil.Process]:
        """What is there of it: its group, or where it was killed what it left in this folder."""
        leader = start_time(self.pid)
        if leader == self.start:
            return group_processes(self.pid)
        # No other process can have got its id while its group is there.
        return [process for process in group_processes(self.pid) if leader is None and _is_here(process)]

    def end_of_log(self) -> str:
        """The last lines that it wrote."""
        lines = log_of(self.name).read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines[-LAST_LINES:])


def start(name: str, command: Sequence[str], variables: Mapping[str, str], port: int) -> BackgroundProcess:
    """Start the command apart from this terminal, with its output in runs/servers/NAME.log, and record it."""
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
        raise DiffctlError(f"{name} ended as it was started: {log_of(name)} says why")
    made = BackgroundProcess(name=name, pid=process.pid, start=began, port=port)
    write_json(_record(name), made.model_dump())
    return made


def recorded(name: str) -> BackgroundProcess | None:
    """What was started last under this name, alive or not; None where nothing was, or it was stopped.

    DiffctlError where the record is damaged.
    """
    try:
        return read_json(_record(name), BackgroundProcess, most=MAX_BYTES)
    except FileNotFoundError:
        return None


def running(name: str) -> BackgroundProcess | None:
    """What was started under this name, if it is alive."""
    found = recorded(name)
    return found if found is not None and found.alive else None


def log_of(name: str) -> Path:
    """Where the output of what runs under this name goes."""
    return FOLDER / f"{name}.log"


def _record(name: str) -> Path:
    return FOLDER / f"{name}.json"


def _is_here(process: psutil.Process) -> bool:
    try:
        return process.cwd() == str(Path.cwd())
    except psutil.Error:
        return False
