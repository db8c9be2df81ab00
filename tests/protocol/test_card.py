from importlib.metadata import version

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.protocol.card import differing_fields, protocol_card
from diffusion.protocol.extractors import EVALUATION_VERSION

SAMPLING = {
    "model_sha256": "a" * 64,
    "sampler": "ddim",
    "ema": True,
    "precision": "fp32",
    "seed": 0,
    "noise": "small",
    "spacing": "uniform",
    "guidance": 0.0,
    "clip": True,
    "classes": "balanced",
    "steps": 50,
    "eta": 0.5,
    "sampling_version": 1,
    "sampling_torch": "2.12.0",
    "num_images": 500,
}
META = {
    "evaluation": 3,
    "extractor": "effnet-lite0-64",
    "weights_sha256": "b" * 64,
    "dtype": "float32",
    "name": "digits",
    "image_size": 8,
    "reference_split": "train",
    "reference_digest": "c" * 64,
    "reference_count": 1297,
}
CARDS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2))


@pytest.fixture
def card():
    return protocol_card(SAMPLING, 500, META, "bilinear, antialiased, to 64", (1000, 1000))


def test_card_contains_every_field_of_the_protocol(card):
    assert card == {
        **SAMPLING,
        "data": "digits",
        "image_size": 8,
        "reference_split": "train",
        "reference_digest": "c" * 64,
        "reference_count": 1297,
        "heldout_split": None,
        "heldout_digest": None,
        "heldout_count": None,
        "extractor": "effnet-lite0-64",
        "weights_sha256": "b" * 64,
        "resize": "bilinear, antialiased, to 64",
        "feature_dtype": "float32",
        "kid_subset_size": 250,
        "kid_subsets": 100,
        "is_splits": 10,
        "prc_neighbour": 3,
        "coverage_neighbour": 5,
        "prc_images": 500,
        "prc_reference_images": 1000,
        "subset_seed": 2020,
        "torch": version("torch"),
        "torch_fidelity": version("torch-fidelity"),
        "evaluation": EVALUATION_VERSION,
    }


@given(st.lists(CARDS, min_size=1, max_size=4), st.sets(st.sampled_from("abcd")))
def test_differing_fields_ignores_the_given_axes(cards, axes):
    found = differing_fields(cards, axes)
    for field in "abcd":
        values = [card.get(field) for card in cards]
        assert (field in found) == (field not in axes and len(set(values)) > 1)
        assert found.get(field, values) == values


def test_cards_with_fewer_real_images_differ_in_the_prc_counts(card):
    other = protocol_card(SAMPLING, 500, META, card["resize"], (400, 100))
    assert differing_fields([card, other]) == {"prc_images": [500, 400], "prc_reference_images": [1000, 100]}
