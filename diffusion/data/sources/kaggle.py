"""Data sets that are on Kaggle only, by kagglehub if it is installed and signed in."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from diffusion.data.data_config import DataConfig
from diffusion.data.source import DatasetInfo
from diffusion.downloads.fetch import cache_root, raw_folder
from diffusion.system.errors import DiffctlError, TemporaryError, first_line
from diffusion.system.locks import file_lock

CHANGES_RESULTS = False  # diffusion/code_digest.py

HUB_CACHE = "KAGGLEHUB_CACHE"  # kagglehub's own variable for its cache


@dataclass(frozen=True)
class KaggleFiles:
    """A Kaggle data set or competition of `size` bytes: in `data.path`, our cache, or kagglehub's.

    `missing` returns the files that a folder lacks, `manual_steps` says how to put them there.
    """

    config: DataConfig
    kind: Literal["datasets", "competitions"]
    handle: str
    size: int
    missing: Callable[[Path], list[str]]
    manual_steps: Callable[[Path], str]

    @property
    def page(self) -> str:
        """The address of its page."""
        return f"https://www.kaggle.com/{self.kind}/{self.handle}"

    def info(self, images: int, shape: tuple[int, int, int] | None, classes: int) -> DatasetInfo:
        """Return whether the files are there, or can be downloaded."""
        folder = self._folder()
        if not self.missing(folder):
            return DatasetInfo(images, shape, classes)
        blocked = "" if self.config.path is None and has_kaggle_access() else self._help(folder)
        return DatasetInfo(images, shape, classes, download=self.size, blocked=blocked)

    def fetch(self) -> Path:
        """Return the folder of the files, downloaded if needed and possible.

        DiffctlError, with manual instructions, if files are missing, or if kagglehub is missing, has no
        access, or fails; TemporaryError if Kaggle does not answer.
        """
        folder = self._folder()
        if self.config.path is None and self.missing(folder):
            folder = self._download(folder)
        if missing := self.missing(folder):
            raise DiffctlError(f"{folder} has no {', '.join(missing)}: {self.manual_steps(folder)}")
        return folder

    def _download(self, folder: Path) -> Path:
        """Return the folder of kagglehub's download; `folder` is for the manual instructions."""
        if not has_kaggle_access():
            raise DiffctlError(self._help(folder))
        import kagglehub
        import requests

        os.environ[HUB_CACHE] = str(_hub_cache())
        download = kagglehub.dataset_download if self.kind == "datasets" else kagglehub.competition_download
        with file_lock(cache_root() / f".kaggle-{self.handle.replace('/', '-')}.lock"):
            try:
                return Path(download(self.handle))
            except (requests.ConnectionError, requests.Timeout) as error:
                raise TemporaryError(
                    f"Kaggle does not answer ({first_line(error)}): try again later, or "
                    f"{self.manual_steps(folder)}"
                ) from None
            except Exception as error:  # its own errors, those of requests and of the disk
                raise DiffctlError(
                    f"Kaggle did not give {self.handle} ({first_line(error)}): accept its rules at "
                    f"{self.page}, or {self.manual_steps(folder)}"
                ) from None

    def _folder(self) -> Path:
        """Return the configured folder, else the cache folder, or kagglehub's if that one is complete."""
        ours = raw_folder(self.config.name, self.config.path)
        theirs = self._downloaded() if self.config.path is None and self.missing(ours) else None
        return theirs if theirs and not self.missing(theirs) else ours

    def _downloaded(self) -> Path | None:
        """Return the folder of a complete kagglehub download (the newest version), or None."""
        place = _hub_cache() / self.kind / self.handle
        if self.kind == "competitions":
            return place if place.with_name(f"{place.name}.complete").is_file() else None
        versions = [int(marker.stem) for marker in place.glob("*.complete") if marker.stem.isdigit()]
        return place / "versions" / str(max(versions)) if versions else None

    def _help(self, folder: Path) -> str:
        return (
            f"{self.manual_steps(folder)}; get it from {self.page}, or let diffctl download it: "
            "pip install 'diffctl[kaggle]' and put your token (kaggle.com/settings) in KAGGLE_API_TOKEN or "
            "~/.kaggle/kaggle.json"
        )


def has_kaggle_access() -> bool:
    """Return whether kagglehub is installed and has credentials."""
    if find_spec("kagglehub") is None:
        return False
    os.environ.setdefault("KAGGLEHUB_VERBOSITY", "error")
    from kagglehub.config import get_kaggle_credentials

    try:
        return get_kaggle_credentials() is not None
    except ValueError:  # kaggle.json without a user or a key
        return False


def _hub_cache() -> Path:
    return Path(os.environ.get(HUB_CACHE) or cache_root() / "kagglehub").expanduser()
