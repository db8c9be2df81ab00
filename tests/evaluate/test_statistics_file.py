"""Published statistics: read in every format, refused if malformed, scored like their images."""

import json
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli import main
from diffusion.evaluate import adhoc
from diffusion.evaluate.adhoc import (
    images_in_statistics,
    open_images,
    open_inputs,
    score_against_statistics,
    score_images,
)
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.statistics_file import is_statistics, open_statistics
from diffusion.images.store import open_store
from diffusion.protocol.extractors import EXTRACTORS, INCEPTION_SPATIAL
from diffusion.protocol.grid import Cell
from diffusion.system.errors import DiffctlError, UsageError
from tests.evaluate.test_extractors import Malicious
from tests.helpers.digits_sweep import ONE_CELL, make_config, write_cell

NAME = "effnet-lite0-64"
SIZE = 6
SPATIAL = INCEPTION_SPATIAL.name


@pytest.fixture
def few(monkeypatch):
    """Give two extractors six features, so that a matrix can be written down."""
    for name in (NAME, SPATIAL):
        monkeypatch.setitem(EXTRACTORS.data, name, replace(EXTRACTORS[name], features=SIZE))


def as_npz(path: Path, values) -> Path:
    with open(path, "wb") as file:
        np.savez(file, **values)
    return path


def as_pickle(path: Path, values, protocol=4) -> Path:
    path.write_bytes(pickle.dumps(values, protocol=protocol))
    return path


FEATURES = np.random.default_rng(0).normal(size=(50, SIZE)) + 3
MEAN, COVARIANCE = FEATURES.mean(axis=0), np.cov(FEATURES, rowvar=False)
ARRAYS = {"mu": MEAN, "sigma": COVARIANCE}
OTHERS = {"mu_s": np.zeros(3), "sigma_s": np.eye(3), "arr_0": np.zeros((4, 8, 8, 3), np.uint8)}
FOR_SFID = {"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": MEAN, "sigma_s": COVARIANCE}


@pytest.mark.parametrize(
    ("write", "values", "name"),
    [
        (as_npz, ARRAYS, NAME),
        (as_npz, ARRAYS | OTHERS, NAME),
        (as_npz, FOR_SFID, SPATIAL),
        (as_pickle, ARRAYS, NAME),
        (partial(as_pickle, protocol=2), {"num_images": 50, "fd_effnet_lite0_64": ARRAYS, "fid": {}}, NAME),
    ],
    ids=["edm", "openai", "openai sFID", "flat pickle", "edm2"],
)
def test_every_format_gives_the_same_gaussian(few, tmp_path, write, values, name):
    path = write(tmp_path / "x", values)
    assert is_statistics(path)
    found = open_statistics(path, name)
    assert found.spec.name == name
    assert np.array_equal(found.mean, MEAN)
    assert np.array_equal(found.gaussian.sigma, COVARIANCE)
    np.testing.assert_allclose(found.root @ found.root.T, COVARIANCE, atol=1e-12)
    assert (found.facts["name"], found.facts["source"]) == ("x", "unknown")


def test_other_dimension_is_refused(tmp_path):
    path = as_npz(tmp_path / "x.npz", {"mu": np.zeros(1024), "sigma": np.eye(1024)})
    with pytest.raises(UsageError, match="1,024 features, and inception-v3-compat gives 2,048"):
        open_statistics(path)


NAN = np.where(np.arange(SIZE) == 1, np.nan, 1.0)
UNSYMMETRIC = COVARIANCE + np.triu(np.ones_like(COVARIANCE), 1)
NEGATIVE = np.diag([1.0, 1, 1, 1, 1, -0.1])


@pytest.mark.parametrize(
    ("arrays", "name"),
    [
        ({"mu": MEAN * NAN, "sigma": COVARIANCE}, "mu"),
        ({"mu": MEAN, "sigma": COVARIANCE * NAN}, "sigma"),
        ({"mu": MEAN, "sigma": COVARIANCE * np.inf}, "sigma"),
        ({"mu": MEAN, "sigma": UNSYMMETRIC}, "sigma is no covariance"),
        ({"mu": MEAN, "sigma": NEGATIVE}, "sigma is no covariance"),
        ({"mu": MEAN, "sigma": 0 * COVARIANCE}, "sigma is no covariance"),
        ({"mu": MEAN, "sigma": COVARIANCE[:5]}, r"\(5, 6\)"),
        ({"mu": MEAN[:0], "sigma": COVARIANCE[:0, :0]}, "no statistics"),
        ({"mu": MEAN.astype(np.float16), "sigma": COVARIANCE}, "mu is float16"),
        ({"mu": MEAN}, "sigma"),
    ],
)
def test_malformed_statistics_are_refused(few, tmp_path, arrays, name):
    with pytest.raises(DiffctlError, match=name):
        open_statistics(as_npz(tmp_path / "x", arrays), NAME)


