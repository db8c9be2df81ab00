"""What scoring a sweep costs: `python -m benchmarks.evaluation [--small]`.

12 cells of 1,000 digits by the code of `diffctl stage evaluate`, the reference's features first, against a
call of torch-fidelity's `calculate_metrics` for each, with its defaults and the same extractor: all four of
its scores. Ours are those and intervals, extrapolation, classes and memorisation too. Equal are the numbers
of the same definition: its default subsets of KID are of 1,000 images, ours of at most 500, so that ours
are compared with those of one more call.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Subset
from torch_fidelity import calculate_metrics

from benchmarks import SMALL, print_goal, seconds_of
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extractors import extract, load_extractor
from diffusion.evaluate.features.reference_features import make_reference_of
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.evaluate.sweep_scores import score_cells
from diffusion.images.store import Images, ImageStore, write_store
from diffusion.protocol.card import subset_size
from diffusion.protocol.grid import Cell
from diffusion.system.devices import default_device
from tests.helpers.torch_fidelity_adapter import register

EXTRACTOR = "effnet-lite0-64"
GOAL = 4.0
TRAIN = 1297  # of 1,797 digits, as `diffctl stage data` splits them
SAME = {
    "fd_effnet_lite0_64": "frechet_inception_distance",
    "is_effnet_lite0_64": "inception_score_mean",
    "precision_effnet_lite0_64": "precision",
    "recall_effnet_lite0_64": "recall",
}
SAME_SUBSETS = SAME | {"kd_effnet_lite0_64": "kernel_inception_distance_mean"}

Scores = dict[str, dict[str, float]]
"""Scores by cell."""


class Stores(NamedTuple):
    """The stores of real images and of the cells."""

    train: ImageStore
    test: ImageStore
    cells: dict[Cell, ImageStore]


def as_tensors(images: Images) -> Subset[Tensor]:
    tensors = torch.from_numpy(np.array(images).transpose(0, 3, 1, 2).repeat(3, axis=1))
    return Subset(tensors, range(len(tensors)))


def write_stores(folder: Path, cells: int, size: int) -> Stores:
    """Write real digits, and cells of them with more or less noise."""
    digits, draw = load_digits(), np.random.default_rng(0)
    images, labels = (digits.images[..., None] * 15.9375).round().astype(np.uint8), digits.target
    meta = {"name": "digits", "classes": [str(digit) for digit in range(10)]}
    made = {}
    for steps in range(1, cells + 1):
        rows = draw.integers(len(images), size=size)
        noisy = images[rows] + 60 / steps * draw.normal(size=images[rows].shape)
        pixels, cell = noisy.round().clip(0, 255).astype(np.uint8), Cell(steps=steps, eta=0.0)
        card = {"nfe": steps, "guidance": 0.0}
        made[cell] = write_store(folder / cell.name, pixels, labels[rows], {**meta, "card": card})
    train, test = (
        write_store(folder / split, images[rows], labels[rows], {**meta, "split": split})
        for split, rows in (("train", slice(None, TRAIN)), ("test", slice(TRAIN, None)))
    )
    return Stores(train, test, made)


def ours(stores: Stores) -> Scores:
    """Return the scores of every cell, from images to numbers."""
    extractor = load_extractor(EXTRACTOR, device=default_device())
    real = [stores.train, stores.test]
    reference = make_reference_of(extractor, real, [extract(extractor, one.images) for one in real])
    scorer = Scorer(reference, EvaluateConfig(), extractor.device)
    cells = score_cells(stores.cells, [(extractor, scorer)]).cells
    return {name: cell.scores for name, cell in cells.items()}


def theirs(stores: Stores, **options: Any) -> Scores:
    """Return the same by torch-fidelity, a call a cell."""
    options |= {"fid": True, "kid": True, "isc": True, "prc": True, "verbose": False}
    options |= {"feature_extractor": register(EXTRACTOR), "cuda": default_device().type == "cuda"}
    real = as_tensors(stores.train.images)
    return {
        cell.name: calculate_metrics(input1=as_tensors(store.images), input2=real, **options)
        for cell, store in stores.cells.items()
    }


def furthest(mine: Scores, other: Scores, names: dict[str, str]) -> tuple[float, str]:
    """Return the largest relative difference of two sets of scores, and which score it is."""
    return max(
        (abs(mine[cell][name] - scores[theirs_name]) / max(abs(scores[theirs_name]), 1e-12), name)
        for cell, scores in other.items()
        for name, theirs_name in names.items()
    )


def main(small: bool = False) -> None:
    cells, size = (2, 60) if small else (12, 1000)
    defaults: dict[str, Any] = {"kid_subset_size": 30} if small else {}
    mine: Scores = {}
    other: Scores = {}
    with tempfile.TemporaryDirectory() as folder:
        stores = write_stores(Path(folder), cells, size)
        first = stores._replace(cells=dict(list(stores.cells.items())[:1]))
        ours(first)  # loads libraries
        our_seconds = seconds_of(lambda: mine.update(ours(stores)))
        their_seconds = seconds_of(lambda: other.update(theirs(stores, **defaults)))
        subsets = theirs(first, kid_subset_size=subset_size(size, TRAIN))
    difference, name = max(furthest(mine, other, SAME), furthest(mine, subsets, SAME_SUBSETS))
    print(f"{cells} cells of {size:,}: ours {our_seconds:.1f} s, torch-fidelity {their_seconds:.1f} s")
    print(f"largest relative difference: {difference:.1e} ({name})")
    ratio, is_equal = their_seconds / our_seconds, difference < 1e-6
    figure, goal = f"{ratio:.1f} times as fast", f"at least {GOAL:g} times, equal numbers"
    print_goal("scoring", figure, goal, ratio >= GOAL and is_equal)


if __name__ == "__main__":
    main(SMALL in sys.argv)
