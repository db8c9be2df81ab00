"""The cells of a sweep, one after the other: Prefect tasks where a server is there, a plain loop without.

`dvc repro` needs no server, and no server can stop the work: what is finished lies under runs/cells/, and
a server that goes away leaves the rest to the loop.
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
    from prefect.client.schemas.objects import FlowRun

    from diffusion.protocol.grid import Cell
    from diffusion.protocol.sample_sections import SampleConfig
    from diffusion.sample.cell_images import ShardRunner
    from diffusion.sample.ema_models import EMAModelFiles

PARENT = "DIFFCTL_PARENT_TASK"  # the id of the task run that a stage is the work of

Show = Callable[[int, int], None]
ProgressOf = Callable[[str], AbstractContextManager[Show]]
"""Given a label, a context with a function to call with (done, total)."""


class CellTasks:
    """Named pieces of work, each tried once; a failing one leaves the others alone."""

    def __init__(self, makers: dict[str, Callable[[], object]]) -> None:
        self.makers = makers
        self.failures: dict[str, Exception] = {}
        self._tried: set[str] = set()

    def left(self) -> list[str]:
        """The names that nobody tried yet, in order."""
        return [name for name in self.makers if name not in self._tried]

    def make(self, name: str) -> None:
        """Make one; its exception is said, kept and raised. Interrupted leaves it untried."""
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
        """Make what is left, in a plain loop."""
        for name in self.left():
            try:
                self.make(name)
            except Exception:
                continue  # it is kept for the end

    def raise_failures(self) -> None:
        """DiffctlError that names every cell that failed, and why; UsageError when all were refused."""
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
    """Make every cell at `samples`/<cell>, by the runner that the section `sample` names.

    DiffctlError names the cells that failed, after all others were made; Interrupted on SIGINT or SIGTERM.
    """
    from diffusion.sample.cell_images import make_cell

    with interrupt_on_signal(), _runner(sample) as run:

        def maker(cell: "Cell") -> Callable[[], None]:
            def make() -> None:
                own, of = models.file(cell), models.average_of(cell)
                with progress(cell.name) as show:
                    make_cell(sample, cell, own, samples / cell.name, show, run, of)

            return make

        by_model = sorted(cells, key=lambda cell: cell.ema or 0.0)  # each is loaded once
        run_cells(CellTasks({cell.name: maker(cell) for cell in by_model}))


def _runner(sample: "SampleConfig") -> "AbstractContextManager[ShardRunner]":
    """What makes the images until the block ends: this process on a device of its own, or Ray's workers."""
    from diffusion.sample.cell_images import LocalRunner

    if sample.runner == "ray":
        from flows.ray.shard_runner import ray_runner

        return ray_runner(sample)
    return LocalRunner(waiting=lambda text: echo(f"{text}\n"))


def run_cells(cells: CellTasks) -> None:
    """Make the cells, as tasks on the server that PREFECT_API_URL names where it answers."""
    url = os.environ.get("PREFECT_API_URL")
    if url and is_healthy(url, timeout=5):
        with quiet_client(url):
            run_flow(lambda: _flow(cells), url)
    elif url:
        echo(f"no Prefect server answers at PREFECT_API_URL={redact_uri(url)}: continuing without it\n")
    cells.make_left()
    cells.raise_failures()


def run_name(names: list[str]) -> str:
    """What the run over these cells is called in Prefect."""
    if len(names) < 2:
        return ", ".join(names) or "no cells"
    return f"{len(names)} cells, {names[0]} to {names[-1]}"  # Prefect's graph has no …


def _flow(cells: CellTasks) -> "Awaitable[State]":
    """The final state of a flow with a task a cell: failed when one is, cancelled by a signal."""
    from prefect import State, flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.states import Cancelled

    @task(task_run_name="{name}", cache_policy=NO_CACHE)
    async def cell(name: str) -> None:
        cells.make(name)

    @flow(name="sweep", flow_run_name=run_name(cells.left()))
    async def sweep(names: list[str]) -> State | None:
        """Every cell of a sweep, one after the other."""
        progress = await _progress(len(names))
        for number, name in enumerate(names, start=1):
            try:
                await cell(name)
            except Interrupted as stop:
                return Cancelled(message=str(stop), data=stop)
            except Exception:
                continue  # it is kept for the end
            finally:
                await progress(number)
        cells.raise_failures()
        return None

    return _started(sweep, cells.left())


async def _progress(total: int) -> "Callable[[int], Awaitable[None]]":
    """Tells Prefect, with the number of cells that were tried, how far the sweep is, as long as it hears."""
    import httpx
    from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
    from prefect.exceptions import PrefectException

    lost = (httpx.HTTPError, PrefectException)
    made = None
    with suppress(*lost):
        made = await acreate_progress_artifact(0.0, "sweep", description=f"0 of {total} cells")

    async def tell(done: int) -> None:
        if made is not None:
            with suppress(*lost):
                words = f"{done} of {total} cells"
                await aupdate_progress_artifact(made, 100 * done / total, description=words)

    return tell


async def _started(sweep: "Flow[..., Any]", names: list[str]) -> "State[Any]":
    """The final state of the flow over the cells, below the task that runs this stage where there is one."""
    from prefect.flow_engine import run_flow_async

    flow_run = await _below(os.environ.get(PARENT), sweep, names)
    state: State[Any]
    if flow_run is None:
        state = await cast("Awaitable[State[Any]]", sweep(names, return_state=True))
    else:
        ran = run_flow_async(sweep, flow_run, {"names": names}, return_type="state")
        state = await cast("Awaitable[State[Any]]", ran)
    return state


async def _below(parent: str | None, sweep: "Flow[..., Any]", names: list[str]) -> "FlowRun | None":
    """A run of the flow below a task run; None without one, or where the server does not know it yet."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectException

    if not parent:
        return None
    try:
        async with get_client() as client:
            return await client.create_flow_run(
                sweep, parameters={"names": names}, parent_task_run_id=UUID(parent)
            )
    except (httpx.HTTPError, PrefectException):
        return None
