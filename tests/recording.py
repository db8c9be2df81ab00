"""Record the terminal picture in the README: `python -m tests.recording [FOLDER]`.

`diffctl run` runs in a pseudo-terminal in the folder, by default in a fresh clone of this checkout. Its
output becomes docs/run.svg. Lines appear in their order with shortened waits. Without animation, the picture
is the last screen.
"""

import fcntl
import html
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT, command, environment

PICTURE = ROOT / "docs/run.svg"
COLUMNS, ROWS = 100, 40
STATES = 6  # of a redrawn line: so many are kept, evenly
LONGEST = 0.5  # seconds of the picture for a wait of whatever length
SHORTEST = 0.1  # seconds between two distinguishable changes
WIDTH, HEIGHT, MARGIN = 8.0, 18, 14  # of a letter, of a line and around all, in pixels
UP = "\x1b[A"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PARTS = re.compile(r"\x1b\[A|\n|(?:(?!\x1b\[A)[^\n])+")

STYLE = """
.paper{fill:#f6f8fa;stroke:#d0d7de}.ink{fill:#1f2328}.dim{fill:#59636e}
text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}
.stage{font-weight:bold}.passing{visibility:hidden}
@media(prefers-color-scheme:dark){.paper{fill:#0d1117;stroke:#30363d}.ink{fill:#e6edf3}.dim{fill:#9198a1}}
@media(prefers-reduced-motion:no-preference){
.kept{animation:kept 1ms var(--at) both}.passing{animation:passing var(--for) var(--at)}}
@keyframes kept{from{visibility:hidden}to{visibility:visible}}
@keyframes passing{from,to{visibility:visible}}
"""


class Output(NamedTuple):
    """A text that was written, with its time in seconds since the start."""

    at: float
    text: str


def record(arguments: list[str], folder: Path) -> list[Output]:
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
            recorded.append(Output(time.monotonic() - start, text))
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


@dataclass
class Line:
    """A line of the screen with what stood in it from when on; the last state stays."""

    states: list[tuple[float, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Return its final content."""
        return self.states[-1][1] if self.states else ""

    def draw(self, at: float, written: str) -> None:
        """Write to its end; after a carriage return, in place of what stood there."""
        begun, *redrawn = written.split("\r")
        drawn = [part for part in redrawn if part]
        text = (drawn[-1] if drawn else self.text + begun).rstrip()
        if text != self.text:
            self.states.append((at, text))

    def thinned(self) -> "Line":
        """With the states in the middle left out that are too many to follow."""
        shown = [state for state in self.states[:-1] if state[1]] + self.states[-1:]
        if len(shown) <= STATES:
            return Line(shown)
        return Line([shown[i * (len(shown) - 1) // (STATES - 1)] for i in range(STATES)])


def screen(written: list[Output]) -> list[Line]:
    """The lines that were written; of the escapes, the cursor's way up is followed, and colours dropped."""
    lines, row = [Line()], 0
    for at, text in written:
        for part in PARTS.findall(text.replace("\r\n", "\n")):
            if part == UP:
                row = max(0, row - 1)
            elif part == "\n":
                row += 1
                if row == len(lines):
                    lines.append(Line())
            elif drawn := ESCAPES.sub("", part):
                lines[row].draw(at, drawn)
    while len(lines) > 1 and not lines[-1].text:
        lines.pop()
    return [line.thinned() for line in lines]


def shortened(lines: list[Line]) -> dict[float, float]:
    """The picture's second for every second at which something changed."""
    seen = sorted({at for line in lines for at, _ in line.states})
    clock = dict.fromkeys(seen[:1], 0.0)
    for before, after in pairwise(seen):
        clock[after] = clock[before] + min(LONGEST, max(SHORTEST, after - before))
    return clock


def svg(typed: str, written: list[Output], columns: int) -> str:
    """The picture of a command's words and of what it wrote."""
    lines = screen(written)
    clock = shortened(lines)
    drawn = [_text(0, f"$ {typed}", "ink")]
    for number, line in enumerate(lines, start=1):
        ends: list[float | None] = [clock[at] for at, _ in line.states[1:]]
        for (at, text), end in zip(line.states, [*ends, None][: len(line.states)], strict=True):
            if text:
                drawn.append(_text(number, text, _kind(text), 1 + clock[at], end and 1 + end))
    columns = max(
        columns, *(len(text) for line in lines for _, text in line.states), 0
    )  # a terminal would wrap
    width, height = round(columns * WIDTH + 2 * MARGIN), (len(lines) + 1) * HEIGHT + 2 * MARGIN
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
        f"<style>{STYLE}</style>"
        f'<rect class="paper" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8"/>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )


def _kind(text: str) -> str:
    """The look of a line: a stage's head, a progress line or anything else."""
    if text.startswith("==>"):
        return "ink stage"
    return "dim" if " · " in text else "ink"


def _text(number: int, text: str, kind: str, at: float | None = None, end: float | None = None) -> str:
    """A line of text, there from `at` to `end` seconds, or for good."""
    style = ""
    if at is not None:
        kind += " passing" if end else " kept"
        style = f' style="--at:{at:.2f}s' + (f";--for:{end - at:.2f}s" if end else "") + '"'
    y = MARGIN + number * HEIGHT + 13
    return (
        f'<text class="{kind}"{style} x="{MARGIN}" y="{y}" textLength="{len(text) * WIDTH:g}">'
        f"{html.escape(text)}</text>"
    )


if __name__ == "__main__":
    main()
