"""Several feature spaces: each says what it would say alone, of images that it sees once."""

import csv
import json
import math
import shutil
import socket
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from diffusion.choice.spaces import all_spaces, seen_by
from diffusion.evaluate import evaluate as stage
from diffusion.evaluate.config import EvaluateConfig
from diffusion.evaluate.evaluate import write_scores
from diffusion.evaluate.features.extractors import Extractor
from diffusion.evaluate.features.reference import make_reference, open_reference
from diffusion.images.store import open_store, write_store
from diffusion.protocol.extractors import EXTRACTORS, INCEPTION, INCEPTION_SPATIAL
from diffusion.protocol.scores import ScoresDocument, as_values, read_scores
from diffusion.system.documents import parse_document
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.section import validated
from tests.helpers.digits_sweep import make_config, score_sweep, write_prepared, write_sweep
from tests.helpers.inception import write_random_inception

FIRST, FURTHER = "effnet-lite0-64", "effnet-lite0-96"
GRID = {"steps": [5, 50], "eta": [0.0]}
IMAGES = 30


def configured(**evaluate):
    return make_config(IMAGES, GRID, evaluate=evaluate)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with prepared images, samples, and a reference each: `first`, `further` and of `both`."""
    root = tmp_path_factory.mktemp("spaces")
    write_prepared(root / "prepared")
    write_sweep(root / "samples", configured())
    for name, section in sections().items():
        make_reference(section, root / "prepared", root / name)
    return root


def sections():
    return {
        "first": configured().evaluate,
        "further": configured(extractor=FURTHER).evaluate,
        "both": configured(also=[FURTHER]).evaluate,
    }


def scored(root, name, progress=None):
    config = configured().model_copy(update={"evaluate": sections()[name]})
    return score_sweep(config, root / "samples", root / name, progress, root / "prepared")


@pytest.fixture(scope="module")
def documents(made):
    return {name: scored(made, name) for name in sections()}


def test_the_reference_has_a_folder_for_each_further_space(made):
    for alone, place in (("first", made / "both"), ("further", made / "both" / FURTHER)):
        for file in (made / alone).iterdir():
            assert file.read_bytes() == (place / file.name).read_bytes()
    assert {entry.name for entry in (made / "both").iterdir() if entry.is_dir()} == {FURTHER}


@pytest.mark.slow
def test_each_space_says_what_it_says_alone(documents):
    both = documents["both"]
    assert as_values(seen_by(both, FURTHER)) == as_values(documents["further"])
    assert [one.extractor for one in all_spaces(both)] == [FIRST, FURTHER]
    values = as_values(both)
    del values["spaces"]
    for cell in values["cells"].values():
        del cell["spaces"]
    assert json.dumps(values) == json.dumps(as_values(documents["first"]))
    assert list(all_spaces(documents["first"])) == [documents["first"]]


@pytest.mark.slow
def test_the_first_extractor_alone_ranks(documents):
    assert documents["both"].best == documents["first"].best
    assert documents["both"].front == documents["first"].front


def test_each_image_is_seen_once_by_each_extractor(made, monkeypatch):
    seen = Counter()

    def watched(extractor, images, *rest):
        seen[extractor.spec.name] += len(images)
        return extract(extractor, images, *rest)

    extract, told = stage.extract, []
    monkeypatch.setattr(stage, "extract", watched)
    scored(made, "both", lambda *numbers: told.append(numbers))
    assert seen == {FIRST: 2 * IMAGES, FURTHER: 2 * IMAGES}
    assert (told[0], told[-1]) == ((0, 4 * IMAGES), (4 * IMAGES, 4 * IMAGES))
    assert told == sorted(told)


def test_progress_of_the_reference_goes_over_all_spaces(made, tmp_path):
    told = []
    section = sections()["both"]
    make_reference(section, made / "prepared", tmp_path / "r", lambda *numbers: told.append(numbers))
    assert (told[0], told[-1]) == ((0, 2 * 184), (2 * 184, 2 * 184))
    assert told == sorted(told)


def test_a_space_without_its_reference_is_named(made):
    with pytest.raises(UsageError, match=f"no reference in .*/first/{FURTHER} .*diffctl stage reference"):
        score_sweep(configured(also=[FURTHER]), made / "samples", made / "first")


def test_the_reference_of_another_extractor_in_a_spaces_folder_is_stale(made, tmp_path):
    shutil.copytree(made / "first", tmp_path / "r")
    shutil.copytree(made / "first", tmp_path / "r" / FURTHER)
    with pytest.raises(DiffctlError, match=f"r/{FURTHER} is stale"):
        score_sweep(configured(also=[FURTHER]), made / "samples", tmp_path / "r")


@pytest.mark.slow
def test_the_curves_hold_every_space_under_names_that_do_not_clash(documents, tmp_path):
    write_scores(documents["both"], tmp_path / "scores.json", tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv") as file:
        rows = {(row["cell"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    cell = documents["both"].cells["steps5-eta0"]
    assert rows["steps5-eta0", "excess"] == cell.scores["excess"]
    assert rows["steps5-eta0", "excess_effnet_lite0_96"] == cell.spaces[FURTHER].scores["excess"]
    assert rows["steps5-eta0", "fd_effnet_lite0_96"] == cell.spaces[FURTHER].scores["fd_effnet_lite0_96"]
    assert len(rows) == 2 * 2 * 11
    assert read_scores(tmp_path / "scores.json") == documents["both"]


def test_no_two_extractors_scores_share_a_name():
    """Ends of intervals included; what all call alike bears the extractor's name."""
    told = Counter()
    for spec in EXTRACTORS.values():
        shares = [spec.named(share) for share in ("precision", "recall", "density", "coverage")]
        names = [*spec.distances, f"{spec.distance}_low", spec.limit, spec.score, *shares]
        names += ["floor", "excess", "excess_low", "memorisation", "memorisation_std"]
        told.update(spec.named_beside(name) for name in names if name)
    assert set(told.values()) == {1}
    assert EXTRACTORS[FURTHER].named_beside("excess_low") == "excess_effnet_lite0_96_low"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda values, seen: seen["card"].update(seed=7), "another protocol: seed differs"),
        (lambda values, seen: seen["card"].update(num_images=29), "num_images differs"),
        (lambda values, seen: seen["card"].update(extractor=FIRST), "there is no score"),
        (lambda values, seen: seen["scores"].pop("kd_effnet_lite0_96"), "no score kd_effnet_lite0_96"),
        (lambda values, seen: seen.update(errors={}), "one of its interval and its errors"),
        (lambda values, seen: values.pop("spaces"), f"'{FURTHER}' is not in both cell"),
        (
            lambda values, seen: values["cells"]["steps5-eta0"].pop("spaces"),
            "is not in both cell steps5-eta0",
        ),
        (lambda values, seen: values["spaces"][FURTHER].update(reference_digest="0" * 64), "of other images"),
        (
            lambda values, seen: values["spaces"][FURTHER]["floor"].pop("fd_effnet_lite0_96"),
            "floor lacks fd_",
        ),
        (lambda values, seen: values["spaces"][FURTHER].update(extractor=FIRST), "with the reference of"),
        (
            lambda values, seen: values["spaces"].update(none=values["spaces"][FURTHER]),
            "'none' is not in both cell",
        ),
        (lambda values, seen: values["spaces"][FURTHER].pop("floor"), "of other images"),
    ],
)
def test_a_document_edited_by_hand_is_refused(documents, edit, says):
    values = as_values(documents["both"])
    edit(values, values["cells"]["steps5-eta0"]["spaces"][FURTHER])
    with pytest.raises(DiffctlError) as caught:
        parse_document(json.dumps(values), ScoresDocument, "here")
    assert says in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_space_is_a_name_or_has_weights_of_its_own(tmp_path):
    values = {
        "weights": "first.pth",
        "extractor": INCEPTION.name,
        "also": [
            FURTHER,
            {"extractor": INCEPTION_SPATIAL.name, "weights": "x.pth", "weights_sha256": "a" * 64},
        ],
    }
    spaces = validated(EvaluateConfig, values, "params.yaml").spaces
    assert [space.extractor for space in spaces] == [INCEPTION.name, FURTHER, INCEPTION_SPATIAL.name]
    assert [str(space.weights) for space in spaces] == ["first.pth", "None", "x.pth"]
    assert [space.weights_sha256 for space in spaces] == [None, None, "a" * 64]


