"""Continuous batching: requests join and leave the running batch at every forward pass.

The engine runs many samplers, which are generators, and batches their calls of the denoiser. So requests of 5
and of 40 steps, guided or not, of different classes and samplers, share the forward passes. Except for
rounding, an image does not depend on what else is in the batch.

Jobs share the rows of the passes equally, however many images or steps they have, as if each had a slower
machine of its own (start-time fair queueing; Goyal et al. 1996). So a short job does not wait for a long one
before it. The first chunk in the order always fits, so that every job finishes.
"""

import itertools
import threading
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy

import torch

from diffusion.engine.job import Chunk, ChunkStep, ForwardPass, Job, batched_forward, halved, select_chunks
from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Condition, Denoiser, Prediction
from diffusion.protocol.settings import SampleSettings, base_settings
from diffusion.sample.conditions import base_condition
from diffusion.sample.generate import guide_denoiser, model_denoiser
from diffusion.sample.guidance import Guidance
from diffusion.sample.guides import NO_GUIDES, OF_BASE, Guides
from diffusion.sample.sampler import CustomTrajectory
from diffusion.system.errors import TemporaryError
from diffusion.system.threads import splitting_helps, two_threads

CHUNK_SIZE = 16  # images that share a trajectory: few enough to fill the rest of a pass


class Full(TemporaryError):
    """The engine holds its maximum of images: retry when some are finished."""


