"""Data sets that are on Kaggle only, by kagglehub if it is installed and signed in."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from diffusion.downloads.cache import cache_root
from diffusion.system.errors import DiffctlError, TemporaryError
from diffusion.system.locks import file_lock

CHANGES_RESULTS = False  # diffusion/code_digest.py

Kind = Literal["datasets", "competitions"]
HUB_CACHE = "KAGGLEHUB_CACHE"  # kagglehub's own variable for its cache


def has_kaggle_access() -> bool:
    """Return whether kagglehub is installed and has credentials."""
    if find_spec("kagglehub") is None:
        return False
    _quiet()
    from kagglehub.config import get_kaggle_credentials

    try:
        return get_kaggle_credentials() is not None
    except ValueError:  # kaggle.json without a user or a key
        return False


def find_download(kind: Kind, handle: str) -> Path | None:
    """Return the folder of a complete kagglehub download (the newest version), or None.

    It makes no request.
    """
    place = _hub_cache() / kind / handle
    if kind == "competitions":
        is_whole = place.is_dir() and place.with_name(f"{place.name}.complete").is_file()
        return place if is_whole else None
    versions = [int(marker.stem) for marker in place.glob("*.complete") if marker.stem.isdigit()]
    folders = [place / "versions" / str(version) for version in sorted(versions, reverse=True)]
    return next((folder for folder in folders if folder.is_dir()), None)


def download_from_kaggle(kind: Kind, handle: str, manual_steps: str) -> Path:
    """Return the folder with the files of a Kaggle data set or competition, downloaded if needed.

    They are in KAGGLEHUB_CACHE, else in our own cache. DiffctlError, with manual instructions, if kagglehub
    is missing, has no access, or fails; TemporaryError if Kaggle does not answer.
    """
    if not has_kaggle_access():
        raise DiffctlError(download_help(kind, handle, manual_steps))
    import kagglehub
    import requests

    os.environ[HUB_CACHE] = str(_hub_cache())
    download = kagglehub.dataset_download if kind == "datasets" else kagglehub.competition_download
    with file_lock(cache_root() / f".kaggle-{handle.replace('/', '-')}.lock"):
        try:
            return Path(download(handle))
        except (requests.ConnectionError, requests.Timeout) as error:
            raise TemporaryError(
                f"Kaggle does not answer ({_first_line(error)}): try again later, or {manual_steps}"
            ) from None
        except Exception as error:  # its own errors, those of requests and of the disk
            raise DiffctlError(
                f"Kaggle did not give {handle} ({_first_line(error)}): accept its rules at "
                f"{_page(kind, handle)}, or {manual_steps}"
            ) from None


def download_help(kind: Kind, handle: str, manual_steps: str) -> str:
    """Return instructions to get a Kaggle data set, manually or automatically."""
    return (
        f"{manual_steps}; get it from {_page(kind, handle)}, or let diffctl download it: "
        "pip install 'diffctl[kaggle]' and put your token (kaggle.com/settings) in KAGGLE_API_TOKEN or "
        "~/.kaggle/kaggle.json"
    )


def _hub_cache() -> Path:
    return Path(os.environ.get(HUB_CACHE) or cache_root() / "kagglehub").expanduser()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _page(kind: Kind, handle: str) -> str:
    return f"https://www.kaggle.com/{kind}/{handle}"


def _quiet() -> None:
    os.environ.setdefault("KAGGLEHUB_VERBOSITY", "error")
