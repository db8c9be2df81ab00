"""Two pieces of work beside each other on a CPU, each with half of the cores.

What one spends in Python, or waiting for the slowest of its threads, is time for the other.
"""

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


@contextmanager
def two_at_once() -> Iterator[Executor]:
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
