"""Which times a sampler walks along: S of a model's T whole times by a named spacing, or a list. No torch."""

import itertools
from collections.abc import Callable, Sequence

from diffusion.system.errors import UsageError


def uniform(steps: int, timesteps: int) -> list[int]:
    """Evenly spread with both ends (DDIM sec. 5, linear), rounded half up in whole numbers."""
    last, gaps = timesteps - 1, steps - 1
    return [(2 * i * last + gaps) // (2 * gaps) for i in range(steps)]


def quadratic(steps: int, timesteps: int) -> list[int]:
    """Dense at small t (DDIM app. D.3). Near 0 squares round alike: each takes at least the next free one."""
    last, gaps = timesteps - 1, steps - 1
    chosen: list[int] = []
    for i in range(steps):
        raw = round(last * (i / gaps) ** 2)
        chosen.append(min(max(raw, chosen[-1] + 1 if chosen else 0), last - (gaps - i)))
    return chosen


def trailing(steps: int, timesteps: int) -> list[int]:
    """Counted back from T−1 by T/S."""
    return [(2 * (i + 1) * timesteps + steps) // (2 * steps) - 1 for i in range(steps)]


SPACINGS: dict[str, Callable[[int, int], list[int]]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "trailing": trailing,
}


def spaced_timesteps(spacing: str, steps: int, timesteps: int) -> list[int]:
    """Exactly `steps` distinct increasing times of 0 … T−1 that end at T−1; UsageError unless 1 ≤ S ≤ T."""
    if not 1 <= steps <= timesteps:
        raise UsageError(f"{steps} sampling steps do not fit: give 1 to {timesteps}, the model's timesteps")
    return [timesteps - 1] if steps == 1 else SPACINGS[spacing](steps, timesteps)


def check_timesteps(chosen: Sequence[int], timesteps: int) -> list[int]:
    """An explicit list of timesteps; UsageError unless it increases within 0 … T−1 and ends at T−1."""
    if not chosen or any(a >= b for a, b in itertools.pairwise(chosen)):
        raise UsageError(f"timesteps must increase strictly, got {list(chosen)}")
    if chosen[0] < 0 or chosen[-1] != timesteps - 1:
        raise UsageError(f"timesteps must lie in 0 … {timesteps - 1} and end there, got {list(chosen)}")
    return list(chosen)
