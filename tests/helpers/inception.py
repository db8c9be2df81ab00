"""Files of Inception's shape with random weights."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch


def write_random_inception(path: Path, seed: int = 0) -> str:
    """Write such a file, as torch saves it; returns its SHA-256."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> None:
            return None

    torch.manual_seed(seed)
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    module = Unloaded("inception", ["2048"], feature_extractor_weights_path=empty)
    torch.save(module.state_dict(), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()
