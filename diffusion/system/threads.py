"""Two pieces of work beside each other on a CPU, each with half of the cores.

What one spends in Python, or waiting for the slowest of its threads, is time for the other.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

AT_ONCE = 2

T = TypeVar("T")


class Stopped(Exception):
    """The piece beside failed, or nobody waits any more."""


def half_of_the_cores() -> int:
    """The threads that torch takes for each piece, at least one."""
    return max(1, torch.get_num_threads() // AT_ONCE)


def pays_on(device: torch.device) -> bool:
    """Whether two pieces of work beside each other gain anything: on a CPU with two cores or more."""
    return device.type == "cpu" and torch.get_num_threads() >= AT_ONCE


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch works in one thread: in short work several only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def two_threads() -> Iterator[Executor]:
    """An executor of two threads, of which each has half of torch's; at the end torch has all again."""
    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            AT_ONCE, initializer=partial(torch.set_num_threads, half_of_the_cores())
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)


def results(pieces: Sequence[Future[T]], stop: Callable[[], object]) -> list[T]:
    """The results in the order of the pieces; what a piece raises, as soon as it does.

    However it ends, pieces that have not begun never do, and `stop` has those that go on raise Stopped.
    """
    try:
        for piece in as_completed(pieces):
            piece.result()
    finally:
        for piece in pieces:
            piece.cancel()
        stop()
    return [piece.result() for piece in pieces]


def in_halves(made: Callable[[slice, Callable[[], None]], T], count: int) -> list[T]:
    """What is made of each half of `count` things, both beside each other.

    `made` gets its half and what to call now and then: it raises when the other half has failed or the
    caller was interrupted, so that neither goes on for nothing.
    """
    given_up = threading.Event()

    def go_on() -> None:
        if given_up.is_set():
            raise Stopped

    with two_threads() as pool:
        halves = [pool.submit(made, half, go_on) for half in (slice(count // 2), slice(count // 2, None))]
        return results(halves, given_up.set)
