"""Published statistics: read in every form, refused where they are none, scored as their images are."""

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli import main
from diffusion.data.arrays import NpzArray
from diffusion.evaluate.adhoc import evaluate_pair
from diffusion.evaluate.against_statistics import evaluate_against_statistics
from diffusion.evaluate.features.extractors import load_extractor
from diffusion.evaluate.kept import kept_features
from diffusion.evaluate.open_images import open_images
from diffusion.evaluate.pair import images_beside, open_pair
from diffusion.evaluate.published import is_statistics, open_statistics
from diffusion.images.store import open_store
from diffusion.protocol.extractors import EXTRACTORS, INCEPTION, INCEPTION_SPATIAL
from diffusion.protocol.grid import Cell
from diffusion.system.errors import DiffctlError, UsageError
from tests.conftest import diffctl
from tests.helpers.bombs import write_zip_bomb
from tests.helpers.digits_sweep import ONE_CELL, make_config, write_cell, write_prepared

NAME = "effnet-lite0-64"
SIZE = 6
SPATIAL = INCEPTION_SPATIAL.name


@pytest.fixture
def few(monkeypatch):
    """An extractor of six features, so that a matrix can be written down."""
    monkeypatch.setitem(EXTRACTORS, NAME, replace(EXTRACTORS[NAME], features=SIZE))


def gaussian(seed=0, size=SIZE):
    """The mean and covariance of random features."""
    features = np.random.default_rng(seed).normal(size=(50, size)) + 3
    return features.mean(axis=0), np.cov(features, rowvar=False)


