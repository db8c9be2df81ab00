"""Limits for a parser of outside files: time, memory, and actions that it must never take.

Actions are detected by Python's audit events. An audit hook cannot be removed, so that it is added once and
acts only within `guarded`.
"""

import ast
import faulthandler
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

SECONDS = 10
SPARE_BYTES = 2 << 30  # of address space, beyond that at the start
PROCESSES = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.spawn", "os.posix_spawn", "subprocess.Popen",
)  # fmt: skip
REACHES = ("socket.connect", "socket.bind", "ctypes.dlopen", "webbrowser.open", "marshal.loads")
CHANGES = (  # events with one or two paths as first arguments
    "os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile", "shutil.unpack_archive",
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class CodeRun(BaseException):
    """An input made its reader take a forbidden action, which is not executed."""


class TooSlow(BaseException):
    """An input takes longer than SECONDS."""


class _Guard:
    """The audit hook: between `start` and `stop` it records and refuses actions of one thread."""

    def __init__(self) -> None:
        self.thread, self.folder, self.seen = 0, Path(), list[str]()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.thread != threading.get_ident():
            return
        thread, self.thread = self.thread, 0  # actions of this method are not those of an input
        try:
            fault = self._find_fault(event, arguments)
        finally:
            self.thread = thread
        if fault is not None:
            self.seen.append(fault)
            raise CodeRun(fault)

    def _find_fault(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        """Return the fault of an event; None if it belongs to reading."""
        action = f"{event}: {', '.join(str(argument)[:60] for argument in arguments[:2])}"
        if event in PROCESSES or event == "pickle.find_class":
            return action
        if event in ("exec", "compile", *REACHES):
            return None if _of_an_import(sys._getframe(2)) else action
        if event == "open":
            path, _, flags = arguments
            return action if flags & WRITING and not self._inside(path) else None
        if event in CHANGES:
            return None if all(map(self._inside, arguments[:2])) else action
        return None

    def _inside(self, path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):  # an open file descriptor, or no path
            return True
        place = Path(os.path.realpath(os.fsdecode(path)))
        return place == Path(os.devnull) or place.is_relative_to(self.folder)


_guard: _Guard | None = None


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Raise CodeRun for actions other than reading and writing in `folder`; TooSlow and MemoryError."""
    global _guard
    _guard = _guard or _Guard()
    _guard.folder, _guard.seen = folder.resolve(), []
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, _too_slow)
    wrote_none, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # of modules imported lazily
    faulthandler.dump_traceback_later(SECONDS + 5, exit=True)  # for a hang in C
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, before[1]))
    _guard.thread = threading.get_ident()
    try:
        yield
    finally:
        _guard.thread = 0
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        sys.dont_write_bytecode = wrote_none
        faulthandler.cancel_dump_traceback_later()
    if _guard.seen:
        raise CodeRun(_guard.seen[0])  # the reader caught the exception


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlow


def _of_an_import(frame: FrameType | None) -> bool:
    """Return whether a known module is being imported, or a literal parsed (NumPy's headers)."""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith("<frozen importlib") or (name == ast.__file__ and frame.f_code.co_name == "parse"):
            return True
        frame = frame.f_back
    return False
