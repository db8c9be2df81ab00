"""Draws made one ahead: in their order, each once, and no thread is left, however it ends."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.process.noise import ImageNoise
from diffusion.system.ahead import NAME, made_ahead, one_ahead, prefetch, threads

CPU = torch.device("cpu")


def at_work() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(NAME)]


@given(st.integers(0, 6), st.integers(0, 9))
def test_the_draws_are_those_of_the_generators_in_their_order(ahead: int, asked: int) -> None:
    """Whatever was drawn ahead, and also where more is asked for than that."""
    noise, same = ImageNoise(3, [0, 7], (1, 2, 2)), ImageNoise(3, [0, 7], (1, 2, 2))
    with one_ahead(noise.draw, ahead, CPU) as draw:
        assert all(torch.equal(draw(), same.draw()) for _ in range(asked))
    assert not at_work()


def test_the_next_draw_is_made_while_nobody_asks_for_it() -> None:
    second = threading.Event()
    drawn = []

    def draw() -> torch.Tensor:
        drawn.append(len(drawn))
        if len(drawn) == 2:
            second.set()
        return torch.zeros(1)

    with one_ahead(draw, 5, CPU) as ask:
        ask()
        assert second.wait(30)
    assert drawn == [0, 1]


def test_a_single_draw_is_made_where_it_is_asked_for() -> None:
    with one_ahead(lambda: torch.tensor(threading.get_ident()), 1, CPU) as ask:
        assert int(ask()) == threading.get_ident()


def test_a_draw_that_fails_ends_the_work_where_it_would_be_used() -> None:
    given = iter([1.0, 2.0])

    def draw() -> torch.Tensor:
        value = next(given, None)
        if value is None:
            raise MemoryError("no room for noise")
        return torch.tensor(value)

    with one_ahead(draw, 9, CPU) as ask:
        assert [float(ask()), float(ask())] == [1, 2]
        with pytest.raises(MemoryError, match="no room"):
            ask()
    assert not at_work()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_whoever_is_stopped_between_two_draws_leaves_no_thread(error: type[BaseException]) -> None:
    def work() -> None:
        with one_ahead(lambda: torch.zeros(1), 9, CPU) as ask:
            ask()
            raise error

    with pytest.raises(error):
        work()
    assert not at_work()


def test_what_has_not_begun_never_does() -> None:
    """One draw is at work; those that wait behind it are dropped when nobody wants them any more."""
    begun, go_on = threading.Event(), threading.Event()
    made = []

    def first() -> tuple[None]:
        return (None,)

    def slow() -> tuple[None]:
        begun.set()
        assert go_on.wait(30)
        return (None,)

    def never() -> tuple[None]:
        made.append(1)
        return (None,)

    with threads(1, CPU) as pool:
        coming = made_ahead(pool, [first, slow, never, never], CPU, 3)
        next(coming)
        assert begun.wait(30)
        coming.close()
        go_on.set()
    assert not made


def test_a_pool_that_has_ended_gives_nothing() -> None:
    with threads(1, CPU) as pool:
        coming = made_ahead(pool, iter([lambda: (None,)] * 3), CPU, 1)
        next(coming)
    with pytest.raises(RuntimeError):
        list(coming)
    assert list(prefetch([lambda: (None,)] * 3, CPU)) == [(None,)] * 3
