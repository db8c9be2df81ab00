"""Whether the intervals hold: `python -m benchmarks.coverage [draws] [--kernel]`, some 15 minutes on 2 cores.

`--kernel` measures the kernel distances of 1,000 images too, which takes several times as long. Any rows of a
table are made by `--sizes` and `--kinds`, as 300 draws of 1,280 features and 900 images:

    python -m benchmarks.coverage 300 --sizes 1280x900 --kinds 0:Gaussian:real

A row has as many draws as are asked for where its sizes are; of the usual ones the largest have a third.

Features are drawn from distributions that are known, many samples of each, and every sample is scored with
its intervals by the product's own code. The estimand is the score's expectation at this number of images
against this reference, which for a Fréchet distance is not the distance of the distributions, since it is
biased: the mean over all draws. Of a kernel distance it is that of the whole reference, whatever subsets were
drawn. A nominal 95 % interval shall hold it in 93 to 97.5 % of the draws, but for the draws' own chance.

| column | of |
| --- | --- |
| fd, kd | the Fréchet and the kernel distance |
| excess | the distance above a floor that is drawn anew |
| Δ fd, Δ kd | the gap between two cells that share their noise image by image, paired |
| too wide | the interval of fd as a standard deviation over the true one |
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from diffusion.choice.certainty import Interval, interval, student
from diffusion.evaluate.features.extract import Array
from diffusion.evaluate.scores import kernel
from diffusion.evaluate.scores.frechet import Projected, Target
from diffusion.evaluate.scores.jackknife import grouped, image_errors
from diffusion.protocol.scoring import GROUPS
from diffusion.system.threads import AT_ONCE

DRAWS = 120
REFERENCE = 5000
SHARED = 0.9  # the correlation of the noise that two cells share
WORSE = 1.3  # by how much the last of a worse model's features is too wide
KERNEL = 1000  # images up to which --kernel measures that distance
FEW = 256  # images: of more, a kernel distance costs more than all else
MANY = 300_000  # features of a sample from which on there are fewer draws

Float = NDArray[np.float64]


class Case(NamedTuple):
    """Samples of `count` images with `dimension` features, the k-th of variance k^−decay.

    They are Gaussian, or `rectified` as a network's are; `model` is `real`, of the reference's distribution,
    or `worse`. `kernel` says whether kernel distances are measured.
    """

    dimension: int
    count: int
    decay: float
    rectified: bool
    model: str
    kernel: bool


class Draw(NamedTuple):
    """A sample's scores, their intervals and standard deviations, by column.

    `estimands` are those scores whose mean is the truth where it is not the score's own.
    """

    values: dict[str, float]
    intervals: dict[str, Interval]
    deviation: float
    estimands: dict[str, float]


SIZES = (
    (64, 200),
    (64, 1000),
    (64, 5000),
    (256, 200),
    (256, 256),
    (256, 1000),
    (1280, 200),
    (1280, 1000),
    (1280, 1280),
)
Kind = tuple[float, bool, str]
KINDS: tuple[Kind, ...] = (
    (0.0, False, "real"),
    (1.0, False, "worse"),
    (1.0, True, "real"),
    (1.5, True, "worse"),
)


def cases(
    sizes: Sequence[tuple[int, int]] = SIZES, most: int = FEW, kinds: Sequence[Kind] = KINDS
) -> Iterator[Case]:
    for dimension, count in sizes:
        for decay, rectified, model in kinds:
            yield Case(dimension, count, decay, rectified, model, count <= most)


@lru_cache(maxsize=2)
def rotation(dimension: int) -> Float:
    matrix = np.random.default_rng(1).normal(size=(dimension, dimension))
    return np.asarray(np.linalg.qr(matrix)[0])


def features(case: Case, noise: Float, worse: float) -> Array:
    """Features of noise (N, D)."""
    made = np.maximum(noise @ rotation(case.dimension), 0) if case.rectified else noise
    scale = np.arange(1, case.dimension + 1.0) ** (-case.decay / 2)
    scale *= np.sqrt(case.dimension) / np.linalg.norm(scale)
    return np.asarray(made * scale * np.linspace(1, worse, case.dimension), np.float32)


class Known(NamedTuple):
    """What depends on the reference alone."""

    features: Array
    target: Target
    drawn: kernel.Subsets
    sums: NDArray[np.float32]
    within: float


@lru_cache(maxsize=1)
def known(case: Case) -> Known:
    rng = np.random.default_rng(2)
    real = features(case, rng.normal(size=(REFERENCE, case.dimension)), 1.0)
    whole = kernel.Kernel(real, real)
    drawn = kernel.subsets(case.count, REFERENCE)
    return Known(real, Target(real), drawn, kernel.own_sums(whole, drawn.reference), _within(whole))


def _within(own: kernel.Kernel) -> float:
    """The mean kernel between different rows of a set."""
    count = len(own.a)
    diagonal = (np.einsum("nd,nd->n", own.a, own.a, dtype=np.float64) / own.a.shape[1] + 1) ** 3
    return float((own.row_means().mean() * count - diagonal.mean()) / (count - 1))


def one_cell(case: Case, sample: Array) -> tuple[dict[str, float], dict[str, Float], float]:
    """The scores of a sample, their errors, and the kernel distance to the whole reference."""
    real = known(case)
    projected = Projected(sample, real.target)
    values = {"fd": projected.distance}
    errors = {"fd": grouped(image_errors(projected.leave_one_out(), projected.interactions()))}
    if not case.kernel:
        return values, errors, np.nan
    kernels = kernel.kernels(sample, real.features)
    near = kernel.kernel_distance(kernels, real.drawn, real.sums)
    images = image_errors(kernel.leave_one_out(kernels), kernel.interactions(kernels))
    values["kd"], errors["kd"] = near.mean, np.concatenate([grouped(images), near.errors])
    whole = _within(kernels.own) + real.within - 2 * float(kernels.cross.row_means().mean())
    return values, errors, whole


def draw(case: Case, seed: int) -> Draw:
    """Two cells of shared noise and a floor, scored."""
    rng = np.random.default_rng([3, seed])
    shape = (case.count, case.dimension)
    noise, other, held = rng.normal(size=(3, *shape))
    worse = WORSE if case.model == "worse" else 1.0
    beside = SHARED * noise + np.sqrt(1 - SHARED**2) * other
    values, errors, whole = one_cell(case, features(case, noise, worse))
    second, their_errors, their_whole = one_cell(case, features(case, beside, (worse + WORSE) / 2))
    floor = Projected(features(case, held, 1.0), known(case).target)
    of_floor = np.linalg.norm(image_errors(floor.leave_one_out(), floor.interactions()))
    deviations = {name: float(np.linalg.norm(parts)) for name, parts in errors.items()}
    intervals = {name: interval(values[name], deviations[name], name == "fd") for name in errors}
    for name in errors:
        freedom = min(int(np.count_nonzero(errors[name])), GROUPS) - 1
        half = student(freedom) * np.linalg.norm(errors[name] - their_errors[name])
        value = values[f"Δ {name}"] = values[name] - second[name]
        intervals[f"Δ {name}"] = Interval(value - half, value + half)
    values["excess"] = values["fd"] - floor.distance
    intervals["excess"] = interval(values["excess"], float(np.hypot(deviations["fd"], of_floor)))
    return Draw(values, intervals, deviations["fd"], {"kd": whole, "Δ kd": whole - their_whole})


def _draws(case: Case, seeds: range) -> list[Draw]:
    with threadpool_limits(1):
        return [draw(case, seed) for seed in seeds]


def coverage(found: Sequence[Draw]) -> dict[str, float]:
    """The share of draws whose interval holds the truth, by score, and `too wide`."""
    shares: dict[str, float] = {}
    for name in found[0].values:
        truth = np.mean([one.estimands.get(name, one.values[name]) for one in found])
        shares[name] = float(
            np.mean([one.intervals[name].low <= truth <= one.intervals[name].high for one in found])
        )
    spread = np.std([one.values["fd"] for one in found])
    shares["too wide"] = float(np.sqrt(np.mean([one.deviation**2 for one in found])) / spread)
    return shares


def measure(case: Case, draws: int, pool: Any = None) -> dict[str, float]:
    """The coverage over so many draws, in as many processes as the pool has."""
    if pool is None:
        return coverage(_draws(case, range(draws)))
    parts = [range(start, draws, AT_ONCE) for start in range(AT_ONCE)]
    return coverage([one for part in pool.map(_draws, [case] * AT_ONCE, parts) for one in part])


def main(asked: Sequence[str] | None = None) -> None:
    """Print a line a row, as soon as it is measured."""
    told = arguments().parse_args(asked)
    columns = ("fd", "excess", "kd", "Δ fd", "Δ kd")
    print("| D | N | spectrum | features | model | draws | " + " | ".join(columns) + " | too wide |")
    print("|" + " --- |" * (len(columns) + 7))
    with ProcessPoolExecutor(AT_ONCE) as pool:
        for case in cases(told.sizes or SIZES, KERNEL if told.kernel else FEW, told.kinds):
            whole = told.sizes or case.dimension * case.count < MANY
            few = told.draws if whole else max(2, told.draws // 3)
            print(row(case, few, measure(case, few, pool), columns), flush=True)


def row(case: Case, draws: int, found: dict[str, float], columns: Sequence[str]) -> str:
    """A line of the table in percent."""
    shares = [f"{100 * found[name]:.1f}" if name in found else "" for name in columns]
    drawn = "rectified" if case.rectified else "Gaussian"
    about = [case.dimension, case.count, f"k^−{case.decay:g}", drawn, case.model, draws]
    return "| " + " | ".join([*map(str, about), *shares, f"{found['too wide']:.2f}"]) + " |"


def arguments() -> argparse.ArgumentParser:
    """What a call may say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description="Measure coverage.")
    parser.add_argument("draws", nargs="?", type=_at_least(2), default=DRAWS, help="samples a row")
    parser.add_argument("--kernel", action="store_true", help=f"kernel distances up to {KERNEL:,} images")
    parser.add_argument("--sizes", nargs="+", type=size, metavar="DxN", help="features and images")
    parser.add_argument(
        "--kinds",
        nargs="+",
        type=kind,
        default=KINDS,
        metavar="DECAY:FEATURES:MODEL",
        help="as 1.5:rectified:worse; features Gaussian or rectified, a model real or worse",
    )
    return parser


def size(text: str) -> tuple[int, int]:
    """Features and images of `1280x900`; ValueError for fewer than 1 and 3."""
    dimension, count = map(int, text.split("x"))
    if dimension < 1 or count < 3:
        raise ValueError(text)
    return dimension, count


def kind(text: str) -> Kind:
    """The spectrum's decay, whether features are rectified, and the model, of `1.5:rectified:worse`."""
    decay, drawn, model = text.split(":")
    if drawn not in ("Gaussian", "rectified") or model not in ("real", "worse"):
        raise ValueError(text)
    return float(decay), drawn == "rectified", model


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise ValueError(text)
        return int(text)

    return number


if __name__ == "__main__":
    main()
