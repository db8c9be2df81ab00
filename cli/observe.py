"""What watches a training: the terminal, the spool and the previews. Nothing here changes the result."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cli.progress import Show
from diffusion.errors import DiffctlWarning

if TYPE_CHECKING:
    from diffusion.checkpoint import Artefact
    from diffusion.trainrun import TrainRun
    from diffusion.unet import UNet
    from tracking.spool import Spool

BEAT_SECONDS = 10.0
PREVIEW_STEPS = 20  # DDIM steps of a preview


class Watch:
    """The trainer's observer: a live line, metrics into the spool, a heartbeat and preview grids."""

    def __init__(self, run: "TrainRun", artefact: "Artefact", spool: "Spool", show: Show) -> None:
        self._run, self._artefact, self._spool, self._show = run, artefact, spool, show
        self._beat_at = 0.0
        self._window: tuple[float, int] | None = None

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Means of a window of steps, with the images a second since the last window, into the spool."""
        now = time.monotonic()
        if self._window:
            since, start = self._window
            images = (step - start) * self._artefact.train.batch_size
            values = {**values, "images_per_second": images / (now - since)}
        self._window = (now, step)
        self._spool.metrics(step, values)

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        """The live line, and a heartbeat now and then."""
        self._show(step, total, " · ".join(f"{name} {value:.4f}" for name, value in values.items()))
        if time.monotonic() - self._beat_at > BEAT_SECONDS:
            self._beat_at = time.monotonic()
            with _only_watching("the heartbeat"):
                self._run.beat(step)

    def preview(self, step: int, network: "UNet", ema: "UNet") -> None:
        """The same images at every step: a row of raw weights and one of EMA weights, into the spool."""
        path = self._run.folder / "previews" / f"{step:09d}.png"
        with _only_watching("a preview"):
            write_preview(path, self._artefact, network, ema)
            self._spool.image(step, "preview", path)


@contextmanager
def _only_watching(what: str) -> Iterator[None]:
    """On a full disk what merely watches is told as missing, and the training goes on."""
    try:
        yield
    except OSError as error:
        warnings.warn(
            f"{what} cannot be written ({error.strerror}): the training goes on without",
            DiffctlWarning,
            stacklevel=3,
        )


def write_preview(path: Path, artefact: "Artefact", network: "UNet", ema: "UNet") -> None:
    """Write a PNG of ten images from fixed seeds: above by the raw weights, below by their EMA."""
    import numpy as np

    from diffusion.generate import generate, labels_of
    from diffusion.images import to_nhwc
    from diffusion.pictures import enlarge, grid, save_png
    from diffusion.settings import SampleSettings

    settings = SampleSettings(steps=min(PREVIEW_STEPS, artefact.diffusion.timesteps))
    indices = range(10)
    device = next(network.parameters()).device
    rows = []
    for weights in (network, ema):
        training = weights.training
        weights.eval()
        wanted = labels_of(artefact, settings, indices)
        rows.append(to_nhwc(generate(weights, artefact, settings, indices, wanted, device)))
        weights.train(training)
    picture = grid(np.concatenate(rows), columns=len(indices))
    save_png(path, enlarge(picture, artefact.network.image_size))
