"""Processes that this one did not start: known again by id and start, and ended with their group."""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

GRACE_SECONDS = 10.0  # seconds that a group has for its end before it is killed
PR_SET_PDEATHSIG = 1  # prctl(2)
BOOT = Path("/proc/sys/kernel/random/boot_id")


def start_time(pid: int) -> str | None:
    """When the process of this id began, in a form that only compares; None where there is none.

    An id is used again once its process is gone; the pair of both is not. On Linux the moment is counted
    from the machine's start, so that setting its clock changes nothing.
    """
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return None
        if BOOT.exists():
            # The 22nd field of stat; the second is the command in brackets, whatever it holds.
            after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2]
            return f"{BOOT.read_text().strip()} {after_name.split()[19]}"
        return str(psutil.Process(pid).create_time())
    except (psutil.NoSuchProcess, OSError):
        return None


def die_with_parent(parent: int) -> bool:
    """Be killed with the process that started this one, even by SIGKILL; False when it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def group_processes(group: int) -> list[psutil.Process]:
    """The living processes of a process group."""
    return [process for process in psutil.process_iter() if _belongs(process, group)]


def _belongs(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.NoSuchProcess):
        return False


def terminate(processes: Sequence[psutil.Process], patience: float = GRACE_SECONDS) -> None:
    """End the processes: SIGTERM, and SIGKILL for those that are there after `patience` seconds."""
    left: Sequence[psutil.Process] = processes
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in left:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        left = psutil.wait_procs(left, timeout=patience)[1]
