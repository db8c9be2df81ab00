"""The images that are scored during a training, and what their card contains."""

import numpy as np
import pytest

from cli.stages.training import scored_images
from diffusion.config import parse
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extractors import Features, load_extractor
from diffusion.evaluate.features.reference_features import Reference
from diffusion.evaluate.training_scores import ValidationImages, ValidationScorer
from diffusion.protocol.guidance_rules import GUIDANCE_RULES, GuidanceRule
from diffusion.protocol.settings import SampleSettings
from tests.conftest import params
from tests.helpers.networks import artefact_of, spec_of

META = {
    "name": "digits",
    "image_size": 8,
    "extractor": "effnet-lite0-64",
    "weights_sha256": "",
    "dtype": "float32",
    "reference_split": "train",
    "reference_count": 20,
    "heldout_split": "test",
}
PROFILES = {"ema_profiles": {"sigma_rel": [0.1], "every": 4}}


@pytest.mark.parametrize(
    ("sample", "sweep", "guidance"),
    [
        ({"guidance": 1.0, "guide": "ema:0.1@4"}, {}, 0.0),
        ({"guidance": 1.0, "guidance_rule": "autoguidance"}, {"guide": ["ema:0.1@4"]}, 0.0),
        ({"guidance": 1.0, "classifier": "classifier.safetensors"}, {}, 1.0),
    ],
)
def test_other_networks_do_not_guide_the_scored_images(sample, sweep, guidance):
    config = parse(params(sample=sample, sweep=sweep, train={**PROFILES, "p_uncond": 0.1}), "params")
    settings = scored_images(config).settings
    assert (settings.guidance, settings.guide, settings.classifier) == (guidance, None, None)
    assert not settings.needs_guide


def test_the_card_contains_the_code_of_all_that_the_settings_name(monkeypatch):
    rule = GuidanceRule("diffusion.analysis.mixture:from_grey", nfe=1)
    monkeypatch.setitem(GUIDANCE_RULES.data, "from-grey", rule)
    rng = np.random.default_rng(0)
    real = Features(rng.normal(size=(20, 16)).astype(np.float32), rng.normal(size=(20, 4)).astype(np.float32))
    extractor, reference = load_extractor("effnet-lite0-64"), Reference(META, real, real.features)

    def code(**values: object) -> object:
        images = ValidationImages(SampleSettings(steps=2, guidance=1.0, **values), 8, 8)
        scorer = ValidationScorer(images, extractor, reference, EvaluateConfig())
        return scorer.card(artefact_of(spec_of()))["code"]

    assert code() == code(seed=1)
    assert code() != code(guidance_rule="from-grey")
    assert code() != code(sampler="dpm-solver++")
