"""What scoring a sweep costs: `python -m benchmarks.evaluation` (`--small` only tries whether it runs).

12 cells of 1,000 digits by the code of `diffctl stage evaluate`, the reference's features first, against a
call of torch-fidelity's `calculate_metrics` for each, with its defaults and the same extractor: all four of
its scores. Ours are those and intervals, extrapolation, classes and memorisation too. Equal are the numbers
of the same definition: its default subsets of KID are of 1,000 images, ours of at most 500, so that ours
are compared with those of one more call.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics

from diffusion.evaluate.features.extractors import load_extractor
from diffusion.evaluate.features.reference_features import build_reference
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.evaluate.sweep_scores import SpaceScorer, score_cells
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


class Work(NamedTuple):
    """The stores of real images and of the cells."""

    train: ImageStore
    test: ImageStore
    cells: dict[Cell, ImageStore]


class AsTensors(Dataset[Tensor]):
    """Images as torch-fidelity takes them: uint8 (3, H, W)."""

    def __init__(self, images: Images) -> None:
        self.images = torch.from_numpy(np.array(images).transpose(0, 3, 1, 2).repeat(3, axis=1))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@contextmanager
def work(cells: int, size: int) -> Iterator[Work]:
    """Real digits, and cells of them with more or less noise."""
    digits = load_digits()
    images = (digits.images[..., None] * 15.9375).round().astype(np.uint8)
    labels, classes = digits.target.astype(np.int64), [str(digit) for digit in range(10)]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def store(path: str, part: Images, of: Any, **meta: Any) -> ImageStore:
            return write_store(folder / path, part, of, {"name": "digits", "classes": classes, **meta})

        made = {}
        for steps in range(1, cells + 1):
            rows = rng.integers(len(images), size=size)
            noisy = images[rows] + 60 / steps * rng.normal(size=images[rows].shape)
            part, cell = noisy.round().clip(0, 255).astype(np.uint8), Cell(steps, 0.0)
            made[cell] = store(cell.name, part, labels[rows], card={"nfe": steps, "guidance": 0.0})
        train = store("train", images[:TRAIN], labels[:TRAIN], split="train")
        test = store("test", images[TRAIN:], labels[TRAIN:], split="test")
        yield Work(train, test, made)


def ours(made: Work) -> dict[str, dict[str, float]]:
    """The scores of every cell, from images to numbers."""
    extractor = load_extractor(EXTRACTOR, device=default_device())
    reference = build_reference(extractor, made.train, made.test)
    document = score_cells(
        made.cells, [SpaceScorer(extractor, Scorer(reference, True, 10_000, extractor.device))]
    )
    return {name: cell.scores for name, cell in document.cells.items()}


def theirs(made: Work, **options: Any) -> dict[str, dict[str, float]]:
    """The same by torch-fidelity, a call a cell."""
    real = AsTensors(made.train.images)
    return {
        cell.name: calculate_metrics(
            input1=AsTensors(store.images),
            input2=real,
            feature_extractor=register(EXTRACTOR),
            fid=True,
            kid=True,
            isc=True,
            prc=True,
            cuda=default_device().type == "cuda",
            verbose=False,
            **options,
        )
        for cell, store in made.cells.items()
    }


def furthest(
    mine: dict[str, dict[str, float]], other: dict[str, dict[str, float]], names: dict[str, str]
) -> tuple[float, str]:
    """The largest relative difference of two sets of scores, and of which score it is."""
    return max(
        (abs(mine[cell][name] - scores[theirs_name]) / max(abs(scores[theirs_name]), 1e-12), name)
        for cell, scores in other.items()
        for name, theirs_name in names.items()
    )


def timed(call: Callable[[Work], dict[str, dict[str, float]]], made: Work) -> tuple[float, Any]:
    """Seconds, and the result."""
    began = time.perf_counter()
    result = call(made)
    return time.perf_counter() - began, result


def main(small: bool = False) -> None:
    """Print what both take, and how far their numbers are apart."""
    cells, size = (2, 60) if small else (12, 1000)
    defaults: dict[str, Any] = {"kid_subset_size": 30} if small else {}
    with work(cells, size) as made:
        first = made._replace(cells=dict(list(made.cells.items())[:1]))
        ours(first)  # loads libraries
        our_seconds, mine = timed(ours, made)
        print(f"{cells} cells of {size:,}: ours {our_seconds:.1f} s", flush=True)
        their_seconds, other = timed(lambda made: theirs(made, **defaults), made)
        subsets = theirs(first, kid_subset_size=subset_size(size, TRAIN))
    ratio = their_seconds / our_seconds
    difference, name = max(furthest(mine, other, SAME), furthest(mine, subsets, SAME_SUBSETS))
    mark = "reached" if ratio >= GOAL and difference < 1e-6 else "MISSED"
    print(f"torch-fidelity {their_seconds:.1f} s")
    print(f"largest relative difference: {difference:.1e} ({name})")
    print(f"{ratio:.1f} times as fast (goal: at least {GOAL:g} times, equal numbers; {mark})")


if __name__ == "__main__":
    main("--small" in sys.argv)
