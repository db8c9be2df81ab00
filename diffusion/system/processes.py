"""Other processes: identified by id and start time, ended by group."""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

GRACE_SECONDS = 10.0  # seconds between SIGTERM and SIGKILL
PR_SET_PDEATHSIG = 1  # prctl(2)
BOOT = Path("/proc/sys/kernel/random/boot_id")


def start_time(pid: int) -> str | None:
    """Return the start of a process in a form for comparison only; None if there is no such process.

    An id is reused after its process ends; the pair of id and start is not. On Linux the time is counted from
    boot, so that clock changes have no effect.
    """
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return None
        if BOOT.exists():
            # The 22nd field of stat; the second is the command in brackets, with any characters.
            after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2]
            return f"{BOOT.read_text().strip()} {after_name.split()[19]}"
        return str(psutil.Process(pid).create_time())
    except (psutil.NoSuchProcess, OSError):
        return None


def die_with_parent(parent: int) -> bool:
    """Let the kernel kill this process with its parent, even by SIGKILL; False if that has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def group_processes(group: int) -> list[psutil.Process]:
    """Return the running processes of a process group."""
    return [process for process in psutil.process_iter() if _belongs(process, group)]


def _belongs(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.NoSuchProcess):
        return False


def terminate(processes: Sequence[psutil.Process], grace: float = GRACE_SECONDS) -> None:
    """End the processes: SIGTERM, then SIGKILL for those still running after `patience` seconds."""
    left: Sequence[psutil.Process] = processes
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in left:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        left = psutil.wait_procs(left, timeout=grace)[1]
