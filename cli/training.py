"""The train stage's surroundings: the spool, its sender and the terminal. All of it only watches."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cli.midway import Midway, scored_images
from cli.observe import Watch
from cli.progress import progress

if TYPE_CHECKING:
    from diffusion.code import CodeSince
    from diffusion.config import Config
    from diffusion.resolve import TrainPlan
    from diffusion.signals import StopRequest
    from diffusion.training import TrainState
    from diffusion.trainrun import TrainRun
    from tracking.spool import Spool

# What an unreachable MLflow may cost at the end of a training; `diffctl sync` does the rest.
SENDER_SECONDS = {"FINISHED": 20.0, "FAILED": 10.0, "KILLED": 3.0}


@dataclass(frozen=True)
class Tracked:
    """A training under watch."""

    run: "TrainRun"
    spool: "Spool"
    watch: Watch

    def announce(self, state: "TrainState") -> None:
        """Say where the training lies, where it starts, and if that is at nothing, what is new about it.

        A score that the stop before it cut short is made now.
        """
        step, total = state.step, state.artefact.train.steps
        how = f"going on after step {step:,} of {total:,}" if step else f"{total:,} steps"
        typer.echo(f"train: {how}, state in {self.run.folder}", err=True)
        if not step and (changes := self.run.changes()):
            typer.echo(f"train: {changes}", err=True)
        if changed := state.change_of_code():
            typer.echo(f"train: {self._said_of(*changed)}", err=True)
        self.watch.catch_up(step, state.ema)

    def _said_of(self, before: "CodeSince", now: "CodeSince") -> str:
        if before.digest != now.digest:
            return f"the code has changed since it made these steps ({before.digest}, now {now.digest})"
        return f"these steps were made by torch {before.torch}, the following ones are by {now.torch}"

    def save(self, state: "TrainState") -> None:
        """Keep the state; what it will not replay is in the spool, on the disk, before it counts."""
        with self.watch.paused():
            self.spool.sync()
            self.run.save(state)

    def finished(self, model: Path) -> None:
        """Keep the model file for MLflow and say where it is."""
        from tracking.names import MODEL_FOLDER

        self.spool.artifact(model, folder=MODEL_FOLDER)
        typer.echo(f"model: {model}", err=True)

    def identity(self) -> dict[str, Any]:
        """What models/run.json says: the training's key, by which its MLflow run is found."""
        return {"key": self.run.key, "fingerprint": self.run.folder.name}


@contextmanager
def watched(
    run: "TrainRun", artefact: "TrainPlan", config: "Config", stop: "StopRequest"
) -> Iterator[Tracked]:
    """Watch a training: its spool is open and being sent; how the block ends becomes the run's status."""
    from diffusion.errors import Interrupted
    from tracking.names import CODE, DATA_DIGEST, FINGERPRINT, experiment_name, git_tags
    from tracking.sender import start
    from tracking.spool import Spool

    name = f"{artefact.data.name}-{run.folder.name[:8]}"
    spool = Spool(run.folder, run.key, name, experiment_name(artefact.data.name))
    spool.params(config.model_dump(mode="json"))
    tags = {FINGERPRINT: run.folder.name, DATA_DIGEST: artefact.data.digest}
    made_by = artefact.code[-1]
    tags |= {"diffctl.precision": artefact.precision, CODE: made_by.digest, "diffctl.torch": made_by.torch}
    spool.tags({**tags, **git_tags(Path())})
    spool.dataset(artefact.data.name, artefact.data.digest, artefact.data.classes)
    sender = start(run.folder)
    status = "FAILED"
    try:
        midway = _midway(run, artefact, config, spool, stop) if artefact.train.eval_every else None
        with progress("train", per=artefact.train.batch_size) as show:
            yield Tracked(run, spool, Watch(run, artefact, spool, show, midway))
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        spool.close(status)
        sender.close(SENDER_SECONDS[status])


def _midway(
    run: "TrainRun", artefact: "TrainPlan", config: "Config", spool: "Spool", stop: "StopRequest"
) -> Midway:
    """What scores the EMA in the midst of the training; what is missing for it is told before that begins."""
    from diffusion.devices import default_device
    from diffusion.evaluation.extractors import load_extractor
    from diffusion.evaluation.midway import Checkpoints, MidwayScorer
    from diffusion.evaluation.reference import find_reference
    from diffusion.layout import PREPARED, REFERENCE
    from diffusion.resolve import result_of

    section = config.evaluate
    extractor = load_extractor(section.extractor, section.weights, default_device())
    with progress("reference") as show:
        places = (REFERENCE, run.folder / "reference")
        reference = find_reference(section, extractor, PREPARED, places, show)
    scorer = MidwayScorer(scored_images(config), extractor, reference, section)
    folder, keep = run.folder / "checkpoints", artefact.train.keep
    checkpoints = Checkpoints(folder, keep, scorer.ranked_by, scorer.card)
    return Midway(result_of(artefact), scorer, checkpoints, spool, stop)
