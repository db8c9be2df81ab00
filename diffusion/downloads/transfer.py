"""One transfer over HTTP, going on where an earlier one was cut; it judges failures but repeats nothing."""

import email.utils
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion.system.errors import DiffctlError

BLOCK = 1 << 20
BUSY = {408, 425, 429, 500, 502, 503, 504}

Received = Callable[[int, int], None]  # bytes so far, bytes in all (0 when the server does not say)


class TransferFailed(Exception):
    """This attempt failed. `final`: the address will never serve it; else try again in `after` seconds."""

    def __init__(self, why: str, *, final: bool = False, after: float = 0.0) -> None:
        super().__init__(why)
        self.final = final
        self.after = after


def transfer(url: str, part: Path, algorithm: str, timeout: float, received: Received) -> str:
    """Bring `part` to the whole content of `url` and return its digest in hex.

    What is in `part` already is kept when the server can go on from there. TransferFailed when the
    connection or the server fails; DiffctlError when the disk does.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "diffctl", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return _receive(response, part, have, algorithm, received)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after what we have: it may be whole, which its digest tells
            return str(digest_of(part, algorithm).hexdigest())
        after = _seconds(error.headers.get("Retry-After"))
        raise TransferFailed(f"HTTP {error.code}", final=error.code not in BUSY, after=after) from None
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise TransferFailed(str(reason) or type(error).__name__) from None


def digest_of(path: Path, algorithm: str) -> Any:
    """The hash object of a file's content, to go on with."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: new_digest(algorithm))


def new_digest(algorithm: str) -> Any:
    """A hash object; MD5 too where a system forbids it for security, since here it only finds damage."""
    return hashlib.new(algorithm, usedforsecurity=False)


def _receive(response: Any, part: Path, have: int, algorithm: str, received: Received) -> str:
    resumed = response.status == 206 and _range_start(response) == have
    digest = digest_of(part, algorithm) if resumed else new_digest(algorithm)
    done = have if resumed else 0
    length = int(response.headers.get("Content-Length") or 0)
    total = done + length if length else 0
    with _on_disk(part):
        file = open(part, "ab" if resumed else "wb")  # noqa: SIM115 (closed below; its errors are the disk's)
    with file:
        while block := response.read(BLOCK):
            with _on_disk(part):
                file.write(block)
                file.flush()
            digest.update(block)
            done += len(block)
            received(done, total)
        with _on_disk(part):
            os.fsync(file.fileno())
    if total and done < total:
        raise TransferFailed(f"the connection was cut after {done:,} of {total:,} bytes")
    return str(digest.hexdigest())


@contextmanager
def _on_disk(part: Path) -> Iterator[None]:
    """An OSError in the block is the disk's, not the network's: trying again would not help."""
    try:
        yield
    except OSError as error:
        raise DiffctlError(
            f"cannot write {part} ({error.strerror}): make room, or set DIFFCTL_CACHE to another disk; "
            "the download goes on from there"
        ) from None


def _range_start(response: Any) -> int | None:
    unit, _, rest = (response.headers.get("Content-Range") or "").partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdigit() else None


def _seconds(retry_after: str | None) -> float:
    """Retry-After as seconds from now: a number of them, or a date."""
    if not retry_after:
        return 0.0
    if retry_after.isdigit():
        return float(retry_after)
    date = email.utils.parsedate_to_datetime(retry_after) if "," in retry_after else None
    return max(0.0, date.timestamp() - time.time()) if date else 0.0
