"""The protocol card, and the fields in which cards differ."""

from importlib.metadata import version

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.protocol.card import differing_fields, protocol_card
from diffusion.protocol.extractors import EXTRACTORS
from tests.helpers.scores_document import REFERENCE

SAMPLING = {"model_sha256": "a" * 64, "sampler": "ddim", "steps": 50, "num_images": 500}
SPEC = EXTRACTORS["effnet-lite0-64"]
CARDS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2))


@pytest.fixture
def card():
    return protocol_card(SAMPLING, 500, REFERENCE, SPEC, (1000, 1000))


def test_card_contains_every_field_of_the_protocol(card):
    assert card == {
        **SAMPLING,
        **{field: REFERENCE[field] for field in ("extractor", "weights_sha256", "image_size")},
        **{field: value for field, value in REFERENCE.items() if field.startswith("reference_")},
        "data": "digits",
        "heldout_split": None,
        "heldout_digest": None,
        "heldout_count": None,
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
        "evaluation": SPEC.evaluation,
    }


@given(st.lists(CARDS, min_size=1, max_size=4), st.sets(st.sampled_from("abcd")))
def test_differing_fields_ignores_the_given_axes(cards, axes):
    found = differing_fields(cards, axes)
    for field in "abcd":
        values = [card.get(field) for card in cards]
        assert (field in found) == (field not in axes and len(set(values)) > 1)
        assert found.get(field, values) == values


def test_cards_with_fewer_real_images_differ_in_the_prc_counts(card):
    other = protocol_card(SAMPLING, 500, REFERENCE, SPEC, (400, 100))
    assert differing_fields([card, other]) == {"prc_images": [500, 400], "prc_reference_images": [1000, 100]}
