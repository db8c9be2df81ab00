"""Relay the output of a stage to the terminal, with DVC's messages shortened."""

import codecs
import contextlib
import fcntl
import os
import re
import sys
import termios
from collections.abc import Callable

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LIVE = ("\r", "\x1b")  # the start of a progress line that overwrites itself

# Messages of `dvc repro --single-item`, and their replacements.
_CHATTER = {
    r"Running stage '([^']+)':": r"==> \1\n",
    r"Stage '([^']+)' didn't change, skipping": r"==> \1: up to date\n",
    r"Stage '([^']+)' is cached - skipping run, checking out outputs": r"==> \1: from the cache\n",
    r"Pulling data for stage: '([^']+)'": r"==> \1: pulling its outputs\n",
    r"> diffctl stage \w+": "",
    r"(Generating|Updating) lock file '.*'": "",
    r"To (track the changes with git|enable auto staging), run:": "",
    r"\t(git add|dvc config core\.autostage) .*": "",
    r"Use `dvc push` to send your updates to remote storage\.": "",
    r"WARNING: '[^']+' is empty\.": "",  # models/ema without EMA snapshots
    r"Data and pipelines are up to date\.": "",
    r"If there are no processes with such PIDs, you can manually remove .*": "",
}
# DVC's errors and the holder of a lock, for the supervisor.
_ERROR = re.compile(r"(?:ERROR: |  (?=\(PID ))(.*)")


class OutputRelay:
    """Writes text with DVC's messages replaced, and collects DVC's errors in `errors`.

    Chunks may split anywhere: a plain line is buffered until its end, a progress line is written at once.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self.errors: list[str] = []
        self._write = write
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = ""
        self._after_chatter = False

    def feed(self, data: bytes, final: bool = False) -> None:
        """Process the next bytes; `final` flushes the buffer."""
        *lines, rest = (self._held + self._decode(data, final)).replace("\r\n", "\n").split("\n")
        for line in lines:
            self._line(line)
        if rest and (final or rest.startswith(_LIVE)):
            end = "\r" if rest.endswith("\r") and not final else ""  # perhaps half of \r\n
            if shown := rest.removesuffix(end):
                self._write(shown)
                self._after_chatter = False
            rest = end
        self._held = rest

    def _line(self, line: str) -> None:
        plain = _ESCAPES.sub("", line).strip("\r")
        drawn, _, plain = plain.rpartition("\r")  # a progress bar, its erasure, and the rest
        replaced = ((re.fullmatch(pattern, plain), text) for pattern, text in _CHATTER.items())
        words = next((match.expand(text) for match, text in replaced if match), None)  # None: not of DVC
        if "\r" in line and words is not None:
            self._write(f"{drawn}\r")
        if error := _ERROR.fullmatch(plain):
            self.errors.append(error[1])
        elif words:
            self._write(words)
        elif words is None and (plain or not self._after_chatter):
            self._write(line + "\n")
            self._after_chatter = False
            return
        self._after_chatter = True


def plain_line(line: str) -> str:
    """Return a line for a log, without colours and cursor movements."""
    return _ESCAPES.sub("", line).strip("\r").rstrip()


def open_channel() -> tuple[int, int]:
    """Return (read end, write end) for a child's output: a pseudo-terminal if stdout is one, else a pipe."""
    if not sys.stdout.isatty():
        return os.pipe()
    reader, writer = os.openpty()
    with contextlib.suppress(OSError):  # a terminal without a size
        size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
        fcntl.ioctl(writer, termios.TIOCSWINSZ, size)
    return reader, writer


def relay_output(reader: int, relay: OutputRelay) -> None:
    """Feed the relay from `reader` until every writer has closed, then close it."""
    with open(reader, "rb", buffering=0) as file:
        with contextlib.suppress(OSError):  # the last writer of a pseudo-terminal has closed
            while data := file.read(65536):
                relay.feed(data)
        relay.feed(b"", final=True)


def echo(text: str, *, err: bool = False) -> None:
    """Write to standard output or error (`err`) and flush; if it is closed, discard all further output."""
    stream = sys.stderr if err else sys.stdout
    try:
        stream.write(text)
        stream.flush()
    except OSError:  # a closed pipe or terminal
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
