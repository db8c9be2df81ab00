"""The user's cache of raw files, shared by all projects, and verified downloads into it."""

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ProxyError

from diffusion.layout import home
from diffusion.system.errors import DiffctlError, TemporaryError
from diffusion.system.files import disk_errors, sync_path
from diffusion.system.locks import file_lock

BLOCK = 1 << 20  # bytes
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
HEADERS = {"User-Agent": "diffctl", "Accept-Encoding": "identity"}
UNTRUSTED = re.compile(r"certificate verify failed: (.+?) \(_ssl")  # the message of Python's ssl

ATTEMPTS = 6  # without any progress, in a row: one that received bytes is no failure
CONNECTIONS = 2  # attempts to connect to an address, unless some bytes have arrived
WAIT, MAX_WAIT = 1.0, 30.0  # seconds after the first failure; the wait doubles from failure to failure
TIMEOUT = 30.0  # seconds
CONNECT_TIMEOUT = 10.0

OnProgress = Callable[[int, int, str], None]  # bytes done, bytes in total, file name


@dataclass(frozen=True)
class RemoteFile:
    """A published file: name, addresses (mirrors last), checksum as "algorithm:hex", bytes (0: unknown)."""

    name: str
    urls: tuple[str, ...]
    checksum: str
    size: int


class _Refused(Exception):
    """This address will not serve the file."""


def cache_root() -> Path:
    """Return DIFFCTL_CACHE, else `diffctl` in the user's cache folder."""
    if configured := os.environ.get("DIFFCTL_CACHE"):
        return Path(configured).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffctl"


def raw_folder(name: str, path: Path | None) -> Path:
    """Return the folder of a data set's raw files: the configured path, else the one in the cache.

    A relative path is one of the checkout, also in the copy of a DVC experiment, which has no raw files.
    """
    return cache_root() / name if path is None else home(Path.cwd()) / path.expanduser()


