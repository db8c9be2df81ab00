"""A forward pass of the engine: which chunks share it, and their predictions."""

import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from operator import attrgetter

import torch
from torch import Tensor

from diffusion.engine.job import Chunk, ChunkStep, Job
from diffusion.process.denoiser import Condition, Denoiser, Prediction
from diffusion.sample.guidance import GuidedRows, guide_rows
from diffusion.sample.sampler import predict
from diffusion.system.threads import in_halves


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
