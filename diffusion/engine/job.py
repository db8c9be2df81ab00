"""A request in the engine: its images in parts, each a walk of its own that stands at some question."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.images.pixels import to_uint8
from diffusion.model.model_file import LoadedModel
from diffusion.process.condition import Condition
from diffusion.process.denoiser_output import Prediction
from diffusion.process.noise import ImageNoise
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_registry import build_process
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.samplers import build_sampler
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.generate import check_settings, noise_draws
from diffusion.sample.guidance import guidance_weight
from diffusion.sample.nan_guard import guard_networks
from diffusion.sample.sampler import DenoiserCall, Sampler, Step, Trajectory
from diffusion.system.device_transfer import to_device
from diffusion.system.threads import draw_ahead, then_draw


class CustomTrajectory(NamedTuple):
    """Another way than from noise to images: walks of `sampler` that begin at `start`, a row for each image.

    `start` is (B, C, H, W); `end` makes what the job has of where the walks end.
    """

    start: Tensor
    sampler: Sampler
    end: Callable[[Tensor], Tensor] = to_uint8


@dataclass(eq=False)
class Job:
    """The images at `indices` by these settings, a row each of the condition.

    `evaluations` is how often the network will have seen each of them. `served` is how many rows of passes it
    was given, from where its share began to count. At its end it has
    its `images`, uint8 (B, C, H, W) on the CPU, or what its course makes in their place, or the `error` that
    ended it; neither if it was cancelled.
    """

    number: int
    settings: SampleSettings
    indices: Sequence[int]
    condition: Condition
    course: CustomTrajectory | None = None
    evaluations: int = 0
    served: int = 0
    ended: bool = False
    images: Tensor | None = None
    error: Exception | None = None
    parts: "list[Chunk]" = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def rows_an_image(self) -> int:
        """How many rows of a pass an image takes at most: under guidance two."""
        return 2 if self.settings.guidance else 1


class Stepped(NamedTuple):
    """Some of a job's images, a slice of them, took a step."""

    job: Job
    images: slice
    step: Step


class Chunk:
    """Some of a job's images, which walk together. Nothing is drawn before its first question.

    `weight` is that of guidance at its question. `pool`, of a single thread, makes its draws one ahead where
    that pays.
    """

    def __init__(
        self,
        job: Job,
        images: slice,
        grid: TimeGrid,
        loaded: LoadedModel,
        device: torch.device,
        process: NoiseProcess,
        pool: Executor | None = None,
    ) -> None:
        self.job, self.images = job, images
        self.asked = 0
        self.condition = job.condition.rows(images).to(device)
        self.x_0: Tensor | None = None
        self._indices = job.indices[images]
        self._grid, self._device, self._loaded, self._pool = grid, device, loaded, pool
        self._process, self._given = process, 0
        self._watch = guard_networks(
            {"model": loaded.network}, bool(job.settings.guidance), lambda row: f"image {self._indices[row]}"
        )
        self._walk: Trajectory | None = None
        self._question: DenoiserCall | None = None
        self._step = 1
        self.weight = job.settings.guidance

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def rows(self) -> int:
        """The rows of a pass that its question takes; before the first one as many as any."""
        return len(self) * (2 if self.weight else 1)

    @property
    def rows_left(self) -> int:
        """The rows of passes that it will take to its end."""
        return len(self) * self.job.evaluations - self._given

    def question(self) -> DenoiserCall:
        """What it wants to know now; its first one begins the walk, and UsageError may say that none fits."""
        if self._walk is None:
            self._walk = self._begun()
            self._go_on(None)
        assert self._question is not None, "a part that has ended is not asked any more"
        return self._question

    def _begun(self) -> Trajectory:
        """Its walk, from its images' noise or where its course begins."""
        draw, course = self._draws(), self.job.course
        if course is None:
            return build_sampler(self.job.settings)(self._grid, draw(), draw)
        return course.sampler(self._grid, to_device(course.start[self.images], self._device), draw)

    def _draws(self) -> Callable[[], Tensor]:
        """Its images' noise on the device, x_T first."""
        spec, settings = self._loaded.artefact.network, self.job.settings
        shape = (spec.in_channels, spec.image_size, spec.image_size)
        noise = ImageNoise(settings.seed, self._indices, shape)

        def draw() -> Tensor:
            return to_device(noise.draw(), self._device)

        ahead = noise_draws(settings, self._device)
        if self._pool is None or not ahead:
            return draw
        return then_draw(draw_ahead(self._pool, draw, ahead, self._device), draw)

    def look(self, said: Prediction) -> None:
        """NonFiniteError where the answer is NaN or infinite: on a CPU now, elsewhere at the end."""
        self._watch.see(self._step, self.question().t, *said)

    def answer(self, said: Prediction) -> list[Step]:
        """Go on to the next question, or to the end: `x_0` is there then. Returns the steps on the way.

        NonFiniteError where what it ended with is none.
        """
        self.asked += 1
        self._given += self.rows
        steps = self._go_on(said)
        if self._question is None:
            x = steps[-1].x
            self._watch.see(self._step, 0, x)
            self._watch.end()
            end = to_uint8 if self.job.course is None else self.job.course.end
            self.x_0 = end(x).cpu()
        return steps

    def _go_on(self, said: Prediction | None) -> list[Step]:
        """Send the answer, None at the start, and keep the next question, None at the end."""
        assert self._walk is not None
        steps: list[Step] = []
        self._question = None
        try:
            event = self._walk.send(said)
            while isinstance(event, Step):
                steps.append(event)
                self._step = event.done + 1
                event = self._walk.send(None)
            self._question = event
            self.weight = guidance_weight(self.job.settings, self._process, event.t)
        except StopIteration:
            pass
        return steps


def split_job(
    job: Job, loaded: LoadedModel, device: torch.device, most: int, pool: Executor | None = None
) -> list[Chunk]:
    """The job's images in parts of at most `most`; UsageError when this model cannot be sampled so."""
    grid, process = check_settings(loaded.artefact, job.settings), build_process(loaded.artefact.process)
    starts = range(0, len(job), most)
    parts = [slice(start, min(start + most, len(job))) for start in starts]
    return [Chunk(job, part, grid, loaded, device, process, pool) for part in parts]
