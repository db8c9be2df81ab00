"""Folders of images: classes, splits, CSV labels, and files that cannot be used. Held-out splits."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.data.data_config import DataConfig, build_source
from diffusion.data.source import hold_out, shuffled
from diffusion.system.errors import DiffctlError, UsageError
from tests.helpers.raw_data import by_image, prepared, random_images, write_folder, write_numbered


def folder_config(path, **options):
    return DataConfig(name="image-folder", path=path, image_size=8, **options)


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.sampled_from([1, 3]),
    suffix=st.sampled_from(["png", "webp"]),
    fraction=st.sampled_from([None, 0.3]),
)
def test_class_folders_round_trip(tmp_path_factory, seed, channels, suffix, fraction):
    tmp_path = tmp_path_factory.mktemp("folder")
    pool = random_images(seed, 24, 12, channels)
    if suffix == "webp":
        pool[..., 1:] = pool[..., :1]  # webp is RGB only; equal channels survive the conversion to grey
    names = ["a_cat", "the dog", "10"]
    images = {f"{names[at % 3]}/{at}": image for at, image in enumerate(pool)}
    write_folder(tmp_path / "raw", images, suffix)
    options = {"image_size": 12, "channels": channels, "test_fraction": fraction}
    train, test = prepared(tmp_path, name="image-folder", path=tmp_path / "raw", **options)
    assert train.meta["classes"] == ["10", "a_cat", "the dog"]
    assert len(test) == round(24 * (fraction or 0.1))
    found = by_image(train) | by_image(test)
    for name, image in images.items():
        assert found[image.tobytes()] == name.split("/")[0]


@pytest.mark.parametrize("held_out", [["val"], ["test"], ["val", "test"], ["Test"]])
def test_train_and_test_folders_are_an_official_split(tmp_path, held_out):
    pool = random_images(0, 20, 8)
    learned = "Train" if "Test" in held_out else "train"
    tops = [held_out[at // 5 % len(held_out)] if at % 5 == 0 else learned for at in range(20)]
    names = [f"{top}/{'ab'[at % 2]}/{at}" for at, top in enumerate(tops)]
    write_folder(tmp_path / "raw", dict(zip(names, pool, strict=True)))
    train, test = prepared(tmp_path, name="image-folder", path=tmp_path / "raw", image_size=8)
    assert {image.tobytes() for image in test.images} == {image.tobytes() for image in pool[::5]}
    assert train.meta["classes"] == ["a", "b"]
    with pytest.raises(UsageError, match="test_fraction"):
        build_source(folder_config(tmp_path / "raw", test_fraction=0.2)).open()


@pytest.mark.parametrize("stray", ["extra/a/s", "s"])
@pytest.mark.parametrize("labels", ["folders", "none", "l.csv"])
def test_images_next_to_train_and_test_folders_are_listed(tmp_path, stray, labels):
    pool = random_images(0, 13, 8)
    names = [f"{'test' if at % 4 == 0 else 'train'}/{'ab'[at % 2]}/{at}" for at in range(12)]
    raw = write_folder(tmp_path / "raw", dict(zip([*names, stray], pool, strict=True)))
    (raw / "l.csv").write_text("file,label\n" + "".join(f"{name}.png,c\n" for name in [*names, stray]))
    options = {"image_size": 8, "labels": labels, "on_bad": "skip"}
    source = build_source(folder_config(raw, labels=labels))
    assert source.info().problems == [(f"{stray}.png", "outside train and test")]
    train, test = prepared(tmp_path, name="image-folder", path=raw, **options)
    assert {image.tobytes() for image in test.images} == {image.tobytes() for image in pool[:12:4]}
    assert len(train) == 9
    assert train.meta["classes"] == {"folders": ["a", "b"], "none": [], "l.csv": ["c"]}[labels]


def test_train_without_a_test_folder_is_a_class_and_unlabelled_test_images_are_no_split(tmp_path):
    raw = write_folder(tmp_path / "raw", {f"{top}/0": random_images(0, 1, 8)[0] for top in ("train", "car")})
    assert build_source(folder_config(raw)).open().classes == ("car", "train")
    (raw / "car").rename(raw / "test")
    write_folder(raw, {"train/1": random_images(1, 1, 8)[0]})
    (raw / "l.csv").write_text("file,label\ntrain/0.png,a\ntrain/1.png,b\n")
    opened = build_source(folder_config(raw, labels="l.csv")).open()
    assert [len(split.reader) for split in opened.splits.values()] == [1, 1]
    assert list(opened.problems) == [("test/0.png", "without a label")]


@pytest.mark.parametrize("top", ["train", "pictures"])
def test_classes_below_train_alone_are_labels_and_below_one_class_are_reported(tmp_path, top):
    pool = random_images(0, 20, 8)
    raw = write_folder(tmp_path / "raw", {f"{top}/{'ab'[at % 2]}/{at}": one for at, one in enumerate(pool)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train, test = prepared(tmp_path, name="image-folder", path=raw, image_size=8)
        (raw / "test").mkdir()
        assert build_source(folder_config(raw)).info().problems[0].where == "test"
    assert (len(train), len(test)) == (18, 2)
    assert train.meta["classes"] == (["a", "b"] if top == "train" else ["pictures"])
    expected = "one class, pictures, which has sub-folders (a, b): if these are the classes, set data.path to"
    assert [expected in str(one.message) for one in caught] == [True, True] * (top == "pictures")


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (4, 2), (14, 2), (26, 3)])
def test_both_splits_of_a_small_folder_have_enough_images_for_scores(tmp_path, count, held_out):
    raw = write_numbered(tmp_path / "raw", random_images(0, count, 8))
    assert len(build_source(folder_config(raw)).open().test.reader) == held_out


def test_flat_folder_has_no_labels(tmp_path):
    write_numbered(tmp_path / "raw", random_images(0, 20, 8))
    (tmp_path / "raw/README.md").write_text("of my pictures")
    train, test = prepared(tmp_path, name="image-folder", path=tmp_path / "raw", image_size=8)
    assert train.labels is None
    assert train.meta["classes"] == train.meta["counts"] == []
    assert (len(train), len(test)) == (18, 2)


@pytest.mark.parametrize("header", ["file,label,split", "File, Label, Split"])
def test_csv_gives_labels_and_splits(tmp_path, header):
    pool = random_images(0, 12, 8)
    write_folder(tmp_path / "raw", {f"pictures/{at}": image for at, image in enumerate(pool)})
    sides = ["left", "right"]
    rows = [f"pictures/{at}.png,{sides[at % 2]},{'Test' if at > 8 else 'train'}\n" for at in range(12)]
    (tmp_path / "raw/labels.csv").write_text(f"{header}\n" + "".join(rows), encoding="utf-8-sig")
    options = {"image_size": 8, "labels": "labels.csv"}
    train, test = prepared(tmp_path, name="image-folder", path=tmp_path / "raw", **options)
    assert (len(train), len(test)) == (9, 3)
    assert by_image(test)[pool[9].tobytes()] == "right"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "needs a first line with a column file"),
        ("file,b\n", "a column label"),
        ("file,label,split\n0.png,a,trian\n", "split 'trian' is not one of train"),
        ("file,label\n0.png,\n", "none of the 3 images"),
        ("file,label\nx.png,a\n", "none of the 3 images"),
        ("file,label\n" + "x" * 200_000, "is not readable as CSV"),
        ("file,label\n0.png,\xff", "is not text in UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_invalid_csv_is_refused(tmp_path, text, message):
    write_numbered(tmp_path / "raw", random_images(0, 3, 8))
    if text is not None:
        (tmp_path / "raw/labels.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DiffctlError, match=message):
        build_source(folder_config(tmp_path / "raw", labels="labels.csv")).open()


def test_a_csv_outside_of_the_folder_is_refused(tmp_path):
    """Its changes would not be noticed."""
    write_numbered(tmp_path / "raw", random_images(0, 3, 8))
    (tmp_path / "labels.csv").write_text("file,label\n0.png,a\n")
    with pytest.raises(UsageError, match="outside"):
        build_source(folder_config(tmp_path / "raw", labels="../labels.csv")).open()


def test_unusable_files_are_listed(tmp_path):
    raw = tmp_path / "raw"
    write_numbered(raw, random_images(0, 6, 8), "ab")
    write_folder(raw, {"loose": random_images(1, 1, 8)[0], "a/0": random_images(2, 1, 8)[0]}, "webp")
    (raw / "empty").mkdir()
    (raw / "a/notes.txt").write_text("no image")
    (raw / "README.txt").write_text("next to the classes")
    for name in ("IMG_1.HEIC", "x.arw"):
        (raw / name).write_bytes(b"of a camera")
    (raw / ".hidden").mkdir()
    (raw / ".hidden/x.png").write_bytes(b"")
    (raw / "a/Thumbs.db").write_bytes(b"")
    info = build_source(folder_config(raw)).info()
    assert info.images == 6
    assert sorted(info.problems) == [
        ("IMG_1.HEIC", "not png, jpeg, webp or gif"),
        ("a/0.webp", "with the name of another"),
        ("a/Thumbs.db", "not an image"),
        ("a/notes.txt", "not an image"),
        ("empty", "empty class"),
        ("loose.webp", "outside a class folder"),
        ("x.arw", "not png, jpeg, webp or gif"),
    ]


def test_unmatched_csv_rows_and_files_are_listed(tmp_path):
    raw = write_numbered(tmp_path / "raw", random_images(0, 4, 8))
    (raw / "l.csv").write_text("file,label\n0.png,a\n1.png,b\n1.png,a\ngone.png,a\n./2.png,b\n")
    info = build_source(folder_config(raw, labels="l.csv")).info()
    assert sorted(info.problems) == [
        ("1.png", "listed twice with different labels"),
        ("3.png", "without a label"),
        ("gone.png", "missing"),
    ]


def test_links_are_followed_once(tmp_path):
    write_numbered(tmp_path / "elsewhere", random_images(0, 4, 8))
    raw = write_folder(tmp_path / "raw", {"a/x": random_images(1, 1, 8)[0]})
    (raw / "b").symlink_to(tmp_path / "elsewhere")
    (raw / "b/circle").symlink_to(raw)
    (raw / "a/gone.png").symlink_to(tmp_path / "nowhere.png")
    splits = build_source(folder_config(raw)).open().splits.values()
    names = {name for reader, _ in splits for name in reader.names(np.arange(len(reader)))}
    assert names == {"a/x.png", "a/gone.png", "b/0.png", "b/1.png", "b/2.png", "b/3.png"}


def test_folder_without_images_is_refused(tmp_path):
    for prepare in (Path, Path.mkdir):  # missing, then empty
        prepare(tmp_path / "raw")
        with pytest.raises(DiffctlError, match=r"data\.path"):
            build_source(folder_config(tmp_path / "raw")).open()


@pytest.mark.parametrize("name", ["image-folder", "hf"])
@pytest.mark.parametrize("path", ["data", "..", "link"])
def test_folder_that_contains_the_prepared_images_is_refused(tmp_path, monkeypatch, path, name):
    """They would be raw images of the next preparation."""
    raw = write_numbered(tmp_path / "data", random_images(0, 4, 8))
    (tmp_path / "link").symlink_to(raw)
    monkeypatch.chdir(tmp_path)
    source = build_source(DataConfig(name=name, path=path, image_size=8))
    with pytest.raises(UsageError, match=r"data\.path: .* contains data/prepared"):
        source.open()
    assert source.info().is_unreadable


def test_relative_folder_of_an_experiment_is_one_of_the_checkout(tmp_path, monkeypatch):
    """`dvc exp run --temp` works in a copy of the project without ignored files."""
    raw = write_numbered(tmp_path / "data/images", random_images(0, 4, 8))
    experiment = tmp_path / ".dvc/tmp/exps/one"
    experiment.mkdir(parents=True)
    monkeypatch.chdir(experiment)
    assert build_source(folder_config("data/images")).info().images == 4
    assert build_source(DataConfig(name="hf", path="data/images", image_size=8)).folder == raw
    with pytest.raises(UsageError, match=r"contains data/prepared"):
        build_source(folder_config("data")).open()


# Held-out splits: deterministic, exact and stratified.

LABELS = st.lists(st.integers(0, 5), min_size=2, max_size=80).map(np.array)


def test_permutation_has_golden_values():
    assert shuffled(10, 0).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]  # raw PCG64 bits are stable


@given(labels=LABELS, part=st.floats(0.01, 0.99), seed=st.integers(0, 100))
def test_stratified_split_is_exact_disjoint_and_proportional(labels, part, seed):
    held_out = min(len(labels) - 1, max(1, round(part * len(labels))))
    train, test = hold_out(labels, len(labels), held_out, seed)
    assert len(test) == held_out
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(labels)))
    sizes = np.bincount(labels, minlength=6)
    shares = np.bincount(labels[test], minlength=6)
    if held_out <= np.maximum(sizes - 1, 0).sum():
        assert all(share < size for share, size in zip(shares, sizes, strict=True) if size)
    if sizes[sizes > 0].min() >= 4 and 0.1 < part < 0.7:
        assert abs(shares - sizes * held_out / len(labels)).max() <= 1


def test_both_sides_are_shuffled():
    labels = np.repeat(np.arange(10), 100)
    for rows in hold_out(labels, 1000, 300, 0):
        assert len(set(labels[rows[:40]])) >= 8


@pytest.mark.parametrize("held_out", [0, 5])
def test_empty_side_is_refused(held_out):
    with pytest.raises(ValueError, match="cannot hold out"):
        hold_out(None, 5, held_out, 0)
