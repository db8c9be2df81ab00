"""Checks of raw and prepared data."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cli.stages.context import enter_stage
from diffusion.check import check, preflight
from diffusion.check.data_checks import check_fit, check_prepared, check_raw
from diffusion.check.findings import Project
from diffusion.config import load
from diffusion.data.prepare import prepare
from diffusion.images.store import write_store
from diffusion.layout import PREPARED
from diffusion.system.errors import DiffctlError, UsageError
from tests.conftest import write_params
from tests.helpers.checks import configuration, with_level
from tests.helpers.prepared import copy_data
from tests.helpers.raw_data import random_images, write_cifar100, write_folder

DATA = (check_raw, check_prepared, check_fit)


def prepared_as(images, labels, classes, **meta):
    """Write these images as prepared data under the digits profile's name, both splits alike."""
    counts = [] if labels is None else np.bincount(labels, minlength=len(classes)).tolist()
    shape = {"image_size": images.shape[1], "channels": images.shape[3]}
    values = {"name": "digits", "classes": classes, "counts": counts, "sources": {}, "options": {}}
    values |= {**shape, **meta}
    for split in ("train", "test"):
        write_store(PREPARED / split, images, labels, {**values, "split": split})


def test_counts_sizes_and_channel_statistics_are_reported(tmp_path):
    images = np.zeros((10, 8, 8, 1), dtype=np.uint8)
    images[:5] = 200
    prepared_as(images, np.array([0] * 7 + [1] * 3), ["a", "b"])
    text = " ".join(one.message for one in check(configuration(), DATA) if one.subject == "train")
    assert "10 images of 8×8×1, 2 classes with 3 to 7 each" in text
    assert "channels 100±100 of 255" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0] * 9 + [2], "classes": ["a", "empty", "c"]}, "1 classes without an image: empty"),
        ({"labels": [0] * 9 + [1], "classes": ["a", "b"]}, "classes have 1 to 9 training images"),
        ({"duplicates": {"within": 3}}, "3 images are exact copies"),
        ({"duplicates": {"of_train": 2}}, "2 images are in the training split too"),
        ({"skipped": {"truncated": 4}}, "4 truncated"),
        ({"image": 7}, "every pixel has the same value"),
        ({"channels": 3}, "all images are grey but stored as RGB"),
    ],
)
def test_suspicious_data_cause_warnings(tmp_path, change, message):
    channels = change.pop("channels", 1)
    images = np.repeat(random_images(0, 10, 8, 1), channels, axis=3)
    if "image" in change:
        images[:] = change.pop("image")
    labels = np.array(change.pop("labels", [0] * 10))
    config = configuration(data={"on_bad": "skip" if "skipped" in change else "stop", "channels": channels})
    prepared_as(images, labels, change.pop("classes", ["a"]), **change)
    warnings = [finding.message for finding in check(config, DATA) if finding.level == "warning"]
    assert any(message in warning for warning in warnings)


def test_split_of_one_image_is_an_error(tmp_path):
    prepared_as(random_images(0, 1, 8, 1), None, [])
    config = configuration(model={"class_cond": False}, train={"batch_size": 1, "p_uncond": 0})
    assert "one image" in with_level(check(config, DATA), "error")["evaluation"].message


def test_conditional_model_needs_labels(tmp_path):
    prepared_as(random_images(0, 20, 8, 1), None, [])
    error = with_level(check(configuration(), DATA), "error")["model"]
    assert "model.class_cond" in error.message


def test_damaged_prepared_data_are_an_error(project):
    copy_data(project)
    Path("data/prepared/train/meta.json").write_bytes(b"{")
    error = with_level(check(load(), DATA), "error")["prepared data"]
    assert "diffctl stage data" in error.remedy
    with pytest.raises(DiffctlError):
        preflight(load(), "train")


def test_corrected_label_is_a_change(tmp_path):
    raw = write_folder(tmp_path / "raw", dict(zip("0123", random_images(0, 4, 8), strict=True)))
    rows = (raw / "labels.csv").write_text("file,label\n0.png,a\n1.png,b\n2.png,a\n3.png,b\n")
    data = {"name": "image-folder", "path": str(raw), "image_size": 8, "labels": "labels.csv"}
    config = configuration(data=data, train={"batch_size": 2})
    prepare(config.data, PREPARED, work=Path("work"))
    assert not Project(config).raw_files_changed
    assert rows == (raw / "labels.csv").write_text("file,label\n0.png,b\n1.png,b\n2.png,a\n3.png,b\n")
    assert Project(config).raw_files_changed
    assert not with_level(check(config, DATA), "error")
    for broken in ("file;label\n0.png;a\n", "file,label,split\n0.png,a,trian\n"):
        (raw / "labels.csv").write_text(broken)
        assert Project(config).raw_files_changed
        errors = with_level(check(config, DATA), "error")
        assert "data.labels: " in errors["raw data"].remedy
        assert list(errors) == ["raw data"]


