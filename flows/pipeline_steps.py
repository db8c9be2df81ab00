"""The steps of the pipeline: DVC's stages in the graph's order, the registration, and a push if asked for."""

import shutil
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from diffusion.layout import MODEL, PREPARED
from diffusion.system.errors import UsageError
from diffusion.system.signals import check_signals
from flows.dvc_stage import STAGES, Write, has_remote, push_outs, reproduce
from flows.output_relay import echo

RESUMABLE = ("train", "sample")  # the stages that save what they have and go on from it

if TYPE_CHECKING:
    from diffusion.train.identity import DenoiserPlan
    from flows.prefect_server.local_servers import ServerKind

Step = Callable[[str, bool], Awaitable[str | None]]
"""Takes a step's name and whether a resumable stage is made anew; gives what is to be said of it."""


def check_options(*, push: bool, fresh: bool, keep: bool) -> None:
    """UsageError for options that contradict each other, or a push to nowhere: not as the last step."""
    if fresh and keep:
        raise UsageError("fresh begins anew and keep goes on: give one of the two")
    if push and not has_remote():
        raise UsageError(
            "push needs a DVC remote: add one with `dvc remote add --default NAME URL`, and commit "
            ".dvc/config for scheduled runs"
        )


def check_mlflow() -> None:
    """MlflowRefused at once where MLflow wants another user or password, which the last step would find out.

    One that does not answer is told, and one that is older than MLflow here: a training keeps what it would
    log, and by then it may be back.
    """
    from flows.prefect_server.local_servers import MLFLOW
    from tracking.ask import check_access
    from tracking.connectivity import MlflowError, MlflowUnavailable
    from tracking.store import tracking_uri

    try:
        check_access()
    except MlflowUnavailable as away:
        echo(f"{away}: training goes on without it, scores and the registry will need it\n")
    except MlflowError:
        tell_if_older(MLFLOW, tracking_uri())
        raise
    else:
        tell_if_older(MLFLOW, tracking_uri())


def tell_if_older(kind: "ServerKind", url: str) -> None:
    """Say of a server that it is older than the package here: what it refuses then is no riddle."""
    from flows.versions import older

    if sentence := older(kind, url):
        echo(f"{sentence}\n")


async def run_step(name: str, fresh: bool, write: Write = echo) -> str | None:
    """Do one step, its output to `write`; StageFailed, DiffctlError and Interrupted say what ended it."""
    if name == "register":
        from flows.registration import register_model

        return str(register_model())
    if name == "push":
        await push_outs(write)
    else:
        await reproduce(name, force=fresh and name in RESUMABLE, write=write)
    if name == "data" and _raw_files_changed():
        write("==> data: its raw files have changed since they were prepared\n")
        await reproduce(name, force=True, write=write)
    return None


def _raw_files_changed() -> bool:
    """Whether the data's folder has other files than the prepared ones, which DVC does not look at."""
    from diffusion.check.findings import Project
    from diffusion.config import load

    return Project(load()).raw_files_changed


async def run_steps(
    do: Step, done: dict[str, str | None], *, push: bool, fresh: bool = False, keep: bool = False
) -> None:
    """Do every step that is not in `done`, in order, and put it there with what is to be said of it.

    `fresh` discards what the resumable stages saved, once, before the first try of each. `keep` has the
    training go on from what other code has saved.
    """
    for name in [*STAGES, "register", *["push"] * push]:
        if name in done:
            continue
        check_signals()
        if fresh and name in RESUMABLE:
            _discard(name)
        if keep and name == "train":
            _keep_training()
        done[name] = await do(name, fresh)


def _discard(stage: str) -> None:
    """Remove what the stage would go on from with the present params.yaml and data.

    DiffctlError when that training is running.
    """
    if stage == "train":
        _discard_training()
    elif MODEL.exists():
        from diffusion.config import load
        from diffusion.model.model_file import read_artefact
        from diffusion.sample.ema_models import existing_ema_models
        from diffusion.sample.shards import cells_folder

        for model in (MODEL, *existing_ema_models(MODEL, load().sweep.widths).values()):
            folder = cells_folder(read_artefact(model).model_sha256)
            if folder.exists():
                shutil.rmtree(folder)


def _discard_training() -> None:
    from diffusion.train.run_folder import open_training

    with open_training(_training(), fresh=True):
        pass


def _keep_training() -> None:
    from diffusion.train.run_folder import open_training

    with open_training(_training(), keep=True):
        pass


def _training() -> "DenoiserPlan":
    """What params.yaml's training gives."""
    from diffusion.config import load
    from diffusion.images.store import open_store
    from diffusion.images.store_meta import PreparedMeta
    from diffusion.system.devices import default_device
    from diffusion.train.identity import plan_training
    from flows.fetch_pretrained import fetch_pretrained

    config = load()
    fetch_pretrained(config.train.start)
    meta = open_store(PREPARED / "train", PreparedMeta, unverified=True).meta
    return plan_training(config, meta, default_device())
