"""Start and join the processes of a training, one per GPU; all end when one does.

The rank of a process comes from torchrun's environment variables RANK, WORLD_SIZE and LOCAL_RANK, which this
launcher sets for the processes that it starts.
"""

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

STARTED_BY = "DIFFCTL_STARTED_BY"  # the process that started this one as a worker
GRACE_SECONDS = 20.0  # for the other processes to end by themselves
POLL_SECONDS = 0.1


def is_follower() -> bool:
    """Whether this process is a rank other than 0, which neither saves nor logs."""
    return _is_launched() and int(os.environ["RANK"]) > 0


def process_count(train: OptimisationConfig) -> int:
    """Return how many processes `train.devices` requests here; UsageError for more than there are GPUs."""
    gpus = torch.cuda.device_count() if device_kind() == "cuda" else 0
    if train.devices == "auto":
        return max(1, min(gpus, train.batch_size))
    if gpus and train.devices > gpus:
        raise UsageError(f"{train.PREFIX}train.devices is {train.devices}, and there are {gpus} GPUs")
    return train.devices


def world_size(train: OptimisationConfig) -> tuple[int, int]:
    """Return the number of ranks, and of those on this machine; errors as `process_count`."""
    if _is_launched():
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
    """Join the training's ranks; a process that was not launched is rank 0 and starts the others.

    `command` starts another process. The GPUs are locked against other trainings and sweeps. While others
    hold them, this process waits, `waiting` is called once, and `check` may raise. DiffctlError when a worker
    has failed; none outlives this process. UsageError for more ranks than images in a batch.
    """
    if _is_launched():
        starter = int(os.environ.get(STARTED_BY, os.getppid()))
        die_with_parent(starter, "the training's first process")
        with _launched_rank(waiting, check) as group:
            yield group
    elif (count := process_count(train)) == 1:
        with acquire_device(waiting, check=check) as device:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            yield ProcessGroup(device)
    else:
        # Raises before anything is started.
        ProcessGroup(torch.device("cpu"), 0, count).share(train.batch_size, train.PREFIX)
        with acquire_gpus(count, waiting, check):
            store = TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)
            group = ProcessGroup(_rank_device(count), 0, count, store=store)
            with _started_workers(group, store, command):
                yield group


@contextmanager
def _launched_rank(waiting: OnWait | None, check: Check | None) -> Iterator[ProcessGroup]:
    """Join as the rank in the environment; the first process of a machine locks all GPUs there."""
    store, rank, world = next(rendezvous("env://"))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    with acquire_gpus(0 if int(os.environ.get("LOCAL_RANK", 0)) else local_world, waiting, check):
        group = ProcessGroup(_rank_device(local_world), rank, world, store=store)
        try:
            with join_group(group, store):
                yield group
        except RankFailed as error:
            if group.loss_blocks:
                exit_now(str(error) if group.is_rank_zero else "", error.exit_code)
            raise


@contextmanager
def _started_workers(group: ProcessGroup, store: TCPStore, command: Sequence[str]) -> Iterator[None]:
    workers = _Workers(group.world_size, command, store.port, group.over)
    try:
        with join_group(group, store):
            yield
    except RankFailed as error:
        message = workers.exit_report() or str(error)
        if group.loss_blocks:
            workers.stop()
            exit_now(message, DiffctlError.exit_code)
        raise DiffctlError(message) from error
    finally:
        workers.stop()


class _Workers:
    """The processes that rank 0 has started: ranks 1 and up.

    A thread watches them. It ends this process when a worker has failed and the main thread, blocked in a
    collective or by its GPU, does not notice.
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
                process_group=0,  # signals go to rank 0 alone, which agrees on a stop with the others
            )
            for rank in range(1, count)
        ]
        self._over = over
        threading.Thread(target=self._watch, name="ranks", daemon=True).start()

    def exit_report(self) -> str | None:
        """Describe the worker that failed, after a short wait for it; None if none did."""
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            for rank, process in enumerate(self._running, start=1):
                code = process.poll()
                if code and code != RankFailed.exit_code:  # the code of a rank that ended because of another
                    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                    return (
                        f"process {rank} of the training's {len(self._running) + 1} ended with {how}, so all "
                        "stop: the same command resumes from the saved state"
                    )
            time.sleep(POLL_SECONDS)
        return None

    def stop(self) -> None:
        """Wait for the workers to end, and kill those that do not."""
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
                    exit_now(self.exit_report() or "the other processes have ended", DiffctlError.exit_code)
                return


def exit_now(message: str, code: int) -> None:
    """Print the message and end this process without clean-up, which could wait for a blocked GPU."""
    if message:
        print(f"diffctl: {message}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the reader may be gone
            stream.flush()
    os._exit(code)


def _is_launched() -> bool:
    """Whether the environment makes this process one of several ranks."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def _rank_device(local_world: int) -> torch.device:
    """Return this rank's GPU, or the CPU; the ranks of a machine share its cores evenly."""
    if device_kind() == "cuda":
        device, gpus = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))), torch.cuda.device_count()
        if device.index >= gpus:
            seen = f"LOCAL_RANK is {device.index}, and this process sees {gpus} GPUs"
            raise UsageError(f"{seen}: start one process per GPU")
        torch.cuda.set_device(device)
        return device
    if local_world > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // local_world))
    return torch.device("cpu")
