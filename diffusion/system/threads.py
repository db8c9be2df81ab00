"""Threads: work split over two halves of the cores, and tensors prefetched in the background.

On a CPU, two threads with half of the cores each are often faster than one thread with all of them: while one
runs Python or waits for its slowest core, the other one computes.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

HALVES = 2
PREFETCH_NAME = "prefetch"  # prefix of the names of prefetching threads

T = TypeVar("T")
Batch = TypeVar("Batch", bound=Iterable[Tensor | None])


class Stopped(Exception):
    """The work is no longer needed: another part of it failed, or the caller was interrupted."""


def half_of_the_cores() -> int:
    """Return the number of torch threads for each half, at least 1."""
    return max(1, torch.get_num_threads() // HALVES)


def splitting_helps(device: torch.device) -> bool:
    """Return whether two halves in parallel are faster: on a CPU with at least two cores."""
    return device.type == "cpu" and torch.get_num_threads() >= HALVES


@contextmanager
def single_thread() -> Iterator[None]:
    """Limit torch to one thread. Short operations are slower in several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def two_threads() -> Iterator[Executor]:
    """Yield an executor of two threads with half of torch's threads each; restore the number afterwards."""
    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            HALVES, initializer=partial(torch.set_num_threads, half_of_the_cores())
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)


def gather(futures: Sequence[Future[T]], stop: Callable[[], object]) -> list[T]:
    """Return the results in the order of the futures; raise the first exception as soon as it occurs.

    In every case, futures that have not started are cancelled. Then `stop` is called: it must make the
    running ones raise Stopped.
    """
    try:
        for future in as_completed(futures):
            future.result()
    finally:
        for future in futures:
            future.cancel()
        stop()
    return [future.result() for future in futures]


def in_halves(
    work: Callable[[slice, Callable[[], None]], T], count: int, pool: Executor | None = None
) -> list[T]:
    """Return the results of `work` for the two halves of `count` rows, computed in parallel.

    `work` receives its half and a check to call now and then. The check raises Stopped after the other half
    failed or the caller was interrupted. Without `pool` (of `two_threads`) the call makes its own.
    """
    stopped = threading.Event()

    def check() -> None:
        if stopped.is_set():
            raise Stopped

    with ExitStack() as stack:
        threads = pool or stack.enter_context(two_threads())
        halves = (slice(count // 2), slice(count // 2, None))
        return gather([threads.submit(work, half, check) for half in halves], stopped.set)


def prefetch(
    draws: Iterable[Callable[[], Batch]], device: torch.device | str, depth: int = 2
) -> Generator[Batch, None, None]:
    """Yield the results of the draws in order, while `depth` threads compute the next `depth` ones.

    On a GPU the threads use their own stream; the caller's stream waits for a result before it uses it. An
    exception of a draw is raised in its place and ends the iteration. Closing the generator waits for the
    running draws and starts no other one.
    """
    device = torch.device(device)
    stream: Any = None
    start: Callable[[], None] | None = None
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))  # a resident set may still be in transfer
        # A new thread would use the first GPU by default, and allocate pinned memory for it.
        index = torch.cuda.current_device() if device.index is None else device.index
        start = partial(torch.cuda.set_device, index)

    def compute(draw: Callable[[], Batch]) -> tuple[Batch, Any]:
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            return draw(), stream.record_event() if stream is not None else None

    pending: deque[Future[tuple[Batch, Any]]] = deque()
    pool = ThreadPoolExecutor(depth, PREFETCH_NAME, start)
    try:
        for draw in draws:
            pending.append(pool.submit(compute, draw))
            if len(pending) > depth:
                yield _ready(*pending.popleft().result(), device)
        while pending:
            yield _ready(*pending.popleft().result(), device)
    finally:
        pool.shutdown(cancel_futures=True)


def _ready(batch: Batch, event: Any, device: torch.device) -> Batch:
    """Make the caller's stream wait for the copies, and keep their memory until that stream has used it."""
    if event is not None:
        stream = torch.cuda.current_stream(device)
        stream.wait_event(event)
        for tensor in batch:
            if tensor is not None:
                tensor.record_stream(stream)
    return batch


@contextmanager
def prefetched_draws(
    draw: Callable[[], Tensor], count: int, device: torch.device
) -> Iterator[Callable[[], Tensor]]:
    """Yield a function equal to `draw` that computes the first `count` results one call in advance."""
    with closing(prefetch([lambda: (draw(),)] * count, device, 1)) as prefetched:

        def next_result() -> Tensor:
            batch = next(prefetched, None)
            return draw() if batch is None else batch[0]

        yield next_result
