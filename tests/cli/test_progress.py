"""Progress lines in logs and terminals."""

import os
import struct
import termios
from fcntl import ioctl
from itertools import count

import pytest

from cli.shared.console import print_line, progress


def test_log_contains_the_last_line_of_short_work(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sample") as show:
        for done in (0, 5, 10, 10):
            show(done, 10, "x 1")
    with progress("nothing"):
        pass
    with pytest.raises(RuntimeError), progress("failed") as show:  # noqa: PT012
        show(3, 10, "")
        raise RuntimeError
    line, failed = capsys.readouterr().err.splitlines()
    assert line.startswith("sample 10/10 · ")
    assert " images/s · took " in line
    assert line.endswith("x 1")
    assert failed.startswith("failed 3/10")


def test_rate_excludes_an_earlier_run(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """Two batches of four images a second, after 100 batches of an earlier run."""
    seconds = count(0, 0.5)
    monkeypatch.setattr("cli.shared.console.time.monotonic", lambda: next(seconds))
    with progress("train", per=4) as show:
        for done in range(100, 8001):
            show(done, 8000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train 120/8,000 · 8 images/s · ETA 1:05:40"
    assert lines[-1].startswith("train 8,000/8,000 · 8 images/s · took 3950.")


def test_line_above_replaces_the_live_line(monkeypatch, capsys) -> None:
    print_line("data", "plain")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress("train") as show:
        show(0, 10)
        print_line("model", "here")
        show(10, 10)
    plain, first, last, _ = capsys.readouterr().err.split("\n")
    assert plain == "data: plain"
    assert first.endswith("train 0/10\r\x1b[Kmodel: here")
    assert last.startswith("\r\x1b[Ktrain 10/10")


def test_live_line_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.openpty()
    ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
    now = count()
    with monkeypatch.context() as patch, open(writer, "w") as terminal:
        patch.setattr("cli.shared.console.time.monotonic", lambda: float(next(now)))
        patch.setattr("sys.stderr", terminal)
        with progress("steps50-eta0") as show:
            for done in range(5):
                show(done, 1000, "loss 0.0123")
        print("end", file=terminal, flush=True)
        text = ""
        while "end" not in text:  # the terminal delivers it in parts
            text += os.read(reader, 65536).decode()
    lines = text.split("\r\033[K")[1:-1]
    os.close(reader)
    assert lines[0].startswith("steps50-eta0")
    assert all(len(line) < 20 for line in lines)
