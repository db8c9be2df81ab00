"""Guidance: rules that combine a prediction with a worse one.

Guidance extrapolates from a worse prediction: D + w·(D − D_worse); w = 0 is no guidance. The rules of
GUIDANCE_RULES differ in what is worse, and in how the two are combined.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion.process.denoiser import Condition, Denoiser, Prediction, time_tensor
from diffusion.process.noise_process import NoiseProcess
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.settings import SampleSettings
from diffusion.system.devices import to_device
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_NOISE_LEVEL

Inputs = tuple[Tensor, Tensor | float, Condition]
"""The arguments of a denoiser: x (B, C, H, W), the time of all or of each row, and the condition."""


class GuidedCall(NamedTuple):
    """A call of the denoiser for the guided images of one trajectory.

    x (B, C, H, W), their time, one for all or (B,), the weight w > 0, and the number of the trajectory's
    calls before this one, guided or not.
    """

    x: Tensor
    t: Tensor | float
    weight: float
    number: int


class Guidance:
    """A rule of guidance for the images of one trajectory: what is worse, and how to combine the two.

    A new rule is a subclass. Its objects may keep state from call to call, such as the last difference, since
    no two trajectories share one. They replace it, not change it in place: a failed call may be repeated from
    a copy. UsageError if the rule does not fit the process.
    """

    def __init__(self, settings: SampleSettings, process: NoiseProcess) -> None:
        self.settings, self.process = settings, process
        entry = GUIDANCE_RULES[settings.rule]
        self.options: Any = entry.parse(settings.guidance_rule_options)
        self.keeps_eps = entry.keeps_eps
        self.calls = 0

    def predictions(
        self, denoiser: Denoiser, guide: Denoiser | None, rows: Inputs, guided_rows: Inputs
    ) -> tuple[Prediction, Prediction]:
        """Return the predictions of all rows, and the worse ones of the guided rows of all trajectories."""
        raise NotImplementedError

    def combine(self, call: GuidedCall, better: Prediction, worse: Prediction) -> Prediction:
        """Return the guided prediction of this trajectory's images: D + w·(D − D_worse)."""
        return extrapolate(better, worse, call.weight)

    def weight(self, t: Tensor | float) -> float:
        """Return the weight at a time."""
        return guidance_weight(self.settings, self.process, t)


class ClassifierFree(Guidance):
    """CFG: D(x, c) + w·(D(x, c) − D(x, ∅)), so ε = (1+w)·ε(x, c) − w·ε(x, ∅) (2207.12598, eq. 6).

    All is computed in one pass, guided rows twice. It needs no guide. UsageError on call if the network takes
    no condition.
    """

    def predictions(
        self, denoiser: Denoiser, guide: Denoiser | None, rows: Inputs, guided_rows: Inputs
    ) -> tuple[Prediction, Prediction]:
        """Return the predictions with, and without the condition."""
        (x, t, condition), (x_guided, t_guided, conditioned) = rows, guided_rows
        times = torch.cat([t, t_guided]) if isinstance(t, Tensor) and isinstance(t_guided, Tensor) else t
        conditions = Condition.cat([condition, conditioned.null()])
        both = denoiser(torch.cat([x, x_guided]), times, conditions)
        return both.rows(slice(len(x))), both.rows(slice(len(x), None))


class Autoguidance(Guidance):
    """D + w·(D − D_g) of a worse model D_g of the same data: no labels are needed.

    The source is Karras et al. 2024 (2406.02507), sec. 4. Their w is one more: D_g + w·(D − D_g). UsageError
    on call without a guide.
    """

    def predictions(
        self, denoiser: Denoiser, guide: Denoiser | None, rows: Inputs, guided_rows: Inputs
    ) -> tuple[Prediction, Prediction]:
        """Return the predictions of the model and of the guide."""
        if guide is None:
            raise UsageError("autoguidance needs a guide: a worse model of the same data")
        return denoiser(*rows), guide(*guided_rows)


