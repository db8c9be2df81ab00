"""A scores document as the evaluate stage makes it, with chosen numbers."""

from typing import Any

import numpy as np

from diffusion.choice.confidence import NORMAL, interval
from diffusion.choice.selection import select_best, select_front
from diffusion.protocol.grid import SAMPLING_VERSION, sampling_version
from diffusion.protocol.scores_document import CellScores, ScoresDocument, document_values, pack

CARD = {
    "model_sha256": "a" * 64,
    "sampler": "ddim",
    "noise": "small",
    "spacing": "uniform",
    "guidance": 0.0,
    "clip": True,
    "classes": "balanced",
    "seed": 0,
    "sampling_version": SAMPLING_VERSION,
    "sampling_torch": "2.13.0",
    "num_images": 500,
    "data": "digits",
    "reference_digest": "r" * 64,
    "extractor": "effnet-lite0-64",
    "torch": "2.13.0",
}

ERRORS = {"fd_effnet_lite0_64": 100, "kd_effnet_lite0_64": 200}  # how many a document has of each score

REFERENCE = {
    "evaluation": 3,
    "extractor": "effnet-lite0-64",
    "weights_sha256": "w" * 64,
    "dtype": "float32",
    "name": "digits",
    "image_size": 8,
    "reference_split": "train",
    "reference_digest": "r" * 64,
    "reference_count": 1000,
}


def document(kernel: dict[tuple[int, float], float] | None = None, **card: Any) -> ScoresDocument:
    """Scores over a grid: `kernel` gives the kernel distance of each (steps, eta)."""
    kernel = kernel or {(5, 0.0): 0.3, (5, 1.0): 0.5, (10, 0.0): 0.2, (10, 1.0): 0.4}
    cells = {}
    for (steps, eta), value in kernel.items():
        scores = {
            "fd_effnet_lite0_64": 1000 * value,
            "kd_effnet_lite0_64": value,
            "kd_effnet_lite0_64_std": 0.01,
            "is_effnet_lite0_64": 2.0,
            "floor": 25.0,
            "excess": 1000 * value - 25,
        }
        version = {"sampling_version": sampling_version(card)}
        whole = {**CARD, **version, "steps": steps, "eta": eta, "nfe": steps, **card}
        values = {"steps": steps, "eta": eta, "scores": scores, "card": whole, "errors": {}}
        cells[f"steps{steps}-eta{eta:g}"] = values
    made = {name: CellScores(**values) for name, values in cells.items()}
    best, front = select_best(made), select_front(made)
    return ScoresDocument(
        extractor="effnet-lite0-64", reference=REFERENCE, best=best, front=front, cells=made
    )


def certain_cell(metric: str, value: float, errors: Any = None, **card: Any) -> CellScores:
    """Return a cell with this score and errors that give its interval; its other scores are 1."""
    axes = {"steps": card["steps"], "eta": card["eta"]}
    scores = dict.fromkeys(ERRORS, 1.0) | {metric: value}
    cell = CellScores(**axes, scores=scores, card={**CARD, "nfe": card["steps"], **card})
    return cell if errors is None else with_errors(cell, metric, errors)


def chance(seed: int, deviation: float) -> Any:
    """Errors of a score with this standard deviation; those of two seeds are independent."""
    errors = np.random.default_rng(seed).normal(size=100)
    return errors * (deviation / np.linalg.norm(errors))


def with_errors(cell: CellScores, metric: str, errors: Any) -> CellScores:
    """The cell with at most 100 errors of a score, and the interval that follows of them."""
    low, high = interval(cell.scores[metric], float(np.linalg.norm(errors)))
    cell.scores.update({f"{metric}_low": low, f"{metric}_high": high})
    cell.errors[metric] = pack([*errors, *np.zeros(ERRORS.get(metric, 100) - len(errors))])
    return cell


def with_space(one: ScoresDocument, factor: float = 2.0, **card: Any) -> ScoresDocument:
    """Return the document with scores in effnet-lite0-96 too: each score times `factor`, with a card."""
    ours, name = "effnet_lite0_64", "effnet-lite0-96"
    values = document_values(one)
    reading = {"extractor": name, "weights_sha256": "v" * 64, "evaluation": 4}  # has a revision of its own
    values["spaces"] = {name: {**values["reference"], **reading}}
    for cell in values["cells"].values():
        scores = {
            key.replace(ours, "effnet_lite0_96"): factor * cell["scores"][key] for key in cell["scores"]
        }
        own = {**cell["card"], **reading, **card}
        cell["spaces"] = {name: {"scores": scores, "card": own}}
    return ScoresDocument(**values)


def certain(one: ScoresDocument, *metrics: str, half: float = 0.1) -> ScoresDocument:
    """Give scores (default: both distances) intervals of `half` times their value."""
    for number, cell in enumerate(one.cells.values()):
        for metric in metrics or ERRORS:
            with_errors(cell, metric, chance(number, half / NORMAL * cell.scores[metric]))
    return one


def of_seed(
    kernel: dict[tuple[int, float], float], setting: str, seed: int, half: float = 0.05
) -> ScoresDocument:
    """Return the scores with intervals of a training of this setting and seed."""
    one = certain(document(kernel, model_sha256=f"{setting}{seed}".ljust(64, "0")), half=half)
    return ScoresDocument(**{**dict(one), "training": {"setting": setting * 16, "seed": seed}})
