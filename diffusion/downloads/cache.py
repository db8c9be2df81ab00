"""Where raw files lie: one cache for all projects of a user, so that a clone downloads nothing again."""

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

MAX_DEPTH = 8  # folders below each other in which raw files are looked for


def cache_root() -> Path:
    """DIFFCTL_CACHE, else `diffctl` in the user's cache folder."""
    if chosen := os.environ.get("DIFFCTL_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffctl"


def raw_folder(name: str, path: Path | None) -> Path:
    """Where a data set's raw files are looked for: the configured path, else its place in the cache."""
    return cache_root() / name if path is None else path.expanduser().absolute()


def find_file(folder: Path, name: str) -> Path | None:
    """The file `name` in a folder or below it; the one nearest to the top, None when there is none."""
    return next(find_files(folder, name), None)


def find_files(folder: Path, pattern: str) -> Iterator[Path]:
    """The files whose names fit the pattern, nearest to the top first, then by name.

    Plain files, or links to such; links to folders are not followed, and folders that may not be looked into,
    or lie more than DEEPEST below, are passed over.
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
    except OSError:  # a link in a circle
        return False
