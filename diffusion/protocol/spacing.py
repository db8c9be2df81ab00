"""Which times a sampler walks along: S of a model's T whole times by a named spacing, or a list. No torch."""

import itertools
import math
from collections.abc import Callable, Sequence

from diffusion.system.errors import UsageError
from diffusion.system.registry import Registry


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
    if steps == 1 or len(range(0, timesteps, stride)) != steps:
        raise UsageError(
            f"adm-stride takes steps that an integer stride through {timesteps} gives, not {steps}"
        )
    return list(range(0, timesteps, stride))


SPACINGS: Registry[Callable[[int, int], list[int]]] = Registry(
    "sample.spacing",
    "(S, T) → S increasing times that end at T − 1",
    {
        "uniform": uniform,
        "quadratic": quadratic,
        "trailing": trailing,
        "ddim-uniform": ddim_uniform,
        "ddim-quadratic": ddim_quadratic,
        "adm-stride": adm_stride,
    },
)
PAPER_SPACINGS = frozenset({"ddim-uniform", "ddim-quadratic", "adm-stride"})
"""The spacings of papers' codes."""


def spaced_timesteps(spacing: str, steps: int, timesteps: int) -> list[int]:
    """Return exactly `steps` distinct increasing times of 0 … T−1 that end at T−1.

    Those of PAPER_SPACINGS end below it, and may repeat a time. UsageError unless 1 ≤ S ≤ T, and for S that
    the paper's code would not give.
    """
    if not 1 <= steps <= timesteps:
        raise UsageError(f"{steps} sampling steps do not fit: give 1 to {timesteps}, the model's timesteps")
    if steps == 1 and spacing not in PAPER_SPACINGS:
        return [timesteps - 1]
    return SPACINGS[spacing](steps, timesteps)


def check_timesteps(chosen: Sequence[int], timesteps: int) -> list[int]:
    """Return an explicit list of timesteps; UsageError unless it increases within 0 … T−1 and ends at T−1."""
    if not chosen or any(a >= b for a, b in itertools.pairwise(chosen)):
        raise UsageError(f"timesteps must increase strictly, got {list(chosen)}")
    if chosen[0] < 0 or chosen[-1] != timesteps - 1:
        raise UsageError(f"timesteps must lie in 0 … {timesteps - 1} and end there, got {list(chosen)}")
    return list(chosen)