@pytest.mark.parametrize(
    ("also", "says"),
    [
        ([FIRST], f"also names {FIRST}, which is an extractor here already"),
        ([FURTHER, FURTHER], "which is an extractor here already"),
        (["resnet"], "also.0.extractor"),
        ([{"extractor": FURTHER, "weight": "x"}], "unknown key"),
        ([7], "also.0"),
        ([FURTHER] * 9, "at most 8"),
        (FURTHER, "also"),
    ],
)
def test_a_space_that_cannot_be_is_refused(also, says):
    with pytest.raises(UsageError) as caught:
        validated(EvaluateConfig, {"also": also}, "params.yaml")
    assert says in str(caught.value)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.mark.parametrize("also", [INCEPTION.name, {"extractor": INCEPTION.name, "weights": "nowhere.pth"}])
def test_weights_that_are_missing_are_told_before_any_image_is_seen(made, tmp_path, offline, also):
    told = []
    config = configured(also=[also])
    with pytest.raises(DiffctlError, match=r"Network is unreachable|no file with weights") as caught:
        make_reference(
            config.evaluate, made / "prepared", tmp_path / "r", lambda *numbers: told.append(numbers)
        )
    assert "\n" not in str(caught.value)
    with pytest.raises(DiffctlError, match=r"Network is unreachable|no file with weights"):
        score_sweep(config, made / "samples", made / "first", lambda *numbers: told.append(numbers))
    assert told == []
    assert not (tmp_path / "r").exists()


