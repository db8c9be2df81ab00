"""What a comparison of scores is made of and comes to: documents by name, rows, and what is left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.choice.confidence import Gap, Interval
from diffusion.choice.ranking import leader
from diffusion.protocol.scores import ScoresDocument

if TYPE_CHECKING:
    from mlflow.entities import Run

Fields = dict[str, list[Any]]


@dataclass(frozen=True)
class ScoredRun:
    """A scores document under its name in the comparison, and the run or the file that it is of."""

    label: str
    document: ScoresDocument
    run: "Run | None" = None
    path: Path | None = None


MOST_SHORT = 99.5  # two digits of what is more would be written as a power of ten


def format_spread(deviation: float) -> str:
    """A standard deviation as text, in two digits, all before the point of a larger one."""
    return f"{deviation:.2g}" if deviation < MOST_SHORT else f"{deviation:.0f}"


Group = Sequence[ScoredRun]  # trainings that differ in their seed alone


@dataclass(frozen=True)
class ScoreRow:
    """One score of one cell, a value and its confidence interval for each label.

    The value is None where the cell is missing or its card differs, the interval where there is none. Of a
    group it is the mean of as many trainings as `trainings` says, `each` of them, with their standard
    `deviations`.
    `best` is the best value, the lowest of a distance: None for a score that ranks nothing, and where a value
    has no interval, since it may be best by chance. `gaps` are those of the others to it, None without one.
    `few_images` marks a limit for N → ∞ that was read off fewer images than there are features.
    """

    cell: str
    metric: str
    values: list[float | None]
    trainings: list[int]
    each: list[list[float]]
    deviations: list[float | None]
    intervals: list[Interval | None]
    best: float | None
    gaps: list[Gap | None]
    few_images: list[bool]

    @property
    def ranks(self) -> bool:
        """Whether one of several values would be the best."""
        return (
            len(self.values) > 1
            and leader(self.metric) is not None
            and any(value is not None for value in self.values)
        )

    @property
    def tied(self) -> list[bool]:
        """Whether each value, other than the best, lies within the confidence interval of its gap to it."""
        return [gap is not None and not gap.is_significant for gap in self.gaps]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a script."""
        gaps = [None if gap is None else gap._asdict() for gap in self.gaps]
        return {**vars(self), "gaps": gaps, "tied": self.tied}


@dataclass(frozen=True)
class Difference:
    """Cells of `label` that cannot be compared with the first one's: the fields that differ, both values."""

    label: str
    cells: list[str]
    fields: Fields


@dataclass(frozen=True)
class Comparison:
    """What may be compared, and what may not and why. The first label is what the others are held against.

    `groups` are the documents of each label, more than one where they differ in the training's seed alone.
    """

    labels: list[str]
    groups: list[Group]
    rows: list[ScoreRow]
    differences: list[Difference]

    @property
    def members(self) -> list[list[str]]:
        """What the documents of each label are called."""
        return [[one.label for one in group] for group in self.groups]

    @property
    def together(self) -> dict[str, list[str]]:
        """The members of the labels that are of several trainings."""
        return {name: names for name, names in zip(self.labels, self.members, strict=True) if len(names) > 1}

    def as_json(self) -> dict[str, Any]:
        """Plain values for a script."""
        return {
            "runs": self.labels,
            "members": self.members,
            "scores": [row.as_json() for row in self.rows],
            "not_comparable": [vars(difference) for difference in self.differences],
        }
