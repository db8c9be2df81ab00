"""Starting and joining the processes of a training: one a GPU, and all end when one does.

Torchrun and we ourselves say through the environment which process one is: RANK, WORLD_SIZE, LOCAL_RANK.
"""

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch._C._distributed_c10d import TCPStore
from torch.distributed.rendezvous import rendezvous

from diffusion.system.devices import Check, OnWait, acquire_device, acquire_gpus, device_kind
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.processes import die_with_parent
from diffusion.train.distributed.process_group import ProcessGroup, RankFailed, join_group
from diffusion.train.train_config import OptimisationConfig

STARTED_BY = "DIFFCTL_STARTED_BY"  # the process that started this one as a part of its training
GRACE_SECONDS = 20.0  # for the others to end by themselves
POLL_SECONDS = 0.1
GONE = "another process of this training is lost: the same command goes on from the saved state"


def is_follower() -> bool:
    """Whether this process works for the training of another one, which saves and tells."""
    return _is_told() and int(os.environ["RANK"]) > 0


def process_count(train: OptimisationConfig) -> int:
    """How many processes `train.devices` means on this machine: auto none without an image of the batch.

    UsageError for more than there are GPUs.
    """
    gpus = torch.cuda.device_count() if device_kind() == "cuda" else 0
    if train.devices == "auto":
        return max(1, min(gpus, train.batch_size))
    if gpus and train.devices > gpus:
        raise UsageError(
            f"{train.PREFIX}train.devices: {train.devices} are asked for, and there are {gpus} GPUs: "
            "lower it, or auto"
        )
    return train.devices


def world_size(train: OptimisationConfig) -> tuple[int, int]:
    """How many processes will train together, and how many of them on this machine; as `process_count`."""
    if _is_told():
        world = int(os.environ["WORLD_SIZE"])
        return world, int(os.environ.get("LOCAL_WORLD_SIZE", world))
    count = process_count(train)
    return count, count


@contextmanager
def launch_ranks(
    train: OptimisationConfig,
    command: Sequence[str],
    waiting: OnWait | None = None,
    check: Check | None = None,
) -> Iterator[ProcessGroup]:
    """Be one of the processes that train: as the environment says, else the first, with the others started.

    `command` starts another one. Their GPUs are held against other trainings and sweeps: while those have
    them, this one waits, `waiting` is told, and `check` may raise. DiffctlError when a process has ended
    before its time; none outlives this one. UsageError when there are more processes than images in a batch.
    """
    if _is_told():
        _die_with_parent()
        with _one_of_several(waiting, check) as group:
            yield group
    elif (count := process_count(train)) == 1:
        with acquire_device(waiting, check=check) as device:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            yield ProcessGroup(device)
    else:
        # Refused before anything starts.
        ProcessGroup(torch.device("cpu"), 0, count).share(train.batch_size, train.PREFIX)
        with acquire_gpus(count, waiting, check):
            store = TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)
            first = ProcessGroup(_own_device(count), 0, count, store=store)
            with _started(first, store, command):
                yield first


@contextmanager
def _one_of_several(waiting: OnWait | None, check: Check | None) -> Iterator[ProcessGroup]:
    """As the environment says; the first one of a machine holds the GPUs of all there."""
    store, rank, world = next(rendezvous("env://"))
    store.set(_present(rank), "")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    with acquire_gpus(0 if int(os.environ.get("LOCAL_RANK", 0)) else here, waiting, check):
        group = ProcessGroup(_own_device(here), rank, world, store=store)
        _end_after_loss(group, RankFailed.exit_code, GRACE_SECONDS)
        try:
            with join_group(group, store):
                yield group
        except RankFailed as error:
            _end_blocked(group, error.exit_code)
            raise


@contextmanager
def _started(first: ProcessGroup, store: TCPStore, command: Sequence[str]) -> Iterator[None]:
    others = _Workers(first.world_size, command, store.port, first.over)
    # Later than by who watches the others, which can say more of one that has ended.
    _end_after_loss(first, DiffctlError.exit_code, 3 * GRACE_SECONDS)
    try:
        others.meet(store)
        with join_group(first, store):
            yield
        others.wait()
    except RankFailed as error:
        _end_blocked(first, DiffctlError.exit_code)
        raise DiffctlError(others.account() or str(error)) from error
    finally:
        others.end()


class _Workers:
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
        """Wait until all are there; RankFailed when one fails before."""
        keys = [_present(rank) for rank in range(1, len(self._running) + 1)]
        while not store.check(keys):
            if any(process.poll() for process in self._running):
                raise RankFailed("another process of this training failed at its start")
            time.sleep(POLL_SECONDS)

    def account(self) -> str | None:
        """A sentence about one that has failed, waiting a little for it; None when none has."""
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            for rank, process in enumerate(self._running, start=1):
                code = process.poll()
                if code and code != RankFailed.exit_code:  # which says that it ended because of another one
                    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                    return (
                        f"process {rank} of the training's {len(self._running) + 1} ended with {how}, so all "
                        "stop: the same command goes on from the saved state"
                    )
            time.sleep(POLL_SECONDS)
        return None

    def wait(self) -> None:
        """Wait a while until all have ended as this one is about to; RankFailed when one fails at that.

        The training is finished: who does not end in time is left to `end`, and costs nothing of it.
        """
        self._over.set()
        for process in self._running:
            with suppress(subprocess.TimeoutExpired):
                if process.wait(GRACE_SECONDS):
                    raise RankFailed("another process of this training failed at its end")

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
    if device_kind() == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        return device
    if local_world > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // local_world))
    return torch.device("cpu")


def _end_blocked(group: ProcessGroup, code: int) -> None:
    """Let this process end with that code as soon as it has said why, where its GPU waits for a lost one.

    Python's own way out would destroy the process group, and wait for the GPU.
    """
    if group.loss_blocks:
        atexit.register(_end_now, code)


def _end_after_loss(group: ProcessGroup, code: int, grace: float) -> None:
    """Have this process end with that code `grace` seconds after a loss that blocks its device at the latest.

    Its own way out waits for the threads that feed the device, and those may wait for the device.
    """

    def end() -> None:
        group.lost.wait()
        time.sleep(grace)
        if group.is_rank_zero:
            print(f"diffctl: {GONE}", file=sys.stderr)
        _end_now(code)

    if group.loss_blocks:
        threading.Thread(target=end, name="loss", daemon=True).start()


def _end_now(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


def _die_with_parent() -> None:
    """Be killed with the process that started this one, even when that one is killed by SIGKILL."""
    starter = os.environ.get(STARTED_BY, os.getppid())
    if not die_with_parent(int(starter)):
        raise DiffctlError("the training's first process has ended")
