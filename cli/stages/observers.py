"""Observers of a training: console, spool and scores. They change no result."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from cli.shared.console import Show, print_line, progress
from cli.stages.preview import write_preview
from diffusion.evaluate.training_scores import ScoredCheckpoints, ValidationScorer
from diffusion.images.store import ImageStore
from diffusion.model.counted_passes import count_parameters
from diffusion.model.model_file import Artefact, read_artefact
from diffusion.system.checksums import add_checksum
from diffusion.system.devices import default_device, device_name
from diffusion.system.errors import DiffctlError, Interrupted
from diffusion.system.files import write_json
from diffusion.system.signals import StopRequest
from diffusion.train.checkpoint.run_dir import RunDir
from diffusion.train.checkpoint.run_record import FACTS, TrainingFacts, TrainingIdentity, read_facts
from diffusion.train.checkpoint.state_files import SavedState
from diffusion.train.checkpoint.state_mirror import VARIABLE
from diffusion.train.observers import Observer, observer_guard
from diffusion.train.plan import DenoiserPlan, plan_artefact
from diffusion.train.train_state import TrainState
from diffusion.train.validation_loss import ValidationLoss, add_to_history
from tracking.keys import GIT_COMMIT, GIT_DIRTY, MODEL_FOLDER, git_tags
from tracking.spool.event_log import Spool
from tracking.system_metrics import SystemMetrics

BEAT_SECONDS = 10.0
SHORT_COMMIT = 9  # digits
SYSTEM_SECONDS = 10.0  # between system metrics
SHOWN = ("loss", "mse", "vlb", "accuracy", "grad_norm")  # on the live line


class ConsoleTraining(Observer):
    """The observer that reports on the console under the name of a stage, and writes a heartbeat."""

    is_trial = False
    """Whether it is of a search or a verdict: its steps are of one code, and its start is not explained."""

    def __init__(self, name: str, run: RunDir, show: Show, heldout: ValidationLoss | None = None) -> None:
        self.name, self.run = name, run
        self._show, self._heldout = show, heldout
        self._beat_at = 0.0
        self.validated: dict[str, float] = {}  # the latest validation losses, which may not be finite

    def announce(self, state: TrainState, ema: nn.Module) -> None:
        """Print the folder of the training, and where it resumes or why it starts from scratch."""
        step, total, code = state.step, state.plan.train.steps, state.plan.code[-1].digest
        if self.is_trial and any(since.digest != code for since in state.code):
            found = f"{self.run.folder} was continued from other code (`diffctl run --keep`)"
            raise DiffctlError(f"{found}, and trials are of one code: set another train.seed, or remove it")
        how = f"resuming after step {step:,} of {total:,}" if step else f"{total:,} steps"
        print_line(self.name, f"{how}, state in {self.run.folder}")
        if self.run.fetched:
            print_line(self.name, f"the state of step {self.run.fetched:,} came from {VARIABLE}")
        if self.run.start:
            print_line(self.name, self.run.start.describe())
        elif not self.is_trial and not step and (changes := self.run.changes()):
            print_line(self.name, changes)
        if changed := state.change_of_code():
            before, now = changed
            change = f"these steps used torch {before.torch}, the next ones use {now.torch}"
            if before.digest != now.digest:
                change = f"the code has changed since these steps ({before.digest}, now {now.digest})"
            print_line(self.name, change)

    def save(self, saved: SavedState) -> None:
        """Save the state."""
        self.run.writer.save(saved)

    def finished(self, model: Path) -> None:
        """Print the path of the model file."""
        print_line("model", str(model))

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        """Update the live line and the heartbeat."""
        shown = [f"{name} {values[name]:.4f}" for name in SHOWN if name in values]
        self._show(step, total, " · ".join(shown))
        if time.monotonic() - self._beat_at > BEAT_SECONDS:
            self._beat_at = time.monotonic()
            with observer_guard("heartbeat"):
                self.run.beat(step)

    def validate(self, state: TrainState, network: nn.Module, ema: nn.Module) -> dict[str, float]:
        """Return the validation losses, if there are images for them."""
        self.validated = self._heldout.losses(state, network, ema) if self._heldout else {}
        return self.validated


class Validation(NamedTuple):
    """What scores one training at every `train.eval_every` steps."""

    artefact: Artefact
    scorer: ValidationScorer
    checkpoints: ScoredCheckpoints
    stop: StopRequest


class TrackedTraining(ConsoleTraining):
    """The observer that adds metrics, previews, scores and the model to the spool of MLflow."""

    def __init__(
        self,
        run: RunDir,
        plan: DenoiserPlan,
        spool: Spool,
        show: Show,
        validation: Validation | None = None,
        heldout: ValidationLoss | None = None,
    ) -> None:
        super().__init__("train", run, show, heldout)
        self.spool, self._plan, self._validation = spool, plan, validation
        self._system, self._system_at = SystemMetrics(), 0.0
        self._window: tuple[float, int] | None = None
        self.on_validation: Callable[[int, float], None] | None = None  # of the step and the EMA's loss
        self.repeats_validation = False  # of a complete training: its loss may be of other images or code
        self.real: ImageStore | None = None  # below previews
        self._began, self._first_step = time.monotonic(), 0
        self._model_sha256: str | None = None

    def announce(self, state: TrainState, ema: nn.Module) -> None:
        """As the base class, with a change of protocol; a score that a stop interrupted is repeated now."""
        super().announce(state, ema)
        if self._validation is not None:  # kept checkpoints name the code that trained them
            artefact = plan_artefact(self._plan, state.code)
            self._validation = self._validation._replace(artefact=artefact)
            with observer_guard("comparison with earlier scores"):
                if state.step and (fields := self._validation.checkpoints.changed_fields()):
                    text = f"validation/… are of another protocol from step {state.step:,} on: fields "
                    print_line(self.name, text + ", ".join(fields))
        self._began, self._first_step = time.monotonic(), state.step
        if self.repeats_validation and state.step == self._plan.train.steps and state.shards is None:
            losses = super().validate(state, state.network.eval(), ema)
            add_to_history(state.history, state.step, losses)
        self.catch_up(state.step, ema)

    def save(self, saved: SavedState) -> None:
        """Save the state, after an fsync of the logs of its steps."""
        with self._paused():
            self.spool.sync()
            super().save(saved)

    def finished(self, model: Path) -> None:
        """Add the model file to the spool and print its path."""
        self._model_sha256 = read_artefact(model).model_sha256
        self.spool.artifact(model, folder=MODEL_FOLDER)
        super().finished(model)

    def identity(self) -> dict[str, Any]:
        """Return the content of models/run.json: the key of the MLflow run, and facts for the report.

        A session that trains no step returns the facts of an earlier one, so that the file does not change.
        """
        is_complete = self._first_step == self._plan.train.steps
        if (facts := read_facts(self.run.folder) if is_complete else None) is None:
            git = git_tags()
            commit = git.get(GIT_COMMIT)
            facts = TrainingFacts(
                ended=round(time.time()),
                seconds=round(time.monotonic() - self._began, 1),
                first_step=self._first_step,
                parameters=count_parameters(self._plan.network),
                hardware=device_name(default_device()),
                commit=commit and commit[:SHORT_COMMIT] + "+" * (git[GIT_DIRTY] == "true"),
            )
            write_json(self.run.folder / FACTS, add_checksum(facts.model_dump(mode="json")))
        identity = TrainingIdentity(
            key=self.run.key,
            fingerprint=self.run.folder.name,
            model_sha256=self._model_sha256,
            facts=facts,
        )
        return identity.model_dump(mode="json")

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Log the means of a window of steps, and the images per second without other work."""
        now = time.monotonic()
        if self._window:
            since, start = self._window
            images = (step - start) * self._plan.train.batch_size
            values = {**values, "images_per_second": images / (now - since)}
        self._window = (now, step)
        if now - self._system_at > SYSTEM_SECONDS:
            self._system_at = now
            values = {**values, **self._system.read()}
        self.spool.metrics(step, values)

    def preview(self, step: int, network: nn.Module, ema: nn.Module) -> None:
        """Log a preview of fixed images: a row of raw weights, one of EMA weights and one of real images."""
        path = self.run.folder / "previews" / f"{step:09d}.png"
        with self._paused():
            write_preview(path, self._plan, network, ema, self.real)
            self.spool.image(step, "preview", path)

    def validate(self, state: TrainState, network: nn.Module, ema: nn.Module) -> dict[str, float]:
        """Return the validation losses and add them to the spool."""
        with self._paused():
            losses = super().validate(state, network, ema)
        if losses:
            self.spool.metrics(state.step, {f"val/{name}": value for name, value in losses.items()})
            if self.on_validation is not None:
                self.on_validation(state.step, losses["loss"])
        return losses

    def evaluate(self, step: int, ema: nn.Module) -> None:
        """Score the EMA and log the scores; `train.keep` decides which checkpoints stay.

        A stop interrupts it, and the resumed training repeats it.
        """
        if self._validation is None:
            return
        artefact, scorer, checkpoints, stop = self._validation

        def watch(done: int, total: int) -> None:
            stop.raise_if_set()
            show(done, total)

        with self._paused():
            try:
                with progress(f"scoring step {step:,}") as show:
                    scores = scorer.scores(ema, artefact, watch)
            except Interrupted:
                return
            path, gone = checkpoints.save(step, scores, ema, artefact)
            self.spool.checkpoint(step, path, {f"validation/{name}": value for name, value in scores.items()})
            for old in gone:
                self.spool.dropped(old)
            checkpoints.record(step, scores, gone)  # the last, so that a killed training repeats the step

    def catch_up(self, step: int, ema: nn.Module) -> None:
        """Compute the score that is due after `step` steps, if it is missing."""
        if not (step and self._plan.train.is_due(step, "eval_every") and self._validation):
            return
        with observer_guard(f"score of step {step:,}"):
            if step not in self._validation.checkpoints.scores():
                self.evaluate(step, ema)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Exclude the time of the block from the images per second."""
        began = time.monotonic()
        try:
            yield
        finally:
            if self._window:
                since, start = self._window
                self._window = (since + time.monotonic() - began, start)
