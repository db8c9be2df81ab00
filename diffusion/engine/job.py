"""A request in the engine: its images in chunks, each with a trajectory that waits for a prediction."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.images.pixels import to_model, to_uint8
from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Condition, Denoiser, Prediction
from diffusion.process.noise_process import build_process
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.classifier_guidance import classifier_guidance
from diffusion.sample.generate import check_settings
from diffusion.sample.guidance import GuidedRows, build_guidance, guide_rows
from diffusion.sample.guides import Guides, check_guides
from diffusion.sample.low_res import image_noise, noised_condition
from diffusion.sample.sampler import (
    CustomTrajectory,
    DenoiserCall,
    NaNGuard,
    SamplerDriver,
    Step,
    build_sampler,
    predict,
)
from diffusion.sample.sampling_steps import count_nfe
from diffusion.system.devices import to_device
from diffusion.system.threads import in_halves


@dataclass(eq=False)
class Job:
    """The images at `indices` of a model with these settings, and a row of the condition for each.

    `nfe` is the number of network evaluations of an image. `served` counts the rows of passes that the job
    had, on top of its initial service. At the end the job has its `images`, uint8 (B, C, H, W) on the CPU, or
    what its custom trajectory returns, or the `error` that ended it; neither if it was cancelled. In a
    cascade it waits for `base`, the job of the images that it enlarges. UsageError as `check_settings`, if a
    guide is missing or does not fit, and without images to enlarge.
    """

    loaded: LoadedModel
    device: torch.device
    guides: Guides
    settings: SampleSettings
    indices: Sequence[int]
    condition: Condition
    custom: CustomTrajectory | None = None
    number: int = 0
    served: int = 0
    ended: bool = False
    images: Tensor | None = None
    error: Exception | None = None
    chunks: "list[Chunk]" = field(default_factory=list)
    base: "Job | None" = None

    def __post_init__(self) -> None:
        settings, artefact = self.settings, self.loaded.artefact
        check_guides(artefact, settings, self.guides)
        self.grid, self.process = check_settings(artefact, settings), build_process(artefact.process)
        own = None if self.custom is None else self.custom.nfe
        self.nfe = count_nfe(settings, artefact.process) if own is None else own
        self.by_classifier: Callable[[Denoiser], Denoiser] | None = None
        if settings.has_classifier and self.guides.classifier is not None:
            self.by_classifier = classifier_guidance(artefact, settings, self.guides.classifier)
        if not self.needs_base:
            self._add_noise()

    @property
    def needs_base(self) -> bool:
        """Whether a base model makes the images that it enlarges."""
        return self.condition.low_res is None and self.settings.base is not None

    def enlarge(self, images: Tensor) -> None:
        """Take the images (B, C, h, w), uint8, that a base model made."""
        self.condition = replace(self.condition, low_res=to_model(images))
        self._add_noise()

    def _add_noise(self) -> None:
        spec = self.loaded.artefact.network
        self.condition = noised_condition(spec, self.settings, self.indices, self.condition)

    def split(self, size: int) -> None:
        """Split the images into chunks of at most `size`."""
        starts = range(0, len(self), size)
        self.chunks = [Chunk(self, slice(start, min(start + size, len(self)))) for start in starts]

    def __len__(self) -> int:
        return len(self.indices)


class ChunkStep(NamedTuple):
    """A step of some of a job's images, a slice of them."""

    job: Job
    images: slice
    step: Step


