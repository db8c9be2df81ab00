"""The cells of a sweep, one after the other: Prefect tasks where a server is there, a plain loop without.

`dvc repro` needs no server, and no server can stop the work: what is finished lies under runs/cells/, and
a server that goes away leaves the rest to the loop.
"""

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.system.errors import DiffctlError, Interrupted, UsageError, reason
from diffusion.system.signals import ended_by_signal
from flows.engine import run_flow
from flows.server import answers, quiet_client
from flows.terminal import say
from tracking.reach import public

if TYPE_CHECKING:
    from prefect import State

    from diffusion.protocol.grid import Cell
    from diffusion.sample.config import SampleConfig
    from diffusion.sample.sweep import Runner

Show = Callable[[int, int], None]
ProgressOf = Callable[[str], AbstractContextManager[Show]]
"""Given a label, a context with a function to call with (done, total)."""


class Cells:
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
            with ended_by_signal():
                self.makers[name]()
        except Exception as error:
            say(f"{name} failed: {reason(error)}\n")
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
    sample: "SampleConfig", cells: "Sequence[Cell]", model: Path, samples: Path, progress: ProgressOf
) -> None:
    """Make every cell at `samples`/<cell>, by the runner that the section `sample` names.

    DiffctlError names the cells that failed, after all others were made; Interrupted on SIGINT or SIGTERM.
    """
    from diffusion.sample.sweep import make_cell

    with ended_by_signal(), _runner(sample) as run:

        def maker(cell: "Cell") -> Callable[[], None]:
            def make() -> None:
                with progress(cell.name) as show:
                    make_cell(sample, cell, model, samples / cell.name, show, run)

            return make

        make_all(Cells({cell.name: maker(cell) for cell in cells}))


def _runner(sample: "SampleConfig") -> "AbstractContextManager[Runner]":
    """What makes the images until the block ends: this process on a device of its own, or Ray's workers."""
    from diffusion.sample.sweep import LocalRunner

    if sample.runner == "ray":
        from flows.ray_runner import ray_runner

        return ray_runner(sample)
    return LocalRunner(waiting=lambda text: say(f"{text}\n"))


def make_all(cells: Cells) -> None:
    """Make the cells, as tasks on the server that PREFECT_API_URL names where it answers."""
    url = os.environ.get("PREFECT_API_URL")
    if url and answers(url, timeout=5):
        with quiet_client(url):
            run_flow(lambda: _flow(cells), url)
    elif url:
        say(f"no Prefect server answers at PREFECT_API_URL={public(url)}: going on without it\n")
    cells.make_left()
    cells.raise_failures()


def _flow(cells: Cells) -> "Awaitable[State]":
    """The final state of a flow with a task a cell: failed when one is, cancelled by a signal."""
    from prefect import State, flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.states import Cancelled

    @task(task_run_name="{name}", cache_policy=NO_CACHE)
    async def cell(name: str) -> None:
        cells.make(name)

    @flow(name="sweep")
    async def sweep(names: list[str]) -> State | None:
        """Every cell of a sweep, one after the other."""
        for name in names:
            try:
                await cell(name)
            except Interrupted as stop:
                return Cancelled(message=str(stop), data=stop)
            except Exception:
                continue  # it is kept for the end
        cells.raise_failures()
        return None

    return sweep(cells.left(), return_state=True)
