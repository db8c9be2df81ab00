"""Starting and joining the processes of a training: one a GPU, and all end when one does.

Torchrun and we ourselves say through the environment which process one is: RANK, WORLD_SIZE, LOCAL_RANK.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch._C._distributed_c10d import TCPStore
from torch.distributed.rendezvous import rendezvous

from diffusion.config import TrainConfig
from diffusion.distributed import RankLost, Ranks, joined
from diffusion.errors import DiffctlError, UsageError

STARTED_BY = "DIFFCTL_STARTED_BY"  # the process that started this one as a part of its training
GRACE_SECONDS = 20.0  # for the others to end by themselves
POLL_SECONDS = 0.1
PR_SET_PDEATHSIG = 1  # prctl(2)


def is_follower() -> bool:
    """Whether this process works for the training of another one, which saves and tells."""
    return _is_told() and int(os.environ["RANK"]) > 0


def process_count(devices: int | Literal["auto"]) -> int:
    """How many processes `train.devices` means on this machine; UsageError for more than there are GPUs."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices == "auto":
        return max(1, gpus)
    if gpus and devices > gpus:
        raise UsageError(
            f"train.devices: {devices} are asked for, and there are {gpus} GPUs: lower it, or auto"
        )
    return devices


@contextmanager
def together(train: TrainConfig, command: Sequence[str]) -> Iterator[Ranks]:
    """Be one of the processes that train: as the environment says, else the first, with the others started.

    `command` starts another one. DiffctlError when one has ended before its time; none outlives this one.
    UsageError when there are more processes than images in a batch.
    """
    if _is_told():
        _die_with_parent()
        store, rank, world = next(rendezvous("env://"))
        store.set(_present(rank), "")
        device = _own_device(int(os.environ.get("LOCAL_WORLD_SIZE", world)))
        with joined(Ranks(device, rank, world), store) as ranks:
            yield ranks
    elif (count := process_count(train.devices)) == 1:
        yield Ranks(_own_device(1))
    else:
        first = Ranks(_own_device(count), 0, count)
        first.share(train.batch_size)  # refused before anything starts
        with _started(first, command):
            yield first


@contextmanager
def _started(first: Ranks, command: Sequence[str]) -> Iterator[None]:
    count = first.world
    store = TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)
    others = _Others(count, command, store.port, first.over)
    try:
        others.meet(store)
        with joined(first, store):
            yield
        others.wait()
    except RankLost as error:
        raise DiffctlError(others.account() or str(error)) from error
    finally:
        others.end()


class _Others:
    """The processes that this one started, ranks 1 and up.

    A thread watches them. It ends this process when one of them has failed and the main thread, waiting for
    a GPU, does not come to notice.
    """

    def __init__(self, count: int, command: Sequence[str], port: int, over: threading.Event) -> None:
        common = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            STARTED_BY: str(os.getpid()),
        }
        self._running = [
            subprocess.Popen(
                command,
                env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                process_group=0,  # the first one alone is told to stop, and tells the others
            )
            for rank in range(1, count)
        ]
        self._over = over
        threading.Thread(target=self._watch, name="ranks", daemon=True).start()

    def meet(self, store: TCPStore) -> None:
        """Wait until all are there; RankLost when one fails before."""
        keys = [_present(rank) for rank in range(1, len(self._running) + 1)]
        while not store.check(keys):
            if any(process.poll() for process in self._running):
                raise RankLost("another process of this training failed at its start")
            time.sleep(POLL_SECONDS)

    def account(self) -> str | None:
        """A sentence about one that has failed, waiting a little for it; None when none has."""
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            for rank, process in enumerate(self._running, start=1):
                code = process.poll()
                if code and code != RankLost.exit_code:  # which says that it ended because of another one
                    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                    return (
                        f"process {rank} of the training's {len(self._running) + 1} ended with {how}, so all "
                        "stop: the same command goes on from the saved state"
                    )
            time.sleep(POLL_SECONDS)
        return None

    def wait(self) -> None:
        """Wait until all have ended as this one is about to; RankLost when one fails at that."""
        self._over.set()
        for process in self._running:
            if process.wait(GRACE_SECONDS):
                raise RankLost("another process of this training failed at its end")

    def end(self) -> None:
        """Leave none behind: who does not end with this one is killed, for nothing of it is kept."""
        self._over.set()
        deadline = time.monotonic() + GRACE_SECONDS
        for process in self._running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _watch(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            if any(process.poll() for process in self._running):
                if not self._over.wait(GRACE_SECONDS):
                    print(
                        f"diffctl: {self.account() or 'the other processes have ended'}",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(1)
                return


def _is_told() -> bool:
    """Whether the environment names this process one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def _present(rank: int) -> str:
    return f"present/{rank}"


def _own_device(local_world: int) -> torch.device:
    """This process's GPU, or the CPU, whose cores the processes of a machine share evenly."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        return device
    if local_world > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // local_world))
    return torch.device("cpu")


def _die_with_parent() -> None:
    """Be killed with the process that started this one, even when that one is killed by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    starter = os.environ.get(STARTED_BY)
    if starter is not None and os.getppid() != int(starter):  # it has died already
        raise DiffctlError("the training's first process has ended")
