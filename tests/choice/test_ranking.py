"""The gate's decision between a candidate and the champion, from their scores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.choice.ranking import CODE_VERSIONS, decide, outdated_best_cell
from diffusion.protocol.card import PLUGIN_FIELDS, REAL_IMAGE_FIELDS, Limits, protocol_card
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.grid import settings_card
from diffusion.protocol.settings import SampleSettings
from tests.helpers.scores_document import certain_cell, chance, document

KD = "kd_effnet_lite0_64"
OTHER = {"model_sha256": "b" * 64}
BEST_CELL = "steps10-eta0"


def champion():
    return document({(5, 0.0): 1.3, (10, 0.0): 0.897}).cells


def test_candidate_without_the_champions_best_cell_or_protocol_is_not_comparable():
    other = document({(5, 0.0): 0.1}, **OTHER).cells
    mixed = other | document({(10, 0.0): 0.1}, seed=3, **OTHER).cells
    reasons = f"its best cell {BEST_CELL} was not scored", "the protocols differ in seed (0 against 3)"
    for cells, reason in zip((other, mixed), reasons, strict=True):
        verdict = decide(cells, champion(), "version 7")
        assert not verdict.better
        assert f"not comparable with version 7: {reason}" in verdict.reason


def test_best_common_cell_is_compared_with_the_champions_best():
    candidate = document({(5, 0.0): 0.5, (10, 0.0): 1.0, (99, 0.0): 0.01}, **OTHER).cells
    verdict = decide(candidate, champion(), "version 7")
    assert verdict.better
    assert f"{KD} 0.5 (steps5-eta0) against version 7's 0.897 ({BEST_CELL}), by the smaller" in verdict.reason


def cells(value, errors, **card):
    return {BEST_CELL: certain_cell(KD, value, errors=errors, steps=10, eta=0.0, **card)}


@pytest.mark.parametrize(("value", "better", "word"), [
    (0.70, True, "more than what chance does"),
    (0.97, False, "within what chance does"),
    (1.00, False, "within what chance does"),
    (1.30, False, "more than what chance does"),
])  # fmt: skip
def test_candidate_is_better_only_if_the_difference_is_significant(value, better, word):
    candidate = cells(value, chance(1, 0.03), **OTHER)
    current = cells(1.0, chance(2, 0.03))
    verdict = decide(candidate, current, "version 7")
    assert verdict.better is better
    assert word in verdict.reason
    assert "paired by image" in verdict.reason


@given(st.floats(-1, 1), st.floats(1e-3, 0.3))
def test_two_models_are_never_both_better(difference, deviation):
    one = cells(2.0 + difference, chance(1, deviation), **OTHER)
    two = cells(2.0, chance(2, deviation))
    assert not (decide(one, two, "version 1").better and decide(two, one, "version 2").better)


@given(st.sets(st.sampled_from(sorted(CODE_VERSIONS)), min_size=1))
def test_champion_is_outdated_if_only_code_versions_differ(fields):
    cards = dict.fromkeys(fields, "other")
    candidate = document({(10, 0.0): 0.1}, **OTHER, **cards).cells
    assert not decide(candidate, champion(), "version 7").better
    assert outdated_best_cell(candidate, champion()) == BEST_CELL
    other = document({(10, 0.0): 0.1}, **OTHER, **cards, num_images=7).cells
    assert outdated_best_cell(other, champion()) is None


def test_champion_is_outdated_by_more_real_images_but_not_by_fewer_or_others():
    more = {"reference_digest": "other", "reference_count": 11, "heldout_digest": "other", "heldout_count": 4}
    before = {"reference_digest": "one", "reference_count": 10, "heldout_digest": "one", "heldout_count": 3}
    before, more = before | {"real_sha256": "one"}, more | {"real_sha256": "other"}  # images to enlarge
    champions = document({(5, 0.0): 1.3, (10, 0.0): 0.897}, **before).cells

    def outdated(**changes):
        return outdated_best_cell(document({(10, 0.0): 0.1}, **OTHER, **(more | changes)).cells, champions)

    same = {"reference_digest": "one", "reference_count": 10}
    assert outdated() == outdated(torch="3") == outdated(**same) == BEST_CELL
    for role in ("reference", "heldout"):
        for count in (before[f"{role}_count"], 2, None):
            assert outdated(**{f"{role}_count": count}) is None
    assert outdated(reference_split="test") is None


def test_comparable_or_identical_model_is_not_outdated():
    for best, card in (((10, 0.0), OTHER), ((10, 0.0), {"torch": "3"}), ((5, 0.0), {**OTHER, "torch": "3"})):
        assert outdated_best_cell(document({best: 0.1}, **card).cells, champion()) is None


def learned(digest, levels, **options):
    settings = SampleSettings(spacing="learned", steps=2, spacing_options={"levels": levels, **options})
    return {**settings_card(settings), "steps": 10, "nfe": 10, "model_sha256": digest * 64}


def test_times_learned_for_a_model_are_part_of_it():
    held = document({(10, 0.0): 0.9}, **learned("a", (80.0, 2.0), model_sha256="a" * 64)).cells
    other = learned("b", (80.0, 3.0), model_sha256="b" * 64)
    assert decide(document({(10, 0.0): 0.5}, **other).cells, held, "version 1").better
    newer = document({(10, 0.0): 0.5}, **other | {"torch": "3"}).cells
    assert outdated_best_cell(newer, held) == BEST_CELL
    listed = document({(10, 0.0): 0.5}, **learned("b", (80.0, 3.0))).cells
    assert "the protocols differ in spacing_options (learned against" in decide(listed, held, "it").reason


@pytest.mark.parametrize("network", ["guide", "classifier", "base"])
def test_the_champions_model_with_another_network_passes_by_its_scores_alone(network):
    def scored(digest, value, **card):
        return document({(10, 0.0): value}, **{f"{network}_sha256": digest * 64}, **card).cells

    held = scored("c", 10.0)
    again = decide(scored("c", 500.0, torch="3"), held, "version 1")
    assert (again.better, again.rescored) == (True, True)
    for value, better in ((500.0, False), (9.0, True)):
        verdict = decide(scored("d", value), held, "version 1")
        assert (verdict.better, verdict.rescored) == (better, False)
        assert f"{KD} {value:g} ({BEST_CELL}) against version 1's 10" in verdict.reason
    assert outdated_best_cell(scored("d", 9.0, torch="3"), held) == BEST_CELL
    assert outdated_best_cell(scored("c", 9.0, torch="3"), held) is None


def test_gate_fields_are_fields_of_a_card():
    names = ("name", "image_size", "extractor", "weights_sha256", "dtype")
    reference = {**dict.fromkeys(names, "x"), "image_size": 8, "reference_count": 10}
    sampling = {**settings_card(SampleSettings()), "sampling_torch": "2", "real_sha256": "x"}
    card = protocol_card(sampling, 10, reference, EXTRACTORS["effnet-lite0-64"], Limits(10, 10))
    assert card.keys() >= CODE_VERSIONS.union(REAL_IMAGE_FIELDS) - {*PLUGIN_FIELDS}
