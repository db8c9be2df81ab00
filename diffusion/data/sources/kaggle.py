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

IN_CODE_DIGEST = False  # diffusion/code_digest.py


@dataclass(frozen=True)
class KaggleFiles:
    """A Kaggle data set or competition of `size` bytes, in `data.path` or the cache.

    `missing` returns the files that a folder lacks, `manual_steps` describes how to put them there.
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
        folder = raw_folder(self.config.name, self.config.path)
        if not self.missing(folder):
            return DatasetInfo(images, shape, classes)
        blocked = "" if self.config.path is None and has_kaggle_access() else self._help(folder)
        return DatasetInfo(images, shape, classes, download=self.size, blocked=blocked)

    def fetch(self) -> Path:
        """Return the folder of the files, downloaded if needed.

        DiffctlError, with manual instructions, if that is not possible; TemporaryError without an answer.
        """
        folder = raw_folder(self.config.name, self.config.path)
        if self.config.path is None and self.missing(folder):
            folder = self._download(folder)
        if missing := self.missing(folder):
            raise DiffctlError(f"{folder} has no {', '.join(missing)}: {self.manual_steps(folder)}")
        return folder

    def _download(self, folder: Path) -> Path:
        """Return the folder of kagglehub's download, with a link at `folder` for later calls."""
        if not has_kaggle_access():
            raise DiffctlError(self._help(folder))
        import kagglehub
        import requests

        os.environ.setdefault("KAGGLEHUB_CACHE", str(cache_root() / "kagglehub"))
        download = kagglehub.dataset_download if self.kind == "datasets" else kagglehub.competition_download
        with file_lock(cache_root() / f".kaggle-{self.handle.replace('/', '-')}.lock"):
            try:
                path = Path(download(self.handle))
            except (requests.ConnectionError, requests.Timeout) as error:
                why = f"Kaggle does not answer ({first_line(error)})"
                raise TemporaryError(f"{why}: try again later, or {self.manual_steps(folder)}") from None
            except Exception as error:  # its own errors, those of requests and of the disk
                why = f"Kaggle did not give {self.handle} ({first_line(error)})"
                steps = f"accept its rules at {self.page}, or {self.manual_steps(folder)}"
                raise DiffctlError(f"{why}: {steps}") from None
            if folder.is_symlink():
                folder.unlink()
            if not folder.exists():
                folder.symlink_to(path)
            return path

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
