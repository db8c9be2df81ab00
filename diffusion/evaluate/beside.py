"""Sets of images scored beside each other, each by its share of the cores.

Much of a score keeps one core busy, the eigenvalues above all, and threads that wait for each other cost
more than they bring: with two sets at a time on half of the cores each, all of them have work.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

from diffusion.evaluate.features.extractors import exact_float32
from diffusion.system.threads import Stopped, half_of_the_cores, two_threads


@contextmanager
def side_by_side() -> Iterator[Executor]:
    """An executor of two threads; torch and NumPy take for each half of the cores."""
    with (
        exact_float32(),  # a setting of the process: no thread may take it back while another extracts
        threadpool_limits(half_of_the_cores(), user_api="blas"),
        two_threads() as pool,
    ):
        yield pool


class Tally:
    """Images done in several sets at once, told as (done, total) that never falls."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self.progress, self.total = progress, total
        self.done, self.stopped = 0, False
        self.lock = threading.Lock()

    def part(self) -> Callable[[int], None]:
        """The callback of one set, which gets how many of its images are done; it raises Stopped."""
        before = 0

        def show(done: int) -> None:
            nonlocal before
            with self.lock:
                if self.stopped:
                    raise Stopped
                self.done, before = self.done + done - before, done
                if self.progress is not None:
                    self.progress(self.done, self.total)

        return show

    def stop(self) -> None:
        """Let every set that goes on end at its next batch."""
        self.stopped = True
