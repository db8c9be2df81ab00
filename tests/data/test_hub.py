"""Datasets of the `datasets` library, offline: saved datasets are prepared with their labels."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffusion.data.data_config import DataConfig, build_source
from diffusion.system.errors import DiffctlError, UsageError
from tests.helpers.raw_data import prepared

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("offline")

CLASSES = ["cat", "dog", "eel"]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def picture(number: int) -> Image.Image:
    """Return a grey picture of one level."""
    return Image.new("RGB", (8, 8), (number,) * 3)


def dataset_of(columns: dict[str, Any], **features: Any):
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def dataset(count: int, start: int = 0):
    numbers = range(start, start + count)
    rows = {"image": [picture(number) for number in numbers], "label": [n % 3 for n in numbers]}
    return dataset_of(rows, image=datasets.Image(), label=datasets.ClassLabel(names=CLASSES))


def store_of(tmp_path: Path, path: Path, **config: Any):
    return prepared(tmp_path, name="hf", path=path, image_size=8, **config)


def levels(store) -> list[int]:
    return store.images[:, 0, 0, 0].tolist()


def assert_labelled(store) -> None:
    assert [level % 3 for level in levels(store)] == store.labels.tolist()


@pytest.mark.parametrize("how", ["saved", "parquet"])
def test_own_splits_and_class_names_are_used(tmp_path, how):
    splits = {"train": dataset(30), "test": dataset(9, start=100)}
    path = tmp_path / "set"
    if how == "saved":
        datasets.DatasetDict(splits).save_to_disk(path)
    for name, one in splits.items() if how == "parquet" else ():
        path.mkdir(exist_ok=True)
        one.to_parquet(path / f"{name}-00000-of-00001.parquet")
    train, test = store_of(tmp_path, path)
    assert train.meta["classes"] == CLASSES
    assert sorted(levels(train)) == list(range(30))
    assert sorted(levels(test)) == list(range(100, 109))
    assert_labelled(train)
    assert_labelled(test)
    assert train.images.shape == (30, 8, 8, 3)


def test_the_first_held_out_split_with_labels_is_used_by_its_own_class_names(tmp_path):
    rows = {"image": [picture(n) for n in range(100, 109)], "label": [-1] * 9}
    unlabelled = dataset_of(rows, image=datasets.Image(), label=datasets.ClassLabel(names=CLASSES))
    names = [CLASSES[2], CLASSES[0]]  # without the second class
    rows = {"image": [picture(200), picture(201)], "label": [0, 1]}
    other = dataset_of(rows, image=datasets.Image(), label=datasets.ClassLabel(names=names))
    splits = {"train": dataset(30), "test": unlabelled, "validation": other}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    train, test = store_of(tmp_path, tmp_path / "set")
    assert (len(train), train.meta["classes"]) == (30, CLASSES)
    assert dict(zip(levels(test), test.labels.tolist(), strict=True)) == {200: 2, 201: 0}


def test_share_of_every_class_is_held_out_and_changed_files_are_detected(tmp_path):
    dataset(30).save_to_disk(tmp_path / "set")
    train, test = store_of(tmp_path, tmp_path / "set", test_fraction=0.2, channels=1)
    assert (train.meta["counts"], test.meta["counts"]) == ([8] * 3, [2] * 3)
    assert sorted([*levels(train), *levels(test)]) == list(range(30))
    assert_labelled(train)
    config = DataConfig(name="hf", path=tmp_path / "set", image_size=8)
    before = build_source(config).info().sources
    assert before.items() <= train.meta["sources"].items()
    dataset(31).save_to_disk(tmp_path / "set")
    assert build_source(config).info().sources != before


def test_plain_labels_are_sorted_and_optional(tmp_path):
    rows = {"img": [picture(n) for n in range(9)], "class": [str(2 + 8 * (n % 2)) for n in range(9)]}
    kinds = {"img": datasets.Image(), "class": datasets.Value("string")}
    dataset_of(rows, **kinds).save_to_disk(tmp_path / "set")
    train, _ = store_of(tmp_path / "a", tmp_path / "set")
    assert train.meta["classes"] == ["2", "10"]
    assert [level % 2 for level in levels(train)] == train.labels.tolist()
    plain, _ = store_of(tmp_path / "b", tmp_path / "set", label="none")
    assert plain.labels is None


def test_incomplete_rows_are_problems(tmp_path):
    rows = {"image": [*map(picture, range(8)), None], "label": [0, 1, 2, None, 1, 2, 0, 1, 2]}
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    dataset_of(rows, **kinds).save_to_disk(tmp_path / "set")
    with pytest.raises(DiffctlError, match=r"1 without a label \(train 3\)"):
        store_of(tmp_path / "a", tmp_path / "set")
    train, test = store_of(tmp_path / "b", tmp_path / "set", on_bad="skip")
    assert len(train) + len(test) == 7
    assert train.meta["skipped"] == {"without a label": 1, "without an image": 1}


@pytest.mark.parametrize("bad", [0, 1])
def test_class_names_without_images_are_left_out_whether_or_not_a_row_is_bad(tmp_path, bad):
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", *CLASSES])}
    rows = {"image": [*map(picture, range(12)), *[None] * bad]}
    rows["label"] = [1 + n % 3 for n in range(12 + bad)]
    dataset_of(rows, **kinds).save_to_disk(tmp_path / "set")
    train, _ = store_of(tmp_path, tmp_path / "set", on_bad="skip")
    assert train.meta["classes"] == CLASSES
    assert_labelled(train)


def test_ambiguous_columns_must_be_named(tmp_path):
    kinds = {column: datasets.Image() for column in ("before", "after")}
    kinds |= {"fine": datasets.ClassLabel(names=CLASSES), "coarse": datasets.ClassLabel(names=["a", "b"])}
    numbers = range(12)
    rows = {"before": [*map(picture, numbers)], "after": [picture(n + 50) for n in numbers]}
    rows |= {"fine": [n % 3 for n in numbers], "coarse": [n % 2 for n in numbers]}
    dataset_of(rows, **kinds).save_to_disk(tmp_path / "set")
    for columns, message in (
        ({}, "image: name the column; before, after are candidates"),
        ({"image": "after"}, "label: name the column; fine, coarse are candidates"),
        ({"image": "photo"}, "image: there is no column 'photo'; there are before"),
    ):
        with pytest.raises(UsageError, match=rf"data\.{message}"):
            store_of(tmp_path, tmp_path / "set", **columns)
    train, _ = store_of(tmp_path, tmp_path / "set", image="after", label="coarse")
    assert train.meta["classes"] == ["a", "b"]
    assert min(levels(train)) >= 50


def test_unavailable_datasets_are_refused(tmp_path):
    for path, kind, message in (
        ("nobody/nothing", DiffctlError, "nobody/nothing"),
        ("no such name!", UsageError, "no such name! is neither a folder nor a valid dataset name"),
        (str(tmp_path), DiffctlError, "cannot be read as a dataset"),
    ):
        source = build_source(DataConfig(name="hf", path=path, image_size=8))
        with pytest.raises(kind, match=message) as refused:
            source.open()
        assert "\n" not in str(refused.value)
    assert "from the hub" in build_source(DataConfig(name="hf", path="a/b", image_size=8)).info().blocked
    source = build_source(DataConfig(name="hf", path=str(tmp_path), image_size=8))
    assert source.info().blocked
    assert not source.info().is_unreadable, "without files"
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    assert source.info().is_unreadable


def test_revision_is_requested_and_recorded(tmp_path, monkeypatch):
    of = {"abc": dataset(12), "def": dataset(12, start=100), None: dataset(15)}  # a hub with two commits

    def load_dataset(name, subset, revision, cache_dir):
        assert (name, subset) == ("some/set", None)
        return datasets.DatasetDict(train=of[revision])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    newest, _ = store_of(tmp_path / "a", "some/set")
    old, _ = store_of(tmp_path / "b", "some/set", revision="abc")
    later, _ = store_of(tmp_path / "c", "some/set", revision="def")
    assert "revision" not in newest.meta["options"], "as before there was one"
    assert [one.meta["options"]["revision"] for one in (old, later)] == ["abc", "def"]
    assert max(levels(old)) < 12
    assert min(levels(later)) >= 100