def as_npz(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def as_pickle(path: Path, values, protocol=4) -> Path:
    path.write_bytes(pickle.dumps(values, protocol=protocol))
    return path


def written(path, form):
    """The same statistics in each form that they are published in."""
    mean, covariance = gaussian()
    arrays = {"mu": mean, "sigma": covariance}
    if form == "edm":
        return as_npz(path / "edm.npz", **arrays)
    if form == "openai":
        others = {"mu_s": np.zeros(3), "sigma_s": np.eye(3), "arr_0": np.zeros((4, 8, 8, 3), np.uint8)}
        return as_npz(path / "openai.npz", **arrays, **others)
    if form == "flat pickle":
        return as_pickle(path / "flat.pkl", arrays)
    return as_pickle(
        path / "edm2.pkl", {"num_images": 50, "fd_effnet_lite0_64": arrays, "fid": {}}, int(form[-1])
    )


@pytest.mark.parametrize("form", ["edm", "openai", "flat pickle", "edm2 by protocol 2", "edm2 by protocol 4"])
def test_every_form_gives_the_same_gaussian(few, tmp_path, form):
    path = written(tmp_path, form)
    assert is_statistics(path)
    found, (mean, covariance) = open_statistics(path, NAME), gaussian()
    assert np.array_equal(found.mean, mean)
    assert np.array_equal(found.covariance, covariance)
    np.testing.assert_allclose(found.root @ found.root.T, covariance, atol=1e-12)
    assert (found.facts["name"], found.facts["source"]) == (path.name, "unknown")


def test_the_card_names_the_file_its_sha256_and_where_it_was_published(few, tmp_path):
    path = as_npz(tmp_path / "cifar10-32x32.npz", **dict(zip(("mu", "sigma"), gaussian(), strict=True)))
    facts = open_statistics(path, NAME).facts
    assert facts["source"].endswith("edm/fid-refs/cifar10-32x32.npz")
    assert len(facts["sha256"]) == 64


def test_images_are_no_statistics(tmp_path):
    assert not is_statistics(as_npz(tmp_path / "images.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8)))
    assert not is_statistics(tmp_path)
    assert not is_statistics(tmp_path / "none")
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04")
    assert not is_statistics(tmp_path / "damaged.npz")


def test_statistics_of_another_dimension_are_refused_with_what_they_may_be_of(tmp_path):
    path = as_npz(tmp_path / "x.npz", mu=np.zeros(1024), sigma=np.eye(1024))
    with pytest.raises(
        UsageError, match=r"1,024 features, and inception-v3-compat gives 2,048: .*dinov2-vit-l14"
    ):
        open_statistics(path)
    path = as_npz(tmp_path / "y.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(UsageError, match="another extractor than there is here"):
        open_statistics(path)


def test_inception_is_whose_statistics_a_file_holds_unless_it_is_said(tmp_path):
    path = as_npz(tmp_path / "x.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    assert open_statistics(path).spec == INCEPTION


def test_a_pickle_without_this_extractors_statistics_says_whose_it_has(few, tmp_path):
    arrays = dict(zip(("mu", "sigma"), gaussian(), strict=True))
    path = as_pickle(tmp_path / "x.pkl", {"fid": arrays, "fd_dinov2": arrays})
    with pytest.raises(UsageError, match="called fd_effnet_lite0_64: it has fid, fd_dinov2"):
        open_statistics(path, NAME)


def nan(array):
    changed = array.copy()
    changed.flat[1] = np.nan
    return changed


MEAN, COVARIANCE = gaussian()
UNSYMMETRIC = COVARIANCE + np.triu(np.ones_like(COVARIANCE), 1)
NEGATIVE = np.diag([1.0, 1, 1, 1, 1, -0.1])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": nan(MEAN), "sigma": COVARIANCE}, "mu has values that are no numbers"),
        ({"mu": MEAN, "sigma": nan(COVARIANCE)}, "sigma has values that are no numbers"),
        ({"mu": MEAN, "sigma": COVARIANCE * np.inf}, "sigma has values that are no numbers"),
        ({"mu": MEAN, "sigma": UNSYMMETRIC}, "sigma is not symmetric"),
        ({"mu": MEAN, "sigma": NEGATIVE}, r"negative eigenvalue \(-0.1\)"),
        ({"mu": MEAN, "sigma": 0 * COVARIANCE}, "sigma is 0"),
        ({"mu": MEAN, "sigma": COVARIANCE[:5]}, r"mu is \(6,\) and sigma \(5, 6\)"),
        ({"mu": MEAN[None], "sigma": COVARIANCE}, "no statistics"),
        ({"mu": MEAN[:0], "sigma": COVARIANCE[:0, :0]}, "no statistics"),
        ({"mu": MEAN.astype(int), "sigma": COVARIANCE}, "mu is int64, want float32"),
        ({"mu": MEAN.astype(np.float16), "sigma": COVARIANCE}, "mu is float16"),
        ({"mu": MEAN}, "sigma"),
    ],
)
@pytest.mark.parametrize("form", ["npz", "pickle"])
def test_what_is_no_mean_and_covariance_is_refused(few, tmp_path, form, arrays, words):
    path = tmp_path / f"x.{form}"
    path = as_pickle(path, arrays) if form == "pickle" else as_npz(tmp_path / "x.npz", **arrays)
    with pytest.raises(DiffctlError, match=words):
        open_statistics(path, NAME)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize(
    "values", [[1, 2], {"mu": [1.0], "sigma": "x"}, {"mu": Evil(), "sigma": 1}, Evil(), {}]
)
def test_a_pickle_of_anything_else_is_refused_and_nothing_of_it_is_run(few, tmp_path, values):
    with pytest.raises(DiffctlError):
        open_statistics(as_pickle(tmp_path / "x.pkl", values), NAME)


def test_the_rounding_of_float32_makes_no_covariance_wrong(few, tmp_path):
    narrow = np.random.default_rng(0).normal(size=(4, SIZE)).astype(np.float32)  # of rank 3
    path = as_npz(
        tmp_path / "x.npz", mu=narrow.mean(0), sigma=np.cov(narrow, rowvar=False).astype(np.float32)
    )
    assert open_statistics(path, NAME).root.shape == (SIZE, SIZE)


@settings(deadline=None, max_examples=60)
@given(
    at=st.integers(0, 2000), change=st.binary(min_size=1, max_size=8), form=st.sampled_from(["npz", "pkl"])
)
def test_damage_anywhere_is_one_sentence(tmp_path_factory, at, change, form):
    data = io.BytesIO()
    arrays = {"mu": np.zeros(1280, np.float32), "sigma": np.zeros((2, 2))}
    np.savez(data, **arrays) if form == "npz" else data.write(pickle.dumps(arrays))
    damaged = data.getvalue()[:at] + change + data.getvalue()[at + len(change) :]
    path = tmp_path_factory.mktemp("damaged") / f"x.{form}"
    path.write_bytes(damaged)
    with pytest.raises(DiffctlError):
        open_statistics(path, NAME)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Prepared digits, a cell's samples, and the statistics of the training split."""
    root = tmp_path_factory.mktemp("statistics")
    write_prepared(root / "prepared")
    write_cell(root / "cell", make_config(sweep=ONE_CELL), Cell(50, 0.0))
    (features,) = kept_features(load_extractor(NAME), [open_store(root / "prepared/train")])
    of_real = features.features.astype(np.float64)
    as_npz(root / "train.npz", mu=of_real.mean(axis=0), sigma=np.cov(of_real, rowvar=False))
    return root


@pytest.fixture(scope="module")
def document(root):
    sample = open_images(root / "cell")
    return evaluate_against_statistics(sample, open_statistics(root / "train.npz", NAME))


def test_the_distance_is_that_to_the_images_that_made_the_statistics(root, document):
    of_images = evaluate_pair(open_pair(root / "cell", root / "prepared/train"), extractor=NAME)["scores"]
    for name in ("", "_low", "_high", "_inf"):
        assert document["scores"][f"fd_effnet_lite0_64{name}"] == pytest.approx(
            of_images[f"fd_effnet_lite0_64{name}"], rel=1e-3
        )
    assert set(document["scores"]) <= set(of_images)


def test_it_is_said_which_scores_there_are_not_and_why(document):
    left = document["not_scored"]
    assert {"kd_effnet_lite0_64", "recall_effnet_lite0_64", "floor", "memorisation"} <= set(left["scores"])
    assert not set(left["scores"]) & set(document["scores"])
    assert "mean and a covariance" in left["why"]


def test_the_card_is_of_the_sample_and_of_the_file(root, document):
    card = document["card"]
    assert card["statistics_sha256"] == open_statistics(root / "train.npz", NAME).facts["sha256"]
    assert card["steps"] == 50
    assert card["num_images"] == 60
    assert "reference_digest" not in card


@pytest.fixture(scope="module")
def openai(root):
    """A file as OpenAI's evaluator has them: statistics, spatial ones, and 50 of the images."""
    real = open_store(root / "prepared/train")
    few = real.images[20:70]
    spatial = dict(zip(("mu_s", "sigma_s"), gaussian(), strict=True))
    path = root / "VIRTUAL_openai.npz"
    np.savez_compressed(path, **np.load(root / "train.npz"), **spatial, arr_0=few)
    np.savez(root / "few.npz", few)
    return path


@pytest.fixture
def few_spatial(monkeypatch):
    """sFID's extractor, of six features."""
    monkeypatch.setitem(EXTRACTORS, SPATIAL, replace(INCEPTION_SPATIAL, features=SIZE))


def test_openais_spatial_statistics_are_those_of_sfid(few_spatial, openai):
    found, (mean, covariance) = open_statistics(openai, SPATIAL), gaussian()
    assert np.array_equal(found.mean, mean)
    assert np.array_equal(found.covariance, covariance)
    assert found.spec.distance == "sfid"


def test_spatial_statistics_may_bear_the_usual_names(few_spatial, tmp_path):
    arrays = dict(zip(("mu", "sigma"), gaussian(), strict=True))
    for path in (as_npz(tmp_path / "x.npz", **arrays), as_pickle(tmp_path / "x.pkl", {"sfid": arrays})):
        assert np.array_equal(open_statistics(path, SPATIAL).mean, arrays["mu"])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"sigma_s": np.eye(SIZE) * np.nan}, "sigma_s has values that are no numbers"),
        ({"sigma_s": NEGATIVE}, "sigma_s has a negative eigenvalue"),
        ({"sigma_s": np.eye(5)}, r"mu_s is \(6,\) and sigma_s \(5, 5\)"),
        ({"mu_s": np.zeros(7), "sigma_s": np.eye(7)}, "7 features, and inception-v3-spatial gives 6"),
        ({}, "no array named sigma_s"),
    ],
)
def test_what_is_no_spatial_mean_and_covariance_is_refused(few_spatial, tmp_path, arrays, words):
    arrays = {"mu": np.zeros(8), "sigma": np.eye(8), "mu_s": np.zeros(SIZE)} | arrays
    with pytest.raises(DiffctlError, match=words):
        open_statistics(as_npz(tmp_path / "x.npz", **arrays), SPATIAL)