@pytest.mark.parametrize(
    "values", [[1, 2], {"mu": [1.0], "sigma": "x"}, {"mu": Malicious(), "sigma": 1}, Malicious(), {}]
)
def test_pickled_code_is_refused_and_never_run(few, tmp_path, values):
    with pytest.raises(DiffctlError):
        open_statistics(as_pickle(tmp_path / "x.pkl", values), NAME)


@pytest.fixture(scope="module")
def root(tmp_path_factory, real):
    """A folder with a cell's samples and the statistics of the training split."""
    root = tmp_path_factory.mktemp("statistics")
    write_cell(root / "cell", make_config(sweep=ONE_CELL), Cell(steps=50, eta=0.0))
    of_real = np.load(real / "reference/features.npy").astype(np.float64)
    as_npz(root / "train.npz", {"mu": of_real.mean(axis=0), "sigma": np.cov(of_real, rowvar=False)})
    return root


@pytest.fixture(scope="module")
def document(root):
    sample = open_images(root / "cell")
    return score_against_statistics(sample, open_statistics(root / "train.npz", NAME), None, EvaluateConfig())


def test_the_card_names_an_extractor_of_a_plugin(root, monkeypatch):
    monkeypatch.setattr(adhoc, "extraction_code", lambda spec: {"plugins.features": "0"})
    sample, statistics = open_images(root / "cell"), open_statistics(root / "train.npz", NAME)
    card = score_against_statistics(sample, statistics, None, EvaluateConfig())["card"]
    assert card["extractor_plugins"]


@pytest.mark.slow
def test_distance_equals_that_to_the_images(root, real, document):
    of_images = score_images(open_inputs(root / "cell", real / "prepared/train"), EvaluateConfig())["scores"]
    assert document["scores"] == pytest.approx(
        {name: of_images[name] for name in document["scores"]}, rel=1e-3
    )
    assert set(document["scores"]) == {f"fd_effnet_lite0_64{end}" for end in ("", "_low", "_high", "_inf")}


@pytest.fixture(scope="module")
def openai(root, real):
    """A file like those of OpenAI's evaluator: statistics, spatial statistics and 50 images."""
    few = open_store(real / "prepared/train").images[20:70]
    path = root / "VIRTUAL_openai.npz"
    np.savez_compressed(path, **np.load(root / "train.npz"), mu_s=MEAN, sigma_s=COVARIANCE, arr_0=few)
    np.savez(root / "few.npz", few)
    return path


@pytest.mark.slow
def test_images_in_the_file_add_scores_and_leave_the_distance(root, document, openai):
    sample, statistics = open_images(root / "cell"), open_statistics(openai, NAME)
    images = images_in_statistics(openai, sample)
    found = score_against_statistics(sample, statistics, images, EvaluateConfig())["scores"]
    of_images = score_images(open_inputs(root / "cell", root / "few.npz"), EvaluateConfig())["scores"]
    new = found.keys() - document["scores"].keys()
    assert {f"{name}_effnet_lite0_64" for name in ("kd", "precision", "recall", "density", "coverage")} < new
    assert {name: found[name] for name in new} == pytest.approx({name: of_images[name] for name in new})
    assert {name: found[name] for name in document["scores"]} == document["scores"]


@pytest.mark.parametrize("images", [np.zeros((4, 16, 16, 1), np.uint8), np.array([{}], dtype=object)])
def test_malformed_images_in_the_file_are_refused(root, tmp_path, images):
    path = as_npz(tmp_path / "x.npz", {"mu": np.zeros(1280), "sigma": np.eye(1280), "arr_0": images})
    with pytest.raises(DiffctlError, match=r"x\.npz"):
        images_in_statistics(path, open_images(root / "cell"))


@pytest.mark.slow
def test_command_uses_the_images_in_the_file(root, openai, monkeypatch):
    monkeypatch.chdir(root)
    command = ["evaluate", "cell", "--against", openai.name, "--extractor", NAME]
    printed = CliRunner().invoke(main.app, command).stdout
    assert "recall_effnet_lite0_64" in printed
    assert "and its 50 images, extractor effnet-lite0-64" in printed
    assert "no floor, excess, memorisation: these need real images that were held out" in printed
    command += ["--prc-images", "40", "--prc-samples", "30", "--json"]
    card = json.loads(CliRunner().invoke(main.app, command).stdout)["card"]
    assert (card["prc_images"], card["prc_reference_images"], card["kid_subset_size"]) == (30, 40, 25)
    assert card["statistics_name"] == "VIRTUAL_openai.npz"
    assert "reference_count" not in card  # the distance is of more images than the file has
