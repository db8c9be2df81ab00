"""What 50,000 images against 50,000 cost to score: `python -m benchmarks.large [count]`.

The features are given, rectified Gaussian ones with a spectrum as of a network's: 1,280 as of
EfficientNet-Lite0, 2,048 as of Inception. As many held-out real ones make floor, excess with its interval,
and memorisation. All scores and intervals are computed by the product's own code, each set in a process of
its own whose highest memory is told.
"""

import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np

from diffusion.evaluate.config import EvaluateConfig
from diffusion.evaluate.features.extract import Array, Features
from diffusion.evaluate.features.reference import Reference
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.protocol.extractors import EXTRACTORS, ExtractorSpec

COUNT = 50_000
BLOCK = 5000
DECAY = 0.5  # the k-th direction has variance k^(−2 · DECAY)
WORSE = 1.1  # how much wider the sample's features are


class Goal(NamedTuple):
    """What scoring by an extractor may take."""

    extractor: str
    minutes: float
    gigabytes: float


GOALS = (Goal("effnet-lite0-64", 3, 6), Goal("inception-v3-compat", 6, 8))


class Cost(NamedTuple):
    """What it took: seconds, the process's highest memory in GB, and the names of the scores."""

    seconds: float
    gigabytes: float
    scores: list[str]


def main(count: int = COUNT) -> None:
    """Print a line an extractor."""
    print(f"{count:,} images against {count:,}, the features given")
    for goal in GOALS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            cost = pool.submit(measure, EXTRACTORS[goal.extractor], count).result()
        print(
            f"{goal.extractor}: {len(cost.scores)} scores in {cost.seconds / 60:.1f} min "
            f"(goal {goal.minutes:g}) and {cost.gigabytes:.1f} GB (goal {goal.gigabytes:g})",
            flush=True,
        )


def measure(spec: ExtractorSpec, count: int) -> Cost:
    """Score such features once, reference included."""
    drawn = np.random.default_rng(0)
    real, made = features(drawn, count, spec.features), features(drawn, count, spec.features, WORSE)
    held = Features(features(drawn, count, spec.features), logits(drawn, count))
    sample = Features(made, logits(drawn, count))
    meta = {
        "extractor": spec.name,
        "reference_count": count,
        "reference_split": "train",
        "heldout_split": "test",
        "heldout_count": len(held),
    }
    usual = EvaluateConfig()
    start = time.perf_counter()
    scorer = Scorer(Reference(meta, real, held), usual.intervals, usual.prc_images)
    scores = scorer.scores(sample)
    scorer.real(count)  # what the held-out images score, which a document says, too
    seconds = time.perf_counter() - start
    return Cost(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, sorted(scores))


def logits(drawn: np.random.Generator, count: int) -> Array:
    """(count, 1000) float32 of a classifier that knows nothing."""
    whole = np.empty((count, 1000), np.float32)
    for block in blocks(whole):
        block[:] = drawn.normal(size=block.shape)
    return whole


def features(drawn: np.random.Generator, count: int, dimension: int, scale: float = 1.0) -> Array:
    """(count, dimension) float32, at least 0 as after a rectifier, drawn a block at a time."""
    scales = scale * (1 + np.arange(dimension)) ** -DECAY
    turn = np.linalg.qr(drawn.normal(size=(dimension, dimension)))[0].astype(np.float32)
    whole = np.empty((count, dimension), np.float32)
    for block in blocks(whole):
        block[:] = np.maximum((drawn.normal(size=block.shape) * scales).astype(np.float32) @ turn, 0)
    return whole


def blocks(whole: Array) -> Iterator[Array]:
    """Views of its rows, BLOCK at a time, to be drawn into: all in float64 would take twice the array."""
    return (whole[start : start + BLOCK] for start in range(0, len(whole), BLOCK))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
