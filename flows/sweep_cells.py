"""The cells of a sweep, one after the other: as Prefect tasks if a server answers, else in a loop.

`dvc repro` needs no server, and a server that fails stops nothing: finished cells are in runs/cells/, and the
loop continues with the others.
"""

import math
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast
from uuid import UUID

from diffusion.layout import CELL_RUNS
from diffusion.system.errors import DiffctlError, Interrupted, reason
from diffusion.system.files import disk_errors
from diffusion.system.locks import group_lock
from diffusion.system.section import brief
from diffusion.system.signals import interrupt_on_signal
from flows.output_relay import echo
from flows.prefect_server.client import is_healthy, quiet_client, run_flow
from tracking.connectivity import redact_uri

if TYPE_CHECKING:
    from prefect import State

    from diffusion.protocol.grid import Cell
    from diffusion.protocol.sample_sections import SampleConfig
    from diffusion.sample.cell_images import ShardRunner
    from diffusion.sample.network_files import CellFiles

PARENT = "DIFFCTL_PARENT_TASK"  # the id of the task run that runs the stage

Show = Callable[[int, int], None]
ProgressOf = Callable[[str], AbstractContextManager[Show]]
"""Given a label, a context with a callback for (done, total)."""


class CellTasks:
    """Named tasks, each tried once; a failure does not affect the others."""

    def __init__(self, makers: dict[str, Callable[[], object]]) -> None:
        self.makers = makers
        self._errors: dict[str, Exception | None] = {}  # of the tried ones

    def left(self) -> list[str]:
        """Return the names of untried tasks, in order."""
        return [name for name in self.makers if name not in self._errors]

    def make(self, name: str) -> None:
        """Run one task; print, store and raise its exception. Interrupted leaves it untried."""
        try:
            with interrupt_on_signal(), disk_errors("its images"):
                self.makers[name]()
        except Exception as error:
            echo(f"{name} failed: {reason(error)}\n", err=True)
            self._errors[name] = error
            raise
        self._errors[name] = None

    def raise_failures(self) -> None:
        """Raise a DiffctlError with every failed cell, of the most specific class that all failures share."""
        failures = {name: error for name, error in self._errors.items() if error is not None}
        if failures:
            cells_of: dict[str, list[str]] = {}  # by reason: a full disk fails many cells
            for name, error in failures.items():
                cells_of.setdefault(reason(error), []).append(name)
            reasons = "; ".join(f"{brief(', '.join(names), str)} ({why})" for why, names in cells_of.items())
            kind = _shared_class(list(failures.values()))
            raise kind(f"{len(failures)} of {len(self.makers)} cells failed: {reasons}")


def _shared_class(errors: Sequence[BaseException]) -> type[DiffctlError]:
    """Return the most specific subclass of DiffctlError that all errors share, else DiffctlError."""
    for kind in type(errors[0]).__mro__:
        if issubclass(kind, DiffctlError) and all(isinstance(error, kind) for error in errors):
            return kind
    return DiffctlError


def hold_samples() -> AbstractContextManager[None]:
    """Keep `diffctl prune` from images, EMA profiles and fetched models during the block; others share it."""
    return group_lock(CELL_RUNS / "lock", "sweeps", math.inf)


def run_sweep(
    sample: "SampleConfig", cells: "Sequence[Cell]", files: "CellFiles", samples: Path, progress: ProgressOf
) -> None:
    """Sample every cell into `samples`/<cell>, in this process or on Ray by `sample.runner`.

    Raise DiffctlError with the failed cells after all others are finished, Interrupted on SIGINT or SIGTERM.
    """
    from diffusion.sample.cell_images import LocalRunner, make_cell

    def waiting(text: str) -> None:
        echo(f"{text}\n", err=True)

    runner: AbstractContextManager[ShardRunner] = LocalRunner(waiting=waiting)
    if sample.runner == "ray":
        from flows.ray.shard_runner import ray_runner

        runner = ray_runner(sample)
    with interrupt_on_signal(), hold_samples(), runner as run:

        def make(cell: "Cell") -> None:
            own, average_of = files.of(cell), None if cell.ema is None else files.model
            with progress(cell.name) as show:
                make_cell(sample, cell, own, samples / cell.name, show, run, average_of)

        by_model = sorted(cells, key=lambda cell: (cell.ema or 0.0, cell.guide or ""))  # loads each once
        run_cells(CellTasks({cell.name: partial(make, cell) for cell in by_model}))


def run_cells(cells: CellTasks) -> None:
    """Run the cells, as tasks of the server at PREFECT_API_URL if it answers."""
    url = os.environ.get("PREFECT_API_URL")
    if url and is_healthy(url, timeout=5):
        with quiet_client(url):
            run_flow(lambda: _flow(cells), url)
    elif url:
        away = f"no Prefect server answers at PREFECT_API_URL={redact_uri(url)}"
        echo(f"{away}: continuing without it\n", err=True)
    for name in cells.left():
        with suppress(Exception):  # stored for raise_failures
            cells.make(name)
    cells.raise_failures()


async def _flow(cells: CellTasks) -> "State":
    """Run a flow with a task per cell, as a child of the task in PARENT; its state is failed if a cell is."""
    from prefect import State, flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow_async
    from prefect.states import Cancelled

    names, parent = cells.left(), os.environ.get(PARENT)

    @task(task_run_name="{name}", cache_policy=NO_CACHE)
    async def cell(name: str) -> None:
        cells.make(name)

    @flow(name="sweep", flow_run_name=f"{len(names)} cells")
    async def sweep(names: list[str]) -> State | None:
        """Every cell of a sweep, one after the other."""
        for name in names:
            try:
                await cell(name)
            except Interrupted as stop:
                return Cancelled(message=str(stop), data=stop)
            except Exception:
                continue  # stored for raise_failures
        cells.raise_failures()
        return None

    values = {"names": names}
    async with get_client() as client:
        flow_run = await client.create_flow_run(
            sweep, parameters=values, parent_task_run_id=UUID(parent) if parent else None
        )
    return await cast("Awaitable[State]", run_flow_async(sweep, flow_run, values, return_type="state"))
