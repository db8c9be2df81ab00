"""How long a piece of work takes: tried with few images first, so that no trial is much too long."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Annotated, Self

from pydantic import Field

from diffusion.system.section import Section

REPEATS = 5
GROWTH = 4  # times as many images in the next trial

Seconds = Annotated[float, Field(ge=0, le=1e12)]

Work = Callable[[int, int], Sequence[float]]
"""Given how many images, and how often: the seconds of each time, or of as many as there are."""


class TimeRange(Section):
    """Seconds of one thing, measured several times: the median, the least and the most."""

    median: Seconds
    least: Seconds
    most: Seconds

    @classmethod
    def of(cls, times: Sequence[float]) -> Self:
        """That of so many times."""
        return cls(median=median(times), least=min(times), most=max(times))

    def scaled(self, factor: float) -> "TimeRange":
        """That of `factor` such things one after the other."""
        return TimeRange(median=factor * self.median, least=factor * self.least, most=factor * self.most)

    def __add__(self, other: "TimeRange") -> "TimeRange":
        return TimeRange(
            median=self.median + other.median, least=self.least + other.least, most=self.most + other.most
        )


NOTHING = TimeRange(median=0, least=0, most=0)


class ImageTime(Section):
    """Seconds an image of work that was done on `images` images at a time."""

    images: Annotated[int, Field(gt=0)]
    image: TimeRange


def time_work(work: Work, most: int, seconds: float) -> ImageTime:
    """The time of work on up to `most` images at a time, measured in about so many seconds.

    More images are tried as long as their trial and one more would be done in time, were they to take as much
    longer as they are more. The first trial only warms up. What takes longer for one image is done thrice.
    """
    images, spent = 1, work(1, 1)[0]
    took = work(1, 1)[0]
    spent += took
    while images < most:
        more = min(most, GROWTH * images)
        if spent + 2 * took * more / images > seconds:
            break
        images, took = more, work(more, 1)[0]
        spent += took
    repeats = min(REPEATS, 1 + int(max(0.0, seconds - spent) / max(took, 1e-9)))
    return ImageTime(images=images, image=TimeRange.of([took, *work(images, repeats)]).scaled(1 / images))
