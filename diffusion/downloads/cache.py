"""The user's cache of raw files, shared by all projects, so that a clone downloads nothing again."""

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

MAX_DEPTH = 8  # folder levels in which raw files are searched


def cache_root() -> Path:
    """Return DIFFCTL_CACHE, else `diffctl` in the user's cache folder."""
    if configured := os.environ.get("DIFFCTL_CACHE"):
        return Path(configured).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffctl"


def raw_folder(name: str, path: Path | None) -> Path:
    """Return the folder of a data set's raw files: the configured path, else the one in the cache."""
    return cache_root() / name if path is None else path.expanduser().absolute()


def find_file(folder: Path, name: str) -> Path | None:
    """Return the file `name` in or below a folder, the one nearest to the top; None if there is none."""
    return next(find_files(folder, name), None)


def find_files(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield regular files, or links to such, with a matching name: nearest to the top first, then by name.

    Linked folders, unreadable folders and levels below MAX_DEPTH are skipped.
    """
    level = [folder]
    for _ in range(1 + MAX_DEPTH):
        entries = [entry for place in level for entry in _entries(place)]
        yield from (
            Path(entry.path) for entry in entries if fnmatchcase(entry.name, pattern) and _is_file(entry)
        )
        level = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a circular link
        return False
