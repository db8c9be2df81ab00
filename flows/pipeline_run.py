"""`diffctl run`: the pipeline as a flow on a Prefect server, and without one after the server fails.

The steps are the stages of dvc.yaml in order, the registration, and an optional push.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from typing import Any

from diffusion.config import load
from diffusion.layout import CELL_RUNS, FORCED, MODEL, PREPARED, dvc_stages, repository_problem
from diffusion.system.errors import UsageError
from diffusion.system.files import write_text
from diffusion.system.locks import file_lock
from diffusion.system.signals import check_signals, interrupt_on_signal
from flows.dvc_pull import fetch_pretrained
from flows.dvc_stage import DVC, has_remote, is_unchanged, refresh_code, reproduce, supervise
from flows.output_relay import echo
from flows.prefect_server.client import run_flow
from flows.prefect_server.local_servers import prefect_url
from flows.prefect_server.temporary_server import prefect_server
from flows.run_lock import hold_run_lock
from flows.stage_code import pipeline_stages, source_state, write_stage_code

RESUMABLE = ("train", "sample")  # stages that save their progress

Step = Callable[[str], Awaitable[str | None]]
"""Runs the named step; returns its result as text."""


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


def check_options(*, push: bool, fresh: bool, keep: bool) -> None:
    """Raise UsageError for contradicting options, and for a push without a remote."""
    if fresh and keep:
        raise UsageError("fresh starts again and keep resumes: give one of the two")
    if push and not has_remote():
        raise UsageError("push needs a DVC remote: `dvc remote add --default NAME URL`, then commit it")


def check_mlflow() -> None:
    """Raise MlflowDenied for wrong MLflow credentials, before the last step would fail on them.

    Print a message if MLflow does not answer: a training buffers its logs, and MLflow may be back by then.
    """
    from tracking.connectivity import MlflowUnavailable
    from tracking.store import check_access

    try:
        check_access()
    except MlflowUnavailable as away:
        echo(f"{away}: training continues without it, scores and the registry will need it\n")


async def run_step(name: str, write: Callable[[str], object] = echo) -> str | None:
    """Run one step, its output to `write`; raise StageFailed, DiffctlError or Interrupted if it fails."""
    if name == "register":
        from flows.registration import register_model

        return str(register_model())
    if name == "push":
        write("==> push\n")
        await supervise(name, [*DVC, "push"], write)
    else:
        forced = FORCED.read_text().split() if FORCED.exists() else []
        await reproduce(name, write, force=name in forced)
        if name in forced:
            write_text(FORCED, " ".join(stage for stage in forced if stage != name))
    if name == "data" and raw_files_changed():
        write("==> data: its raw files have changed since they were prepared\n")
        await reproduce(name, write, force=True)
    if name == "train" and (changed := model_mismatch()):
        write(f"==> train: {MODEL} was trained with other settings ({changed}): training again\n")
        await reproduce(name, write, force=True)
    return None


def model_mismatch() -> str:
    """Return the settings in which the model file differs from params.yaml; empty if it was trained by them.

    `dvc commit` records any model. Precision is left out, since each machine chooses it.
    """
    from diffusion.check.dependency_checks import changed_settings
    from diffusion.check.findings import Project

    return ", ".join(changed_settings(Project(load()))[:3])


def raw_files_changed() -> bool:
    """Return whether the raw files differ from the prepared ones; DVC does not track them."""
    from diffusion.check.findings import Project

    return Project(load()).raw_files_changed


async def run_steps(
    do: Step, done: dict[str, str | None], *, push: bool, fresh: bool = False, keep: bool = False
) -> None:
    """Run every step that is not in `done`, in order, and add it there with its result.

    `fresh` discards the saved progress of resumable stages, once, before the first try of each. DVC is forced
    to run these again, also by the next run if this one is interrupted: else its run cache restores the old
    outputs. `keep` lets the training resume from a state that other code saved.
    """
    digested: int | None = None
    for name in [*pipeline_stages(), "register", *["push"] * push]:
        if name in done:
            continue
        check_signals()
        if (state := source_state()) != digested:
            await refresh_code()
            digested = state
        if name == "train" and (fresh or keep):
            _prepare_training(fresh=fresh, keep=keep)
            if fresh:
                write_text(FORCED, " ".join(RESUMABLE))
        if name == "sample" and fresh:
            _discard_shards()
        done[name] = await do(name)
    FORCED.unlink(missing_ok=True)


def _prepare_training(*, fresh: bool, keep: bool) -> None:
    """Discard the saved training, or adopt another code's (`keep`); raise DiffctlError if it is running."""
    from diffusion.images.store import open_store
    from diffusion.images.store_meta import PreparedMeta
    from diffusion.system.devices import default_device
    from diffusion.train.checkpoint.run_dir import open_training
    from diffusion.train.plan import plan_training

    config = load()
    fetch_pretrained(config.train.init_from)
    meta = open_store(PREPARED / "train", PreparedMeta, unverified=True).meta
    with open_training(plan_training(config, meta, default_device()), fresh=fresh, keep=keep):
        pass


def _discard_shards() -> None:
    """Remove the finished shards of the current model and its EMA profiles; LockBusy while a sweep runs."""
    from diffusion.model.model_file import read_artefact
    from diffusion.sample.ema_files import existing_ema_models
    from diffusion.sample.sampling_card import cells_folder

    if MODEL.exists():
        busy = "a sweep uses these images: wait for it to end, then run this again"
        with file_lock(CELL_RUNS / "lock", timeout=0, busy=busy):
            for model in (MODEL, *existing_ema_models(MODEL, load().sweep.sigma_rels).values()):
                folder = cells_folder(read_artefact(model).model_sha256)
                if folder.exists():
                    shutil.rmtree(folder)