def find_file(folder: Path, name: str) -> Path | None:
    """Return the file `name` in or below a folder, the one nearest to the top; None if there is none."""
    at_top = folder / name
    return at_top if at_top.is_file() else next(iter(find_files(folder, name)), None)


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Return matching files, nearest to the top first; linked folders are not searched."""
    found = (path for path in folder.rglob(pattern) if path.is_file())
    return sorted(found, key=lambda path: (len(path.parts), path))


def fetch(
    remote: RemoteFile, folder: Path, notify: OnProgress | None = None, attempts: int = ATTEMPTS
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
                mirror = os.environ.get("DIFFCTL_MIRROR")
                first = [f"{mirror.rstrip('/')}/{folder.name}/{remote.name}"] if mirror else []
                _download(remote, part, [*first, *remote.urls], notify, attempts)
                os.replace(part, path)
                sync_path(folder)
                return path
    verify(path, remote.checksum)
    return path


def verify(path: Path, checksum: str) -> None:
    """Raise DiffctlError unless the file has the published checksum."""
    algorithm, expected = checksum.split(":")
    found = _digest_of(path, algorithm)
    if found != expected:
        raise DiffctlError(
            f"{path} is not the published file ({algorithm} {found}, expected {expected}): delete it and "
            "run this again"
        )


def file_checksums(paths: Sequence[Path], notify: OnProgress | None = None) -> dict[str, str]:
    """Return the SHA-256 of each file by name."""
    total, done, found = sum(path.stat().st_size for path in paths), 0, {}
    for path in paths:
        found[path.name] = _digest_of(path, "sha256")
        done += path.stat().st_size
        if notify is not None:
            notify(done, total, "checksums")
    return found


def _download(
    remote: RemoteFile, part: Path, urls: list[str], notify: OnProgress | None, attempts: int
) -> None:
    """Download the right content to `part`; try the addresses in order."""
    algorithm, expected = remote.checksum.split(":")
    wrong, failures, unreachable, reasons = 0, 0, Counter[str](), dict[str, str]()
    at_first = largest = _size(part)  # without ranges a transfer begins again: only a larger part is progress

    def received(done: int) -> None:
        if notify is not None:
            notify(done, remote.size, remote.name)

    while urls and wrong <= len(urls) and failures < attempts:
        url, *others = urls
        try:
            _transfer(url, part, remote.size, received)
            found = _digest_of(part, algorithm)
            if found == expected:
                return
            part.unlink()  # some byte is wrong, so that nothing can be kept
            largest = 0
            why, wrong = f"serves another file ({algorithm} {found}, expected {expected})", wrong + 1
            urls = [*others, url]
        except _Refused as refusal:
            why, urls = str(refusal), others
        except (requests.RequestException, HTTPError) as failure:
            why, urls = _network_problem(failure), [*others, url]
            failures = 0 if _size(part) > largest else failures + 1
            largest = max(largest, _size(part))
            wait = min(MAX_WAIT, WAIT * 2**failures)
            if _is_unreachable(failure) and largest <= at_first:  # else the network was there
                wait, unreachable[url] = WAIT, unreachable[url] + 1
                urls = [one for one in urls if unreachable[one] < min(attempts, CONNECTIONS)]
            if urls and failures < attempts:
                time.sleep(wait)
        reasons[urlsplit(url).netloc.rpartition("@")[2]] = why  # without a password
    listed = "; ".join(f"{place}: {why}" for place, why in reasons.items())
    raise (TemporaryError if failures else DiffctlError)(
        f"cannot download {remote.name} ({listed}): try again later, or get it elsewhere and put it at "
        f"{part.parent / remote.name}"
    )


def _transfer(url: str, part: Path, size: int, received: Callable[[int], None]) -> None:
    """Complete `part` to `size` bytes from `url`; DiffctlError for the disk, others for the network."""
    done = _size(part)
    headers = {**HEADERS, "Range": f"bytes={done}-"} if done else HEADERS
    with (
        disk_errors(part),
        _certificate_errors(),
        requests.get(url, headers=headers, timeout=(CONNECT_TIMEOUT, TIMEOUT), stream=True) as response,
    ):
        if response.status_code == 416:  # nothing after our bytes: the digest shows if they are complete
            return
        if response.status_code in RETRIED_STATUS:
            raise requests.HTTPError(f"HTTP {response.status_code}")
        if not response.ok:
            raise _Refused(f"HTTP {response.status_code}")
        content_range = response.headers.get("Content-Range", "")
        starts_here = response.status_code == 206 and content_range.startswith(f"bytes {done}-")
        done = done if starts_here else 0
        total = content_range.rpartition("/")[2] if done else response.headers.get("Content-Length", "")
        if size and total.isdecimal() and int(total) != size:  # such as a login page
            raise _Refused(f"serves another file ({int(total):,} bytes, expected {size:,})")
        with open(part, "ab" if done else "wb", buffering=0) as file:
            for block in response.raw.stream(BLOCK, decode_content=False):
                done += file.write(block)
                received(done)
            os.fsync(file.fileno())
        if done < size:  # without a Content-Length a broken transfer raises no error
            raise HTTPError("the connection broke off")


@contextmanager
def _certificate_errors() -> Iterator[None]:
    """Refuse an address with an untrusted certificate: another attempt fails the same."""
    try:
        yield
    except requests.ConnectionError as error:
        if found := UNTRUSTED.search(str(error)):
            advice = "set REQUESTS_CA_BUNDLE if your network replaces certificates"
            raise _Refused(f"its certificate is not trusted ({found[1]}), {advice}") from None
        raise


def _network_problem(failure: Exception) -> str:
    """Return what failed without the library's objects, as in "HTTPSConnectionPool(...): Max retries"."""
    if isinstance(failure, requests.Timeout):
        return "no answer"
    if isinstance(failure, requests.HTTPError):
        return str(failure)
    return "no connection" if isinstance(failure, requests.ConnectionError) else "the connection broke off"


def _is_unreachable(failure: Exception) -> bool:
    """Return whether no connection was made: an unknown name, a refused connection, no route, no answer."""
    cause = getattr(failure.args[0] if failure.args else None, "reason", None)
    return isinstance(cause, NewConnectionError | ConnectTimeoutError | ProxyError)


def _digest_of(path: Path, algorithm: str) -> str:
    """Return the hex digest; MD5 works also where it is forbidden for security, since it detects damage."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
