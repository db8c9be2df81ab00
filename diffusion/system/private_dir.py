"""A folder of this user's alone under a name that others know, in a place where they may write, too."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from diffusion.system.errors import DiffctlError

PRIVATE = 0o700


def make_private_dir(path: Path) -> Path:
    """The folder, made where there is none; DiffctlError unless it is this user's, of mode 0700, no link."""
    with suppress(FileExistsError):
        path.mkdir(PRIVATE)
    if wrong := _what_is_wrong(path.lstat()):
        raise DiffctlError(f"{path} {wrong}: remove it, or set TMPDIR to a folder of your own")
    return path


def _what_is_wrong(found: os.stat_result) -> str | None:
    if not stat.S_ISDIR(found.st_mode):
        return "is a link" if stat.S_ISLNK(found.st_mode) else "is no folder"
    if found.st_uid != os.getuid():
        return f"belongs to another user (uid {found.st_uid})"
    mode = found.st_mode & 0o777
    return None if mode == PRIVATE else f"is open to others (mode {mode:04o}, not {PRIVATE:04o})"
