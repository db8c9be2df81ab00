"""Prefetching: results in order, each computed once, and no thread left at the end."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.process.noise import ImageNoise
from diffusion.system.threads import PREFETCH_NAME, prefetch, prefetched_draws

CPU = torch.device("cpu")


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(PREFETCH_NAME)]


@given(st.integers(0, 6), st.integers(0, 9))
def test_prefetched_draws_equal_direct_draws(count: int, calls: int) -> None:
    noise, same = ImageNoise(3, [0, 7], (1, 2, 2)), ImageNoise(3, [0, 7], (1, 2, 2))
    with prefetched_draws(noise.draw, count, CPU) as draw:
        assert all(torch.equal(draw(), same.draw()) for _ in range(calls))
    assert not prefetch_threads()


def test_next_draw_is_computed_before_it_is_requested() -> None:
    second = threading.Event()
    drawn = []

    def draw() -> torch.Tensor:
        drawn.append(len(drawn))
        if len(drawn) == 2:
            second.set()
        return torch.zeros(1)

    with prefetched_draws(draw, 5, CPU) as next_draw:
        next_draw()
        assert second.wait(30)
    assert drawn == [0, 1]


def test_failed_draw_raises_in_its_place() -> None:
    values = iter([1.0, 2.0])

    def draw() -> torch.Tensor:
        value = next(values, None)
        if value is None:
            raise MemoryError
        return torch.tensor(value)

    with prefetched_draws(draw, 9, CPU) as next_draw:
        assert [float(next_draw()), float(next_draw())] == [1, 2]
        with pytest.raises(MemoryError):
            next_draw()
    assert not prefetch_threads()


def test_closing_starts_no_further_draw() -> None:
    drawn = []

    def draw() -> tuple[None]:
        drawn.append(1)
        return (None,)

    results = prefetch([draw] * 9, CPU, 1)
    next(results)
    results.close()
    assert len(drawn) <= 2
    assert not prefetch_threads()
