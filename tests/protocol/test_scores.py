"""Scores: documents round-trip or give one-line errors. The protocol card and its differences."""

import json
import math
from collections.abc import Callable
from functools import partial, reduce
from importlib.metadata import version
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.protocol.card import Limits, differing_fields, protocol_card
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.scores_document import (
    ScoresDocument,
    document_values,
    pack,
    read_scores,
    unpack,
    write_scores_document,
)
from diffusion.system.checksums import parse_json
from diffusion.system.errors import DiffctlError
from tests.helpers.scores_document import REFERENCE, document, with_space

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


def cell(*place: str, **changes: Any) -> Edit:
    """Return an edit of what a cell has at a place: of fields, or of what these hold, without None."""

    def edit(values: dict[str, Any]) -> None:
        held = reduce(getitem, ("cells", CELL, *place), values)
        for name, value in changes.items():
            if isinstance(value, dict):
                value = {key: one for key, one in {**held.get(name, {}), **value}.items() if one is not None}
            held[name] = value

    return edit


space = partial(cell, "spaces", "effnet-lite0-96")


def errors(name: str, lines: list[str]) -> Edit:
    ends = {f"{name}_low": 1.0, f"{name}_high": 2.0}
    return cell(scores=ends, errors={name: lines})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (cell(scores={KERNEL: "0.3"}), f"scores.{KERNEL}"),
        (cell(scores={KERNEL: math.nan}), f"scores.{KERNEL}"),
        (cell(scores={KERNEL: 1e300}), f"scores.{KERNEL}"),
        (cell(scores={KERNEL: None}), f"no score {KERNEL}"),
        (cell(scores={"floor": None}), "no score floor"),
        (cell(scores={"kid_low": 0.1}), "no score kid_high"),
        (cell(card={"extractor": None}), "card.extractor: there is no None"),
        (cell(card={"extractor": "none"}), "there is no 'none'"),
        (cell(card={"num_images": 0}), "card.num_images"),
        (cell(card={"seed": [1]}), "card.seed"),
        (cell(steps=7), "has the values of steps7-eta0"),
        (cell(eta=-1), "eta"),
        (cell(classes={"a": {"num_images": 3}}), "class 'a' has no score fd_"),
        (lambda values: values.update(extractor="inception-v3-compat"), "was not scored by"),
        (lambda values: values["reference"].pop("name"), "reference.name"),
        (lambda values: values["reference"].update(floor={"num_images": 3}), "floor of effnet"),
        (lambda values: values.update(intervals={"confidence": 95}), "intervals"),
        (lambda values: values["best"].update(cell="steps7-eta0"), "'steps7-eta0', which is no cell"),
        (lambda values: values["best"].update(value=0.1), f"best has another '{KERNEL}' than its cell"),
        (lambda values: values["best"].update(optimism=-1.0), "best.optimism"),
        (lambda values: values.update(front=[]), "front"),
        (errors(DISTANCE, ["AAAA"]), "multiple of element size"),
        (errors(DISTANCE, ["?"]), "base64"),
        (errors(DISTANCE, pack([0.0] * 99 + [math.nan])), "too large or not finite"),
        (errors(DISTANCE, pack([0.0] * 99 + [1e16])), "not finite"),
        (errors(KERNEL, pack([0.0] * 100)), "errors holds numbers of"),
        (errors("floor", pack([0.0] * 100)), "errors holds numbers of"),
        (cell(scores=ENDS), "errors holds numbers of {}"),
        (space(card={"seed": 7}), "is of another protocol: seed differs"),
        (space(scores={"kd_effnet_lite0_96": None}), "no score kd_effnet_lite0_96"),
        (lambda values: values.pop("spaces"), "is not in both cell"),
        (
            lambda values: values["spaces"]["effnet-lite0-96"].update(reference_digest=""),
            "is of other images",
        ),
    ],
)
def test_inconsistent_document_is_rejected(edit: Edit, message: str) -> None:
    values = document_values(with_space(document()))
    edit(values)
    with pytest.raises(DiffctlError) as caught:
        parse_json(json.dumps(values), ScoresDocument, "here")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_packed_errors_round_trip_as_float32() -> None:
    errors = np.random.default_rng(0).normal(size=200)
    lines = pack(errors)
    assert max(map(len, lines)) <= 100
    np.testing.assert_array_equal(unpack(lines), errors.astype(np.float32))


def test_card_contains_every_field_of_the_protocol():
    card = protocol_card(SAMPLING, 500, REFERENCE, SPEC, Limits(1000, 1000))
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
    other = protocol_card(SAMPLING, 500, REFERENCE, SPEC, Limits(400, 100, 200))
    assert differing_fields([card, other]) == {
        "kid_subset_size": [250, 200],
        "prc_images": [500, 400],
        "prc_reference_images": [1000, 100],
    }


@given(st.lists(CARDS, min_size=1, max_size=4), st.sets(st.sampled_from("abcd")))
def test_differing_fields_ignores_the_given_axes(cards, axes):
    found = differing_fields(cards, axes)
    for field in "abcd":
        values = [card.get(field) for card in cards]
        assert (field in found) == (field not in axes and len(set(values)) > 1)
        assert found.get(field, values) == values
