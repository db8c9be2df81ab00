"""Which chunks of jobs share the next forward pass, and that pass: each row has its own time and guidance.

Jobs share the rows of the passes equally, however many images or steps they have, as if each had a slower
machine of its own (start-time fair queueing; Goyal et al. 1996). So a short job does not wait for a long one
before it. The first chunk in the order always fits, so that every job finishes.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor

import torch
from torch import Tensor

from diffusion.engine.job import Chunk, Job
from diffusion.process.condition import Condition
from diffusion.process.denoiser import Denoiser
from diffusion.process.denoiser_output import Prediction
from diffusion.sample.guidance import classifier_free
from diffusion.system.threads import in_halves


def select_chunks(chunks: Iterable[Chunk], rows: int) -> list[Chunk]:
    """Return the chunks of the next pass, of at most `rows` rows: those of the least served jobs first.

    Within a job the chunks with the fewest calls come first. A chunk that does not fit any more is skipped
    for a later one that does, and comes before it in the next pass.
    """
    selected: list[Chunk] = []
    for chunk in sorted(chunks, key=_priority):
        if chunk.rows <= rows:
            selected.append(chunk)
            rows -= chunk.rows
        if not rows:
            break
    return selected


def initial_service(jobs: Iterable[Job]) -> int:
    """Return the service that a new job starts with: that of the least served of these jobs."""
    return min((job.served for job in jobs), default=0)


def _priority(chunk: Chunk) -> tuple[int, int, int, int]:
    return chunk.job.served, chunk.job.number, chunk.calls, chunk.images.start


@torch.no_grad()
def batched_forward(denoiser: Denoiser, chunks: Sequence[Chunk]) -> Prediction:
    """Return the predictions for the pending calls of all chunks, rows in their order."""
    calls = [chunk.pending_call() for chunk in chunks]
    times = torch.tensor([call.t for call in calls for _ in range(len(call.x))])
    weights = torch.tensor([chunk.weight for chunk in chunks for _ in range(len(chunk))], dtype=torch.float64)
    condition = Condition.cat([chunk.condition for chunk in chunks])
    return classifier_free(denoiser, weights)(torch.cat([call.x for call in calls]), times, condition)


def split_rows(prediction: Prediction, chunks: Sequence[Chunk]) -> list[Prediction]:
    """Return each chunk's rows of a prediction."""
    parts, start = [], 0
    for chunk in chunks:
        parts.append(prediction.rows(slice(start, start + len(chunk))))
        start += len(chunk)
    return parts


def is_finite(prediction: Prediction) -> bool:
    """Return whether every number is finite. It waits for the device."""
    return all(bool(part.isfinite().all()) for part in prediction if part is not None)


def halved(denoiser: Denoiser, pool: Executor) -> Denoiser:
    """Return the denoiser that computes its rows in two halves, in the two threads of a pool."""

    def call(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        @torch.no_grad()
        def half(rows: slice, check: object) -> Prediction:
            return denoiser(x[rows], t[rows] if isinstance(t, Tensor) else t, condition.rows(rows))

        return _join(*in_halves(half, len(x), pool)) if len(x) > 1 else half(slice(None), None)

    return call


def _join(first: Prediction, second: Prediction) -> Prediction:
    pairs = zip(first, second, strict=True)
    return Prediction(*(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs))  # type: ignore[arg-type]
