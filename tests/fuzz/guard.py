"""Actions that a parser of outside files must never take, detected by Python's audit events.

An audit hook cannot be removed, so that it is set in a child process only.
"""

import ast
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any

PROCESSES = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.spawn", "os.posix_spawn", "subprocess.Popen",
)  # fmt: skip
REACHES = ("socket.connect", "socket.bind", "ctypes.dlopen", "webbrowser.open", "marshal.loads")
CHANGES = (  # events with paths as first arguments
    "os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile", "shutil.unpack_archive",
)  # fmt: skip
TWO_PATHS = ("os.rename", "os.link", "os.symlink", "shutil.move", "shutil.copyfile", "shutil.unpack_archive")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class CodeRun(BaseException):
    """An input made its reader do a forbidden action, which is not executed."""


class Guard:
    """Between `start` and `stop`, actions other than reading are recorded in `seen` and refused."""

    def __init__(self, folder: Path, expected: tuple[str, ...] = ()) -> None:
        self.folder, self.expected = folder.resolve(), expected
        self.seen: list[str] = []
        self.is_active = False
        self.known = set(sys.stdlib_module_names) | {name.partition(".")[0] for name in sys.modules}
        sys.dont_write_bytecode = True
        sys.addaudithook(self._hook)

    def start(self) -> None:
        """Clear `seen` and begin to record."""
        self.seen, self.is_active = [], True

    def stop(self) -> None:
        """Stop recording."""
        self.is_active = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_active:
            return
        self.is_active = False  # actions of this method are not those of an input
        try:
            fault = self._find_fault(event, arguments)
        finally:
            self.is_active = True
        if fault is not None and not fault.startswith(self.expected or ("\0",)):
            self.seen.append(fault)
            raise CodeRun(fault)

    def _find_fault(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        """Return the fault of an event; None if it belongs to reading."""
        action = f"{event}: {', '.join(str(argument)[:60] for argument in arguments[:2])}"
        if event in PROCESSES or event == "pickle.find_class":
            return action
        if event == "import":
            return None if str(arguments[0]).partition(".")[0] in self.known else action
        if event in ("exec", "compile", *REACHES):
            return None if _of_an_import(sys._getframe(2)) else action
        if event == "open":
            path, _, flags = arguments
            return action if flags & WRITING and not self._inside(path) else None
        if event in CHANGES:
            paths = arguments[: 1 + (event in TWO_PATHS)]
            return None if all(map(self._inside, paths)) else action
        return None

    def _inside(self, path: Any) -> bool:
        if isinstance(path, int):  # an open file descriptor
            return True
        place = Path(os.path.realpath(os.fsdecode(path)))
        return place == Path(os.devnull) or place.is_relative_to(self.folder)


def _of_an_import(frame: FrameType | None) -> bool:
    """Return whether a known module is being imported, or a literal parsed (NumPy's headers)."""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith("<frozen importlib") or (name == _AST and frame.f_code.co_name == "parse"):
            return True
        frame = frame.f_back
    return False


_AST = ast.__file__
