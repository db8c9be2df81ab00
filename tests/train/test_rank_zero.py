"""What the first process does alone may take longer than a collective waits; its loss is told still."""

import pytest
import torch
import torch.distributed as dist

from diffusion.train.distributed import rank_zero as alone
from diffusion.train.distributed.process_group import ProcessGroup, RankFailed
from diffusion.train.distributed.rank_zero import DONE, HEARTBEATS, rank_zero_first, wait_for_rank_zero
from tests.helpers.pair import pair_of

CPU = torch.device("cpu")
PATIENCE = 100.0


class Clock:
    """Time that passes only where somebody waits; `each` is done at every wait, told how many there were."""

    def __init__(self, each) -> None:
        self.time, self._each, self._waits = 0.0, each, 0

    def now(self) -> float:
        return self.time

    def pause(self, seconds: float) -> None:
        self.time += 9.0  # as if the machine were slow
        self._waits += 1
        self._each(self._waits)


def test_signs_of_life_are_waited_for_beyond_the_patience():
    store = dist.HashStore()

    def work(waits: int) -> None:
        if waits == 50:
            store.set(DONE, "step 7")
        elif waits % 10 == 0:
            store.add(HEARTBEATS, 1)

    store.set(DONE, "step 6")  # what was done before is not this
    clock = Clock(work)
    wait_for_rank_zero(store, "step 7", PATIENCE, clock.now, clock.pause)
    assert clock.time == 450 > PATIENCE


def test_without_a_sign_of_life_the_first_process_is_lost_after_the_patience():
    clock = Clock(lambda waits: None)
    with pytest.raises(RankFailed, match=r"has given no sign of life for 100 s: the same command goes on"):
        wait_for_rank_zero(dist.HashStore(), "step 7", PATIENCE, clock.now, clock.pause)
    assert PATIENCE < clock.time < PATIENCE + 20


def test_the_first_process_says_that_it_is_done_also_when_it_fails(monkeypatch):
    monkeypatch.setattr(alone, "HEARTBEAT_SECONDS", 0.001)
    store = dist.HashStore()

    def work() -> None:
        with rank_zero_first(ProcessGroup(CPU, 0, 2, store=store), "step 3"):
            while store.add(HEARTBEATS, 0) < 3:  # the signs come while it works
                pass
            raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        work()
    assert store.get(DONE) == b"step 3"


def test_alone_nobody_waits_for_anybody():
    with rank_zero_first(ProcessGroup(CPU), "step 1"), rank_zero_first(ProcessGroup(CPU, 1, 2), "step 1"):
        pass


# Two processes over gloo, whose collectives wait for a second: the first one works for several.
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
def test_who_works_longer_than_a_collective_waits_ends_nobody(waits):
    with pair_of(PAIR, waits) as pair:
        said = [one.communicate(timeout=120)[0].strip() for one in pair]
    assert said == (["[4.0, 4.0, 4.0]"] * 2 if waits == "waits" else ["RankFailed"] * 2)
