"""Work of rank 0 alone may take longer than a collective's timeout; its failure is detected."""

import pytest
import torch
import torch.distributed as dist

from diffusion.train.distributed import rank_zero as alone
from diffusion.train.distributed.process_group import ProcessGroup, RankFailed
from diffusion.train.distributed.rank_zero import DONE, HEARTBEATS, rank_zero_first, wait_for_rank_zero
from tests.helpers.process_pair import pair_of

CPU = torch.device("cpu")
PATIENCE = 100.0


class Clock:
    """A clock that advances at waits only; `each` is called at every wait with their number."""

    def __init__(self, each) -> None:
        self.time, self._each, self._waits = 0.0, each, 0

    def now(self) -> float:
        return self.time

    def pause(self, seconds: float) -> None:
        self.time += 9.0  # a slow machine
        self._waits += 1
        self._each(self._waits)


def test_heartbeats_extend_the_wait_beyond_the_timeout():
    store = dist.HashStore()

    def work(waits: int) -> None:
        if waits == 50:
            store.set(DONE, "step 7")
        elif waits % 10 == 0:
            store.add(HEARTBEATS, 1)

    store.set(DONE, "step 6")  # of earlier work
    clock = Clock(work)
    wait_for_rank_zero(store, "step 7", PATIENCE, clock.now, clock.pause)
    assert clock.time == 450 > PATIENCE


def test_without_a_heartbeat_rank_zero_has_failed_after_the_timeout():
    clock = Clock(lambda waits: None)
    with pytest.raises(RankFailed, match="no heartbeat for 100 s"):
        wait_for_rank_zero(dist.HashStore(), "step 7", PATIENCE, clock.now, clock.pause)
    assert PATIENCE < clock.time < PATIENCE + 20


def test_rank_zero_reports_the_end_of_its_work_also_on_an_error(monkeypatch):
    monkeypatch.setattr(alone, "HEARTBEAT_SECONDS", 0.001)
    store = dist.HashStore()

    def work() -> None:
        with rank_zero_first(ProcessGroup(CPU, 0, 2, store=store), "step 3"):
            while store.add(HEARTBEATS, 0) < 3:  # they are sent during the work
                pass
            raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        work()
    assert store.get(DONE) == b"step 3"


def test_a_single_process_does_not_wait():
    with rank_zero_first(ProcessGroup(CPU), "step 1"), rank_zero_first(ProcessGroup(CPU, 1, 2), "step 1"):
        pass


# Two ranks over gloo with a timeout of one second: rank 0 works for several.
PAIR = """
import sys, time
from datetime import timedelta
import torch, torch.distributed as dist
from diffusion.train.distributed import process_group, rank_zero as alone
from diffusion.train.distributed.process_group import ProcessGroup, join_group

process_group.COLLECTIVE_TIMEOUT, alone.HEARTBEAT_SECONDS = timedelta(seconds=1), 0.1
rank, port, waits = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "waits"
store = dist.TCPStore("127.0.0.1", port, 2, is_master=False)
group = ProcessGroup(torch.device("cpu"), rank, 2, store=store if waits else None)
numbers = [torch.ones(3)]
try:
    with join_group(group, store):
        group.all_reduce(numbers)
        with alone.rank_zero_first(group, "step 1"):
            begun = time.monotonic()
            while not rank and time.monotonic() - begun < 3:
                time.sleep(0.05)
        group.all_reduce(numbers)
        print(numbers[0].tolist())
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("waits", ["waits", "would not wait"])
def test_rank_zero_may_work_longer_than_the_timeout_of_a_collective(waits):
    with pair_of(PAIR, waits) as pair:
        outputs = [one.communicate(timeout=120)[0].strip() for one in pair]
    assert outputs == (["[4.0, 4.0, 4.0]"] * 2 if waits == "waits" else ["RankFailed"] * 2)
