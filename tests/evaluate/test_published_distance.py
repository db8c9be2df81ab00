"""Published statistics in the pipeline: a second distance, compared only between equal files."""

import hashlib

import numpy as np
import pytest

from diffusion.evaluate.features.reference_features import make_reference
from diffusion.protocol.scores_document import document_values
from tests.helpers.digits_sweep import make_config, score_sweep, write_prepared, write_sweep
from tracking.comparison.compared_runs import ScoredRun
from tracking.comparison.score_comparison import compare

NAME, FURTHER = "effnet-lite0-64", "effnet-lite0-96"
DISTANCE = "fd_effnet_lite0_64"
PUBLISHED = f"{DISTANCE}_published"
GRID = {"steps": [5, 50], "eta": [0.0]}
IMAGES = 40

pytestmark = pytest.mark.slow  # a pipeline's sweep and scores, before the first of them


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with prepared images, samples, the reference and its statistics as a file."""
    root = tmp_path_factory.mktemp("published")
    config = make_config(IMAGES, GRID)
    write_prepared(root / "prepared")
    write_sweep(root / "samples", config)
    make_reference(config.evaluate, root / "prepared", root / "reference")
    features = np.load(root / "reference/features.npy").astype(np.float64)
    write(root / "own.npz", features)
    write(root / "other.npz", features + 0.01)
    return root


def write(path, features):
    np.savez(path, mu=features.mean(axis=0), sigma=np.cov(features, rowvar=False))


def of_file(path):
    return {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def configured(path=None, **evaluate):
    return make_config(IMAGES, GRID, evaluate=evaluate | ({"statistics": of_file(path)} if path else {}))


def scored(root, path=None):
    return score_sweep(configured(path), root / "samples", root / "reference", None, root / "prepared")


@pytest.fixture(scope="module")
def documents(made):
    return {name: scored(made, name and made / name) for name in (None, "own.npz", "other.npz")}


def test_statistics_of_the_reference_give_its_distance(documents):
    for cell in documents["own.npz"].cells.values():
        for end in ("", "_low", "_high", "_inf"):
            assert cell.scores[PUBLISHED + end] == pytest.approx(cell.scores[DISTANCE + end], rel=1e-5)
    floor = documents["own.npz"].reference.floor
    assert floor[PUBLISHED] > 0


def test_other_scores_are_unchanged(documents):
    values = document_values(documents["own.npz"])
    for cell in values["cells"].values():
        cell["errors"].pop(PUBLISHED)
        for place in (cell["scores"], cell["card"]):
            for key in [key for key in place if "published" in key or key.startswith("statistics_")]:
                del place[key]
    del values["reference"]["floor"][PUBLISHED]
    assert values == document_values(documents[None])


def test_distances_to_two_files_are_not_compared(documents):
    pair = [ScoredRun(name, documents[name]) for name in ("own.npz", "other.npz")]
    found = compare(pair, [DISTANCE])
    assert len(found.rows) == 2
    assert found.differences == []
    assert compare(pair, [PUBLISHED]).rows == []
    again = ScoredRun("again", documents["own.npz"])
    assert len(compare([pair[0], again], [PUBLISHED]).rows) == 2
