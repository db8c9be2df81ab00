"""The cells of a sweep, one after the other: as Prefect tasks if a server answers, else in a loop.

`dvc repro` needs no server, and a server that fails stops nothing: finished cells are in runs/cells/, and the
loop continues with the others.
"""

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from diffusion.system.errors import DiffctlError, Interrupted, UsageError, reason
from diffusion.system.signals import interrupt_on_signal
from flows.output_relay import echo
from flows.prefect_server.client import is_healthy, quiet_client, run_flow
from tracking.connectivity import redact_uri

if TYPE_CHECKING:
    from prefect import Flow, State

    from diffusion.protocol.grid import Cell
    from diffusion.protocol.sample_sections import SampleConfig
    from diffusion.sample.cell_images import ShardRunner
    from diffusion.sample.ema_models import EMAModelFiles

PARENT = "DIFFCTL_PARENT_TASK"  # the id of the task run that runs the stage

Show = Callable[[int, int], None]
ProgressOf = Callable[[str], AbstractContextManager[Show]]
"""Given a label, a context with a callback for (done, total)."""


class CellTasks:
    """Named tasks, each tried once; a failure does not affect the others."""

    def __init__(self, makers: dict[str, Callable[[], object]]) -> None:
        self.makers = makers
        self.failures: dict[str, Exception] = {}
        self._tried: set[str] = set()

    def left(self) -> list[str]:
        """Return the names of untried tasks, in order."""
        return [name for name in self.makers if name not in self._tried]

    def make(self, name: str) -> None:
        """Run one task; print, store and raise its exception. Interrupted leaves it untried."""
        try:
            with interrupt_on_signal():
                self.makers[name]()
        except Exception as error:
            echo(f"{name} failed: {reason(error)}\n")
            self.failures[name] = error
            self._tried.add(name)
            raise
        self._tried.add(name)

    def make_left(self) -> None:
        """Run the untried tasks in a loop."""
        for name in self.left():
            try:
                self.make(name)
            except Exception:
                continue  # stored for raise_failures

    def raise_failures(self) -> None:
        """Raise DiffctlError with every failed cell, or UsageError if all failures are usage errors."""
        if self.failures:
            refused = all(isinstance(error, UsageError) for error in self.failures.values())
            reasons = "; ".join(f"{name} ({reason(error)})" for name, error in self.failures.items())
            kind = UsageError if refused else DiffctlError
            raise kind(f"{len(self.failures)} of {len(self.makers)} cells failed: {reasons}")


def run_sweep(
    sample: "SampleConfig",
    cells: "Sequence[Cell]",
    models: "EMAModelFiles",
    samples: Path,
    progress: ProgressOf,
) -> None:
    """Sample every cell into `samples`/<cell>, in this process or on Ray as `sample.runner` says.

    Raise DiffctlError with the failed cells after all others are finished, Interrupted on SIGINT or SIGTERM.
    """
    from diffusion.sample.cell_images import make_cell

    with interrupt_on_signal(), _runner(sample) as run:

        def maker(cell: "Cell") -> Callable[[], None]:
            def make() -> None:
                own, of = models.file(cell), models.average_of(cell)
                with progress(cell.name) as show:
                    make_cell(sample, cell, own, samples / cell.name, show, run, of)

            return make

        by_model = sorted(cells, key=lambda cell: cell.ema or 0.0)  # loads each model once
        run_cells(CellTasks({cell.name: maker(cell) for cell in by_model}))


def _runner(sample: "SampleConfig") -> "AbstractContextManager[ShardRunner]":
    """Return the runner of shards: this process on one device, or Ray's workers."""
    from diffusion.sample.cell_images import LocalRunner

    if sample.runner == "ray":
        from flows.ray.shard_runner import ray_runner

        return ray_runner(sample)
    return LocalRunner(waiting=lambda text: echo(f"{text}\n"))


def run_cells(cells: CellTasks) -> None:
    """Run the cells, as tasks of the server at PREFECT_API_URL if it answers."""
    url = os.environ.get("PREFECT_API_URL")
    if url and is_healthy(url, timeout=5):
        with quiet_client(url):
            run_flow(lambda: _flow(cells), url)
    elif url:
        echo(f"no Prefect server answers at PREFECT_API_URL={redact_uri(url)}: continuing without it\n")
    cells.make_left()
    cells.raise_failures()


def _flow_run_name(names: list[str]) -> str:
    """Return the name of the flow run over these cells."""
    if len(names) < 2:
        return ", ".join(names) or "no cells"
    return f"{len(names)} cells, {names[0]} to {names[-1]}"  # Prefect's graph cannot show …


def _flow(cells: CellTasks) -> "Awaitable[State]":
    """Run a flow with a task per cell; its state is failed if a cell is, cancelled after a signal."""
    from prefect import State, flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.states import Cancelled

    @task(task_run_name="{name}", cache_policy=NO_CACHE)
    async def cell(name: str) -> None:
        cells.make(name)

    @flow(name="sweep", flow_run_name=_flow_run_name(cells.left()))
    async def sweep(names: list[str]) -> State | None:
        """Every cell of a sweep, one after the other."""
        progress = await _progress(len(names))
        for number, name in enumerate(names, start=1):
            try:
                await cell(name)
            except Interrupted as stop:
                return Cancelled(message=str(stop), data=stop)
            except Exception:
                continue  # stored for raise_failures
            finally:
                await progress(number)
        cells.raise_failures()
        return None

    return _started(sweep, cells.left())


async def _progress(total: int) -> "Callable[[int], Awaitable[None]]":
    """Return a callback that reports the number of tried cells to Prefect; errors are ignored."""
    import httpx
    from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
    from prefect.exceptions import PrefectException

    lost = (httpx.HTTPError, PrefectException)
    made = None
    with suppress(*lost):
        made = await acreate_progress_artifact(0.0, "sweep", description=f"0 of {total} cells")

    async def update(done: int) -> None:
        if made is not None:
            with suppress(*lost):
                words = f"{done} of {total} cells"
                await aupdate_progress_artifact(made, 100 * done / total, description=words)

    return update


async def _started(sweep: "Flow[..., Any]", names: list[str]) -> "State[Any]":
    """Run the flow over the cells, as a child of the task in PARENT if the server knows it."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectException
    from prefect.flow_engine import run_flow_async

    if parent := os.environ.get(PARENT):
        values = {"names": names}
        with suppress(httpx.HTTPError, PrefectException):
            async with get_client() as client:
                flow_run = await client.create_flow_run(
                    sweep, parameters=values, parent_task_run_id=UUID(parent)
                )
            ran = run_flow_async(sweep, flow_run, values, return_type="state")
            return await cast("Awaitable[State[Any]]", ran)
    return await cast("Awaitable[State[Any]]", sweep(names, return_state=True))
