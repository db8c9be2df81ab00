"""Progress lines in logs and terminals."""

import os
import struct
import termios
from fcntl import ioctl
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.shared.progress import ONE, above, clock, pace, progress


def test_times_and_rates_have_a_suitable_unit() -> None:
    times = {0: "0:00", 59.6: "1:00", 61: "1:01", 3661: "1:01:01"}
    assert {seconds: clock(seconds) for seconds in times} == times
    rates = {1234.4: "1,234 images/s", 1: "1 images/s", 0.4: "2.5 s an image", 0.0004: "2,500 s an image"}
    assert {rate: pace(rate, "images") for rate in rates} == rates


@given(st.floats(1e-300, 1e300), st.sampled_from(sorted(ONE)))
def test_pace_is_positive_for_any_rate(rate: float, unit: str) -> None:
    number = float(pace(rate, unit).split()[0].replace(",", ""))
    assert number > 0
    assert number == pytest.approx(rate if rate >= 1 else 1 / rate, rel=0.5)


def test_log_contains_only_the_last_line_of_short_work(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sample") as show:
        for done in (0, 5, 10, 10):
            show(done, 10, "x 1")
    with progress("nothing"):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sample 10/10 · ")
    assert " images/s · took " in line
    assert line.endswith("x 1")


def test_line_above_replaces_the_live_line(monkeypatch, capsys) -> None:
    above("plain")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress("train") as show:
        show(0, 10)
        above("model: here")
        show(10, 10)
    plain, first, last, _ = capsys.readouterr().err.split("\n")
    assert plain == "plain"
    assert first.endswith("train 0/10\r\x1b[Kmodel: here")
    assert last.startswith("\r\x1b[Ktrain 10/10")


def test_failed_work_leaves_its_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), progress("sample") as show:  # noqa: PT012
        show(3, 10, "")
        raise RuntimeError
    assert capsys.readouterr().err.startswith("sample 3/10")


def test_remaining_time_uses_the_rate_of_the_last_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One a second for 100 s, then, after an hour without any, ten a second; the last line has the mean."""
    now = 0.0
    monkeypatch.setattr("cli.shared.progress.time.monotonic", lambda: now)
    with progress("train") as show:
        for second in range(101):
            now = float(second)
            show(second, 1000, "")
        for second in range(91):
            now = 3700.0 + second
            show(100 + 10 * second, 1000, "")
    lines = capsys.readouterr().err.splitlines()
    assert "train 99/1,000 · 1 images/s · ETA 15:01" in lines
    assert any(" · 10 images/s · ETA 0:" in line for line in lines)
    assert lines[-1] == "train 1,000/1,000 · 3.8 s an image · took 3790.0 s"


def test_live_line_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.openpty()
    ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
    now = count()
    with monkeypatch.context() as patch, open(writer, "w") as terminal:
        patch.setattr("cli.shared.progress.time.monotonic", lambda: float(next(now)))
        patch.setattr("sys.stderr", terminal)
        with progress("steps50-eta0") as show:
            for done in range(5):
                show(done, 1000, "loss 0.0123")
        lines = os.read(reader, 65536).decode().split("\r\033[K")[1:-1]
    os.close(reader)
    assert lines[0].startswith("steps50-eta0")
    assert all(len(line) < 20 for line in lines)
