"""One run per folder: a run and all stages that it starts share one lock.

A stage that outlives its killed run holds the lock until it ends. So no other run resets, fetches or trains
at the same time.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from diffusion.system.locks import group_lock, holding_group

LOCK = Path("runs/work.lock")
VARIABLE = "DIFFCTL_WORK"  # the name of the run, for its stages
FLOW_RUN = "PREFECT__FLOW_RUN_ID"  # set by Prefect in the process of a worker's run


def current_run() -> str:
    """Return the name of this run: inherited, else of this process, with the worker's flow run if any."""
    # A flow run that is tried again keeps its id, while its earlier process may still work. The engine that
    # replaces the process of the pull step keeps the process's id, and gets none of its variables.
    flow_run = os.environ.get(FLOW_RUN)
    unique = f"flow run {flow_run}" if flow_run else uuid.uuid4().hex[:8]
    return os.environ.get(VARIABLE) or f"process {os.getpid()}, {unique}"


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables of this process and its children for the block, then restore them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def hold_run_lock(folder: Path = Path(), wait: float = 0.0, *, through_exec: bool = False) -> Iterator[None]:
    """Hold the run lock of the folder; processes started in the block share it.

    Raise LockBusy after `wait` seconds. With `through_exec` a program that replaces this process keeps it.
    """
    run, lock = current_run(), folder / LOCK
    busy = (
        f"another run, or a stage that outlived it, is running in {folder.resolve()} "
        f"({holding_group(lock) or 'it has just ended'}): wait for it to end"
    )
    with group_lock(lock, run, wait, busy, through_exec=through_exec), environment({VARIABLE: run}):
        yield


@contextmanager
def join_run() -> Iterator[None]:
    """Share the lock of the run that started this process; raise LockBusy if another one is running."""
    run = os.environ.get(VARIABLE)
    busy = f"the run that started this ({run}) is gone, and another one is running in this folder"
    with group_lock(LOCK, run, busy=busy) if run else nullcontext():
        yield
