"""The pipeline as `diffctl run`: on a Prefect server, and without one after the server fails."""

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from diffusion.config import load
from diffusion.system.signals import interrupt_on_signal
from flows.pipeline_steps import check_mlflow, check_options, run_step, run_steps
from flows.prefect_server.client import run_flow
from flows.prefect_server.temporary_server import prefect_server
from flows.run_lock import hold_run_lock

if TYPE_CHECKING:
    from prefect import State


def run_pipeline(*, push: bool = False, fresh: bool = False, keep: bool = False) -> str:
    """Bring every stage up to date and register the model; return the registry's decision.

    Raise UsageError before any work; StageFailed, DiffctlError or Interrupted if a step ends the run.
    """
    load()
    check_options(push=push, fresh=fresh, keep=keep)
    check_mlflow()
    done: dict[str, str | None] = {}
    with interrupt_on_signal(), hold_run_lock(), prefect_server() as url:
        run_flow(lambda: _start_flow(done, push=push, fresh=fresh, keep=keep), url)
        # Without effect after a flow that completed: every step is in `done`.
        asyncio.run(run_steps(run_step, done, push=push, fresh=fresh, keep=keep))
    return done["register"] or ""


def _start_flow(done: dict[str, str | None], **options: bool) -> "Awaitable[State]":
    from flows.pipeline import done_steps, pipeline

    done_steps.set(done)
    return pipeline(**options, return_state=True)
