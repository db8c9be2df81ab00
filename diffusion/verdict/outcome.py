"""The outcome of a verdict: what was found for each change, as a sentence and as JSON."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np

from diffusion.check.cost_estimate import format_duration
from diffusion.choice.confidence import errors_of, gap, share_noise, student
from diffusion.choice.paired_test import Decision, Kind, PairedTest, outliers
from diffusion.protocol.card import GROUPS
from diffusion.protocol.scores_document import ImageScores

POWER = 0.8  # of the gap that a verdict without evidence would have found
QUANTILE = 0.8416212  # of the normal distribution at POWER
UNSEEN = 0.05  # the probability that no pair has a failure as frequent as the page states
ADVICE = {"better": "keep it", "worse": "leave it out"}


class Finding(NamedTuple):
    """What one score shows: the `mean` difference, change minus control, and half of its interval.

    `detectable` is the difference that would have been found with the probability POWER, None if unknown.
    """

    kind: Kind
    mean: float
    half: float
    detectable: float | None = None

    @property
    def interval(self) -> list[float] | None:
        """The ends of the interval, None before the first look."""
        return [self.mean - self.half, self.mean + self.half] if math.isfinite(self.half) else None

    @property
    def is_zero(self) -> bool:
        """Whether all differences are 0."""
        return self.mean == self.half == 0

    def describe(self) -> str:
        """Return the direction and the size."""
        if self.is_zero:
            return "equal"
        return f"{'better' if self.mean < 0 else 'worse'} by {format_gap(abs(self.mean), self.half)}"

    def sentence(self, after: str, error: float) -> str:
        """Return the finding in one line; `after` is what it was found by."""
        if self.kind != "no evidence":
            return f"{self.describe()} ({100 * (1 - error):.3g}%) {after}: {ADVICE[self.kind]}"
        if self.detectable is None:
            return f"no evidence {after}"
        if self.is_zero:
            return f"no difference {after}: the scores are equal in each, so the change has no effect here"
        worse, better = (format_number(self.half + sign * self.mean, self.half) for sign in (1, -1))
        found = f"a gap of {format_number(self.detectable, self.half)} would have been found"
        between = f"between {worse} worse and {better} better"
        return f"no evidence {after}: {between}; {found} in {POWER:.0%} of cases"


@dataclass(frozen=True)
class Outcome(ABC):
    """What was found for one change by the first of `metrics`, which the others are compared with.

    `differences` are the fields that differ from the control's. `error` is the probability of a false
    decision. `failure` is why a training failed, empty if none did.
    """

    name: str
    differences: tuple[str, ...]
    metrics: tuple[str, ...]
    error: float
    failure: str = ""

    @abstractmethod
    def finding(self, metric: str) -> Finding:
        """Return what a score shows."""

    @abstractmethod
    def after(self) -> str:
        """Return what the finding is based on."""

    @abstractmethod
    def pairs_json(self) -> list[dict[str, Any]]:
        """Return the scores of the pairs."""

    @property
    def main(self) -> Finding:
        """What the first score shows."""
        return self.finding(self.metrics[0])

    @property
    def kind(self) -> Literal["better", "worse", "no evidence", "failed"]:
        """The decision, or that a training failed."""
        return "failed" if self.failure else self.main.kind

    def sentence(self, seconds: float | None = None) -> str:
        """Return the finding in one line; `seconds` is what all pairs took."""
        if self.failure:
            return f"not judged: {self.failure}"
        took = "" if seconds is None else f" in {format_duration(seconds)}"
        return self.main.sentence(f"{self.after()}{took}", self.error)

    def disagreements(self) -> list[str]:
        """Return a sentence for each other score with another decision, or the opposite direction of one."""
        found = []
        for metric in self.metrics[1:]:
            other = self.finding(metric)
            if other.kind not in ("no evidence", self.main.kind):
                found.append(f"{metric} disagrees: {other.describe()}")
            elif self.main.kind != "no evidence" and self.main.mean * other.mean < 0:
                found.append(f"{metric} does not confirm it: {other.describe()}")
        return found

    def warnings(self) -> list[str]:
        """Return a sentence for each pair that differs from the others by more than chance."""
        return []

    def as_json(self) -> dict[str, Any]:
        """Return plain values. Gap and interval are of the change's score minus the control's."""
        found = None if self.failure else self.main
        return {
            "change": self.name,
            "differences": list(self.differences),
            "decision": self.kind,
            "gap": found and found.mean,
            "interval": found and found.interval,
            "detectable_gap": found and found.detectable,
            "sentence": self.sentence(),
            "disagreements": [] if found is None else self.disagreements(),
            "warnings": self.warnings(),
            "failure": self.failure or None,
            "pairs": self.pairs_json(),
        }


class Pair(NamedTuple):
    """The scores of both arms with one seed, by name; lower is better."""

    seed: int
    control: dict[str, float]
    change: dict[str, float]


@dataclass(frozen=True)
class TrainingOutcome(Outcome):
    """The outcome of pairs of trainings by a sequential test, which has the `error` of the change."""

    test: PairedTest = field(default_factory=PairedTest)
    pairs: tuple[Pair, ...] = ()

    def differences_of(self, metric: str) -> list[float]:
        """Return the change's score minus the control's in each pair."""
        return [pair.change[metric] - pair.control[metric] for pair in self.pairs]

    def decision(self, metric: str) -> Decision:
        """Return the test's decision by a score."""
        return self.test.decide(self.differences_of(metric))

    def finding(self, metric: str) -> Finding:
        """Return what a score shows."""
        found = self.decision(metric)
        if not math.isfinite(found.half):
            return Finding(found.kind, found.mean, found.half)
        return Finding(
            found.kind, found.mean, found.half, self.test.detectable(found.pairs, POWER) * found.deviation
        )

    def after(self) -> str:
        """Return the number of pairs."""
        return f"after {len(self.pairs)} pair{'s' * (len(self.pairs) != 1)}"

    def warnings(self) -> list[str]:
        """Return a sentence for each outlier; for a better change without one, how rare a failure may be."""
        if self.failure or not self.pairs:
            return []
        values, found = self.differences_of(self.metrics[0]), []
        for place in outliers(values):
            others = median(values[:place] + values[place + 1 :])
            name = f"the pair of seed {self.pairs[place].seed} is an outlier: {values[place]:+.4g}"
            found.append(f"{name}, and the median of the others is {others:+.4g}")
        if self.kind == "better" and not found:
            share = 1 - UNSEEN ** (1 / len(values))
            found.append(f"{len(values)} pairs may miss a failure of up to {share:.0%} of trainings (95%)")
        return found

    def pairs_json(self) -> list[dict[str, Any]]:
        """Return seed and scores of each pair."""
        return [pair._asdict() for pair in self.pairs]

    @property
    def is_open(self) -> bool:
        """Whether further pairs may decide."""
        if self.failure or not self.pairs:
            return not self.failure
        return self.decision(self.metrics[0]).kind == "no evidence" and not self.main.is_zero


