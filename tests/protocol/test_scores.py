"""Scores: documents round-trip or give one-line errors. The protocol card and its differences."""

import json
import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.protocol.card import differing_fields, protocol_card
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.scores import pack, unpack
from diffusion.protocol.scores_document import (
    ScoresDocument,
    document_values,
    read_scores,
    write_scores_document,
)
from diffusion.system.errors import DiffctlError
from diffusion.system.json_files import parse_json
from tests.helpers.scores_document import REFERENCE, document

CELL = "steps10-eta0"
KERNEL = "kd_effnet_lite0_64"
DISTANCE = "fd_effnet_lite0_64"
ENDS = {f"{DISTANCE}_low": 1.0, f"{DISTANCE}_high": 2.0}
Edit = Callable[[dict[str, Any]], object]
SAMPLING = {"model_sha256": "a" * 64, "sampler": "ddim", "steps": 50, "num_images": 500}
SPEC = EXTRACTORS["effnet-lite0-64"]
CARDS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2))


def test_document_round_trip_is_byte_identical(tmp_path: Path) -> None:
    write_scores_document(tmp_path / "a.json", document())
    write_scores_document(tmp_path / "b.json", read_scores(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_scores(tmp_path / "a.json") == document()


@pytest.mark.parametrize("text", ["", "[]", "null", "5", '"x"', "{}", '{"cells": {}}', "[" * 100_000, "{"])
def test_invalid_document_is_rejected(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(DiffctlError, match=r"scores\.json is damaged or of another format") as caught:
        read_scores(path)
    assert "\n" not in str(caught.value)


def _all_cells(edit: Edit) -> Edit:
    return lambda values: [edit(cell) for cell in values["cells"].values()]


def _with_floor(values: dict[str, Any], **floor: Any) -> None:
    values["reference"]["floor"] = floor


def _with_errors(values: dict[str, Any], name: str, lines: list[str]) -> None:
    values["cells"][CELL]["errors"] = {name: lines}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_all_cells(lambda cell: cell["scores"].update({KERNEL: "0.3"})), f"scores.{KERNEL}"),
        (_all_cells(lambda cell: cell["scores"].update({KERNEL: float("nan")})), f"scores.{KERNEL}"),
        (_all_cells(lambda cell: cell["scores"].update({KERNEL: 1e300})), f"scores.{KERNEL}"),
        (_all_cells(lambda cell: cell["scores"].pop(KERNEL)), f"no score {KERNEL}"),
        (_all_cells(lambda cell: cell["scores"].pop("floor")), "no score floor"),
        (_all_cells(lambda cell: cell["scores"].update({"kid_low": 0.1})), "no score kid_high"),
        (_all_cells(lambda cell: cell["card"].pop("extractor")), "card.extractor: there is no None"),
        (_all_cells(lambda cell: cell["card"].update(extractor="none")), "there is no 'none'"),
        (_all_cells(lambda cell: cell["card"].update(num_images=0)), "card.num_images"),
        (_all_cells(lambda cell: cell["card"].update(seed=[1])), "card.seed"),
        (_all_cells(lambda cell: cell.update(steps=7)), "has the values of steps7-eta0"),
        (_all_cells(lambda cell: cell.update(eta=-1)), "eta"),
        (
            _all_cells(lambda cell: cell.update(classes={"a": {"num_images": 3}})),
            "class 'a' has no score fd_",
        ),
        (lambda values: values.update(extractor="inception-v3-compat"), "was not scored by"),
        (lambda values: values["reference"].pop("name"), "reference.name"),
        (lambda values: _with_floor(values, num_images=3, extrapolated=False), "reference.floor lacks fd_"),
        (lambda values: values.update(intervals={"confidence": 95}), "intervals"),
        (lambda values: values["best"].update(cell="steps7-eta0"), "'steps7-eta0', which is no cell"),
        (lambda values: values["best"].update(value=0.1), f"best has another '{KERNEL}' than its cell"),
        (lambda values: values["best"].update(optimism=-1.0), "best.optimism"),
        (lambda values: values.update(front=[]), "front"),
        (lambda values: _with_errors(values, DISTANCE, ["AAAA"]), "3 bytes are no float32"),
        (lambda values: _with_errors(values, DISTANCE, ["?"]), "cannot be unpacked"),
        (
            lambda values: _with_errors(values, DISTANCE, pack([0.0] * 99 + [math.nan])),
            "too large or not finite",
        ),
        (lambda values: _with_errors(values, DISTANCE, pack([0.0] * 99 + [1e16])), "not finite"),
        (lambda values: _with_errors(values, KERNEL, pack([0.0] * 100)), "holds 100 numbers, not 200"),
        (lambda values: _with_errors(values, "floor", pack([0.0] * 100)), "errors has 'floor'"),
        (_all_cells(lambda cell: cell["scores"].update(ENDS)), "one of its interval and its errors"),
    ],
)
def test_inconsistent_document_is_rejected(edit: Edit, message: str) -> None:
    values = document_values(document())
    edit(values)
    with pytest.raises(DiffctlError) as caught:
        parse_json(json.dumps(values), ScoresDocument, "here")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_packed_errors_round_trip_as_float32() -> None:
    errors = np.random.default_rng(0).normal(size=200)
    lines = pack(errors)
    assert max(map(len, lines)) <= 100
    np.testing.assert_array_equal(np.array(unpack(lines), np.float32), errors.astype(np.float32))
    assert unpack(pack([])) == ()


@pytest.mark.parametrize("lines", [["AAAA"], ["?"], ["é"], ["AAA"], pack([math.inf]), pack([math.nan])])
def test_invalid_packed_errors_are_rejected(lines: list[str]) -> None:
    with pytest.raises(ValueError, match=r"base64|padd|ASCII|float32|finite|multiple of 4"):
        unpack(lines)


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
