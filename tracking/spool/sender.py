"""The sender: a process of its own that delivers a training's spool to MLflow while it is written.

So mlflow's import and migrations, and a server that hangs, can neither stop nor slow the training. It ends
by itself: when the training is gone and everything is delivered, or a minute after that. What is left then
is delivered by the training's next start or by `diffctl sync`.
"""

import logging
import os
import select
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from diffusion.layout import TRAIN_RUNS
from diffusion.system.errors import DiffctlError, DiffctlWarning
from diffusion.system.locks import LockBusy, file_lock
from tracking.connectivity import MlflowDenied, check_reachable, redact_uri
from tracking.spool.delivery import DeliveryState, RunDeleted, deliver, mark_killed
from tracking.spool.spool_writer import EVENTS
from tracking.spool.training_status import spool_folders
from tracking.store import tracking_uri

LOCK, LOG = "sender.lock", "sender.log"
POLL_SECONDS = 1.0
LONGEST_WAIT = 30.0  # between tries of a store that is away
EXIT_SECONDS = 0.2  # a process that is killed lets go of its pipe and its locks one after the other
CLOSING_SECONDS = 2.0  # between tries once the training is gone
LINGER_SECONDS = 60.0  # after the training, while there is something left

_log = logging.getLogger("diffctl.sender")


@dataclass
class Sender:
    """A running sender, as its training sees it; `process` is None where none could be started."""

    process: "subprocess.Popen[bytes] | None"

    def close(self, timeout: float) -> bool:
        """Let it finish, for at most `timeout` seconds; whether everything was delivered by then.

        It goes on by itself for a while if not. Never raises, never waits longer.
        """
        if self.process is None:
            return False
        assert self.process.stdin is not None, "start() opens it"
        self.process.stdin.close()
        try:
            return self.process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            return False


def start_sender(folder: Path) -> Sender:
    """Start the sender of a training's folder; a pipe tells it when this process is gone.

    UsageError for a MLFLOW_TRACKING_URI that cannot be meant. A machine that has no room for another process
    or file gets a warning: the training goes on without.
    """
    tracking_uri()
    command = [sys.executable, "-m", "tracking.spool.sender", str(folder.resolve())]
    try:
        with open(folder / LOG, "ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
    except OSError as error:
        message = f"nothing is sent to MLflow now ({error.strerror}): `diffctl sync` does it later"
        warnings.warn(message, DiffctlWarning, stacklevel=2)
        return Sender(None)
    return Sender(process)


def run(folder: Path, uri: str, parent: int, linger: float = LINGER_SECONDS) -> bool:
    """Deliver until the other end of the pipe `parent` is closed and nothing is left; whether nothing is.

    Waits for a sender before it on the same folder. `linger` bounds the time after the pipe's end, seconds.
    """
    with file_lock(folder / LOCK):
        gone_since: float | None = None
        wait = 0.0
        while True:
            if gone_since is not None:
                time.sleep(min(wait, CLOSING_SECONDS))
            elif _closed(parent, wait):
                gone_since = time.monotonic()
                time.sleep(EXIT_SECONDS)
            delivered = _try(folder, uri, gone_since is not None)
            if gone_since is not None and delivered:
                return True
            if gone_since is not None and time.monotonic() - gone_since > linger:
                return False
            wait = POLL_SECONDS if delivered else min(LONGEST_WAIT, max(POLL_SECONDS, 2 * wait))


def _try(folder: Path, uri: str, parent_gone: bool) -> bool:
    """One delivery; whether all that the spool holds is delivered. What hinders it goes to the log."""
    try:
        if not DeliveryState.load(folder, uri).complete:
            deliver(folder, uri)
        if parent_gone:
            mark_killed(folder, uri)
    except (DiffctlError, OSError) as error:  # a full disk passes, too
        _log.warning("%s", error)
    return DeliveryState.load(folder, uri).complete


def _closed(pipe: int, seconds: float) -> bool:
    """Whether the other end of the pipe is closed; waits for that at most `seconds`."""
    readable, _, _ = select.select([pipe], [], [], seconds)
    return bool(readable) and not os.read(pipe, 1)


@dataclass(frozen=True)
class SyncResult:
    """What `deliver_all` did for one training, and whether nothing is left of it to deliver."""

    folder: Path
    done: bool
    message: str
    points: int = 0
    rejected: int = 0


def deliver_all(uri: str | None = None, root: Path = TRAIN_RUNS) -> list[SyncResult]:
    """Deliver every spool below `root` that is not wholly delivered, and make lost runs again.

    MlflowAway when no server answers, MlflowRefused when it wants another password.
    """
    uri, folders = uri or tracking_uri(), spool_folders(root)
    if folders:
        check_reachable(uri)  # once, not for every training
    return [_sync_one(folder, uri) for folder in folders]


def _sync_one(folder: Path, uri: str) -> SyncResult:
    try:
        with file_lock(folder / LOCK, timeout=0):
            delivered = deliver(folder, uri)
    except LockBusy:
        return SyncResult(folder, True, "a sender is at it")
    except RunDeleted as error:
        return SyncResult(folder, True, str(error))
    except MlflowDenied:
        raise
    except DiffctlError as error:
        return SyncResult(folder, False, str(error))
    return SyncResult(folder, True, str(delivered), delivered.points, delivered.rejected)


def main() -> None:
    """`python -m tracking.spool.sender FOLDER`: exit 0 when all was delivered."""
    os.nice(19)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # `run` tries again, and knows when to end
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    folder = Path(sys.argv[1])
    uri = tracking_uri()
    _log.info("sending %s to %s", folder / EVENTS, redact_uri(uri))
    done = run(folder, uri, sys.stdin.fileno())
    _log.info("everything is delivered" if done else "left undelivered: `diffctl sync` sends it")
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()
