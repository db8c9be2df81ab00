"""The sender: a separate process that delivers a training's spool to MLflow while it is written.

So neither mlflow's import nor a server that hangs can slow the training. The sender ends when the training
has ended and everything is delivered, or a minute after the training. The training's next start or
`diffctl sync` delivers the rest.
"""

import logging
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from diffusion.system.errors import DiffctlError
from diffusion.system.locks import LockBusy, file_lock
from diffusion.system.processes import PYTHON_MODULE
from tracking.connectivity import MlflowDenied, check_reachable, redact_uri
from tracking.spool.delivery import REJECTED, RunDeleted, deliver, mark_killed
from tracking.spool.event_log import EVENTS
from tracking.spool.spool_status import DeliveryState, spool_folders
from tracking.store import tracking_uri

LOCK, LOG = "sender.lock", "sender.log"
POLL_SECONDS = 1.0
MAX_WAIT_SECONDS = 30.0  # between tries while the store is unavailable
EXIT_SECONDS = 0.2  # a killed process closes its pipe some time before it releases its locks
CLOSING_SECONDS = 2.0  # between tries after the training's end
LINGER_SECONDS = 60.0  # after the training's end, while something is left

_log = logging.getLogger("diffctl.sender")


def start_sender(folder: Path) -> "subprocess.Popen[bytes]":
    """Start the sender of a training's folder; its stdin is a pipe that closes when this process ends.

    UsageError for an invalid MLFLOW_TRACKING_URI.
    """
    tracking_uri()
    command = [*PYTHON_MODULE, "tracking.spool.sender", str(folder.resolve())]
    with open(folder / LOG, "ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )


def close_sender(sender: "subprocess.Popen[bytes]", timeout: float) -> None:
    """Report the training's end, and wait at most `timeout` seconds for the rest; the sender continues."""
    assert sender.stdin is not None, "start_sender opens it"
    sender.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        sender.wait(timeout)


def run(folder: Path, uri: str, parent: int) -> bool:
    """Deliver until the pipe `parent` is closed and nothing is left; return whether nothing is left.

    Wait for an earlier sender of the folder. End at the latest LINGER_SECONDS after the pipe's end.
    """
    with file_lock(folder / LOCK):
        state = DeliveryState.load(folder, uri)
        if state.deleted:  # perhaps it was restored since
            state.deleted = False
            state.save()
        ended_at: float | None = None
        wait = 0.0
        while True:
            if ended_at is not None:
                time.sleep(min(wait, CLOSING_SECONDS))
            elif _is_closed(parent, wait):
                ended_at = time.monotonic()
                time.sleep(EXIT_SECONDS)
            delivered = _try_delivery(folder, uri, ended_at is not None)
            if ended_at is not None and (delivered or time.monotonic() - ended_at > LINGER_SECONDS):
                return delivered
            wait = POLL_SECONDS if delivered else min(MAX_WAIT_SECONDS, max(POLL_SECONDS, 2 * wait))


def _try_delivery(folder: Path, uri: str, parent_ended: bool) -> bool:
    """Try one delivery and log its errors; return whether the spool is delivered completely."""
    try:
        if not DeliveryState.load(folder, uri).complete:
            deliver(folder, uri)
        if parent_ended:
            mark_killed(folder, uri)
    except (DiffctlError, OSError) as error:  # OSError: a full disk
        _log.warning("%s", error)
    return DeliveryState.load(folder, uri).complete


def _is_closed(pipe: int, seconds: float) -> bool:
    """Return whether the other end of the pipe is closed; wait for that at most `seconds`."""
    readable, _, _ = select.select([pipe], [], [], seconds)
    return bool(readable) and not os.read(pipe, 1)


@dataclass(frozen=True)
class SyncResult:
    """The result for one training: whether nothing is left to deliver, and what was delivered."""

    folder: Path
    done: bool
    message: str
    points: int = 0
    rejected: int = 0


def deliver_all() -> list[SyncResult]:
    """Deliver every incomplete spool; MlflowUnavailable or MlflowDenied if no server accepts it."""
    uri, folders = tracking_uri(), spool_folders()
    if folders:
        check_reachable(uri)  # once, not for every training
    return [_deliver_one(folder, uri) for folder in folders]


def _deliver_one(folder: Path, uri: str) -> SyncResult:
    try:
        with file_lock(folder / LOCK, timeout=0):
            points, rejected = deliver(folder, uri)
    except LockBusy:
        return SyncResult(folder, True, "a sender is delivering it")
    except MlflowDenied:
        raise
    except DiffctlError as error:
        return SyncResult(folder, isinstance(error, RunDeleted), str(error))
    text = f"{points:,} points delivered" if points or rejected else "all delivered"
    text += f", {rejected} entries rejected (see {REJECTED})" if rejected else ""
    return SyncResult(folder, True, text, points, rejected)


def main() -> None:
    """Run `python -m tracking.spool.sender FOLDER`: exit 0 if everything was delivered."""
    os.nice(19)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # `run` repeats failed tries itself
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    folder = Path(sys.argv[1])
    uri = tracking_uri()
    _log.info("sending %s to %s", folder / EVENTS, redact_uri(uri))
    done = run(folder, uri, sys.stdin.fileno())
    _log.info("everything is delivered" if done else "some is left: `diffctl sync` sends it")
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()
