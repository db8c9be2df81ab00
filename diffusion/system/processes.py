"""Other processes: identified by id and start time, ended by group; and pools of workers."""

import ctypes
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import psutil

from diffusion.system.errors import DiffctlError, TemporaryError
from diffusion.system.memory import keep_freed_memory

MAX_WORKERS = 32  # beyond that the disk is the limit
QUEUED = 32  # jobs per worker: enough work while the parent waits for the disk

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

GRACE_SECONDS = 10.0  # seconds between SIGTERM and SIGKILL
PR_SET_PDEATHSIG = 1  # prctl(2)
BOOT = Path("/proc/sys/kernel/random/boot_id")
# The command before a module's name. Without -P the working directory would be first on the path, and a
# project may have modules of the same names.
PYTHON_MODULE = (sys.executable, "-P", "-m")


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


def die_with_parent(parent: int, what: str) -> None:
    """Let the kernel kill this process with its parent, `what`; DiffctlError if that has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise DiffctlError(f"{what} has ended")


def group_processes(group: int) -> list[psutil.Process]:
    """Return the running processes of a process group."""
    return [process for process in psutil.process_iter() if _belongs(process, group)]


def _belongs(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.NoSuchProcess):
        return False


def terminate(processes: Sequence[psutil.Process], grace: float = GRACE_SECONDS) -> None:
    """End the processes: SIGTERM, then SIGKILL for those still running after `grace` seconds."""
    left: Sequence[psutil.Process] = processes
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in left:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        left = psutil.wait_procs(left, timeout=grace)[1]


def map_in_processes(
    work: Callable[[*Arguments], Result], jobs: Iterable[tuple[*Arguments]]
) -> Generator[Result, None, None]:
    """Yield `work` of every job, computed in worker processes, in order; close it to cancel the rest.

    At most QUEUED jobs per worker are pending or unread, so that memory stays constant. Workers end with
    their parent in any case. TemporaryError if the kernel kills one.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    workers = min(cores, MAX_WORKERS)
    # Forked workers start at once and share imported modules. A fork copies a single thread.
    can_fork = sys.platform == "linux" and threading.active_count() == 1
    context = multiprocessing.get_context("fork" if can_fork else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(work,))
    pending: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(work, *job))
            if len(pending) == QUEUED * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        why = "a process that reads images was killed, most likely for lack of memory"
        raise TemporaryError(f"{why}: run this again to resume") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(work: Callable[..., object]) -> None:
    """Leave Ctrl-C to the parent and exit with it; a pool's pipes alone would wait forever."""
    gc.freeze()
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork inherits its parent's handler
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
