"""The pipeline as a person runs it: on a Prefect server, or without one if that goes away."""

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from diffusion.config import load
from diffusion.system.signals import interrupt_on_signal
from flows.pipeline_steps import check_mlflow, check_options, run_step, run_steps, tell_if_older
from flows.prefect_server.flow_engine import run_flow
from flows.prefect_server.local_servers import PREFECT
from flows.prefect_server.temporary_server import prefect_server
from flows.run_lock import hold_run_lock

if TYPE_CHECKING:
    from prefect import State


def run_pipeline(*, push: bool = False, fresh: bool = False, keep: bool = False) -> str:
    """Bring everything up to date; returns what the registry made of the model.

    UsageError before anything starts; StageFailed, DiffctlError and Interrupted say what ended it.
    """
    load()
    check_options(push=push, fresh=fresh, keep=keep)
    check_mlflow()
    done: dict[str, str | None] = {}
    with interrupt_on_signal(), hold_run_lock(), prefect_server() as url:
        tell_if_older(PREFECT, url)
        run_flow(lambda: _flow(done, push=push, fresh=fresh, keep=keep), url)
        asyncio.run(run_steps(run_step, done, push=push, fresh=fresh, keep=keep))
    return done["register"] or ""


def _flow(done: dict[str, str | None], **options: bool) -> "Awaitable[State]":
    from flows.pipeline import done_steps, pipeline

    done_steps.set(done)
    return pipeline(**options, return_state=True)
