"""Worker processes that read images, one per core. They end with their parent in any case."""

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

MAX_WORKERS = 32  # beyond that the disk is the limit

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def can_fork() -> bool:
    """Return whether workers are forked: they start at once and share imported modules.

    A fork copies a single thread, so that a process with several threads spawns workers instead.
    """
    return sys.platform == "linux" and threading.active_count() == 1


def map_in_processes(
    work: Callable[[*Arguments], Result], jobs: Iterable[tuple[*Arguments]], queued: int
) -> Generator[Result, None, None]:
    """Yield `work` of every job, computed in worker processes, in order; close it to cancel the rest.

    At most `queued` jobs per worker are pending or unread, so that memory stays constant. TemporaryError if
    the kernel kills a worker.
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
    """Yield a process pool for `work` and its size; cancel pending jobs at the end."""
    workers = min(available_cores(), MAX_WORKERS)
    context = multiprocessing.get_context("fork" if can_fork() else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(work,))
    try:
        yield pool, workers
    except BrokenProcessPool:
        raise TemporaryError(
            "a process that reads images was killed, most likely for lack of memory: run this again to resume"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(work: Callable[..., object]) -> None:
    """Leave Ctrl-C to the parent, and exit with it: pipes of a pool alone would wait forever.

    Receiving `work` imported its modules; the garbage collector can ignore them.
    """
    gc.freeze()
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork inherits its parent's handler
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
