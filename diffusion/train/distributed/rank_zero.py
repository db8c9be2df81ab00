"""Work of rank 0 alone, for which the other ranks wait as long as rank 0 is alive.

A collective has a timeout, which ends a training that hangs; scoring 50,000 images may take longer. Therefore
rank 0 sends heartbeats through the store while it works, and the others enter the next collective when it has
finished.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch._C._distributed_c10d import Store

from diffusion.train.distributed import process_group
from diffusion.train.distributed.process_group import ProcessGroup, RankFailed, translate_dist_errors

CHANGES_RESULTS = False  # diffusion/code_digest.py

HEARTBEATS, DONE = "alone/beats", "alone/done"  # keys of the store: a counter, and the last finished work
POLL_SECONDS = 0.1
HEARTBEAT_SECONDS = 10.0


@contextmanager
def rank_zero_first(group: ProcessGroup, what: str) -> Iterator[None]:
    """Run the block on rank 0; the other ranks leave it when rank 0 does.

    All ranks must enter it at the same place with the same `what`, and a collective before the next one.
    RankFailed if rank 0 sends no heartbeat for the timeout of a collective.
    """
    if group.store is None or group.world_size == 1:
        yield
    elif group.is_rank_zero:
        with _heartbeats(group.store):
            try:
                yield
            finally:
                with translate_dist_errors():
                    group.store.set(DONE, what)
    else:
        yield
        with translate_dist_errors():
            wait_for_rank_zero(group.store, what, process_group.COLLECTIVE_TIMEOUT.total_seconds())


def wait_for_rank_zero(
    store: Store,
    what: str,
    timeout: float,
    now: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Wait until rank 0 has finished `what`; RankFailed after `timeout` seconds without a heartbeat."""
    beats, since = -1, now()
    while not (store.check([DONE]) and store.get(DONE).decode() == what):
        if (found := store.add(HEARTBEATS, 0)) != beats:
            beats, since = found, now()
        elif now() - since > timeout:
            raise RankFailed(
                f"the first process of this training has sent no heartbeat for {timeout:,.0f} s: the same "
                "command resumes from the saved state"
            )
        pause(POLL_SECONDS)


@contextmanager
def _heartbeats(store: Store) -> Iterator[None]:
    """Send heartbeats from a thread during the block."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            try:
                store.add(HEARTBEATS, 1)
            except RuntimeError:  # the store is gone, which the main thread will notice
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
