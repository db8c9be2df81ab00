"""One network pass for the questions of many walks, each row with its own time, label and guidance."""

from collections.abc import Sequence
from concurrent.futures import Executor

import torch
from torch import Tensor

from diffusion.engine.job import Chunk
from diffusion.process.condition import Condition
from diffusion.process.denoiser import Denoiser
from diffusion.process.denoiser_output import Prediction
from diffusion.sample.guidance import classifier_free


@torch.no_grad()
def batched_forward(denoiser: Denoiser, parts: Sequence[Chunk]) -> Prediction:
    """What is said of the rows of all parts' questions, in their order."""
    questions = [part.question() for part in parts]
    times = torch.tensor([question.t for question in questions for _ in range(len(question.x))])
    strengths = [part.weight for part in parts for _ in range(len(part))]
    weights = torch.tensor(strengths, dtype=torch.float64)
    condition = Condition.cat([part.condition for part in parts])
    guided = classifier_free(denoiser, weights)
    return guided(torch.cat([question.x for question in questions]), times, condition)


def is_finite(said: Prediction) -> bool:
    """Whether every number is one. It waits for the device."""
    return all(bool(part.isfinite().all()) for part in said if part is not None)


def split_rows(said: Prediction, parts: Sequence[Chunk]) -> list[Prediction]:
    """What is said of each part's rows."""
    answers, start = [], 0
    for part in parts:
        stop = start + len(part.question().x)
        answers.append(said.rows(slice(start, stop)))
        start = stop
    return answers


def in_two(denoiser: Denoiser, pool: Executor) -> Denoiser:
    """The denoiser with its rows in two halves beside each other, in the two threads of a pool."""

    @torch.no_grad()
    def half(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        return denoiser(x, t, condition)

    def both(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        if len(x) < 2:
            return half(x, t, condition)
        middle = len(x) // 2
        halves = [
            pool.submit(half, x[rows], t[rows] if isinstance(t, Tensor) else t, condition.rows(rows))
            for rows in (slice(middle), slice(middle, None))
        ]
        first, second = (one.result() for one in halves)
        return _joined(first, second)

    return both


def _joined(first: Prediction, second: Prediction) -> Prediction:
    pairs = zip(first, second, strict=True)
    return Prediction(*(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs))  # type: ignore[arg-type]