@dataclass(frozen=True)
class SamplingOutcome(Outcome):
    """The outcome of two samples of one model, paired by image: the scores of (control, change)."""

    scores: tuple[ImageScores, ImageScores] = ()  # type: ignore[assignment]

    def finding(self, metric: str) -> Finding:
        """Return what a score shows."""
        from scipy.special import stdtrit

        control, change = self.scores
        found, errors = gap(change, control, metric), errors_of(change, metric)
        assert found is not None, "evaluate.confidence_intervals is set"
        assert errors is not None, "evaluate.confidence_intervals is set"
        freedom = max(1, min(int(np.count_nonzero(errors)), GROUPS) - 1)
        deviation = found.half / student(freedom)
        half = float(stdtrit(freedom, 1 - self.error / 2)) * deviation
        kind: Kind = "no evidence" if abs(found.value) <= half else "better" if found.value < 0 else "worse"
        return Finding(kind, found.value, half, half + QUANTILE * deviation)

    def after(self) -> str:
        """Return the number of images."""
        return f"with {self.scores[0].num_images:,} pairs of images of one model"

    def pairs_json(self) -> list[dict[str, Any]]:
        """Return the scores of the single pair of samples."""
        control, change = ({name: one.scores[name] for name in self.metrics} for one in self.scores)
        return [{"seed": self.scores[0].card["seed"], "control": control, "change": change}]


def format_gap(value: float, half: float) -> str:
    """Format a gap with half of its interval, both to two digits of the latter."""
    return f"{format_number(value, half)} ± {format_number(half, half)}"


def format_number(value: float, scale: float) -> str:
    """Format a number to two digits of `scale`, without an exponent."""
    if not math.isfinite(scale) or scale <= 0:
        return f"{value:.3g}"
    return f"{value:.{max(0, 1 - math.floor(math.log10(scale)))}f}"


def needed_images(noise: Sequence[float], deviation: float, images: int, most: int) -> int:
    """Return the images for which scoring's noise is below a third of that between seeds, at most `most`.

    `noise` are the standard errors of the differences with `images` images, and `deviation` is the standard
    deviation of the differences. The number is doubled as often as needed: noise falls with its root.
    """
    own = sum(one**2 for one in noise) / len(noise)
    seeds = deviation**2 - own
    while images < most and own * 9 > max(seeds, 0.0):
        images, own = min(2 * images, most), own / 2
    return images


def scoring_noise(cell: ImageScores, other: ImageScores, metric: str) -> float | None:
    """Return the standard error of a difference by the choice of images; None if a score has none."""
    a, b = errors_of(cell, metric), errors_of(other, metric)
    if a is None or b is None:
        return None
    return float(np.linalg.norm(a - b if share_noise(cell, other) else np.concatenate([a, b])))
