"""A scores document as the evaluate stage makes it, with chosen numbers."""

from typing import Any

from diffusion.protocol.grid import SAMPLING_VERSION
from diffusion.protocol.scores import ScoresDocument

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


REFERENCE = {
    "evaluation": 2,
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
        whole = {**CARD, "steps": steps, "eta": eta, "evaluations": steps, **card}
        cells[f"steps{steps}-eta{eta:g}"] = {"steps": steps, "eta": eta, "scores": scores, "card": whole}
    return ScoresDocument(extractor="effnet-lite0-64", reference=REFERENCE, cells=cells)
