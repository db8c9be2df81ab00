"""A spacing with more steps at small times than `quadratic`."""

from diffusion.system.section import Section


def cubic(steps: int, low: float, high: float, options: Section) -> list[float]:
    """Even in the cube root of the time's place in the range."""
    return [low + (high - low) * (i / (steps - 1)) ** 3 for i in range(steps)]
