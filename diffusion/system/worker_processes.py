"""Processes that read images, one a core. They end with their parent, however that ends."""

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

from diffusion.system.errors import TemporaryError
from diffusion.system.malloc import keep_freed_memory

MAX_WORKERS = 32  # the disk is the limit from there on

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


def available_cores() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def can_fork() -> bool:
    """Whether workers are forks, which start at once and know what their parent knows.

    A fork copies a single thread only, so a process that has others spawns workers that import all again.
    """
    return sys.platform == "linux" and threading.active_count() == 1


def map_in_processes(
    work: Callable[[*Arguments], Result], jobs: Iterable[tuple[*Arguments]], queued: int
) -> Generator[Result, None, None]:
    """`work` of every job in worker processes, in the jobs' order; close it to drop what waits.

    At most `queued` jobs a worker wait or have results that were not taken yet, so that memory stays flat.
    TemporaryError when the system kills a worker.
    """
    pending: deque[Future[Result]] = deque()
    with _pool(work) as (pool, workers):
        for job in jobs:
            pending.append(pool.submit(work, *job))
            if len(pending) == queued * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextmanager
def _pool(work: Callable[..., object]) -> Iterator[tuple[ProcessPoolExecutor, int]]:
    """A pool of processes for `work` and their number; at the end what waits is dropped."""
    workers = min(available_cores(), MAX_WORKERS)
    context = multiprocessing.get_context("fork" if can_fork() else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(work,))
    try:
        yield pool, workers
    except BrokenProcessPool:
        raise TemporaryError(
            "a process that reads images was killed, most likely for want of memory; run this again: it goes "
            "on where it stopped"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


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
