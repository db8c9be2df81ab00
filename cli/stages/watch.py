"""Observers of a training: console, spool and previews. They change no result."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import nn

from cli.shared.progress import Show
from cli.stages.validation import Validation
from diffusion.images.pictures import enlarge, grid, png_bytes
from diffusion.images.pixels import to_nhwc
from diffusion.model.model_file import LoadedModel
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.class_labels import mixed_condition
from diffusion.sample.generate import generate
from diffusion.system.files import write_atomic
from diffusion.train.checkpoint.run_dir import RunDir
from diffusion.train.observers import observer_guard
from diffusion.train.plan import DenoiserPlan, plan_artefact
from diffusion.train.validation_loss import ValidationLoss
from tracking.spool.spool_writer import Spool
from tracking.system_metrics import SystemMetrics

OnValidation = Callable[[int, float], None]  # called with the step and the validation loss of the EMA

BEAT_SECONDS = 10.0
SYSTEM_SECONDS = 10.0  # between system metrics
PREVIEW_STEPS = 20  # DDIM steps of a preview
SHOWN = ("loss", "mse", "vlb", "accuracy", "grad_norm")  # on the live line


class ConsoleLine:
    """The console observer: a live line, and a heartbeat in the run's folder."""

    def __init__(self, run: RunDir, show: Show, heldout: ValidationLoss | None = None) -> None:
        self._run, self._show, self._heldout = run, show, heldout
        self._beat_at = 0.0

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        """Update the live line and the heartbeat."""
        shown = [f"{name} {values[name]:.4f}" for name in SHOWN if name in values]
        self._show(step, total, " · ".join(shown))
        if time.monotonic() - self._beat_at > BEAT_SECONDS:
            self._beat_at = time.monotonic()
            with observer_guard("heartbeat"):
                self._run.beat(step)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Do nothing: the loss curve is written at the end."""

    def preview(self, step: int, network: nn.Module, ema: nn.Module) -> None:
        """Draw no preview."""

    def validate(self, step: int, network: nn.Module, ema: nn.Module) -> dict[str, float]:
        """Return the validation losses, if there are images for them."""
        return self._heldout.losses(network, ema) if self._heldout else {}

    def evaluate(self, step: int, ema: nn.Module) -> None:
        """Compute no score."""


class SpoolObserver(ConsoleLine):
    """The observer that adds metrics, previews and scores to the spool of MLflow.

    `on_validation` is called with each validation loss.
    """

    def __init__(
        self,
        run: RunDir,
        plan: DenoiserPlan,
        spool: Spool,
        show: Show,
        validation: Validation | None = None,
        heldout: ValidationLoss | None = None,
    ) -> None:

        super().__init__(run, show, heldout)
        self._plan, self._spool = plan, spool
        self._system_at = 0.0
        self._window: tuple[float, int] | None = None
        self._system = SystemMetrics()
        self._validation = validation
        self.on_validation: OnValidation | None = None

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
        self._spool.metrics(step, values)

    def preview(self, step: int, network: nn.Module, ema: nn.Module) -> None:
        """Log a preview of fixed images: a row of raw weights and one of EMA weights."""
        path = self._run.folder / "previews" / f"{step:09d}.png"
        with self.paused():
            write_preview(path, self._plan, network, ema)
            self._spool.image(step, "preview", path)

    def validate(self, step: int, network: nn.Module, ema: nn.Module) -> dict[str, float]:
        """Return the validation losses and add them to the spool."""
        with self.paused():
            losses = super().validate(step, network, ema)
        if losses:
            self._spool.metrics(step, {f"val/{name}": value for name, value in losses.items()})
            if self.on_validation is not None:
                self.on_validation(step, losses["loss"])
        return losses

    def evaluate(self, step: int, ema: nn.Module) -> None:
        """Score the EMA and log the scores; `train.keep` decides which checkpoints stay."""
        if self._validation is not None:
            with self.paused():
                self._validation.evaluate(step, ema)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block from the images per second."""
        began = time.monotonic()
        try:
            yield
        finally:
            if self._window:
                since, start = self._window
                self._window = (since + time.monotonic() - began, start)

    def catch_up(self, step: int, ema: nn.Module) -> None:
        """Compute the score that is due after `step` steps, if it is missing."""
        if not (step and self._plan.train.is_scored(step) and self._validation):
            return
        with observer_guard(f"score of step {step:,}"):
            if not self._validation.is_scored(step):
                self.evaluate(step, ema)


def write_preview(path: Path, plan: DenoiserPlan, network: nn.Module, ema: nn.Module) -> None:
    """Write a PNG of ten images: above by the raw weights, below by their EMA."""
    artefact = plan_artefact(plan)
    settings = SampleSettings(steps=min(PREVIEW_STEPS, artefact.process.timesteps))
    indices = range(10)
    device = next(network.parameters()).device
    rows = []
    for weights in (network, ema):
        training = weights.training
        weights.eval()
        try:
            wanted = mixed_condition(artefact, settings, indices)
            model = LoadedModel(weights, artefact)
            rows.append(to_nhwc(generate(model, settings, indices, wanted, device)))
        finally:
            weights.train(training)  # also after an error, so that dropout stays on
    picture = grid(np.concatenate(rows), columns=len(indices))
    picture = enlarge(picture, artefact.network.image_size)
    write_atomic(path, lambda file: file.write(png_bytes(picture)))
