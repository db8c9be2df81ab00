"""One flag per process: raised at once, polled or held, and raised again if it was swallowed."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from diffusion.system.errors import Interrupted
from diffusion.system.signals import check_signals, interrupt_on_signal, stop_request


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Check that every block restores the previous handlers."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as `nohup` ignores it
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before
    signal.signal(signal.SIGHUP, hung_up)
    check_signals()  # and no flag is left


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def swallow() -> None:
    """Catch everything, as the worst of libraries does with a Ctrl-C."""
    with contextlib.suppress(BaseException):
        send(signal.SIGINT)


def stopped(work: Callable[[], object]) -> Interrupted:
    """Return the exception that ends the work."""
    with pytest.raises(Interrupted) as caught, interrupt_on_signal():
        work()
    return caught.value


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signal_raises_interrupted(number: signal.Signals, code: int) -> None:
    end = stopped(lambda: send(number))
    assert end.exit_code == code
    assert str(end) == f"stopped by {number.name}: the same command resumes after the finished parts"


def looks() -> None:
    swallow()
    check_signals()


def begins_another_block() -> None:
    swallow()
    with interrupt_on_signal():
        pytest.fail("it began")


@pytest.mark.parametrize("work", [swallow, looks, begins_another_block])
def test_swallowed_interrupt_is_raised_at_next_check(work: Callable[[], None]) -> None:
    stopped(work)


def test_polling_work_is_not_interrupted() -> None:
    def work() -> None:
        with stop_request() as stop:
            send(signal.SIGTERM)
            check_signals()
            assert stop.signal == signal.SIGTERM
            stop.raise_if_set()

    assert "saved" in str(stopped(work))


def test_unchecked_request_is_raised_after_the_block() -> None:
    def work() -> None:
        with stop_request():
            send(signal.SIGINT)
        pytest.fail("the work would go on")

    stopped(work)


def test_cleared_request_is_not_raised() -> None:
    with interrupt_on_signal(), stop_request() as stop:
        send(signal.SIGINT)
        stop.clear()


@pytest.mark.parametrize(
    "numbers", [(signal.SIGINT, signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)]
)
def test_first_signal_counts_and_ctrl_c_after_another_ends_the_process(numbers: tuple[int, ...]) -> None:
    with stop_request() as stop:
        for number in numbers:
            send(number)
        assert stop.signal == numbers[0]
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL, "the next one ends it"


def test_second_ctrl_c_is_held_until_release() -> None:
    with stop_request(hold=True) as stop:
        for _ in range(3):
            send(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) != signal.SIG_DFL
        stop.release()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupt_on_signal():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
