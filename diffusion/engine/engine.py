"""Continuous batching: requests join and leave the running batch at every network pass.

The engine drives samplers as the generators that they are: whatever they ask of their images is asked of the
network together, so that requests of 5 and of 40 steps, guided or not, of different classes and samplers,
share its passes. What an image is does not depend on what else is in the batch, but for rounding.
"""

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

import torch

from diffusion.engine.batching import batched_forward, in_two, is_finite, split_rows
from diffusion.engine.fair_queue import initial_service, select_chunks
from diffusion.engine.job import Chunk, CustomTrajectory, Job, Stepped, split_job
from diffusion.model.model_file import LoadedModel
from diffusion.process.condition import Condition
from diffusion.process.denoiser import Denoiser
from diffusion.process.denoiser_output import Prediction
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.generate import model_denoiser
from diffusion.sample.nfe import count_nfe
from diffusion.system.errors import TemporaryError
from diffusion.system.threads import device_threads, splitting_helps, two_threads

CHUNK_SIZE = 16  # images of a job that walk together: few enough to fill what others leave of a pass


class Full(TemporaryError):
    """The engine holds as many images as it may: try again when some are done."""


@dataclass
class ForwardPass:
    """What a network pass of `rows` rows brought: steps that were taken, and jobs that came to their end."""

    rows: int = 0
    steps: list[Stepped] = field(default_factory=list)
    ended: list[Job] = field(default_factory=list)


class Engine:
    """One model on one device, a context; `add`, `step` and `cancel` may be called from any thread.

    A pass has at most `rows` rows, of which a guided image takes two, and at most `most` images are held:
    those at work and those that wait.
    """

    def __init__(self, loaded: LoadedModel, device: torch.device, rows: int = 64, most: int = 1024) -> None:
        if rows < 2 or most < 1:
            raise ValueError(f"a pass has two rows or more, for an image or more (got {rows}, {most})")
        self.loaded, self.device, self.rows, self.most = loaded, device, rows, most
        self._jobs: dict[int, Job] = {}
        self._added = 0
        self._lock = threading.Lock()  # never held during a pass
        self._end = ExitStack()
        self._denoiser: Denoiser = model_denoiser(loaded)
        self._drawing = self._end.enter_context(device_threads(1, device)) if device.type == "cuda" else None
        if splitting_helps(device):
            self._denoiser = in_two(self._denoiser, self._end.enter_context(two_threads()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of its threads; no pass may be at work."""
        self._end.close()

    @property
    def held(self) -> int:
        """The images of all jobs that have not come to their end."""
        with self._lock:
            return self._held()

    @property
    def jobs(self) -> int:
        """The jobs that have not come to their end."""
        return len(self._jobs)

    @property
    def passes_left(self) -> int:
        """How many passes what is held will take, about: jobs that come meanwhile share them."""
        with self._lock:
            rows = sum(part.rows_left for job in self._jobs.values() for part in job.parts)
        return -(-rows // self.rows)

    def add(
        self,
        settings: SampleSettings,
        indices: Sequence[int],
        condition: Condition,
        course: CustomTrajectory | None = None,
    ) -> Job:
        """A job for these images; its walk begins with the next pass that has room for it.

        Without a `course` it goes from each image's noise to the image, by the settings' sampler.

        UsageError when this model cannot be sampled so, Full when too many images are held.
        """
        job = Job(0, settings, indices, condition, course)
        most = min(CHUNK_SIZE, self.rows // job.rows_an_image)
        job.parts = split_job(job, self.loaded, self.device, most, self._drawing)
        job.evaluations = count_nfe(settings, self.loaded.artefact.process)
        with self._lock:
            if (held := self._held()) + len(job) > self.most:
                raise Full(f"{held} images are being made: with {len(job)} more it would be over {self.most}")
            self._added += 1
            job.number, job.served = self._added, initial_service(self._jobs.values())
            self._jobs[job.number] = job
        return job

    def cancel(self, job: Job) -> None:
        """Let go of a job, wherever it stands; nothing where it has come to its end."""
        with self._lock:
            self._leave(job)

    def step(self) -> ForwardPass:
        """One network pass for those whose turn it is; nothing where there is no job.

        What fails ends the jobs that it is of, with their error, and no other.
        """
        made = ForwardPass()
        with self._lock:
            begun = [part for part in self._turn() if self._begins(part, made)]
            parts = [part for part in begun if not part.job.ended]  # one of the same job may have failed
        if not parts:
            return made
        try:
            said = batched_forward(self._denoiser, parts)
            look = self.device.type != "cpu" or not is_finite(said)
        except Exception as error:  # of the network: memory, a broken device
            with self._lock:
                for part in parts:
                    self._fail(part.job, error, made)
            return made
        made.rows = sum(part.rows for part in parts)
        with self._lock:
            for part, answer in zip(parts, split_rows(said, parts), strict=True):
                if not part.job.ended:
                    self._answer(part, answer, look, made)
        return made

    def _held(self) -> int:
        return sum(map(len, self._jobs.values()))

    def _turn(self) -> list[Chunk]:
        waiting = (part for job in self._jobs.values() for part in job.parts if part.x_0 is None)
        return select_chunks(waiting, self.rows)

    def _begins(self, part: Chunk, made: ForwardPass) -> bool:
        """Whether it has a question; a walk that does not begin ends its job."""
        try:
            part.question()
        except Exception as error:  # whatever a sampler raises is its job's alone
            self._fail(part.job, error, made)
            return False
        return True

    @torch.no_grad()
    def _answer(self, part: Chunk, said: Prediction, look: bool, made: ForwardPass) -> None:
        job = part.job
        job.served += part.rows
        try:
            if look:
                part.look(said)
            steps = part.answer(said)
        except Exception as error:  # as above
            self._fail(job, error, made)
            return
        made.steps += [Stepped(job, part.images, step) for step in steps]
        images = [part.x_0 for part in job.parts if part.x_0 is not None]
        if len(images) == len(job.parts):
            job.images = torch.cat(images)
            self._leave(job)
            made.ended.append(job)

    def _fail(self, job: Job, error: Exception, made: ForwardPass) -> None:
        if not job.ended:
            job.error = error
            self._leave(job)
            made.ended.append(job)

    def _leave(self, job: Job) -> None:
        job.ended = True
        job.parts = []
        self._jobs.pop(job.number, None)
