"""Download of published files into the cache: verified, resumed, from the first address that serves them.

requests transfers and urllib3's Retry counts attempts and computes waits. Ours are the resumption of partial
files over kills and mirrors, the digest, and the lock between processes.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError
from urllib3.util import Retry

from diffusion.system.errors import DiffctlError, TemporaryError
from diffusion.system.files import sync_folder
from diffusion.system.locks import file_lock

BLOCK = 1 << 20  # bytes
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
HEADERS = {"User-Agent": "diffctl", "Accept-Encoding": "identity"}

OnProgress = Callable[[int, int, str], None]  # bytes done, bytes in total, file name
_OnBytes = Callable[[int, int], None]  # bytes done, bytes in total (0 if unknown)


@dataclass(frozen=True)
class RemoteFile:
    """A published file: name, addresses (mirrors last), checksum as "algorithm:hex", size in bytes."""

    name: str
    urls: tuple[str, ...]
    checksum: str
    size: int


@dataclass(frozen=True)
class RetryPolicy:
    """Number of consecutive attempts without any progress, and waits and timeout in seconds.

    An attempt that received bytes is no failure, so that an often interrupted download still completes.
    """

    attempts: int = 6
    wait: float = 1.0
    max_wait: float = 30.0
    timeout: float = 30.0

    def start(self) -> Retry:
        """Return a new counter of failed attempts."""
        return Retry(self.attempts - 1, backoff_factor=self.wait, backoff_max=self.max_wait)


class _Failed(Exception):
    """This attempt failed; try again in `after` seconds at the earliest."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


class _Refused(Exception):
    """This address will not serve the file."""


def fetch(
    remote: RemoteFile, folder: Path, notify: OnProgress | None = None, policy: RetryPolicy = RetryPolicy()
) -> Path:
    """Return the verified file in `folder`, downloaded if it is missing.

    One process downloads; others wait for it. The base address in DIFFCTL_MIRROR is tried first.
    TemporaryError if the network or servers fail. DiffctlError if no address serves the right content, or if
    a wrong file is in the folder.
    """
    path = folder / remote.name
    if not path.exists():  # it appears complete, so that a shared cache may be read-only
        with file_lock(folder / f".{remote.name}.lock"):
            if not path.exists():
                part = folder / f".{remote.name}.part"
                _download(remote, part, _addresses(remote, folder), notify, policy)
                os.replace(part, path)
                sync_folder(folder)
                return path
    verify(path, remote.checksum)
    return path


def verify(path: Path, checksum: str) -> None:
    """Raise DiffctlError unless the file has the published checksum."""
    algorithm, expected = checksum.split(":")
    found = _digest_of(path, algorithm).hexdigest()
    if found != expected:
        raise DiffctlError(
            f"{path} is not the published file ({algorithm} {found}, expected {expected}): delete it and "
            "run this again"
        )


def file_checksums(paths: Sequence[Path], notify: OnProgress | None = None) -> dict[str, str]:
    """Return the SHA-256 of each file by name."""
    total, done, found = sum(path.stat().st_size for path in paths), 0, {}
    for path in paths:
        found[path.name] = _digest_of(path, "sha256").hexdigest()
        done += path.stat().st_size
        if notify is not None:
            notify(done, total, "checksums")
    return found


def _addresses(remote: RemoteFile, folder: Path) -> list[str]:
    mirror = os.environ.get("DIFFCTL_MIRROR")
    first = [f"{mirror.rstrip('/')}/{folder.name}/{remote.name}"] if mirror else []
    return [*first, *remote.urls]


