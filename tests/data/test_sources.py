"""Every data set round trips in its official format; missing or damaged files are named."""

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.data.data_config import DataConfig, build_source
from diffusion.data.sources import cifar
from diffusion.system.errors import DiffctlError
from tests.helpers.raw_data import (
    by_image,
    pack_tar,
    pack_zip,
    prepared,
    random_images,
    write_cifar10,
    write_cifar100,
    write_class_list,
    write_fashion,
    write_imagenet,
    write_mini_imagenet,
    write_small_imagenet,
)

sizes = st.integers(0, 2**32 - 1)
few = settings(max_examples=8)


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


@few
@given(seed=sizes, test=st.integers(1, 12))
def test_fashion_mnist_round_trips(tmp_path_factory, seed, test):
    tmp_path = tmp_path_factory.mktemp("fashion")
    images = random_images(seed, 30, 28, 1)
    labels = np.random.default_rng(seed).integers(0, 10, 30)
    folder = write_fashion(tmp_path / "raw", images, labels, test)
    train, held_out = prepared(tmp_path, name="fashion-mnist", path=folder)
    np.testing.assert_array_equal(np.concatenate([train.images, held_out.images]), images)
    np.testing.assert_array_equal(np.concatenate([train.labels, held_out.labels]), labels)
    assert train.meta["classes"][9] == "Ankle boot"


