"""`diffctl run`: the pipeline as a flow on a Prefect server, and without one after the server fails."""

import asyncio
from typing import Any

from diffusion.config import load
from diffusion.layout import FORCED, dvc_stages, repository_problem
from diffusion.system.errors import UsageError
from diffusion.system.signals import interrupt_on_signal
from flows.dvc_stage import is_unchanged
from flows.output_relay import echo
from flows.pipeline_steps import (
    check_mlflow,
    check_options,
    model_mismatch,
    raw_files_changed,
    run_step,
    run_steps,
)
from flows.prefect_server.client import run_flow
from flows.prefect_server.local_servers import prefect_url
from flows.prefect_server.temporary_server import prefect_server
from flows.run_lock import hold_run_lock
from flows.stage_code import pipeline_stages, write_stage_code


def run_pipeline(*, push: bool = False, fresh: bool = False, keep: bool = False) -> str:
    """Bring every stage up to date and register the model; return the registry's decision.

    Raise UsageError before any work; StageFailed, DiffctlError or Interrupted if a step ends the run.
    """
    options, done = {"push": push, "fresh": fresh, "keep": keep}, dict[str, str | None]()

    def start_flow() -> Any:
        from flows.pipeline import done_steps, pipeline

        done_steps.set(done)
        return pipeline(**options, return_state=True)

    load()
    if problem := repository_problem():
        raise UsageError(": ".join(problem))
    check_options(**options)
    resume = "`diffctl run`" if fresh else "the same command"
    echo(f"==> starting; Ctrl-C saves the training, and {resume} resumes it\n")
    check_mlflow()
    with interrupt_on_signal(), hold_run_lock():
        if fresh:
            FORCED.unlink(missing_ok=True)  # of an earlier run
        if "code" in dvc_stages():
            write_stage_code()
        # One call of DVC instead of one per stage, and no temporary server.
        needs_server = any(options.values()) or FORCED.exists() or prefect_url() is not None
        if not needs_server and is_unchanged() and not raw_files_changed() and not model_mismatch():
            done |= dict.fromkeys(stages := pipeline_stages())
            echo("".join(f"==> {stage}: up to date\n" for stage in stages))
        else:
            with prefect_server() as url:
                run_flow(start_flow, url)
        # Without effect after a flow that completed: every step is in `done`.
        asyncio.run(run_steps(run_step, done, **options))
    return done["register"] or ""
