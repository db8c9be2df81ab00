"""The times that a sampler visits: S of them by a named spacing, or a list. This module loads no torch.

A discrete process has timesteps 0 … T−1, and a spacing may choose S ≤ T of those. Any process has real times
between its first and its last one, from which a spacing chooses any number, evenly in some sense.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion.system.errors import UsageError
from diffusion.system.registry import Registry, WithOptions


def uniform(steps: int, timesteps: int) -> list[int]:
    """Evenly spread with both ends (DDIM app. D.2, linear), rounded half up in whole numbers."""
    last, gaps = timesteps - 1, steps - 1
    return [(2 * i * last + gaps) // (2 * gaps) for i in range(steps)]


def quadratic(steps: int, timesteps: int) -> list[int]:
    """Dense at small t (DDIM app. D.2). Near 0 squares round alike: each takes at least the next free one."""
    last, gaps = timesteps - 1, steps - 1
    chosen: list[int] = []
    for i in range(steps):
        raw = round(last * (i / gaps) ** 2)
        chosen.append(min(max(raw, chosen[-1] + 1 if chosen else 0), last - (gaps - i)))
    return chosen


def trailing(steps: int, timesteps: int) -> list[int]:
    """Counted back from T−1 by T/S."""
    return [(2 * (i + 1) * timesteps + steps) // (2 * steps) - 1 for i in range(steps)]


def ddim_uniform(steps: int, timesteps: int) -> list[int]:
    """range(0, T, T//S), which ends below T−1: `uniform` of DDIM's code (ermongroup/ddim), if S divides T."""
    if steps == 1 or timesteps % steps:
        raise UsageError(f"ddim-uniform takes S > 1 steps that divide {timesteps}, not {steps}")
    return list(range(0, timesteps, timesteps // steps))


def ddim_quadratic(steps: int, timesteps: int) -> list[int]:
    """⌊linspace(0, √(0.8·T), S)²⌋: `quad` of DDIM's code, which ends below T−1 and may repeat a time."""
    if steps == 1:
        raise UsageError("ddim-quadratic takes at least 2 steps")
    root, gaps = math.sqrt(0.8 * timesteps), steps - 1
    return [int((i * (root / gaps) if i < gaps else root) ** 2) for i in range(steps)]


def adm_stride(steps: int, timesteps: int) -> list[int]:
    """range(0, T, n) for the smallest n that gives S times: `ddimS` of guided-diffusion, if there is an n."""
    stride = -(-timesteps // steps)
    chosen = list(range(0, timesteps, stride))
    if steps == 1 or len(chosen) != steps:
        raise UsageError(f"adm-stride takes S > 1 steps of an equal stride through {timesteps}, not {steps}")
    return chosen


def uniform_real(steps: int, low: float, high: float, options: Any) -> list[float]:
    """Evenly spread with both ends."""
    return [low + (high - low) * i / (steps - 1) for i in range(steps)]


def quadratic_real(steps: int, low: float, high: float, options: Any) -> list[float]:
    """Dense at small t: the squares of even numbers."""
    return [low + (high - low) * (i / (steps - 1)) ** 2 for i in range(steps)]


def trailing_real(steps: int, low: float, high: float, options: Any) -> list[float]:
    """Counted back from the last time by a part in S of the range."""
    return [low + (high - low) * (i + 1) / steps for i in range(steps)]


def karras(steps: int, low: float, high: float, options: Any) -> list[float]:
    """Even in (σ/α)^(1/ρ) (Karras et al. 2022, 2206.00364, eq. 5)."""
    first, last = low ** (1 / options.rho), high ** (1 / options.rho)
    return [(first + (last - first) * i / (steps - 1)) ** options.rho for i in range(steps)]


def log_snr(steps: int, low: float, high: float, options: Any) -> list[float]:
    """Even in log SNR (DPM-Solver, 2206.00927, sec. 3.3)."""
    return [low * (high / low) ** (i / (steps - 1)) for i in range(steps)]


def learned(steps: int, low: float, high: float, options: Any) -> list[float]:
    """Noise levels that were learned for a model, of a file that `diffctl grid` makes."""
    return list(reversed(options.levels))


@dataclass(frozen=True)
class SpacingEntry(WithOptions):
    """`whole` is (S, T) → S of the timesteps 0 … T−1, increasing; a discrete process takes it first.

    `real` is (S > 1, low, high, options) → S increasing numbers that end at `high`: real times, or noise
    levels σ/α where `in_noise`; then `options`, the class of `spacing_options`, is a NoiseRange. A spacing
    has one of them at least. One that `has_levels` has those of its options, a LearnedOptions, for one S. One
    that `is_paper_grid` may end below T−1 or repeat a time, as that paper's code does.
    """

    source: str
    whole: Callable[[int, int], list[int]] | None = None
    real: Callable[[int, float, float, Any], list[float]] | None = None
    in_noise: bool = False
    options: str = "diffusion.system.section:NoOptions"
    has_levels: bool = False
    is_paper_grid: bool = False

    @property
    def module(self) -> str:
        """The module that computes it."""
        function = self.whole or self.real
        assert function is not None, "a spacing has timesteps or real times"
        return function.__module__

    def between(self, steps: int, low: float, high: float, options: Any) -> list[float]:
        """Return S real numbers from `low` to exactly `high`; the last alone if S is 1."""
        assert self.real is not None, "the spacing has real times"
        return [*self.real(steps, low, high, options)[:-1], high] if steps > 1 else [high]


LEARNED = "learned"  # the spacing
_DDIM = "Song et al. 2020 (2010.02502), app. D.2"
_DDIM_CODE = "github.com/ermongroup/ddim"

SPACINGS: Registry[SpacingEntry] = Registry(
    "sample.spacing",
    "a `SpacingEntry`: S timesteps of T, and S real times or noise levels between two others",
    {
        "uniform": SpacingEntry(_DDIM, uniform, uniform_real),
        "quadratic": SpacingEntry(_DDIM, quadratic, quadratic_real),
        "trailing": SpacingEntry("Lin et al. 2023 (2305.08891), sec. 3.3", trailing, trailing_real),
        "karras": SpacingEntry(
            "Karras et al. 2022 (2206.00364), eq. 5",
            real=karras,
            in_noise=True,
            options="diffusion.protocol.samplers:KarrasOptions",
        ),
        "log-snr": SpacingEntry(
            "Lu et al. 2022 (2206.00927), sec. 3.3",
            real=log_snr,
            in_noise=True,
            options="diffusion.protocol.samplers:NoiseRange",
        ),
        LEARNED: SpacingEntry(
            "Chen et al. 2024 (2405.11326), GITS",
            real=learned,
            in_noise=True,
            options="diffusion.protocol.samplers:LearnedOptions",
            has_levels=True,
        ),
        "ddim-uniform": SpacingEntry(_DDIM_CODE, ddim_uniform, is_paper_grid=True),
        "ddim-quadratic": SpacingEntry(_DDIM_CODE, ddim_quadratic, is_paper_grid=True),
        "adm-stride": SpacingEntry("github.com/openai/guided-diffusion", adm_stride, is_paper_grid=True),
    },
)


def spaced_timesteps(spacing: str, steps: int, timesteps: int) -> list[int]:
    """Return exactly `steps` distinct increasing times of 0 … T−1, of a spacing that has them, up to T−1.

    A paper's grid ends below it, and may repeat a time. UsageError unless 1 ≤ S ≤ T, and for S that the
    paper's code would not give.
    """
    entry = SPACINGS[spacing]
    assert entry.whole is not None, f"{spacing} has no timesteps"
    if not 1 <= steps <= timesteps:
        raise UsageError(f"{steps} sampling steps do not fit: give 1 to {timesteps}, the model's timesteps")
    return [timesteps - 1] if steps == 1 and not entry.is_paper_grid else entry.whole(steps, timesteps)


def check_steps(spacing: str, steps: int, timesteps: int | None) -> None:
    """Raise UsageError if the spacing does not have S times of a process: discrete with T, or continuous."""
    entry = SPACINGS[spacing]
    if timesteps is not None and entry.whole is not None:
        spaced_timesteps(spacing, steps, timesteps)
    elif entry.real is None:
        real = ", ".join(name for name, other in SPACINGS.items() if other.real)
        raise UsageError(f"spacing {spacing} needs a discrete process: use one of {real}")


def check_timesteps(chosen: Sequence[int], timesteps: int) -> list[int]:
    """Return an explicit list of timesteps; UsageError unless it increases within 0 … T−1 and ends at T−1."""
    if not chosen or any(a >= b for a, b in itertools.pairwise(chosen)):
        raise UsageError(f"timesteps must increase strictly, got {list(chosen)}")
    if chosen[0] < 0 or chosen[-1] != timesteps - 1:
        raise UsageError(f"timesteps must lie in 0 … {timesteps - 1} and end there, got {list(chosen)}")
    return list(chosen)