class Engine:
    """One model on one device; `add`, `step` and `cancel` may be called from any thread.

    A pass has at most `rows` rows; a guided image takes two. At most `max_images` images are held, running or
    waiting. `guides` are the networks that may guide the model. A base model has an engine of its own, which
    takes turns with this one.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        device: torch.device,
        rows: int = 64,
        max_images: int = 1024,
        guides: Guides = NO_GUIDES,
    ) -> None:
        self.loaded, self.device, self.rows, self.max_images = loaded, device, rows, max_images
        self.guides = guides
        self._jobs: dict[int, Job] = {}
        self._added = 0
        self._lock = threading.Lock()  # never held during a pass
        self._exit = ExitStack()
        self._denoiser: Denoiser = model_denoiser(loaded)
        self._guide = guides.model and guide_denoiser(loaded.artefact, guides.model)
        self._base = None if guides.base is None else Engine(guides.base, device, rows, max_images, OF_BASE)
        self._turn = 0
        if splitting_helps(device):
            pool = self._exit.enter_context(two_threads())
            self._denoiser = halved(self._denoiser, pool)
            self._guide = self._guide and halved(self._guide, pool)

    def close(self) -> None:
        """End the engine's threads; no pass may be running."""
        self._exit.close()
        if self._base is not None:
            self._base.close()

    @property
    def held(self) -> int:
        """The number of images of all jobs that have not ended."""
        return sum(map(len, list(self._jobs.values())))

    @property
    def jobs(self) -> int:
        """The number of jobs that have not ended."""
        return len(self._jobs)

    def add(
        self,
        settings: SampleSettings,
        indices: Sequence[int],
        condition: Condition,
        custom: CustomTrajectory | None = None,
    ) -> Job:
        """Add a job for these images; it starts with the next pass that has room.

        Without `custom` it samples each image from its noise, by the settings' sampler. UsageError if the
        model does not allow these settings, or a guide is missing; Full if too many images are held.
        """
        job = Job(self.loaded, self.device, self.guides, settings, indices, condition, custom)
        with self._lock:
            if (held := self.held) + len(job) > self.max_images:
                raise Full(f"{held} images are being made, and at most {self.max_images} may be at a time")
            self._added += 1
            job.number = self._added
            job.served = min((other.served for other in self._jobs.values()), default=0)
            if job.needs_base:
                self._add_base(job)  # UsageError if the base does not allow its settings
            else:
                self._split(job)
            self._jobs[job.number] = job
        return job

    def _split(self, job: Job) -> None:
        job.split(min(CHUNK_SIZE, self.rows // job.settings.guided_nfe))

    def _add_base(self, job: Job) -> None:
        """Add the job of the images that a cascade's job enlarges."""
        assert self._base is not None, "a job checks its networks"
        artefact = self._base.loaded.artefact
        own = base_settings(job.settings, artefact.process.schedule)
        assert own is not None, "a job that needs a base has its settings"
        condition = base_condition(artefact, job.condition)
        job.base = self._base.add(own, job.indices, condition)
        job.nfe += job.base.nfe

    def cancel(self, job: Job) -> None:
        """Remove a job; do nothing if it has ended."""
        with self._lock:
            self._remove(job)

    def step(self) -> ForwardPass:
        """Run one forward pass, if there are jobs; an exception ends only the job that it belongs to."""
        made = ForwardPass()
        if self._base is not None and self._base.jobs and self._is_turn_of_base():
            return self._step_base(self._base)
        with self._lock:
            waiting = (chunk for job in self._jobs.values() for chunk in job.chunks if chunk.x_0 is None)
            started = [one for one in select_chunks(waiting, self.rows) if self._starts(one, made)]
            chunks = [chunk for chunk in started if not chunk.job.ended]  # by a failure of another chunk
        if chunks:
            self._run_pass(chunks, made)
        return made

    def _run_pass(self, chunks: Sequence[Chunk], made: ForwardPass) -> None:
        """Run a pass of these chunks; if it fails, repeat it for each job alone, so that the others go on."""
        rules, failure = [copy(chunk.guidance) for chunk in chunks], None
        try:
            parts, needs_check = self._predictions(chunks)
        except Exception as error:  # of the network, such as memory, or of the call of a job
            failure = error
        if failure is not None:
            traceback.clear_frames(failure.__traceback__)  # they hold the tensors of the pass
            self._repeat(chunks, rules, failure, made)
            return
        made.rows += sum(chunk.rows for chunk in chunks)
        with self._lock:
            for chunk, part in zip(chunks, parts, strict=True):
                if not chunk.job.ended:
                    self._advance(chunk, part, needs_check, made)

    def _predictions(self, chunks: Sequence[Chunk]) -> tuple[list[Prediction], bool]:
        """Return the prediction of each chunk, and whether one may not be finite."""
        prediction = batched_forward(self._denoiser, chunks, self._guide)
        ends = list(itertools.accumulate(map(len, chunks)))
        parts = [
            chunk.guide_by_classifier(prediction.rows(slice(end - len(chunk), end)))
            for chunk, end in zip(chunks, ends, strict=True)
        ]
        numbers = (tensor for part in parts for tensor in part if tensor is not None)
        return parts, self.device.type != "cpu" or not all(bool(one.isfinite().all()) for one in numbers)

    def _repeat(
        self, chunks: Sequence[Chunk], rules: Sequence[Guidance], error: Exception, made: ForwardPass
    ) -> None:
        """Repeat a failed pass for each job alone, with the `rules` before it; end the job that was alone."""
        jobs = dict.fromkeys(chunk.job for chunk in chunks)
        if len(jobs) == 1:
            with self._lock:
                self._fail(chunks[0].job, error, made)
            return
        for chunk, rule in zip(chunks, rules, strict=True):
            chunk.guidance = rule
        for job in jobs:
            self._run_pass([chunk for chunk in chunks if chunk.job is job], made)

    def _is_turn_of_base(self) -> bool:
        """Return whether the base model has the next pass: every other one, or all if no job can start."""
        self._turn += 1
        return self._turn % 2 == 1 or not any(job.chunks for job in list(self._jobs.values()))

    def _step_base(self, base: "Engine") -> ForwardPass:
        """Run a forward pass of the base model. Jobs with finished base images can start then."""
        done = base.step()
        made = ForwardPass(done.rows)
        with self._lock:
            for job in list(self._jobs.values()):
                if job.base is None or job.base not in done.ended:
                    continue
                if job.base.images is None:
                    self._fail(job, job.base.error or RuntimeError("the base images were cancelled"), made)
                    continue
                try:
                    job.enlarge(job.base.images)
                    self._split(job)
                except Exception as error:  # such as memory
                    self._fail(job, error, made)
        return made

    def _starts(self, chunk: Chunk, made: ForwardPass) -> bool:
        """Return whether the chunk has a pending call; a trajectory that fails to start ends its job."""
        try:
            chunk.pending_call()
        except Exception as error:  # whatever a sampler raises concerns its job alone
            self._fail(chunk.job, error, made)
            return False
        return True

    @torch.no_grad()
    def _advance(self, chunk: Chunk, prediction: Prediction, needs_check: bool, made: ForwardPass) -> None:
        job = chunk.job
        job.served += chunk.rows
        try:
            if needs_check:
                chunk.check(prediction)
            steps = chunk.advance(prediction)
            images = [chunk.x_0 for chunk in job.chunks if chunk.x_0 is not None]
            if len(images) == len(job.chunks):
                job.images = torch.cat(images)
        except Exception as error:  # as above
            self._fail(job, error, made)
            return
        made.steps += [ChunkStep(job, chunk.images, step) for step in steps]
        if job.images is not None:
            self._remove(job)
            made.ended.append(job)

    def _fail(self, job: Job, error: Exception, made: ForwardPass) -> None:
        if not job.ended:
            job.error = error
            self._remove(job)
            made.ended.append(job)

    def _remove(self, job: Job) -> None:
        job.ended = True
        job.chunks = []
        if job.base is not None and self._base is not None:
            self._base.cancel(job.base)
        self._jobs.pop(job.number, None)