@few
@given(seed=sizes, count=st.integers(12, 60), test=st.integers(1, 6))
def test_cifar10_round_trips(tmp_path_factory, seed, count, test):
    tmp_path = tmp_path_factory.mktemp("cifar")
    images, labels = random_images(seed, count, 32), np.random.default_rng(seed).integers(0, 10, count)
    write_cifar10(tmp_path / "raw", images, labels, test)
    train, held_out = prepared(tmp_path, name="cifar10", path=tmp_path / "raw")
    assert len(held_out) == test
    np.testing.assert_array_equal(np.concatenate([train.images, held_out.images]), images)
    np.testing.assert_array_equal(np.concatenate([train.labels, held_out.labels]), labels)
    assert train.meta["classes"][0] == "airplane"
    assert train.meta["sources"].keys() == {*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"}


@few
@given(seed=sizes, kind=st.sampled_from([None, "fine", "coarse"]), count=st.integers(2, 60))
def test_cifar100_round_trips(tmp_path_factory, seed, kind, count):
    tmp_path = tmp_path_factory.mktemp("cifar100")
    draw = np.random.default_rng(seed)
    labels = {"fine": draw.integers(0, 100, count), "coarse": draw.integers(0, 20, count)}
    images = random_images(seed, count, 32)
    write_cifar100(tmp_path / "raw", images, labels["fine"], labels["coarse"], 1 + count // 4)
    train, test = prepared(
        tmp_path, name="cifar100", path=tmp_path / "raw", **({"labels": kind} if kind else {})
    )
    assert len(train.meta["classes"]) == (20 if kind == "coarse" else 100)
    found = by_image(train) | by_image(test)
    for image, label in zip(images, labels[kind or "fine"], strict=True):
        assert found[image.tobytes()] == f"{kind or 'fine'} {label}"


@few
@given(seed=sizes, form=st.sampled_from(["npz", "compressed", "pickle"]), size=st.sampled_from([32, 64]))
def test_downsampled_imagenet_round_trips(tmp_path_factory, seed, form, size):
    tmp_path = tmp_path_factory.mktemp("small")
    images, labels = random_images(seed, 60, size), np.random.default_rng(seed).integers(0, 1000, 60)
    labels[0], labels[59] = 0, 999
    write_small_imagenet(tmp_path / "raw", images, labels, 9, form)
    train, test = prepared(tmp_path, name=f"imagenet{size}", path=tmp_path / "raw")
    np.testing.assert_array_equal(np.concatenate([train.images, test.images]), images)
    found = by_image(train) | by_image(test)
    for image, label in zip(images, labels, strict=True):
        assert found[image.tobytes()] == str(label + 1)


def test_downsampled_imagenet_is_unpacked_from_zips(tmp_path, cache):
    images, labels = random_images(0, 44, 64), np.arange(44) * 22
    loose = write_small_imagenet(tmp_path / "loose", images, labels, 8)
    raw = tmp_path / "raw"
    raw.mkdir()
    files = sorted(loose.glob("train*"))
    pack_zip(raw / "Imagenet64_train_part1_npz.zip", files[:5], "Imagenet64_train_part1_npz")
    pack_zip(raw / "Imagenet64_train_part2_npz.zip", files[5:], "Imagenet64_train_part2_npz")
    pack_zip(raw / "Imagenet64_val_npz.zip", [loose / "val_data.npz"], "Imagenet64_val_npz")
    names = write_class_list(raw)
    train, test = prepared(tmp_path, name="imagenet64", path=raw)
    found = by_image(train) | by_image(test)
    for image, label in zip(images, labels, strict=True):
        assert found[image.tobytes()] == names[label]
    assert (cache / "imagenet64/unpacked/val_data.npz").exists()


def test_missing_batches_are_named(tmp_path):
    loose = write_small_imagenet(tmp_path / "loose", random_images(0, 44, 32), np.arange(44), 8)
    raw, config = tmp_path / "raw", DataConfig(name="imagenet32", path=tmp_path / "raw")
    raw.mkdir()

    def messages():
        with pytest.raises(DiffctlError) as error:
            build_source(config).open()
        assert build_source(config).info().blocked == str(error.value)
        return str(error.value).partition(" not found: ")[0].split(", ")

    training = [f"train_data_batch_{number}" for number in range(1, 11)]
    assert messages() == [*training, "val_data"]
    pack_zip(raw / "Imagenet32_val_npz.zip", [loose / "val_data.npz"], "Imagenet32_val_npz")
    assert messages() == training
    files = [loose / f"{name}.npz" for name in training]
    pack_zip(raw / "Imagenet32_train_part1_npz.zip", files[:4], "part1")
    (raw / files[5].name).write_bytes(files[5].read_bytes())
    assert messages() == [training[4], *training[6:]]
    pack_zip(raw / "Imagenet32_train_part2_npz.zip", files[4:], "part2")
    assert not build_source(config).info().blocked
    assert len(build_source(config).open().train.reader) == 36
    (raw / "Imagenet32_val_npz.zip").write_bytes(b"PK cut")
    assert "Imagenet32_val_npz.zip is not a complete zip" in build_source(config).info().blocked


@few
@given(seed=sizes, per_class=st.integers(2, 8), form=st.sampled_from(["python 3", "python 2", "bytes"]))
def test_mini_imagenet_pools_files_and_holds_out_a_sixth(tmp_path_factory, seed, per_class, form):
    tmp_path = tmp_path_factory.mktemp("mini")
    names = [f"n{number:08d}" for number in range(6)] * per_class
    images = random_images(seed, len(names), 84)
    write_mini_imagenet(tmp_path / "raw", images, names, form)
    train, test = prepared(tmp_path, name="mini-imagenet", path=tmp_path / "raw", image_size=84)
    assert train.meta["classes"] == sorted(set(names))
    assert len(test) == max(1, len(names) // 6)
    found = by_image(train) | by_image(test)
    assert len(found) == len(names)
    for image, name in zip(images, names, strict=True):
        assert found[image.tobytes()] == name


def test_mini_imagenet_is_resized_with_antialiasing(tmp_path):
    names = ["a", "b", "c", "d"] * 6
    images = np.zeros((24, 84, 84, 3), dtype=np.uint8)
    images[:, ::2] = 255  # lines of one pixel: grey if averaged, black or white if sampled
    write_mini_imagenet(tmp_path / "raw", images, names)
    train, _ = prepared(tmp_path, name="mini-imagenet", path=tmp_path / "raw", image_size=28)
    assert train.images.shape[1:] == (28, 28, 3)
    assert abs(train.images[:, 4:-4].astype(int) - 127).max() < 20
    assert train.meta["transforms"]


@few
@given(seed=sizes)
def test_imagenet_round_trips(tmp_path_factory, seed):
    tmp_path = tmp_path_factory.mktemp("imagenet")
    synsets = ["n01440764", "n01443537", "n01484850"]
    pool = random_images(seed, 12, 16)
    train_images = {synset: list(pool[3 * at : 3 * at + 3]) for at, synset in enumerate(synsets)}
    val = [(synsets[at % 3], image) for at, image in enumerate(pool[9:])]
    write_imagenet(tmp_path / "raw", train_images, val)
    train, test = prepared(tmp_path, name="imagenet", path=tmp_path / "raw", image_size=16)
    assert train.meta["classes"] == [f"name of {synset}, second name" for synset in synsets]
    found = by_image(train)
    assert len(found) == 9
    for synset, images in train_images.items():
        assert all(found[image.tobytes()].startswith(f"name of {synset}") for image in images)
    np.testing.assert_array_equal(test.images, pool[9:])
    assert test.labels.tolist() == [0, 1, 2]


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


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", ["mini-imagenet", "imagenet"])
def test_kagglehub_download_is_found_without_kagglehub(tmp_path, cache, name, own, monkeypatch):
    """A download is complete if kagglehub's marker is there; in our cache or a configured one."""
    monkeypatch.delenv("KAGGLEHUB_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    hub = cache / "kagglehub"
    if own:
        hub = tmp_path / "own"
        monkeypatch.setenv("KAGGLEHUB_CACHE", str(hub))
    images = random_images(0, 24, 84)
    if name == "imagenet":
        place = hub / "competitions/imagenet-object-localization-challenge"
        marker = place.with_name(f"{place.name}.complete")
        write_imagenet(place, {"n01440764": list(images[:3])}, [("n01440764", images[3])])
    else:
        place = hub / "datasets/whitemoon/miniimagenet"
        marker = place / "1.complete"
        write_mini_imagenet(place / "versions/1", images, ["a", "b", "c", "d"] * 6)
        (place / "versions/2").mkdir()  # an interrupted transfer
    config = DataConfig(name=name, image_size=64)
    assert build_source(config).info().blocked
    marker.touch()
    info = build_source(config).info()
    assert (info.download, info.blocked) == (0, "")
    assert len(build_source(config).open().train.reader) == (3 if name == "imagenet" else 20)


def test_existing_cifar_archive_is_verified_and_used(tmp_path, monkeypatch):
    images, labels = random_images(5, 30, 32), np.arange(30) % 10
    archive = tmp_path / "raw/cifar-10-python.tar.gz"
    archive.parent.mkdir()
    pack_tar(write_cifar10(tmp_path / "made", images, labels, 5), archive)
    checksum = f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    source = build_source(DataConfig(name="cifar10", path=tmp_path / "raw"))
    with pytest.raises(DiffctlError, match="is not the published file"):
        source.open()
    remote = dataclasses.replace(cifar.CIFAR10.remote, checksum=checksum)
    monkeypatch.setattr(cifar, "CIFAR10", dataclasses.replace(cifar.CIFAR10, remote=remote))
    raw = build_source(source.config).open()
    np.testing.assert_array_equal(raw.test.reader.job(0, 5)().images, images[25:])
