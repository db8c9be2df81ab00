"""The section `data`; every data set round trips in its format; missing or damaged files are named."""

import copy
import dataclasses
import hashlib
import pickle
import tarfile
from functools import partial

import numpy as np
import pytest
from pydantic import ValidationError

from diffusion.data.data_config import SOURCES, DataConfig, build_source
from diffusion.data.sources import cifar, fashion_mnist
from diffusion.system.errors import DiffctlError
from diffusion.system.registry import load_reference
from tests.helpers.raw_data import (
    CIFAR10_CLASSES,
    by_image,
    prepared,
    random_images,
    write_cifar10,
    write_cifar100,
    write_fashion,
    write_imagenet,
    write_mini_imagenet,
    write_small_imagenet,
    zip_bytes,
)


def test_section_class_depends_on_name():
    for made in (DataConfig(name="digits"), DataConfig.model_validate({"name": "digits"})):
        assert type(made) is load_reference(SOURCES["digits"].config)
        assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made.model_copy() == made
    assert type(DataConfig(name="cifar10")) is DataConfig
    with pytest.raises(ValidationError, match="allowed are digits"):
        DataConfig(name="mnist")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "imagenet"}, "image_size: imagenet has images of many sizes"),
        ({"name": "image-folder", "path": "x"}, "image_size: image-folder has images of many sizes"),
        ({"name": "image-folder", "image_size": 8}, "path: image-folder needs the folder"),
        ({"name": "digits", "path": "x"}, "path: digits come with scikit-learn"),
        ({"name": "cifar10", "labels": "fine"}, r"labels\n  .* it belongs to cifar100 and image-folder"),
        (
            {"name": "image-folder", "path": "x", "image_size": 8, "labels": "names.txt"},
            "labels: folders, none",
        ),
        ({"name": "cifar10", "test_fraction": 0.1}, r"test_fraction\n  .* it belongs to image-folder"),
        ({"name": "image-folder", "path": "x", "image_size": 8, "test_fraction": 1.0}, "test_fraction"),
        ({"name": "hf", "image_size": 8}, "path"),
        ({"name": "hf", "path": "a"}, "image_size"),
        ({"name": "hf", "path": "a/b", "image_size": 8, "revision": ""}, "revision"),
    ],
)
def test_invalid_combinations_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(values)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFCTL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_digits_keep_every_image_of_scikit_learn(tmp_path):
    from sklearn.datasets import load_digits

    train, test = prepared(tmp_path, name="digits")
    assert (len(train), len(test)) == (1297, 500)
    levels, labels = load_digits(return_X_y=True)
    pixels = np.round(levels * 255 / 16).astype(int).tolist()
    images = np.concatenate([train.images, test.images]).reshape(-1, 64).tolist()
    mine = [*train.labels.tolist(), *test.labels.tolist()]
    assert sorted(zip(images, mine, strict=True)) == sorted(zip(pixels, labels.tolist(), strict=True))
    assert max(test.meta["counts"]) - min(test.meta["counts"]) <= 3
    assert train.images.max() == 255


COUNT, TEST = 33, 9  # images of a set, and of its test split
LABELS = np.random.default_rng(0).integers(0, 1000, COUNT)
LABELS[[0, -1]] = 0, 999
SYNSETS = ["n01440764", "n01443537", "n01484850"]


# Write raw files and return the class of each image.
def fashion(raw, images):
    write_fashion(raw, images, LABELS % 10, TEST)
    return [fashion_mnist.CLASSES[label] for label in LABELS % 10]


def cifar10(raw, images):
    write_cifar10(raw, images, LABELS % 10, TEST)
    return [CIFAR10_CLASSES[label] for label in LABELS % 10]


def cifar100(raw, images, kind="fine", classes=100):
    write_cifar100(raw, images, LABELS % 100, LABELS % 20, TEST)
    return [f"{kind} {label}" for label in LABELS % classes]


def small_imagenet(raw, images, form):
    write_small_imagenet(raw, images, LABELS, TEST, form)
    return [str(label + 1) for label in LABELS]


def mini_imagenet(raw, images, form):
    names = [f"n{label % 6:08d}" for label in range(COUNT)]
    write_mini_imagenet(raw, images, names, form)
    return names


def imagenet(raw, images):
    parts = np.split(images[:-TEST], len(SYNSETS))
    held_out = [SYNSETS[at % 3] for at in range(TEST)]
    val = list(zip(held_out, images[-TEST:], strict=True))
    write_imagenet(raw, dict(zip(SYNSETS, parts, strict=True)), val)
    return [f"name of {synset}, second name" for synset in [*np.repeat(SYNSETS, len(parts[0])), *held_out]]