def of_openai(root, openai, **options):
    """The document of the cell against the file and the images in it."""
    sample = open_images(root / "cell")
    images = images_beside(openai, sample)
    return evaluate_against_statistics(sample, open_statistics(openai, NAME), images, **options)


def test_the_images_in_the_file_give_what_needs_images_and_leave_the_distance(root, document, openai):
    found = of_openai(root, openai)["scores"]
    of_images = evaluate_pair(open_pair(root / "cell", root / "few.npz"), extractor=NAME)["scores"]
    new = found.keys() - document["scores"].keys()
    assert {f"{name}_effnet_lite0_64" for name in ("kd", "precision", "recall", "density", "coverage")} < new
    assert {name: found[name] for name in new} == pytest.approx({name: of_images[name] for name in new})
    assert {name: found[name] for name in document["scores"]} == document["scores"]


def test_the_file_gives_all_but_what_needs_held_out_images(root, openai):
    found = of_openai(root, openai, prc_images=40, prc_samples=30)
    assert found["not_scored"]["scores"] == ["floor", "excess", "memorisation"]
    assert found["reference"]["images"] == 50
    card = found["card"]
    assert (card["prc_images"], card["prc_reference_images"], card["kid_subset_size"]) == (30, 40, 25)
    assert card["statistics_name"] == "VIRTUAL_openai.npz"
    assert "reference_count" not in card  # the distance is of more images than the file has


