"""The reference: what it stores, when it is stale, and how damage is detected."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.code_digest import code_digest
from diffusion.evaluate import references
from diffusion.evaluate.features.extractors import extract
from diffusion.evaluate.features.reference_features import (
    extraction_code,
    make_reference_of,
    matching_reference,
    open_reference,
    write_reference,
)
from diffusion.evaluate.references import make_reference
from diffusion.images.store import open_store
from diffusion.protocol.extractors import EVALUATION_VERSION, EXTRACTORS
from diffusion.system.errors import DiffctlError
from tests.helpers.damaged_bytes import damages
from tests.helpers.digits_sweep import CLASSES, make_config, rewrite, tamper

FILES = [
    *(f"{name}.npy" for name in ("features", "heldout", "heldout_logits", "labels", "heldout_labels")),
    "meta.json",
]


@pytest.fixture
def own(real, tmp_path):
    """Return a copy that a test may damage."""
    return shutil.copytree(real, tmp_path / "real")


def test_reference_of_the_first_images_is_not_taken_for_a_full_one(real, extractor, tmp_path):
    prepared, folder = real / "prepared", real / "reference"
    full, few = open_reference(folder, extractor, "train", prepared), tmp_path / "few"
    make_reference(make_config(evaluate={"reference_images": 7}).evaluate, prepared, few)
    reference = open_reference(few, extractor, "train", prepared, limit=7)
    np.testing.assert_allclose(reference.features, full.features[:7], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(reference.heldout_labels, full.heldout_labels[:7])
    assert (reference.meta["reference_count"], reference.meta["heldout_count"]) == (7, 7)
    with pytest.raises(DiffctlError, match="its reference_count is 7"):
        open_reference(few, extractor, "train", prepared)


def test_reference_holds_both_splits_and_their_metadata(real, extractor):
    prepared, folder = real / "prepared", real / "reference"
    reference = open_reference(folder, extractor, "train", prepared)
    train, test = (open_store(prepared / split) for split in ("train", "test"))
    np.testing.assert_array_equal(reference.features, extract(extractor, train.images).features)
    np.testing.assert_array_equal(reference.heldout.features, extract(extractor, test.images).features)
    np.testing.assert_array_equal(reference.labels, train.labels)
    np.testing.assert_array_equal(reference.heldout_labels, test.labels)
    assert reference.train_and_test[0] is reference.features
    assert reference.train_and_test[1] is reference.heldout.features
    assert reference.meta == {
        "code": code_digest(extraction_code(EXTRACTORS["effnet-lite0-64"])),
        "evaluation": EVALUATION_VERSION,
        "extractor": "effnet-lite0-64",
        "weights_sha256": extractor.weights_sha256,
        "dtype": "float32",
        "name": "digits",
        "image_size": 8,
        "classes": CLASSES,
        "reference_split": "train",
        "reference_digest": train.digest,
        "reference_count": len(train),
        "heldout_split": "test",
        "heldout_digest": test.digest,
        "heldout_count": len(test),
    }


@pytest.mark.slow
def test_reference_is_reproduced_to_the_byte_after_an_interruption(real, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(references, "BLOCK", 32)
    prepared, folder = real / "prepared", real / "reference"
    section = make_config().evaluate
    images = sum(len(open_store(prepared / split)) for split in ("train", "test"))

    def interrupt(done, total):
        if done > 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_reference(section, prepared, tmp_path / "again", interrupt)
    calls = []
    make_reference(section, prepared, tmp_path / "again", lambda *numbers: calls.append(numbers))
    assert calls[-1] == (images - 64, images - 64)
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_changed_pixel_is_detected_and_makes_the_reference_stale(own, extractor, split):
    prepared, folder = own / "prepared", own / "reference"
    tamper(prepared / split)
    with pytest.raises(DiffctlError, match=f"{split} changed after they were written"):
        open_reference(folder, extractor, "train", prepared)
    assert matching_reference(folder, extractor, "train", prepared) is None
    tamper(prepared / split)  # back to what it was
    rewrite(prepared / split)
    with pytest.raises(DiffctlError, match="stale"):
        open_reference(folder, extractor, "train", prepared)


@pytest.mark.parametrize("name", ["meta.json", "features.npy", "heldout.npy"])
def test_missing_file_is_named(own, extractor, name):
    (own / "reference" / name).unlink()
    with pytest.raises(DiffctlError, match=f"{name} is missing"):
        open_reference(own / "reference", extractor, "train")


@given(damage=damages(), name=st.sampled_from(FILES))
def test_any_damaged_byte_is_detected(real, extractor, damage, name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copytree(real / "reference", f"{folder}/reference"))
        (path / name).write_bytes(damage((path / name).read_bytes()))
        try:
            read = open_reference(path, extractor, "train")
        except DiffctlError as error:
            read, message = None, str(error)
    if read is None:
        assert str(path) in message
        assert "\n" not in message
        return
    wanted = open_reference(real / "reference", extractor, "train")
    assert read.meta == wanted.meta
    for one, other in zip(arrays_of(read), arrays_of(wanted), strict=True):
        np.testing.assert_array_equal(one, other)


def arrays_of(reference):
    return (
        *(reference.features, reference.heldout.features, reference.heldout.logits),
        *(reference.labels, reference.heldout_labels),
    )


def test_reference_without_held_out_images(real, extractor, tmp_path):
    store = open_store(real / "prepared/test")
    reference = make_reference_of(extractor, [store], [extract(extractor, store.images)])
    write_reference(tmp_path / "r", reference)
    again = open_reference(tmp_path / "r", extractor, "test")
    assert again.heldout is None
    assert again.train_and_test[0] is None
    np.testing.assert_array_equal(again.features, reference.features)
