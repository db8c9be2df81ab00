"""The interval of noise levels in which guidance applies (Kynkäänniemi et al. 2024, 2404.07724). No torch.

A noise level is σ/α, which for a variance-preserving process is √((1−ᾱ)/ᾱ): the σ of the paper, whose images
are not scaled down. So one interval means the same for every schedule and every T.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from diffusion.system.limits import MAX_NOISE_LEVEL
from diffusion.system.section import NotBool

Level = Annotated[float, Field(ge=0, le=MAX_NOISE_LEVEL), NotBool]


def _ends(values: Any) -> Any:
    """`0.2:5` as a command line or a card writes an interval; anything else as it is."""
    if not isinstance(values, str):
        return values
    try:
        low, high = map(float, values.split(":"))
    except ValueError:
        raise ValueError(f"an interval is LOW:HIGH, such as 0.2:5 (got {values[:40]!r})") from None
    return low, high


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    low, high = ends
    if low >= high:
        raise ValueError(f"the low end must be below the high one (got {low:g} and {high:g})")
    return ends


Interval = Annotated[tuple[Level, Level], BeforeValidator(_ends), AfterValidator(_ordered)]
"""(low, high] of noise levels, as eq. 6 of the paper has it, both from 0 to MOST_NOISE_LEVEL."""


def in_interval(interval: tuple[float, float] | None, level: float) -> bool:
    """Whether guidance applies at a noise level: low < σ/α ≤ high, and everywhere without an interval.

    A level above MOST_NOISE_LEVEL, such as that of pure noise, counts as that.
    """
    return interval is None or interval[0] < min(level, MAX_NOISE_LEVEL) <= interval[1]
