"""What the profiles for GPUs train with, one part at a time and all together, for tests of a step."""

from typing import Any

_HYBRID = {"process": {"variance": "learned", "loss": "hybrid", "prediction": "eps"}}
_SIMPLE = {"process": {"variance": "small", "loss": "simple", "prediction": "eps"}}
_AUGMENT = {"augment": {"probability": 1.0}}  # so that every image is resampled
_AVERAGES = {"ema_profiles": {"sigma_rel": [0.05, 0.1], "every": 2}}

TRAININGS: dict[str, dict[str, Any]] = {
    "simple": {**_SIMPLE, "model": {"class_cond": False}, "train": {"p_uncond": 0.0}},
    "hybrid": {**_HYBRID, "train": {}},
    "vlb": {"process": {**_HYBRID["process"], "loss": "vlb"}, "train": {}},
    "velocity": {"process": {**_HYBRID["process"], "prediction": "velocity"}, "train": {}},
    "min-snr": {"process": {**_HYBRID["process"], "weighting": "min-snr"}, "train": {}},
    "dropout": {**_HYBRID, "model": {"dropout": 0.2}, "train": {}},
    "flips": {**_HYBRID, "data": {"flip": True}, "train": {}},
    "augmented": {**_HYBRID, "train": _AUGMENT},
    "averages": {**_HYBRID, "train": _AVERAGES},
    "checkpoints": {**_HYBRID, "model": {"gradient_checkpointing": True, "dropout": 0.2}, "train": {}},
    "all": {**_HYBRID, "model": {"dropout": 0.2}, "data": {"flip": True}, "train": {**_AUGMENT, **_AVERAGES}},
}
