"""Raw files from the network into the cache: verified, resumed, from the first mirror that serves them.

Not by pooch (1.9, tried on this module's tests), which would take a third of the lines and break five tests:
it begins a cut download again from the first byte, so that one that is always cut never arrives; it asks
again for what a server refuses; what a kill or another mirror broke off is not gone on with. Mirrors and
locks between processes would stay ours.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from diffusion.downloads.transfer import TransferFailed, digest_of, transfer
from diffusion.system.errors import DiffctlError, TemporaryError
from diffusion.system.files import sync_folder
from diffusion.system.locks import file_lock

OnProgress = Callable[[int, int, str], None]  # bytes done, bytes in all, of which file


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its name, where it is served (mirrors last), size in bytes, and "algorithm:hex"."""

    name: str
    urls: tuple[str, ...]
    checksum: str
    size: int


@dataclass(frozen=True)
class Retry:
    """How long a download is tried: `stalls` attempts in a row that bring nothing, each after a longer wait.

    An attempt that brought bytes is no stall, so a connection that is cut again and again still arrives.
    """

    stalls: int = 6
    wait: float = 1.0
    longest: float = 30.0
    timeout: float = 30.0


def fetch(remote: RemoteFile, folder: Path, notify: OnProgress | None = None, retry: Retry = Retry()) -> Path:
    """The verified file in `folder`, downloaded when it is not there.

    One process downloads a file at a time; the others wait and find it. DIFFCTL_MIRROR, a base address, is
    asked first. TemporaryError when the network or the servers fail; DiffctlError when no address serves the
    right content, or when a file lies there already and is another one.
    """
    path = folder / remote.name
    if not path.exists():  # it appears whole, so a shared cache may be read-only
        with file_lock(folder / f".{remote.name}.lock"):
            if not path.exists():
                part = folder / f".{remote.name}.part"
                _download(remote, part, _addresses(remote, folder), notify, retry)
                os.replace(part, path)
                sync_folder(folder)
                return path
    verify(path, remote.checksum)
    return path


def verify(path: Path, checksum: str) -> None:
    """DiffctlError unless the file's content has the published checksum."""
    algorithm, expected = checksum.split(":")
    found = digest_of(path, algorithm).hexdigest()
    if found != expected:
        raise DiffctlError(
            f"{path} is not the published file ({algorithm} {found}, expected {expected}): delete it and "
            "run this again"
        )


def file_checksums(paths: Sequence[Path], notify: OnProgress | None = None) -> dict[str, str]:
    """The SHA-256 of every file by its name."""
    total, done, found = sum(path.stat().st_size for path in paths), 0, {}
    for path in paths:
        found[path.name] = digest_of(path, "sha256").hexdigest()
        done += path.stat().st_size
        if notify is not None:
            notify(done, total, "checksums")
    return found


def _addresses(remote: RemoteFile, folder: Path) -> list[str]:
    mirror = os.environ.get("DIFFCTL_MIRROR")
    first = [f"{mirror.rstrip('/')}/{folder.name}/{remote.name}"] if mirror else []
    return [*first, *remote.urls]


def _download(
    remote: RemoteFile, part: Path, urls: list[str], notify: OnProgress | None, retry: Retry
) -> None:
    """Fill `part` with the right content, asking the addresses in turn."""
    algorithm, expected = remote.checksum.split(":")
    stalls, wrong, turn, why = 0, 0, 0, ""
    while urls and stalls < retry.stalls and wrong <= len(urls):
        url = urls[turn % len(urls)]
        before = _size(part)
        try:
            found = transfer(url, part, algorithm, retry.timeout, _received(remote, notify))
            if found == expected:
                return
            part.unlink()  # a wrong byte somewhere: nothing of it can be kept
            why = f"{_host(url)} serves another file ({algorithm} {found}, expected {expected})"
            wrong += 1
            turn += 1
        except TransferFailed as failure:
            why = f"{_host(url)}: {failure}"
            if failure.final:
                urls = [other for other in urls if other != url]
                continue
            stalls = 0 if _size(part) > before else stalls + 1
            turn += 1
            if stalls < retry.stalls:
                time.sleep(min(retry.longest, max(failure.after, retry.wait * 2 ** max(0, stalls - 1))))
    kind = TemporaryError if stalls >= retry.stalls else DiffctlError
    raise kind(
        f"cannot download {remote.name} ({why}): try again later, or get it elsewhere and put it at "
        f"{part.parent / remote.name}"
    )


def _received(remote: RemoteFile, notify: OnProgress | None) -> Callable[[int, int], None]:
    def received(done: int, total: int) -> None:
        if notify is not None:
            notify(done, total or remote.size, remote.name)

    return received


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _host(url: str) -> str:
    return urlsplit(url).netloc
