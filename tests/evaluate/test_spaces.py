"""Several feature spaces in a sweep's scores, each as if alone, and distances to published statistics."""

import csv
import json
import socket
from collections import Counter
from itertools import chain
from unittest.mock import Mock

import numpy as np
import pytest

from diffusion.choice.selection import all_spaces, scores_in_space
from diffusion.evaluate import sweep_scores as stage
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.references import make_reference
from diffusion.evaluate.sweep_scores import write_scores
from diffusion.protocol.extractors import EXTRACTORS, INCEPTION, INCEPTION_SPATIAL
from diffusion.protocol.scores_document import document_values, read_scores
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import sha256_file
from diffusion.system.section import validate
from tests.helpers.digits_sweep import make_config, score_sweep, write_sweep
from tests.helpers.scores_document import document, with_space
from tracking.comparison.score_comparison import ScoredRun, compare

FIRST, FURTHER = "effnet-lite0-64", "effnet-lite0-96"
GRID = {"steps": [5, 50], "eta": [0.0]}
IMAGES = 30


def configured(**evaluate):
    return make_config(IMAGES, GRID, evaluate=evaluate)


@pytest.fixture(scope="module")
def made(tmp_path_factory, real):
    """A folder with samples, and the references `first`, `further` and `both`."""
    root = tmp_path_factory.mktemp("spaces")
    write_sweep(root / "samples", configured())
    for name, section in SECTIONS.items():
        make_reference(section, real / "prepared", root / name)
    return root


SECTIONS = {
    "first": configured().evaluate,
    "further": configured(extractor=FURTHER).evaluate,
    "both": configured(extra_extractors=[FURTHER]).evaluate,
}


def scored(root, name, progress=None):
    config = configured().model_copy(update={"evaluate": SECTIONS[name]})
    return score_sweep(config, root / "samples", root / name, progress)


@pytest.fixture(scope="module")
def documents(made):
    return {name: scored(made, name) for name in SECTIONS}


@pytest.mark.slow
def test_each_space_scores_as_it_would_alone(documents):
    both = documents["both"]
    assert document_values(scores_in_space(both, FURTHER)) == document_values(documents["further"])
    assert [one.extractor for one in all_spaces(both)] == [FIRST, FURTHER]
    values = document_values(both)
    del values["spaces"]
    for cell in values["cells"].values():
        del cell["spaces"]
    assert json.dumps(values) == json.dumps(document_values(documents["first"]))
    assert list(all_spaces(documents["first"])) == [documents["first"]]


@pytest.mark.slow
def test_each_extractor_sees_each_image_once(made, monkeypatch):
    seen = Counter()

    def watched(extractor, images, *rest):
        seen[extractor.spec.name] += len(images)
        return extract(extractor, images, *rest)

    extract, calls = stage.extract, []
    monkeypatch.setattr(stage, "extract", watched)
    scored(made, "both", lambda *numbers: calls.append(numbers))
    assert seen == {FIRST: 2 * IMAGES, FURTHER: 2 * IMAGES}
    assert (calls[0], calls[-1]) == ((0, 4 * IMAGES), (4 * IMAGES, 4 * IMAGES))
    assert calls == sorted(calls)