class Chunk:
    """Some of a job's images, which share a trajectory. No noise is drawn before the first call.

    `weight` is that of `guidance`, by `rule`, at the pending call.
    """

    def __init__(self, job: Job, images: slice) -> None:
        self.job, self.images = job, images
        self._labelled = job.condition.rows(images).to(job.device)  # a classifier needs the labels
        has_classes = bool(job.loaded.artefact.network.num_classes)
        self.condition = self._labelled if has_classes else self._labelled.unlabelled()
        self.x_0: Tensor | None = None
        self.weight, self.rule = job.settings.guidance, job.settings.rule
        self.guidance = build_guidance(job.settings, job.process)
        self._indices = job.indices[images]
        networks, is_guided = job.guides.networks(job.loaded), job.settings.is_guided
        self._guard = NaNGuard(lambda row: f"image {self._indices[row]}", networks, is_guided)
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

    def pending_call(self) -> DenoiserCall:
        """Return the pending call; the first one starts the trajectory. UsageError as the sampler's own."""
        driver = self._driver or self._start()
        assert driver.call is not None, "a chunk at its end has no call"
        return driver.call

    def _start(self) -> SamplerDriver:
        """Start the trajectory, from the images' noise (x_T is drawn first) or from a custom start."""
        job, settings, custom = self.job, self.job.settings, self.job.custom
        images = image_noise(job.loaded.artefact.network, settings, self._indices, job.grid)

        def noise() -> Tensor:
            return to_device(images.draw(), job.device)

        sampler = build_sampler(settings) if custom is None else custom.samplers(self.images)
        if custom is None or custom.start is None:
            start = noise()
        else:
            start = to_device(custom.start[self.images], job.device)
        self._driver = SamplerDriver(sampler(job.grid, start, noise))
        self._update_weight(self._driver)
        return self._driver

    def check(self, prediction: Prediction) -> None:
        """Raise NonFiniteError if the prediction is NaN or infinite: on a CPU now, elsewhere at the end."""
        assert self._driver is not None
        self._guard.check(self._driver.step, self.pending_call().t, *prediction)

    def guide_by_classifier(self, prediction: Prediction) -> Prediction:
        """Return the prediction for the pending call under the guidance of a classifier, if there is any."""
        if self.job.by_classifier is None:
            return prediction
        call = self.pending_call()
        denoiser = self.job.by_classifier(lambda x, t, condition: prediction)
        return denoiser(call.x, call.t, self._labelled)

    def advance(self, prediction: Prediction) -> list[Step]:
        """Advance to the next call or the end, `x_0`; return the steps. NonFiniteError for a bad end."""
        driver = self._driver
        assert driver is not None
        steps = driver.advance(prediction)
        self._update_weight(driver)
        if driver.call is None:
            assert driver.x is not None
            self._guard.check(driver.step, 0, driver.x)
            self._guard.raise_pending()
            end = to_uint8 if self.job.custom is None else self.job.custom.end
            self.x_0 = end(driver.x).cpu()
        return steps

    def _update_weight(self, driver: SamplerDriver) -> None:
        if driver.call is not None:
            self.weight = self.guidance.weight(driver.call.t)


@dataclass
class ForwardPass:
    """The result of a forward pass of `rows` rows: the steps made, and the jobs that ended."""

    rows: int = 0
    steps: list[ChunkStep] = field(default_factory=list)
    ended: list[Job] = field(default_factory=list)


def select_chunks(chunks: Iterable[Chunk], rows: int) -> list[Chunk]:
    """Return the chunks of the next pass, of at most `rows` rows: chunks of the least served jobs first.

    Within a job the chunks with the fewest calls come first. A chunk that does not fit any more is skipped
    for a later one that does, and comes before it in the next pass. So is one with another rule of guidance
    than the first guided one, since a pass computes the worse predictions of one rule.
    """
    selected: list[Chunk] = []
    rule: str | None = None
    for chunk in sorted(chunks, key=attrgetter("job.served", "job.number", "calls", "images.start")):
        is_other = bool(chunk.weight) and rule not in (None, chunk.rule)
        if chunk.rows <= rows and not is_other:
            rule = chunk.rule if chunk.weight else rule
            selected.append(chunk)
            rows -= chunk.rows
        if not rows:
            break
    return selected


@torch.no_grad()
def batched_forward(denoiser: Denoiser, chunks: Sequence[Chunk], guide: Denoiser | None = None) -> Prediction:
    """Return the predictions for the chunks' pending calls, in order, each under its own guidance."""
    calls = [chunk.pending_call() for chunk in chunks]
    is_real = any(isinstance(call.t, float) for call in calls)
    times = torch.tensor(
        [call.t for call in calls for _ in range(len(call.x))],
        dtype=torch.float64 if is_real else torch.int64,
    )
    condition = Condition.cat([chunk.condition for chunk in chunks])
    ends = [0, *itertools.accumulate(map(len, chunks))]
    parts = [
        GuidedRows(slice(*rows), chunk.guidance, chunk.weight)
        for chunk, rows in zip(chunks, itertools.pairwise(ends), strict=True)
    ]
    denoiser = guide_rows(denoiser, guide, parts)
    losses = [(call.loss, slice(*rows)) for call, rows in zip(calls, itertools.pairwise(ends), strict=True)]

    def joint_loss(x0_hat: Tensor) -> Tensor:
        return torch.cat([loss(x0_hat[rows]) for loss, rows in losses if loss is not None])

    loss = joint_loss if any(one is not None for one, _ in losses) else None
    return predict(denoiser, torch.cat([call.x for call in calls]), times, condition, loss)


def halved(denoiser: Denoiser, pool: Executor) -> Denoiser:
    """Return the denoiser that computes its rows in two halves, in the two threads of a pool."""

    def call(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        needs_gradient = torch.is_grad_enabled()  # of this thread

        def half(rows: slice, check: object) -> Prediction:
            with torch.set_grad_enabled(needs_gradient):
                return denoiser(x[rows], t[rows] if isinstance(t, Tensor) else t, condition.rows(rows))

        if len(x) < 2:
            return half(slice(None), None)
        return Prediction.cat(in_halves(half, len(x), pool))

    return call
