"""What a person sees of a stage: its own output as it comes, and DVC's chatter put into few words."""

import codecs
import contextlib
import fcntl
import os
import re
import sys
import termios
from collections.abc import Callable

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LIVE = ("\r", "\x1b")  # how a progress line begins that is drawn over itself

# DVC's lines of a `repro --single-item`, and what stands for each at the terminal.
_CHATTER = {
    re.compile(r"Running stage '([^']+)':"): r"==> \1\n",
    re.compile(r"Stage '([^']+)' didn't change, skipping"): r"==> \1: up to date\n",
    re.compile(
        r"Stage '([^']+)' is cached - skipping run, checking out outputs"
    ): r"==> \1: from the cache\n",
    re.compile(r"> diffctl stage \w+"): "",
    re.compile(r"(Generating|Updating) lock file '.*'"): "",
    re.compile(r"To track the changes with git, run:"): "",
    re.compile(r"To enable auto staging, run:"): "",
    re.compile(r"\t(git add|dvc config core\.autostage) .*"): "",
    re.compile(r"Use `dvc push` to send your updates to remote storage\."): "",
    re.compile(r"WARNING: 'models/ema' is empty\."): "",  # as where no snapshots are asked for
    re.compile(r"Data and pipelines are up to date\."): "",
    re.compile(r"WARNING: '[^']+' is empty\."): "",  # models/ema, where a training keeps no other averages
    re.compile(r"If there are no processes with such PIDs, you can manually remove .*"): "",
}
# What DVC complains of, and who holds a lock: kept, and told once by whoever supervises.
_ERROR = re.compile(r"(?:ERROR: |  (?=\(PID ))(.*)")


class OutputRelay:
    """Passes text on to `write`, DVC's chatter translated; keeps DVC's errors in `errors`.

    Bytes may be cut anywhere: a plain line is held until it is whole, a live progress line goes at once.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self.errors: list[str] = []
        self._write = write
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = ""
        self._after_chatter = False
        self._drawn = False  # does a live line stand there, whose end is still to come

    def feed(self, data: bytes, final: bool = False) -> None:
        """Take the next bytes; `final` lets go of what is held."""
        *lines, rest = (self._held + self._decode(data, final)).replace("\r\n", "\n").split("\n")
        for line in lines:
            self._line(line)
        if rest and (final or rest.startswith(_LIVE)):
            end = "\r" if rest.endswith("\r") and not final else ""  # perhaps the half of a line's end
            if shown := rest.removesuffix(end):
                self._write(shown)
                self._drawn = _stands(shown)
            rest = end
        self._held = rest

    def _line(self, line: str) -> None:
        plain = _ESCAPES.sub("", line).strip("\r")
        drawn, _, plain = plain.rpartition("\r")  # a bar and its wiping, and what is left
        words = _in_our_words(plain)
        ends_live, self._drawn = self._drawn and not line, False
        if "\r" in line and words is not None:
            self._write(f"{drawn}\r")
        if error := _ERROR.fullmatch(plain):
            self.errors.append(error[1])
        elif words:
            self._write(words)
        elif words is None and (plain or ends_live or not self._after_chatter):
            self._write(line + "\n")
            self._after_chatter = False
            return
        self._after_chatter = True


def _stands(drawn: str) -> bool:
    """Is something left of what was drawn: not where it was wiped and the cursor went back."""
    return drawn.endswith("\x1b[A") or bool(_ESCAPES.sub("", drawn).rpartition("\r")[2].strip())


def plain_line(line: str) -> str:
    """A line as a log takes it: without colours and without what draws it over another one."""
    return _ESCAPES.sub("", line).strip("\r").rstrip()


def _in_our_words(line: str) -> str | None:
    """What stands for one of DVC's lines, "" for nothing; None when the line is not DVC's."""
    for pattern, words in _CHATTER.items():
        if match := pattern.fullmatch(line):
            return match.expand(words)
    return None


def open_channel() -> tuple[int, int]:
    """(what to read, what to give a child as its output): a pseudo-terminal where this is one, else a pipe.

    So a child draws live progress exactly where somebody can see it.
    """
    if not sys.stdout.isatty():
        return os.pipe()
    reader, writer = os.openpty()
    with contextlib.suppress(OSError):  # a terminal without a size has none to hand on
        size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
        fcntl.ioctl(writer, termios.TIOCSWINSZ, size)
    return reader, writer


def relay_output(reader: int, relay: OutputRelay) -> None:
    """Feed what comes from `reader` to the relay until every writer is gone, then close it."""
    try:
        while data := _read(reader):
            relay.feed(data)
        relay.feed(b"", final=True)
    finally:
        os.close(reader)


def _read(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except OSError:  # how a pseudo-terminal says that the last writer is gone
        return b""


def echo(text: str) -> None:
    """Write to standard output at once; when nobody reads it any more, the work goes on without a word."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:  # a pipe whose reader left, a terminal that was closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
