"""The metadata of a model card: what the hub reads from it."""

import json
from typing import Any

import pytest
import yaml

from diffusion.interop.hub_folder import CardInputs, model_card
from diffusion.protocol.extractors import INCEPTION
from diffusion.protocol.scores_document import ScoresDocument, document_values
from diffusion.protocol.settings import SampleSettings
from diffusion.system.section import fingerprint
from tests.helpers.networks import artefact_of, spec_of
from tests.helpers.scores_document import certain, document, with_space


def inception_scores() -> ScoresDocument:
    """Return scores of Inception: those of the small extractor under its names."""
    text = json.dumps(document_values(certain(document(), "fd_effnet_lite0_64", "kd_effnet_lite0_64")))
    names = {"fd_effnet_lite0_64": "fid", "kd_effnet_lite0_64": "kid", "is_effnet_lite0_64": "is"}
    for ours, theirs in {**names, "effnet-lite0-64": INCEPTION.name}.items():
        text = text.replace(ours, theirs)
    return ScoresDocument(**json.loads(text))


def card_of(scores: ScoresDocument | None, **values: Any) -> str:
    artefact = artefact_of(spec_of(**values.pop("shape", {})))
    return model_card(CardInputs("me/model", artefact, scores, SampleSettings(), "", **values))


@pytest.mark.parametrize(
    ("scores", "types"),
    [
        (document(), ["fd_effnet_lite0_64", "kd_effnet_lite0_64"]),
        (
            with_space(document()),
            [f"{kind}_effnet_lite0_{size}" for size in (64, 96) for kind in ("fd", "kd")],
        ),
        (inception_scores(), ["fid", "kid", "is"]),
    ],
)
def test_metrics_have_the_names_of_their_extractor_and_its_protocol(scores, types):
    card_class = pytest.importorskip("huggingface_hub").ModelCard
    results = card_class(card_of(scores)).data.eval_results
    assert [one.metric_type for one in results] == types
    best = scores.cells[scores.best.cell]
    for one in results:
        assert one.metric_value == pytest.approx(best.all_scores[one.metric_type])
        assert "500 images against 1,000 of digits (train); 10 steps, η = 0" in one.metric_name
        spaces = {space.card["extractor"]: space for space in (best, *best.spaces.values())}
        assert one.metric_args["card"] == fingerprint(
            spaces[one.metric_name.split("(")[1].split(",")[0]].card
        )
    (kernel,) = (one for one in results if one.metric_type == types[1])
    assert ("interval_95" in kernel.metric_args) == (types[0] == "fid")


def test_table_has_every_cell_with_its_interval_and_the_protocol():
    scores = certain(document(), "kd_effnet_lite0_64", half=0.01)
    card = card_of(scores)
    rows = [line.split(" | ") for line in card.splitlines() if line.startswith("| ")]
    kernels = {row[0].strip("| *") + row[1].strip("*"): row[-1].strip("| ") for row in rows if "±" in row[-1]}
    assert kernels == {
        "50": "0.3000 ± 0.0030",
        "51": "0.5000 ± 0.0050",
        "100": "0.2000 ± 0.0020",
        "101": "0.4000 ± 0.0040",
    }
    assert f"| reference_digest | {'r' * 64} |" in card


def test_an_extrapolated_score_of_real_images_is_marked():
    scores = document()
    scores.reference.floor.update({"fd_effnet_lite0_64": 25.0, "extrapolated": True})
    assert "| real, held out (extrapolated) |" in card_of(scores)


def test_only_what_the_user_gave_is_claimed():
    plain, given = (
        yaml.safe_load(card_of(None, **values).split("---\n")[1])
        for values in (
            {},
            {
                "license": "mit",
                "datasets": ("me/d",),
                "pipeline_notes": [],
                "shape": {"num_classes": 0, "null_class": False},
            },
        )
    )
    assert not {"license", "datasets", "model-index", "pipeline_tag"} & plain.keys()
    assert plain["library_name"] == "diffctl"
    assert (given["license"], given["datasets"], given["library_name"]) == ("mit", ["me/d"], "diffusers")
    assert given["pipeline_tag"] == "unconditional-image-generation"


def test_names_of_the_user_cannot_change_the_markup():
    artefact = artefact_of(spec_of())
    data = artefact.data.model_copy(update={"name": "a|b\n# c<script>"})
    card = model_card(
        CardInputs("me/model", artefact.model_copy(update={"data": data}), None, SampleSettings(), "")
    )
    assert "\n# c" not in card
    assert "<script>" not in card.replace("\\<script\\>", "")
