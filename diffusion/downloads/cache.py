"""Where raw files lie: one cache for all projects of a user, so that a clone downloads nothing again."""

import os
from pathlib import Path


def cache_root() -> Path:
    """DIFFCTL_CACHE, else `diffctl` in the user's cache folder."""
    if chosen := os.environ.get("DIFFCTL_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffctl"


def raw_folder(name: str, path: Path | None) -> Path:
    """Where a data set's raw files are looked for: the configured path, else its place in the cache."""
    return cache_root() / name if path is None else path.expanduser().absolute()


def find(folder: Path, name: str) -> Path | None:
    """The file `name` in a folder or below it; the one nearest to the top, None when there is none."""
    if (folder / name).is_file():
        return folder / name
    below = [path for path in folder.rglob(name) if path.is_file()]
    return min(below, key=lambda path: (len(path.parts), path)) if below else None
