"""Work of the first process alone, for which the others wait as long as it lives, however long that takes.

A collective waits for everyone, and gives up after a time that must end what hangs. Scores of 50,000 images
may take longer. So the first process gives signs of life through the store while it works, and the others
begin to wait in a collective only when it has said that it is done.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch._C._distributed_c10d import Store

from diffusion.train.distributed import process_group
from diffusion.train.distributed.process_group import ProcessGroup, RankFailed, translate_dist_errors

HEARTBEATS, DONE = "alone/beats", "alone/done"  # in the store: signs of life, and what was done last
POLL_SECONDS = 0.1
HEARTBEAT_SECONDS = 10.0


@contextmanager
def rank_zero_first(group: ProcessGroup, what: str) -> Iterator[None]:
    """The block is the first process's work; all others leave it when that one does.

    All come to it at the same place, by the same word, and to a collective before the next one. RankFailed
    where the first one has given no sign of life for as long as a collective waits.
    """
    if group.store is None or group.world_size == 1:
        yield
    elif group.is_rank_zero:
        with _beating(group.store):
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
    patience: float,
    now: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Wait until the first process is done; RankFailed after `patience` seconds without a sign of life."""
    beats, since = -1, now()
    while not (store.check([DONE]) and store.get(DONE).decode() == what):
        if (found := store.add(HEARTBEATS, 0)) != beats:
            beats, since = found, now()
        elif now() - since > patience:
            raise RankFailed(
                f"the first process of this training has given no sign of life for {patience:,.0f} s: the "
                "same command goes on from the saved state"
            )
        pause(POLL_SECONDS)


@contextmanager
def _beating(store: Store) -> Iterator[None]:
    """Give a sign of life again and again, also while the block keeps the main thread."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            try:
                store.add(HEARTBEATS, 1)
            except RuntimeError:  # the store is gone, which the main thread comes to notice
                return

    thread = threading.Thread(target=beat, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
