"""Record the terminal picture in the README: `python -m tests.recording [FOLDER]`.

`diffctl run` runs in a pseudo-terminal in the folder, by default in a fresh clone of this checkout. Its
output becomes docs/run.svg. Lines appear in their order with shortened waits. Without animation, the picture
is the last screen.
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
    """Return what a command writes to a terminal, with times; CalledProcessError if it fails."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        os.chdir(folder)
        env = environment({"PYTHONPATH": str(folder), "TERM": "xterm-256color"})
        os.execvpe(arguments[0], arguments, env)
    start, recorded, rest = time.monotonic(), [], b""
    while chunk := _read(terminal):
        complete, newline, rest = (rest + chunk).rpartition(b"\n")
        if not newline and b"\r" in rest:  # a progress line has no newline
            complete, rest = rest, b""
        if text := (complete + newline).decode(errors="replace"):
            recorded.append(Heard(time.monotonic() - start, text))
            sys.stderr.write(text)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise subprocess.CalledProcessError(code, arguments)
    return recorded


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux: no process has the terminal open
        return b""


def main() -> None:
    """Record a run and draw it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "diffctl"
        if not folder.exists():
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        recorded = record(command("run"), folder)
    PICTURE.write_text(svg("diffctl run", recorded, COLUMNS))


if __name__ == "__main__":
    main()