def test_csv_has_unique_names_for_all_spaces(tmp_path):
    both = with_space(document())
    write_scores(both, tmp_path / "scores.json", tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv") as file:
        rows = {(row["cell"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    cell = both.cells["steps5-eta0"]
    assert rows["steps5-eta0", "excess"] == cell.scores["excess"]
    assert rows["steps5-eta0", "excess_effnet_lite0_96"] == cell.spaces[FURTHER].scores["excess"]
    assert rows["steps5-eta0", "fd_effnet_lite0_96"] == cell.spaces[FURTHER].scores["fd_effnet_lite0_96"]
    assert len(rows) == 4 * 2 * 5
    assert read_scores(tmp_path / "scores.json") == both


def test_score_names_are_unique():
    """Includes the ends of intervals."""
    calls = Counter()
    for spec in EXTRACTORS.values():
        shares = [spec.named(share) for share in ("precision", "recall", "density", "coverage")]
        names = [*spec.distances, f"{spec.distance}_low", spec.limit, spec.score, *shares]
        names += ["floor", "excess", "excess_low", "memorisation", "memorisation_std"]
        calls.update(spec.qualified(name) for name in names if name)
    assert set(calls.values()) == {1}
    assert EXTRACTORS[FURTHER].qualified("excess_low") == "excess_effnet_lite0_96_low"


def test_space_may_have_its_own_weights():
    spatial = {"extractor": INCEPTION_SPATIAL.name, "weights": "x.pth", "weights_sha256": "a" * 64}
    values = {"weights": "first.pth", "extractor": INCEPTION.name, "extra_extractors": [FURTHER, spatial]}
    spaces = validate(EvaluateConfig, values, "params.yaml").spaces
    assert [space.extractor for space in spaces] == [INCEPTION.name, FURTHER, INCEPTION_SPATIAL.name]
    assert [str(space.weights) for space in spaces] == ["first.pth", "None", "x.pth"]
    assert [space.weights_sha256 for space in spaces] == [None, None, "a" * 64]


@pytest.mark.parametrize(
    "extra",
    [[FIRST], [FURTHER, FURTHER], ["resnet"], [{"extractor": FURTHER, "weight": "x"}], [7], [FURTHER] * 9],
)
def test_invalid_space_is_refused(extra):
    with pytest.raises(UsageError, match="extra_extractors"):
        validate(EvaluateConfig, {"extra_extractors": extra}, "params.yaml")


@pytest.mark.parametrize("extra", [INCEPTION.name, {"extractor": INCEPTION.name, "weights": "nowhere.pth"}])
def test_missing_weights_are_refused_before_any_work(made, real, tmp_path, monkeypatch, extra):
    monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=OSError("Network is unreachable")))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    section = configured(extra_extractors=[extra])
    no_work = lambda *_: pytest.fail("images were extracted")  # noqa: E731
    with pytest.raises(DiffctlError, match=r"^.*(no connection|no file with weights).*$"):
        make_reference(section.evaluate, real / "prepared", tmp_path / "r", no_work)
    with pytest.raises(DiffctlError, match=r"no connection|no file with weights"):
        score_sweep(section, made / "samples", made / "first", no_work)
    assert not (tmp_path / "r").exists()


DISTANCE = "fd_effnet_lite0_64"
PUBLISHED = f"{DISTANCE}_published"


@pytest.mark.slow
def test_statistics_of_the_reference_give_its_distance_and_leave_all_other_scores(made):
    features, path = np.load(made / "first/features.npy").astype(np.float64), made / "statistics.npz"
    np.savez(path, mu=features.mean(axis=0), sigma=np.cov(features, rowvar=False))
    section = configured(statistics={"file": str(path), "sha256": sha256_file(path)})
    values = document_values(score_sweep(section, made / "samples", made / "first"))
    for cell in values["cells"].values():
        scores = cell["scores"]
        for end in ("", "_low", "_high", "_inf"):
            assert scores.pop(PUBLISHED + end) == pytest.approx(scores[DISTANCE + end], rel=1e-5)
        cell["card"] = {key: one for key, one in cell["card"].items() if not key.startswith("statistics_")}
        del cell["errors"][PUBLISHED]
    assert values["reference"]["floor"].pop(PUBLISHED) > 0
    assert values == document_values(scored(made, "first"))


def test_distances_to_two_files_are_not_compared():
    made = [document(statistics_sha256=sha256) for sha256 in ("a", "b", "a")]
    for cell in chain.from_iterable(one.cells.values() for one in made):
        cell.scores[PUBLISHED] = 1.0
    first, other, same = (ScoredRun(f"run {number}", one) for number, one in enumerate(made))
    found = compare([first, other], [DISTANCE])
    assert (len(found.rows), found.differences) == (4, [])
    assert compare([first, other], [PUBLISHED]).rows == []
    assert len(compare([first, same], [PUBLISHED]).rows) == 4
