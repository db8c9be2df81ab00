"""Files and folders that a user names: checked before the work, written after it.

Unlike a stage's outputs (`files`), a link is followed, and devices and pipes are written to. A link into
DVC's cache is replaced itself, since the cache belongs to other commits too.
"""

import io
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion.system.errors import DiffctlError, UsageError, is_disk_full, printable
from diffusion.system.files import Fill, write_atomic

DVC_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/|/\.dvc/cache/")
HEAD_BYTES = 512
BEGINNINGS = {  # of files by suffix
    ".gif": rb"GIF8",
    ".html": rb"\s*<(!doctype )?html",
    ".json": rb"\s*[\[{]",
    ".npz": rb"PK",
    ".png": rb"\x89PNG",
    ".safetensors": rb"(?s:.{8})\{",
    ".svg": rb"\s*<(\?xml|svg)",
}


def write_output(path: Path, write: Fill) -> None:
    """Let `write` fill the file that the user named: atomically, unless it is a device or a pipe.

    OSError names `path`. DiffctlError if the reader of a pipe closed it.
    """
    try:
        if not path.exists() or path.is_file():
            return write_atomic(_target(path), write)
        content = io.BytesIO()  # some formats seek in their file, which a pipe cannot
        write(content)
        path.write_bytes(content.getbuffer())
    except BrokenPipeError:
        raise DiffctlError(f"the reader of {printable(path)} closed it early: read it completely") from None
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def write_output_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_output`; unencodable characters (of a file name) are escaped."""
    write_output(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def check_output(path: Path, flag: str, kind: str = "") -> None:
    """Raise UsageError, or OSError for a full disk, if `write_output` would fail.

    UsageError also if a file is there that does not begin as one of this `kind`, a suffix. Its folder is
    created.
    """
    with _refusing(path, flag, "file"):
        target = _target(path)
        if target.is_dir():
            raise UsageError(f"{flag} {printable(path)} is a folder: name a file")
        if target.is_file() or not target.exists():
            _probe(target)
        if kind in BEGINNINGS and target.is_file():
            with open(target, "rb") as file:
                head = file.read(HEAD_BYTES)
            if head and not re.match(BEGINNINGS[kind], head, re.IGNORECASE):
                what = f"{flag} {printable(path)} is there and is no {kind[1:].upper()} file"
                raise UsageError(f"{what}: name another file, or replace it with --force")


def check_output_folder(path: Path, flag: str) -> None:
    """Check a folder to create, as `check_output`: nothing or an empty folder may be there."""
    with _refusing(path, flag, "folder"):
        target = _target(path)
        if target.exists() and not target.is_dir():
            raise UsageError(f"{flag} {printable(path)} is not a folder: give a new folder")
        if target == Path.cwd().resolve() or (target.is_dir() and any(target.iterdir())):
            raise UsageError(f"{flag} {printable(path)} is not empty or in use: give a new folder")
        _probe(target)


def _target(path: Path) -> Path:
    """Return the path with links followed, except one into DVC's cache."""
    target = Path(os.path.realpath(path))
    if path.is_symlink() and DVC_CACHE.search(str(target)):
        return path.parent.resolve() / path.name
    return target


@contextmanager
def _refusing(path: Path, flag: str, kind: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            error.filename, error.filename2 = str(path), None
            raise
        raise UsageError(
            f"{flag} {printable(path)} cannot be written ({error.strerror}): name another {kind}"
        ) from None


def _probe(target: Path) -> None:
    """Create a file of that name in a temporary folder next to the target, then remove both."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".diffctl-") as probe:
        (Path(probe) / target.name).touch()
