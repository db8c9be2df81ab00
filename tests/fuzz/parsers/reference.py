"""A reference's folder: its meta.json with valid features, or features with a valid meta.json."""

import io
import json
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np

from diffusion.evaluate.features import reference_features
from diffusion.system.checksums import add_checksum
from tests.fuzz.repairs import correct_checksum

COUNT, WIDTH = 3, 4
NAMES = ("features", "heldout", "labels", "heldout_labels")
META = {
    "classes": ["0", "1"],
    "code": "c",
    "dtype": "float32",
    "evaluation": 2,
    "extractor": "effnet-lite0-64",
    "heldout_count": COUNT,
    "heldout_digest": "h",
    "heldout_split": "test",
    "image_size": 8,
    "name": "digits",
    "reference_count": COUNT,
    "reference_digest": "r",
    "reference_split": "train",
    "weights_sha256": "w",
    "arrays": dict.fromkeys(NAMES, "a"),
}


@cache
def seeds() -> list[bytes]:
    """Return meta.json and features."""
    return [json.dumps(add_checksum(META)).encode(), _array(np.zeros((COUNT, WIDTH), np.float32))]


def _array(values: np.ndarray) -> bytes:
    made = io.BytesIO()
    np.save(made, values)
    return made.getvalue()


def repair(data: bytes) -> bytes:
    """Correct the checksum of meta.json."""
    return correct_checksum(data)


def parse(path: Path) -> None:
    """Read the folder with the input as one of its files."""
    data, folder = path.read_bytes(), path.parent / "reference"
    folder.mkdir()
    is_array = data[:1] == b"\x93"
    (folder / "meta.json").write_bytes(seeds()[0] if is_array else data)
    for name in NAMES:
        whole = _array(np.zeros(COUNT, np.int64)) if name.endswith("labels") else seeds()[1]
        (folder / f"{name}.npy").write_bytes(data if is_array and name == "features" else whole)
    with patch.object(reference_features, "array_digest", lambda array: "a"):
        read = reference_features._read(folder)
    assert read.facts
    assert read.train_and_test
