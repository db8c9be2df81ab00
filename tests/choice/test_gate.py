"""Which model the gate lets pass, by scores alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.choice.gate import CODE_VERSIONS, decide, outdated_best_cell
from diffusion.protocol.card import REAL_IMAGE_FIELDS, protocol_card
from diffusion.protocol.grid import settings_card
from diffusion.protocol.settings import SampleSettings
from tests.helpers.scores_document import certain_cell, chance, document

KD = "kd_effnet_lite0_64"
OTHER = {"model_sha256": "b" * 64}
BAR = "steps10-eta0"


def champion():
    return document({(5, 0.0): 1.3, (10, 0.0): 0.897}).cells


def test_a_candidate_without_the_champions_best_cell_is_not_comparable():
    verdict = decide(document({(5, 0.0): 1.216}, **OTHER).cells, champion(), "version 7")
    assert not verdict.better
    assert verdict.reason == (
        f"not comparable with version 7: its best cell {BAR} was not scored, so put it into the sweep"
    )


def test_a_protocol_that_differs_in_the_champions_best_cell_alone_is_not_comparable():
    mixed = document({(5, 0.0): 0.1}, **OTHER).cells | document({(10, 0.0): 0.1}, seed=3, **OTHER).cells
    verdict = decide(mixed, champion(), "version 7")
    assert not verdict.better
    assert "differ in seed (0 against 3)" in verdict.reason


def test_the_best_of_the_common_cells_is_held_against_the_champions_best():
    verdict = decide(
        document({(5, 0.0): 0.5, (10, 0.0): 1.0, (99, 0.0): 0.01}, **OTHER).cells, champion(), "version 7"
    )
    assert verdict.better
    assert verdict.reason == (
        f"{KD} 0.5 (steps5-eta0) against version 7's 0.897 ({BAR}), "
        "by the smaller number alone, since these scores have no confidence intervals"
    )


def cells(value, errors, **card):
    return {BAR: certain_cell(KD, value, errors=errors, steps=10, eta=0.0, **card)}


@pytest.mark.parametrize(("value", "better", "word"), [
    (0.70, True, "more than what chance does"),
    (0.97, False, "within what chance does"),
    (1.00, False, "within what chance does"),
    (1.30, False, "more than what chance does"),
])  # fmt: skip
def test_it_moves_when_the_interval_of_the_difference_says_so(value, better, word):
    mine = cells(value, chance(1, 0.03), **OTHER)
    theirs = cells(1.0, chance(2, 0.03))
    verdict = decide(mine, theirs, "version 7")
    assert verdict.better is better
    assert word in verdict.reason
    assert "paired by image" in verdict.reason


@given(st.floats(-1, 1), st.floats(1e-3, 0.3))
def test_no_two_models_may_each_take_the_others_place(difference, deviation):
    one = cells(2.0 + difference, chance(1, deviation), **OTHER)
    two = cells(2.0, chance(2, deviation))
    assert not (decide(one, two, "version 1").better and decide(two, one, "version 2").better)


@given(st.sets(st.sampled_from(sorted(CODE_VERSIONS)), min_size=1))
def test_versions_of_the_code_alone_make_a_champion_outdated(fields):
    cards = dict.fromkeys(fields, "other")
    mine = document({(10, 0.0): 0.1}, **OTHER, **cards).cells
    assert not decide(mine, champion(), "version 7").better
    assert outdated_best_cell(mine, champion()) == BAR
    assert (
        outdated_best_cell(document({(10, 0.0): 0.1}, **OTHER, **cards, num_images=7).cells, champion())
        is None
    )


def test_more_real_images_make_a_champion_outdated_and_fewer_do_not():
    more = {"reference_digest": "other", "reference_count": 11, "heldout_digest": "other", "heldout_count": 4}
    before = {"reference_digest": "one", "reference_count": 10, "heldout_digest": "one", "heldout_count": 3}
    champions = document({(5, 0.0): 1.3, (10, 0.0): 0.897}, **before).cells

    def asked(**changes):
        return outdated_best_cell(document({(10, 0.0): 0.1}, **OTHER, **(more | changes)).cells, champions)

    assert asked() == asked(torch="3") == asked(reference_count=10) == BAR
    assert asked(reference_count=9) is asked(heldout_count=2) is asked(heldout_count=None) is None
    assert asked(reference_split="test") is None


def test_what_can_be_compared_or_is_the_same_model_is_not_outdated():
    assert outdated_best_cell(document({(10, 0.0): 0.1}, **OTHER).cells, champion()) is None
    assert outdated_best_cell(document({(10, 0.0): 0.1}, torch="3").cells, champion()) is None
    assert outdated_best_cell(document({(5, 0.0): 0.1}, **OTHER, torch="3").cells, champion()) is None


def test_the_fields_are_those_of_a_card():
    reference = dict.fromkeys(("name", "image_size", "extractor", "weights_sha256", "dtype"), "x") | {
        "reference_count": 10
    }
    sampling = {**settings_card(SampleSettings()), "sampling_torch": "2"}
    card = protocol_card(sampling, 10, reference, "none", (10, 10))
    assert card.keys() >= CODE_VERSIONS.union(REAL_IMAGE_FIELDS)