def extrapolate(better: Prediction, worse: Prediction, weight: float) -> Prediction:
    """Return D + w·(D − D_worse) for x_0 and ε; everything else is that of D."""
    w = torch.tensor(weight, dtype=better.x0.dtype)
    x0, eps = ((1 + w) * good - w * bad for good, bad in zip(better[:2], worse[:2], strict=True))
    return better._replace(x0=x0, eps=eps)


def along(of: Tensor, direction: Tensor) -> Tensor:
    """Return the part of each image (B, C, H, W) along its direction, 0 for a direction of length 0."""
    pixels = (1, 2, 3)
    square = direction.square().sum(pixels, keepdim=True)
    share = (of * direction).sum(pixels, keepdim=True) / square
    return torch.where(square > 0, share, 0.0) * direction


class GuidedRows(NamedTuple):
    """The rows of one trajectory in a call, the rule of its images, and the weight of this call."""

    rows: slice
    rule: Guidance
    weight: float


def guide_rows(denoiser: Denoiser, guide: Denoiser | None, parts: Sequence[GuidedRows]) -> Denoiser:
    """Return the denoiser of a call with these parts, which have all rows in order.

    A part with weight 0 has no worse prediction; if all have it the denoiser itself is called. The others
    have rules of one class. A time of each row is on the CPU.
    """

    def call(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        for part in parts:
            part.rule.calls += 1
        guided = [part for part in parts if part.weight]
        if not guided:
            return denoiser(x, t, condition)

        def times(index: slice | Tensor) -> Tensor | float:
            return t[index] if isinstance(t, Tensor) and t.ndim else t

        rows = torch.cat([torch.arange(len(x))[part.rows] for part in guided])
        own: slice | Tensor = slice(None) if len(rows) == len(x) else to_device(rows, x.device)
        of_rows = (x[own], times(rows), condition.rows(own))
        better, worse = guided[0].rule.predictions(denoiser, guide, (x, t, condition), of_rows)
        results, start = [], 0
        for part in parts:
            result = better.rows(part.rows)
            if part.weight:
                end = start + len(result.x0)
                inputs = GuidedCall(x[part.rows], times(part.rows), part.weight, part.rule.calls - 1)
                result, start = part.rule.combine(inputs, result, worse.rows(slice(start, end))), end
            results.append(result)
        prediction = results[0] if len(results) == 1 else Prediction.cat(results)
        return prediction._replace(keeps_eps=_rows_that_keep_eps(guided, x))

    return call


def _rows_that_keep_eps(guided: Sequence[GuidedRows], x: Tensor) -> Tensor | None:
    if not guided[0].rule.keeps_eps:
        return None
    kept = torch.zeros(len(x), dtype=torch.bool)
    for part in guided:
        kept[part.rows] = True
    return to_device(kept, x.device)


def guidance_weight(settings: SampleSettings, process: NoiseProcess, t: Tensor | float) -> float:
    """Return the weight of guidance at a time: w, but 0 outside of an interval (2404.07724).

    It applies where low < σ/α ≤ high. A level above MAX_NOISE_LEVEL, such as that of pure noise, counts as
    that. The paper's w is one more than this project's, which is CFG's: no guidance is 1 there.
    """
    if settings.guidance_interval is None:
        return settings.guidance
    low, high = settings.guidance_interval
    level = min(float(process.noise_level(time_tensor(t))), MAX_NOISE_LEVEL)
    return settings.guidance if low < level <= high else 0.0


def build_guidance(settings: SampleSettings, process: NoiseProcess) -> Guidance:
    """Return the rule of these settings for one trajectory; UsageError if it does not fit the process."""
    rule: Guidance = GUIDANCE_RULES[settings.rule].load()(settings, process)
    return rule


def guided(
    denoiser: Denoiser, settings: SampleSettings, process: NoiseProcess, guide: Denoiser | None = None
) -> Denoiser:
    """Wrap a denoiser in the guidance of these settings, for one trajectory, within their interval.

    With an interval it takes one time for all rows.
    """
    if settings.guidance == 0:
        return denoiser
    rule = build_guidance(settings, process)

    def call(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        return guide_rows(denoiser, guide, [GuidedRows(slice(None), rule, rule.weight(t))])(x, t, condition)

    return call
