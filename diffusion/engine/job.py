"""A request in the engine: its images in chunks, each with a trajectory that waits for a prediction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.images.pixels import to_uint8
from diffusion.model.model_file import LoadedModel
from diffusion.process.condition import Condition
from diffusion.process.denoiser import Denoiser, Prediction
from diffusion.process.noise import ImageNoise
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_registry import build_process
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.samplers import build_sampler
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.generate import check_settings
from diffusion.sample.guidance import guidance_weight
from diffusion.sample.guides import NO_GUIDES, Guides, check_guides, classifier_guidance
from diffusion.sample.sampler import DenoiserCall, NaNGuard, Sampler, SamplerDriver, Step
from diffusion.system.devices import to_device


class CustomTrajectory(NamedTuple):
    """Trajectories of `sampler` from `start` (B, C, H, W); `end` converts their ends into the result."""

    start: Tensor
    sampler: Sampler
    end: Callable[[Tensor], Tensor] = to_uint8


@dataclass(eq=False)
class Job:
    """The images at `indices` with these settings, and a row of the condition for each.

    `nfe` is the number of network evaluations of an image. `served` counts the rows of passes that the job
    had, on top of its initial service. At the end the job has its `images`, uint8 (B, C, H, W) on the CPU, or
    what its custom trajectory returns, or the `error` that ended it; neither if it was cancelled.
    """

    number: int
    settings: SampleSettings
    indices: Sequence[int]
    condition: Condition
    custom: CustomTrajectory | None = None
    nfe: int = 0
    served: int = 0
    ended: bool = False
    images: Tensor | None = None
    error: Exception | None = None
    chunks: "list[Chunk]" = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.indices)


class ChunkStep(NamedTuple):
    """A step of some of a job's images, a slice of them."""

    job: Job
    images: slice
    step: Step


class Chunk:
    """Some of a job's images, which share a trajectory. No noise is drawn before the first call.

    `weight` is that of guidance by `rule` at the pending call, `calls` the number of answered ones.
    `by_classifier` wraps a denoiser in the guidance of a classifier.
    """

    def __init__(
        self,
        job: Job,
        images: slice,
        grid: TimeGrid,
        loaded: LoadedModel,
        device: torch.device,
        process: NoiseProcess,
        guides: Guides = NO_GUIDES,
        by_classifier: Callable[[Denoiser], Denoiser] | None = None,
    ) -> None:
        self.job, self.images = job, images
        self._labelled = job.condition.rows(images).to(device)  # a classifier needs the labels
        has_classes = bool(loaded.artefact.network.num_classes)
        self.condition = self._labelled if has_classes else self._labelled.unlabelled()
        self.x_0: Tensor | None = None
        self.weight, self.rule = job.settings.guidance, job.settings.rule
        self._indices = job.indices[images]
        self._grid, self._device, self._loaded = grid, device, loaded
        self._process, self._rows_had, self._by_classifier = process, 0, by_classifier
        self._guard = NaNGuard(
            lambda row: f"image {self._indices[row]}", guides.networks(loaded), job.settings.is_guided
        )
        self._driver: SamplerDriver | None = None

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def calls(self) -> int:
        """The number of answered calls."""
        return 0 if self._driver is None else self._driver.nfe

    @property
    def rows(self) -> int:
        """The rows of a pass that the pending call takes; before the first call the most of any."""
        return len(self) * (self.job.settings.guided_nfe if self.weight else 1)

    @property
    def rows_left(self) -> int:
        """The rows of passes until the end."""
        return len(self) * self.job.nfe - self._rows_had

    def pending_call(self) -> DenoiserCall:
        """Return the pending call; the first one starts the trajectory. UsageError as the sampler's own."""
        driver = self._driver or self._start()
        assert driver.call is not None, "a chunk at its end has no call"
        return driver.call

    def _start(self) -> SamplerDriver:
        """Start the trajectory, from the images' noise (x_T is drawn first) or from a custom start."""
        spec, settings, custom = self._loaded.artefact.network, self.job.settings, self.job.custom
        shape = (spec.in_channels, spec.image_size, spec.image_size)
        images = ImageNoise(settings.seed, self._indices, shape, self._grid.initial_noise_scale)

        def noise() -> Tensor:
            return to_device(images.draw(), self._device)

        if custom is None:
            trajectory = build_sampler(settings)(self._grid, noise(), noise)
        else:
            start = to_device(custom.start[self.images], self._device)
            trajectory = custom.sampler(self._grid, start, noise)
        self._driver = SamplerDriver(trajectory)
        self._update_weight(self._driver)
        return self._driver

    def check(self, prediction: Prediction) -> None:
        """Raise NonFiniteError if the prediction is NaN or infinite: on a CPU now, elsewhere at the end."""
        assert self._driver is not None
        self._guard.check(self._driver.step, self.pending_call().t, *prediction)

    def guide_by_classifier(self, prediction: Prediction) -> Prediction:
        """Return the prediction for the pending call under the guidance of a classifier, if there is any."""
        if self._by_classifier is None:
            return prediction
        call = self.pending_call()
        return self._by_classifier(lambda x, t, condition: prediction)(call.x, call.t, self._labelled)

    def advance(self, prediction: Prediction) -> list[Step]:
        """Advance to the next call or the end, `x_0`; return the steps. NonFiniteError for a bad end."""
        driver = self._driver
        assert driver is not None
        self._rows_had += self.rows
        steps = driver.advance(prediction)
        if driver.call is not None:
            self._update_weight(driver)
        else:
            assert driver.x is not None
            self._guard.check(driver.step, 0, driver.x)
            self._guard.raise_pending()
            end = to_uint8 if self.job.custom is None else self.job.custom.end
            self.x_0 = end(driver.x).cpu()
        return steps

    def _update_weight(self, driver: SamplerDriver) -> None:
        if driver.call is not None:
            self.weight = guidance_weight(self.job.settings, self._process, driver.call.t)


def split_job(
    job: Job,
    loaded: LoadedModel,
    device: torch.device,
    size: int,
    guides: Guides = NO_GUIDES,
) -> list[Chunk]:
    """Split the job's images into chunks of at most `size`; UsageError as `check_settings` and its guides."""
    settings, artefact = job.settings, loaded.artefact
    check_guides(settings, guides)
    grid, process = check_settings(artefact, settings), build_process(artefact.process)
    by_classifier = None
    if settings.has_classifier and guides.classifier is not None:
        by_classifier = classifier_guidance(artefact, settings, guides.classifier)
    starts = range(0, len(job), size)
    slices = [slice(start, min(start + size, len(job))) for start in starts]
    return [Chunk(job, images, grid, loaded, device, process, guides, by_classifier) for images in slices]
