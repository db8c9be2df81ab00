"""Processes that read images, one a core. They end with their parent, however that ends."""

import gc
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from diffusion.allocator import keep_freed_memory
from diffusion.errors import TemporaryError

MAX_WORKERS = 32  # the disk is the limit from there on


def cores() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


@contextmanager
def worker_pool(work: Callable[..., object]) -> Iterator[tuple[ProcessPoolExecutor, int]]:
    """Yield a pool of processes for `work` and their number; on an exception what waits is dropped.

    TemporaryError when the system kills one of them.
    """
    workers = min(cores(), MAX_WORKERS)
    pool = ProcessPoolExecutor(workers, mp_context=_context(), initializer=_start, initargs=(work,))
    try:
        yield pool, workers
    except BrokenProcessPool:
        raise TemporaryError(
            "a process that reads images was killed, most likely for want of memory; run this again: it goes "
            "on where it stopped"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _context() -> multiprocessing.context.BaseContext:
    """Fork starts at once but copies a single thread only, so a process that has others spawns afresh."""
    forks = sys.platform == "linux" and threading.active_count() == 1
    return multiprocessing.get_context("fork" if forks else "spawn")


def _start(work: Callable[..., object]) -> None:
    """Leave Ctrl-C to the parent, and exit when it is gone: a pool's pipes alone would wait for ever.

    Receiving `work` has loaded its modules; the garbage collector need not look at them again and again.
    """
    gc.freeze()
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked process has its parent's handler
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
