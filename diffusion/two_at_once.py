"""Two pieces of work beside each other on a CPU, each with half of the cores.

What one spends in Python, or waiting for the slowest of its threads, is time for the other.
"""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch

AT_ONCE = 2


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