def test_images_in_a_file_are_read_as_they_are_used(openai, root, monkeypatch):
    seen = []
    read = NpzArray.read
    monkeypatch.setattr(NpzArray, "read", lambda *rows: seen.append(rows[1:]) or read(*rows))
    images = images_beside(openai, open_images(root / "cell")).images
    assert seen == [(0, 50)]  # for the digest, 1,024 at a time
    assert (images.shape, len(images), images.ndim) == ((50, 8, 8, 1), 50, 4)
    whole = open_store(root / "prepared/train").images
    for rows in (slice(0, 5), slice(5, 50), slice(3, 9), slice(48, 60), slice(60, 70)):
        assert np.array_equal(images[rows], whole[20:70][rows])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((4, 8, 8, 1)), "arr_0 is float64"),
        (np.zeros((4, 8, 8), np.uint8), r"arr_0 is uint8 \(4, 8, 8\)"),
        (np.zeros((4, 0, 8, 1), np.uint8), "want uint8"),
        (np.zeros((1, 8, 8, 1), np.uint8), "has 1"),
        (np.zeros((0, 8, 8, 1), np.uint8), "has no images|has 0"),
        (np.zeros((4, 16, 16, 1), np.uint8), "are 8×8 and those in .* 16×16"),
        (np.array([{}], dtype=object), "not of plain numbers"),
    ],
)
def test_what_is_no_images_in_the_file_is_refused(root, tmp_path, images, words):
    path = as_npz(tmp_path / "x.npz", mu=np.zeros(1280), sigma=np.eye(1280), arr_0=images)
    with pytest.raises(DiffctlError, match=words):
        images_beside(path, open_images(root / "cell"))


def test_a_bomb_in_place_of_the_images_is_refused_before_it_unfolds(root, tmp_path):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|u1", "fortran_order": False, "shape": (2**20, 64, 64, 1)}
    )
    path = tmp_path / "x.npz"
    write_zip_bomb(path, "arr_0.npy", head.getvalue(), 1024)
    with pytest.raises(DiffctlError, match=r"unfolds to 1\.1 GB"):
        images_beside(path, open_images(root / "cell"))


def test_a_file_whose_images_end_too_early_is_damaged(root, openai, tmp_path):
    whole = openai.read_bytes()
    at = whole.index(b"arr_0.npy") + 200
    damaged = tmp_path / "x.npz"
    damaged.write_bytes(whole[:at] + bytes(40) + whole[at + 40 :])
    with pytest.raises(DiffctlError, match="no whole zip or npz"):
        images_beside(damaged, open_images(root / "cell"))


def test_the_command_scores_by_the_images_in_the_file_too(root, openai, monkeypatch):
    monkeypatch.chdir(root)
    command = ["evaluate", "cell", "--against", openai.name, "--extractor", NAME]
    printed = CliRunner().invoke(main.app, command).stdout
    assert "recall_effnet_lite0_64" in printed
    assert "and its 50 images, extractor effnet-lite0-64" in printed
    assert "no floor, excess, memorisation: these need real images that were held out" in printed


@pytest.mark.slow
def test_the_command_scores_against_a_file_of_statistics(root):
    done = diffctl(root, "evaluate", "cell", "--against", "train.npz", "--extractor", NAME)
    assert done.returncode == 0, done.stderr
    assert "no kd_effnet_lite0_64, " in done.stdout
    assert "against the statistics train.npz (SHA-256" in done.stdout


def test_the_command_refuses_statistics_of_another_extractor_before_any_work(root):
    done = diffctl(root, "evaluate", "cell", "--against", "train.npz", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "diffctl: train.npz holds statistics of 1,280 features, and inception-v3-compat"
    )
