"""Progress lines in narrow terminals."""

import os
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl

from tests.conftest import environment

PROGRESS = """
from cli.shared import progress
now = iter(range(1000))
progress.time.monotonic = lambda: float(next(now))
with progress.progress("steps50-eta0") as show:
    for done in range(5):
        show(done, 1000, "loss 0.0123")
"""


def drawn(code: str, columns: int) -> str:
    """Return what the code writes to a terminal of so many columns."""
    reader, writer = os.openpty()
    ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = environment({"TERM": "xterm", "NO_COLOR": "1"})
    env.pop("COLUMNS", None)
    subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=writer, env=env, check=True)
    os.close(writer)
    text = b""
    try:
        while data := os.read(reader, 65536):
            text += data
    except OSError:  # the end of a pseudo-terminal
        pass
    os.close(reader)
    return re.sub(r"\x1b\[\d*m", "", text.decode()).replace("\r\n", "\n")


def test_live_line_never_wraps() -> None:
    lines = drawn(PROGRESS, 20).split("\r\033[K")[1:-1]
    assert lines
    assert all(len(line) < 20 for line in lines)
    assert lines[0].startswith("steps50-eta0")