@pytest.mark.long
def test_adms_table_has_all_its_columns_from_one_weights_file(made, tmp_path):
    """FID, sFID, precision and recall beside each other, here of a random network."""
    sha256 = write_random_inception(tmp_path / "inception.pth")
    weights = {"weights": str(tmp_path / "inception.pth"), "weights_sha256": sha256}
    config = configured(
        extractor=INCEPTION.name, **weights, also=[{"extractor": INCEPTION_SPATIAL.name, **weights}]
    )
    make_reference(config.evaluate, made / "prepared", tmp_path / "r")
    document = score_sweep(config, made / "samples", tmp_path / "r")
    for cell in document.cells.values():
        assert {"fid", "is", "sfid", "precision", "recall", "kid"} <= cell.all_scores.keys()
        assert cell.spaces[INCEPTION_SPATIAL.name].card["weights_sha256"] == sha256


@pytest.mark.parametrize("equal", [False, True])
def test_two_images_have_scores_in_every_space(made, tmp_path, equal):
    config = make_config(2, {"steps": [5], "eta": [0.0]}, evaluate={"also": [FURTHER]})
    path = write_sweep(tmp_path / "samples", config) / "steps5-eta0"
    store = open_store(path)
    images = np.repeat(store.images[:1], 2, axis=0) if equal else np.array(store.images)
    write_store(path, images, store.labels, store.meta)
    document = score_sweep(config, tmp_path / "samples", made / "both")
    (cell,) = document.cells.values()
    for seen in (cell, cell.spaces[FURTHER]):
        assert all(math.isfinite(value) for value in seen.scores.values())
        assert not seen.errors


@pytest.mark.slow
def test_a_space_with_other_weights_is_stale(made, documents):
    extractor = Extractor(replace(EXTRACTORS[FURTHER]), "0" * 64, None, None)
    with pytest.raises(DiffctlError, match="its weights_sha256 is"):
        open_reference(made / "both" / FURTHER, extractor, "train")