@pytest.mark.parametrize(
    ("name", "side", "write", "options"),
    [
        ("fashion-mnist", 28, fashion, {}),
        ("cifar10", 32, cifar10, {}),
        ("cifar100", 32, cifar100, {}),
        ("cifar100", 32, partial(cifar100, kind="coarse", classes=20), {"labels": "coarse"}),
        ("imagenet32", 32, partial(small_imagenet, form="npz"), {}),
        ("imagenet32", 32, partial(small_imagenet, form="pickle"), {}),
        ("imagenet64", 64, partial(small_imagenet, form="compressed"), {}),
        ("mini-imagenet", 84, partial(mini_imagenet, form="python 3"), {"image_size": 84}),
        ("mini-imagenet", 84, partial(mini_imagenet, form="python 2"), {"image_size": 84}),
        ("mini-imagenet", 84, partial(mini_imagenet, form="bytes"), {"image_size": 84}),
        ("imagenet", 16, imagenet, {"image_size": 16}),
    ],
)
def test_official_format_round_trips(tmp_path, name, side, write, options):
    images = random_images(0, COUNT, side, 1 if name == "fashion-mnist" else 3)
    names = write(tmp_path / "raw", images)
    train, test = prepared(tmp_path, name=name, path=tmp_path / "raw", **options)
    expected = {image.tobytes(): label for image, label in zip(images, names, strict=True)}
    assert by_image(train) | by_image(test) == expected
    if name == "mini-imagenet":  # its files have other classes each: they are joined, and a sixth is held out
        assert len(test) == COUNT // 6
        assert train.meta["classes"] == sorted(set(names))
    else:
        np.testing.assert_array_equal(test.images, images[-TEST:])
    if name not in ("mini-imagenet", "imagenet"):  # which are shuffled
        np.testing.assert_array_equal(train.images, images[:-TEST])
    if name == "cifar10":
        assert train.meta["sources"].keys() == {*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"}


def test_missing_batches_are_named_until_all_are_unpacked_from_zips(tmp_path, cache):
    images, labels = random_images(0, 44, 32), np.arange(44) * 22
    loose = write_small_imagenet(tmp_path / "loose", images, labels, 8)
    raw, config = tmp_path / "raw", DataConfig(name="imagenet32", path=tmp_path / "raw")
    raw.mkdir()

    def pack(name, *files):
        members = {f"{name}/{file.name}": file.read_bytes() for file in files}
        (raw / f"{name}.zip").write_bytes(zip_bytes(members))

    def messages():
        with pytest.raises(DiffctlError) as error:
            build_source(config).open()
        assert build_source(config).info().blocked == str(error.value)
        return str(error.value).partition(" not found: ")[0].split(", ")

    training = [f"train_data_batch_{number}" for number in range(1, 11)]
    assert messages() == [*training, "val_data"]
    pack("Imagenet32_val_npz", loose / "val_data.npz")
    assert messages() == training
    files = [loose / f"{name}.npz" for name in training]
    pack("Imagenet32_train_part1_npz", *files[:4])
    (raw / files[5].name).write_bytes(files[5].read_bytes())
    assert messages() == [training[4], *training[6:]]
    pack("Imagenet32_train_part2_npz", *files[4:])
    assert not build_source(config).info().blocked
    names = [f"class {number}" for number in range(1, 1001)]
    names[134] = names[517] = "crane"  # as in the real list
    lines = [f"n{number} {number} {name.replace(' ', '_')}\n" for number, name in enumerate(names, 1)]
    (raw / "map_clsloc.txt").write_text("".join(lines))
    names[134], names[517] = "crane (n135)", "crane (n518)"
    train, test = prepared(tmp_path, name="imagenet32", path=raw)
    expected = {image.tobytes(): names[label] for image, label in zip(images, labels, strict=True)}
    assert by_image(train) | by_image(test) == expected
    assert (cache / "imagenet32/unpacked/val_data.npz").exists()
    (raw / "Imagenet32_val_npz.zip").write_bytes(b"PK cut")
    assert "Imagenet32_val_npz.zip is not a complete zip" in build_source(config).info().blocked


def test_mini_imagenet_is_resized_with_antialiasing(tmp_path):
    names = ["a", "b", "c", "d"] * 6
    images = np.zeros((24, 84, 84, 3), dtype=np.uint8)
    images[:, ::2] = 255  # lines of one pixel: grey if averaged, black or white if sampled
    write_mini_imagenet(tmp_path / "raw", images, names)
    train, _ = prepared(tmp_path, name="mini-imagenet", path=tmp_path / "raw", image_size=28)
    assert train.images.shape[1:] == (28, 28, 3)
    assert abs(train.images[:, 4:-4].astype(int) - 127).max() < 20
    assert train.meta["transforms"]


@pytest.mark.parametrize(
    "name", ["cifar10", "cifar100", "fashion-mnist", "mini-imagenet", "imagenet64", "imagenet"]
)
def test_missing_raw_files_are_one_sentence(tmp_path, name):
    (tmp_path / "raw").mkdir()
    config = DataConfig(name=name, path=tmp_path / "raw", image_size=64 if name == "imagenet" else None)
    info = build_source(config).info()
    assert str(tmp_path / "raw") in info.blocked
    with pytest.raises(DiffctlError, match=str(tmp_path / "raw")) as error:
        build_source(config).open()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mini-imagenet", "imagenet"])
def test_message_without_kaggle_has_instructions(cache, name, monkeypatch):
    monkeypatch.setenv("HOME", str(cache))
    for variable in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    config = DataConfig(name=name, image_size=64)
    assert build_source(config).info().blocked
    with pytest.raises(DiffctlError, match=r"https://www\.kaggle\.com/") as error:
        build_source(config).open()
    assert str(cache / name) in str(error.value)
    assert "diffctl[kaggle]" in str(error.value)


def test_existing_cifar_archive_is_verified_and_used(tmp_path, monkeypatch):
    images, labels = random_images(5, 30, 32), np.arange(30) % 10
    archive = tmp_path / "raw/cifar-10-python.tar.gz"
    archive.parent.mkdir()
    made = write_cifar10(tmp_path / "made", images, labels, 5)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(made, arcname=made.name)
    checksum = f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    source = build_source(DataConfig(name="cifar10", path=tmp_path / "raw"))
    with pytest.raises(DiffctlError, match="is not the published file"):
        source.open()
    remote = dataclasses.replace(cifar.CIFAR10.remote, checksum=checksum)
    monkeypatch.setattr(cifar, "CIFAR10", dataclasses.replace(cifar.CIFAR10, remote=remote))
    raw = build_source(source.config).open()
    np.testing.assert_array_equal(raw.test.reader.job(0, 5)().images, images[25:])
