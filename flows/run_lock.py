"""One run at a time in a folder: a run and every stage that it started hold one lock together.

So a stage that outlives its run, which was killed, keeps the next one out until it has ended too: nothing
resets, fetches or trains below it.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion.system.locks import group_lock, holding_group

LOCK = Path("runs/work.lock")
VARIABLE = "DIFFCTL_WORK"  # the name of the run, for the stages that it starts
FLOW_RUN = "PREFECT__FLOW_RUN_ID"  # which Prefect gives to who carries out a run for a worker


def current_run() -> str:
    """The name of this run: that of the run which started it, the worker's flow run, or a new one."""
    flow_run = os.environ.get(FLOW_RUN)
    named = f"flow run {flow_run}" if flow_run else f"process {os.getpid()}, {uuid.uuid4().hex[:8]}"
    return os.environ.get(VARIABLE) or named


@contextmanager
def hold_run_lock(folder: Path = Path(), wait: float = 0.0, *, through_exec: bool = False) -> Iterator[None]:
    """Be the one run in the folder; what is started inside the block belongs to it.

    LockBusy, saying who is at work, when that has not ended after `wait` seconds. With `through_exec` also
    the program that takes this process's place is that run.
    """
    run, lock = current_run(), folder / LOCK
    busy = (
        f"another run, or a stage that outlived it, is at work in {folder.resolve()} "
        f"({holding_group(lock) or 'it has just ended'}): wait for it to end"
    )
    before = os.environ.get(VARIABLE)
    with group_lock(lock, run, wait, busy, through_exec=through_exec):
        os.environ[VARIABLE] = run
        try:
            yield
        finally:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before


@contextmanager
def join_run() -> Iterator[None]:
    """Belong to the run that started this process, if one did, as long as the block lasts.

    LockBusy when that run is gone and another one is at work.
    """
    run = os.environ.get(VARIABLE)
    if not run:
        yield
        return
    busy = f"the run that started this ({run}) is gone, and another one is at work in this folder"
    with group_lock(LOCK, run, busy=busy):
        yield