CIFAR100 = {"name": "cifar100", "image_size": 8, "labels": "fine"}
FOLDER = {"name": "image-folder", "image_size": 8, "on_bad": "skip"}


@pytest.mark.parametrize(
    ("before", "change", "fits"),
    [
        (CIFAR100, {"labels": "coarse"}, False),
        (CIFAR100, {"image_size": None}, False),
        (CIFAR100, {"channels": 3}, True),
        (CIFAR100, {"channels": 1}, False),
        (CIFAR100, {"flip": True, "on_bad": "skip"}, True),
        ({**CIFAR100, "image_size": None}, {"image_size": 32}, True),
        (FOLDER, {"test_fraction": 0.4}, False),
        (FOLDER, {"on_bad": "stop"}, False),
        ({**FOLDER, "good": True}, {"on_bad": "stop"}, True),
    ],
)
def test_prepared_data_fit_until_a_deciding_option_changes(tmp_path, before, change, fits):
    before, raw = dict(before), tmp_path / "raw"
    if before["name"] == "cifar100":
        write_cifar100(raw, random_images(0, 20, 32), np.arange(20), np.arange(20), 5)
    else:
        write_folder(raw, {f"a/{at}": image for at, image in enumerate(random_images(0, 9, 8))})
        if not before.pop("good", False):
            (raw / "a/bad.png").write_text("no image")
    config = configuration(data={**before, "path": str(raw)}, model={"attention_resolutions": []})
    prepare(config.data, PREPARED, work=Path("work"))
    shutil.copytree(raw, tmp_path / "moved")
    for path, fits_path in (("raw", True), ("moved", False)):
        moved = {**before, **change, "path": str(tmp_path / path)}
        after = configuration(data=moved, model={"attention_resolutions": []})
        assert Project(after).is_ready is (fits and fits_path)
        warnings = with_level(check(after, DATA), "warning")
        assert ("with other options" in str(warnings.get("prepared data"))) is not (fits and fits_path)


def folder_of(raw, on_bad="stop"):
    """A configuration with this folder of images."""
    data = {"name": "image-folder", "path": str(raw), "image_size": 8, "on_bad": on_bad}
    return configuration(data=data, train={"batch_size": 4})


def test_changed_raw_data_are_reported_and_missing_ones_are_an_error_until_prepared(tmp_path):
    pool = random_images(0, 20, 8)
    raw = write_folder(tmp_path / "raw", {f"{'ab'[at % 2]}/{at}": image for at, image in enumerate(pool)})
    config = folder_of(raw)
    prepare(config.data, PREPARED, work=Path("work"))
    assert "prepared data" not in with_level(check(config, DATA), "warning")
    write_folder(raw, {"a/more": pool[0]})
    assert "have changed" in with_level(check(config, DATA), "warning")["prepared data"].message
    shutil.rmtree(raw)
    for make in (Path, Path.mkdir):  # missing, then empty as a disk that is not mounted
        make(raw)
        assert not Project(config).raw_files_changed
        assert not with_level(check(config, DATA), "error")
    raw.rmdir()
    assert "not a folder" in with_level(check(folder_of(tmp_path / "rwa"), DATA), "error")["raw data"].remedy
    write_params(tmp_path, data={"name": "image-folder", "path": "rwa", "image_size": 8})
    for stage in ("reference", "train", "sample", "evaluate", "report"):
        with (
            pytest.raises(UsageError, match=r"other options .* \(data.path /.*raw → rwa\)"),
            enter_stage(stage),
        ):
            pass
    shutil.rmtree(tmp_path / "data")
    assert str(raw) in with_level(check(config, DATA), "error")["raw data"].remedy


def test_bad_raw_files_follow_on_bad(tmp_path):
    pool = random_images(0, 9, 8)
    raw = write_folder(tmp_path / "raw", {f"a/{at}": image for at, image in enumerate(pool)})
    (raw / "empty").mkdir()
    for on_bad, level in (("stop", "error"), ("skip", "warning")):
        found = with_level(check(folder_of(raw, on_bad), DATA), level)
        assert "1 empty class (empty)" in found["raw data"].message