def _download(
    remote: RemoteFile, part: Path, urls: list[str], notify: OnProgress | None, policy: RetryPolicy
) -> None:
    """Fill `part` with the right content, from the addresses in turn."""
    algorithm, expected = remote.checksum.split(":")
    wrong, turn, why = 0, 0, ""
    kind, retry = DiffctlError, policy.start()

    def received(done: int, total: int) -> None:
        if notify is not None:
            notify(done, total or remote.size, remote.name)

    while urls and wrong <= len(urls):
        url = urls[turn % len(urls)]
        host, before = urlsplit(url).netloc, _size(part)
        try:
            found = _transfer(url, part, algorithm, policy.timeout, received)
        except _Refused as refusal:
            why = f"{host}: {refusal}"
            urls = [other for other in urls if other != url]
            continue
        except _Failed as failure:
            why = f"{host}: {failure}"
            try:
                retry = policy.start() if _size(part) > before else retry.increment("GET", url)
            except MaxRetryError:
                kind = TemporaryError
                break
            time.sleep(min(policy.max_wait, max(failure.after, retry.get_backoff_time())))
        else:
            if found == expected:
                return
            part.unlink()  # some byte is wrong, so that nothing can be kept
            why = f"{host} serves another file ({algorithm} {found}, expected {expected})"
            wrong += 1
        turn += 1
    raise kind(
        f"cannot download {remote.name} ({why}): try again later, or get it elsewhere and put it at "
        f"{part.parent / remote.name}"
    )


def _transfer(url: str, part: Path, algorithm: str, timeout: float, received: _OnBytes) -> str:
    """Complete `part` with the content of `url` and return its digest in hex.

    The server resumes after the bytes in `part`, if it can. _Failed and _Refused for the network and the
    server; DiffctlError for the disk.
    """
    have = _size(part)
    headers = {**HEADERS, "Range": f"bytes={have}-"} if have else HEADERS
    try:
        with requests.get(url, headers=headers, timeout=timeout, stream=True) as response:
            if response.status_code == 416:  # nothing after our bytes: the digest tells if they are complete
                return str(_digest_of(part, algorithm).hexdigest())
            if response.status_code in RETRIED_STATUS:
                raise _Failed(f"HTTP {response.status_code}", _retry_after(response))
            if not response.ok:
                raise _Refused(f"HTTP {response.status_code}")
            return _receive(response, part, have, algorithm, received)
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
        raise _Refused(str(error)) from None
    except (requests.RequestException, HTTPError, OSError) as error:
        raise _Failed(str(error) or type(error).__name__) from None


def _receive(response: requests.Response, part: Path, have: int, algorithm: str, received: _OnBytes) -> str:
    resumed = response.status_code == 206 and _range_start(response) == have
    digest = _digest_of(part, algorithm) if resumed else _new_digest(algorithm)
    done = have if resumed else 0
    length = int(response.headers.get("Content-Length") or 0)
    total = done + length if length else 0
    with _disk_errors(part):
        file = open(part, "ab" if resumed else "wb")  # noqa: SIM115 (closed below; its errors are the disk's)
    with file:
        for block in response.raw.stream(BLOCK, decode_content=False):
            with _disk_errors(part):
                file.write(block)
                file.flush()
            digest.update(block)
            done += len(block)
            received(done, total)
        with _disk_errors(part):
            os.fsync(file.fileno())
    if total and done < total:
        raise _Failed(f"the connection was closed after {done:,} of {total:,} bytes")
    return str(digest.hexdigest())


def _digest_of(path: Path, algorithm: str) -> Any:
    """Return the hash object of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: _new_digest(algorithm))


def _new_digest(algorithm: str) -> Any:
    """Return a hash object; MD5 works also where it is forbidden for security, since it detects damage."""
    return hashlib.new(algorithm, usedforsecurity=False)


@contextmanager
def _disk_errors(part: Path) -> Iterator[None]:
    """Raise DiffctlError for an OSError of the disk: another attempt would not help."""
    try:
        yield
    except OSError as error:
        raise DiffctlError(
            f"cannot write {part} ({error.strerror}): make room, or set DIFFCTL_CACHE to another disk; "
            "the download resumes from there"
        ) from None


def _range_start(response: requests.Response) -> int | None:
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdigit() else None


def _retry_after(response: requests.Response) -> float:
    """Return the seconds in Retry-After, 0 without it."""
    try:
        return Retry().parse_retry_after(response.headers.get("Retry-After", "0"))
    except InvalidHeader:
        return 0.0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
