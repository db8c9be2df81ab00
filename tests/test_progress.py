"""What a person and a log file see of long work."""

import pytest

from cli.progress import clock, progress


@pytest.mark.parametrize(("seconds", "said"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")])
def test_clock(seconds: float, said: str) -> None:
    assert clock(seconds) == said


def test_a_log_gets_the_end_once(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sample") as show:
        for done in (0, 5, 10):
            show(done, 10, "x 1")
        show(10, 10, "x 1")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sample 10/10 · ")
    assert " images/s · took " in line
    assert line.endswith("x 1")


def test_what_was_reached_is_said_when_the_work_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with progress("sample") as show:
            show(3, 10, "")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert capsys.readouterr().err.startswith("sample 3/10")


def test_nothing_is_said_of_no_work(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sample"):
        pass
    assert capsys.readouterr().err == ""
