"""Processes that read images, one a core. They end with their parent, however that ends."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from diffusion.errors import DiffctlError

MAX_WORKERS = 32  # the disk is the limit from there on


def cores() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


@contextmanager
def worker_pool() -> Iterator[tuple[ProcessPoolExecutor, int]]:
    """Yield a pool of processes and their number; on an exception what waits is dropped.

    DiffctlError when the system kills one of them.
    """
    workers = min(cores(), MAX_WORKERS)
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_follow_parent
    )
    try:
        yield pool, workers
    except BrokenProcessPool:
        raise DiffctlError(
            "a process that reads images was killed, most likely for want of memory; run this again: it goes "
            "on where it stopped"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and exit when it is gone: a pool's pipes alone would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
