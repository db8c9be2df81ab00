"""Golden images and scores: they change if and only if their version is raised.

`python -m tests.test_golden` rewrites the golden values after an intended change.
"""

import base64
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extractors import extract, load_extractor
from diffusion.evaluate.features.reference_features import Reference
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.images.pixels import to_nhwc
from diffusion.images.store import Images
from diffusion.model.model_file import LoadedModel, ModelDescription
from diffusion.model.precision import autocast, freeze, to_bf16
from diffusion.protocol.extractors import EVALUATION_VERSION
from diffusion.protocol.grid import SAMPLING_VERSION
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import labels_condition
from diffusion.sample.generate import generate
from tests.conftest import ROOT
from tests.helpers.networks import artefact_of, network_of, spec_of

FOLDER = Path(__file__).parent / "golden"
CPU = torch.device("cpu")

SETTINGS: dict[str, dict[str, Any]] = {
    "ddim": {"steps": 5},
    "unclipped": {"steps": 5, "clip": False},
    "small": {"steps": 5, "eta": 1.0},
    "large": {"steps": 5, "eta": 1.0, "noise": "large"},
    "learned": {"steps": 5, "eta": 0.5, "noise": "learned"},
    "guided": {"steps": 5, "guidance": 2.0},
    "quadratic": {"steps": 5, "spacing": "quadratic"},
    "trailing": {"steps": 5, "spacing": "trailing"},
    "timesteps": {"timesteps": (0, 10, 50, 99)},
    "dpm-solver++": {"steps": 5, "sampler": "dpm-solver++"},
}


def image(name: str) -> Images:
    """Return two images of a random network, (2, 8, 8, 1) uint8."""
    spec = spec_of(null_class=True)
    artefact, settings = artefact_of(spec), SampleSettings(seed=1, **SETTINGS[name])
    condition = labels_condition(artefact, torch.tensor([0, 1]), 2)
    return to_nhwc(generate(LoadedModel(network_of(spec), artefact), settings, range(2), condition, CPU))


def precisions() -> dict[str, str]:
    """Return the output dtype of each layer of a network in bf16.

    Images in bf16 are not compared: rounding differs between processors and changes some pixels completely.
    """
    network, found = freeze(network_of(spec_of(null_class=True))), {}

    def record_dtype(name: str) -> Any:
        return lambda layer, inputs, output: found.update({name: str(output.dtype)})

    for name, layer in to_bf16(network).named_modules():
        if not [*layer.children()]:
            layer.register_forward_hook(record_dtype(name))
    autocast(network, "bf16")(torch.zeros(1, 1, 8, 8), torch.tensor([0]), torch.tensor([0]))
    return found


def scores() -> dict[str, float]:
    """Return all scores of 40 noise images against 60 reference images, with 30 held-out images."""
    draws = np.random.default_rng(0)
    extractor = load_extractor("effnet-lite0-64")

    def extracted(count: int, low: int) -> Any:
        return extract(extractor, draws.integers(low, 256, (count, 8, 8, 1), dtype=np.uint8))

    reference, heldout, sample = extracted(60, 0), extracted(30, 0), extracted(40, 50)
    meta = {"extractor": extractor.spec.name, "reference_split": "train", "heldout_split": "test"}
    labels, heldout_labels = np.arange(60) % 3, np.arange(30) % 3
    known = Reference(meta, reference.features, heldout, labels, heldout_labels)
    return Scorer(known, EvaluateConfig(), extractor.device).scores(sample)


def golden(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return values


def assert_agree(version: str, own: int, known: int, same: bool) -> None:
    """Assert that a version is the known one; `same` if its values equal the golden ones."""
    assert same or own != known, f"the numbers have changed: raise {version}, or fix what changed them"
    assert own == known or not same, f"{version} rose and no number has changed: take it back"
    assert own == known, f"{version} rose and numbers changed: write them with `python -m tests.test_golden`"


def test_sampling_matches_the_golden_images_of_its_version() -> None:
    known = golden("images")
    assert set(known["images"]) == set(SETTINGS)
    images = np.concatenate([image(name) for name in SETTINGS]).astype(int)
    golden_images = b"".join(base64.b64decode(known["images"][name]) for name in SETTINGS)
    distances = np.abs(images.flatten() - np.frombuffer(golden_images, np.uint8))
    same = distances.max() <= 1 and precisions() == known["precisions"]  # 1: rounding
    assert_agree("SAMPLING_VERSION", SAMPLING_VERSION, known["version"], same)


def test_scoring_matches_the_golden_scores_of_its_version() -> None:
    known = golden("scores")
    same = scores() == pytest.approx(known["scores"], rel=1e-3, abs=1e-6)
    assert_agree("EVALUATION_VERSION", EVALUATION_VERSION, known["version"], same)


def test_changelog_has_the_current_versions() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"## {project['version']}\n" in text
    assert f"ampling version {SAMPLING_VERSION}" in text
    assert f"model format {ModelDescription.model_fields['format'].default}" in text


def main() -> None:
    """Write the golden images and scores."""
    images = {name: base64.b64encode(image(name).tobytes()).decode() for name in SETTINGS}
    made = {"version": SAMPLING_VERSION, "images": images, "precisions": precisions()}
    scored = {"version": EVALUATION_VERSION, "scores": scores()}
    for name, values in (("images", made), ("scores", scored)):
        (FOLDER / f"{name}.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
