"""The README's recording of a terminal: `python -m tests.recording [FOLDER]`.

`diffctl run` runs at a terminal of its own in the folder, by default a fresh clone of this one, and what it
wrote there becomes docs/run.svg: lines appear in the order in which they came, in less time. Where nothing is
animated, the picture is the last screen.
"""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from tests.conftest import ROOT, command, environment
from tests.helpers.terminal_picture import Heard, svg

PICTURE = ROOT / "docs/run.svg"
COLUMNS, ROWS = 100, 40


def record(arguments: list[str], folder: Path) -> list[Heard]:
    """What a command writes to a terminal, and when; CalledProcessError if it fails."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        os.chdir(folder)
        there = environment({"PYTHONPATH": str(folder), "TERM": "xterm-256color"})
        os.execvpe(arguments[0], arguments, there)
    start, heard, rest = time.monotonic(), [], b""
    while chunk := _read(terminal):
        whole, mark, rest = (rest + chunk).rpartition(b"\n")
        if not mark and b"\r" in rest:  # a progress line is drawn at once, in whole
            whole, rest = rest, b""
        if text := (whole + mark).decode(errors="replace"):
            heard.append(Heard(time.monotonic() - start, text))
            sys.stderr.write(text)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise subprocess.CalledProcessError(code, arguments)
    return heard


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux's end of a terminal whose last user has gone
        return b""


def main() -> None:
    """Record a run and draw it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "diffctl"
        if not folder.exists():
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        heard = record(command("run"), folder)
    PICTURE.write_text(svg("diffctl run", heard, COLUMNS))


if __name__ == "__main__":
    main()
