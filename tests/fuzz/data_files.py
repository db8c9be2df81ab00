"""Files of data sets: zips, npz and IDX files, images, lists of labels, published statistics."""

import gzip
import io
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from diffusion.data.data_config import DataConfig, build_source
from diffusion.data.readers.archives import unpack_zip, zip_names
from diffusion.data.readers.image_files import read_images
from diffusion.data.sources.cifar import read_batches
from diffusion.data.sources.fashion_mnist import read_split
from diffusion.evaluate.adhoc import IMAGES, open_images, open_npz_images
from diffusion.evaluate.statistics_file import has_array, is_statistics, open_statistics
from diffusion.images.pictures import read_picture
from diffusion.protocol.extractors import EXTRACTORS, INCEPTION_SPATIAL
from diffusion.system.errors import DiffctlError
from tests.fuzz.mutators import EXTREMES, MAX_BYTES, Parser, mutate_bytes, saved
from tests.helpers.raw_data import encoded, idx_file, planar, random_images, zip_bytes

# Zips of the downsampled ImageNet
WANTED = ("one", "two")


def archive_seeds() -> list[bytes]:
    """Return a stored and a compressed zip."""
    members = dict.fromkeys(("folder/one", "two", "../other"), bytes(300))
    return [zip_bytes(members, method) for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]


def unpack(path: Path) -> None:
    """Unpack a zip; only the wanted files may appear next to it."""
    out, refused = path.parent / "out", None
    try:
        zip_names(path)
        unpack_zip(path, WANTED, out)
    except DiffctlError as error:
        refused = error
    assert {entry.name for entry in path.parent.iterdir()} <= {path.name, "out"}
    made = list(out.iterdir()) if out.exists() else []
    assert all(one.name in WANTED and one.is_file() and not one.is_symlink() for one in made)
    if refused is not None:
        raise refused


def mutate_entry(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes | None:
    """Mutate a member's entry in the zip directory: flag, method, checksum, size, length or offset."""
    at = data.find(b"PK\x01\x02", rng.randrange(len(data) + 1))
    if at < 0:
        return None
    place, size = rng.choice(((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)))
    value = rng.choice((*EXTREMES, 8, 12, 14, 93, 99)) % 2 ** (8 * size)
    return data[: at + place] + value.to_bytes(size, "little") + data[at + place + size :]


# npz files: sets to score, batches of the downsampled ImageNet, statistics
KINDS = ("|u1", "<i8", ">i8", ">u2", "<f4", "|O", "|V8", "|S3", "<U2", "<M8[s]", "|b1", "<c8", "u1,u1", "'")
SHAPES = ("()", "(4,)", "(4, 4, 4, 3)", "(10**15,)", "(-1,)", "(0, 4, 4, 3)", "(4, 4.0)", "[4]", "4")


@cache
def npz_seeds() -> list[bytes]:
    """Return compressed and uncompressed files, with and without labels."""
    images, labels = random_images(0, 4, 4), np.array([1, 2, 3, 1])
    arrays = [
        {"arr_0": images, "arr_1": labels},
        {"arr_0": images, "arr_1": labels.astype(">i4")},
        {"data": planar(images), "labels": labels, "mean": np.zeros(3)},
    ]
    return [saved(save, **one) for one in arrays for save in (np.savez, np.savez_compressed)]


def read_npz(path: Path) -> None:
    """Open it as a set to score, else read all rows as a batch."""
    try:
        store = open_images(path)
    except DiffctlError:
        split = read_batches([path], "labels", first_label=1, classes=10, shape=(4, 4, 3))
        count = len(split.labels)
        assert split.reader.job(0, count)().images.shape == (count, 4, 4, 3)
        return
    assert store.images.ndim == 4
    assert store.labels is None or len(store.labels) == len(store)


def mutate_header(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes | None:
    """Mutate an array's header: version, dtype, order, shape or syntax, with right zip checksums."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # a broken input before
        return None
    if not members:
        return None
    name = rng.choice(list(members))
    content = members[name].partition(b"\n")[2]
    members[name] = _header(rng) + content[: rng.choice((None, 0, -1))]
    return zip_bytes(members, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def _header(rng: random.Random) -> bytes:
    kind, order = repr(rng.choice(KINDS)), rng.choice(("False", "True", "0", "None"))
    kind = rng.choice((kind, f"[('a', {kind})]", f"({kind}, (3,))"))
    shape = rng.choice((*SHAPES, repr((rng.choice(EXTREMES), rng.choice(EXTREMES)))))
    junk = rng.choice(("(", "[", "-", "{'a':", "'''", "__import__('os').system('true')#", "9")) * 2000
    whole = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}}}"
    written = rng.choice((whole, whole, whole, junk, "")).encode() + b"\n"
    version = rng.choice((b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    form = "<H" if version == b"\x01\x00" else "<I"
    return b"\x93NUMPY" + version + struct.pack(form, min(len(written), 65535)) + written


EXTRACTOR, FEATURES = "effnet-lite0-64", 3  # so few features that a seed is small


@cache
def statistics_seeds() -> list[bytes]:
    """Return the formats of OpenAI, EDM and EDM2."""
    arrays = {"mu": np.arange(FEATURES, dtype=np.float64), "sigma": np.eye(FEATURES)}
    spatial = {"mu_s": np.zeros(FEATURES), "sigma_s": np.eye(FEATURES)}
    images = {"arr_0": np.zeros((1, 2, 2, 3), np.uint8)}
    held = {"num_images": 5, EXTRACTORS[EXTRACTOR].distance: arrays}
    packed = [saved(np.savez, **arrays, **spatial, **images), saved(np.savez, **arrays)]
    return [*packed, *(pickle.dumps(held, protocol) for protocol in (2, 4, 5))]


def read_statistics(path: Path) -> None:
    """Read the statistics of both extractors, and the images if there are any."""
    is_statistics(path)
    names = (EXTRACTOR, INCEPTION_SPATIAL.name)
    few = {name: replace(EXTRACTORS[name], features=FEATURES) for name in names}
    with patch.dict(EXTRACTORS.data, few):
        for name in names if has_array(path, "mu_s") else names[:1]:
            found = open_statistics(path, name)
            assert np.isfinite(found.root).all()
            assert found.root.shape == found.gaussian.sigma.shape == (FEATURES, FEATURES)
    if has_array(path, IMAGES):
        images = open_npz_images(path, labelled=False).images
        assert images[0 : len(images)].shape == images.shape


# IDX files of Fashion-MNIST
IDX = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")


@cache
def idx_seeds() -> list[bytes]:
    """Return two images and their labels."""
    return [idx_file(random_images(0, 2, 28, 1)[..., 0]), idx_file(np.array([3, 9]))]


def read_idx(path: Path) -> None:
    """Read a split with the input as its images, else as its labels."""
    for at in (0, 1):
        contents = [*idx_seeds()]
        contents[at] = path.read_bytes()
        folder = path.parent / str(at)
        folder.mkdir()
        for name, content in zip(IDX, contents, strict=True):
            (folder / name).write_bytes(content)
        try:
            split = read_split(folder, "train", {})
        except DiffctlError:
            if at:
                raise
        else:
            assert len(split.reader) == len(split.labels) > 0
            assert split.reader.job(0, 1)().images.shape == (1, 28, 28, 1)
            return


def mutate_gzip(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes | None:
    """Mutate the content of a gzip file and compress it again."""
    try:
        content = zlib.decompressobj(31).decompress(data, MAX_BYTES)
    except zlib.error:
        return None
    return gzip.compress(mutate_bytes(rng, content, [content]), 1, mtime=0)


# Image files
SIDE = 12
PNG = b"\x89PNG\r\n\x1a\n"


@cache
def image_seeds() -> list[bytes]:
    """Return all formats and modes: palette, 16 bits, transparent, CMYK, progressive, rotated, animated."""
    noise = Image.fromarray(random_images(0, 1, SIDE)[0])
    frames = [Image.fromarray(image) for image in random_images(1, 2, SIDE)]
    levels = Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 400)
    exif = Image.Exif()
    exif[0x0112] = 6
    animated: dict[str, Any] = {"save_all": True, "append_images": frames}
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *[(noise.convert(mode), "PNG", {}) for mode in ("RGB", "L", "P", "1", "LA", "RGBA")],
        (levels, "PNG", {}),
        (noise, "PNG", {"exif": exif}),
        (noise.convert("P"), "PNG", {"transparency": 1}),
        (noise.convert("CMYK"), "JPEG", {}),
        (noise, "JPEG", {"progressive": True, "exif": exif}),
        (noise, "WEBP", {"lossless": True, "exif": exif}),
        (noise.convert("RGBA"), "WEBP", animated),
        (noise, "GIF", animated),
        (noise.convert("P"), "GIF", {"transparency": 1}),
    ]
    return [encoded(image, form, **options) for image, form, options in kinds]


def read_image(path: Path) -> None:
    """Read it as a row of a split, as a picture for a model, and its folder as images to score."""
    for channels in (1, 3):
        rows = read_images(path.parent, [path.name.encode()], (SIDE, SIDE), channels)
        assert rows.images.shape == (1, SIDE, SIDE, channels)
        assert not rows.bad or not rows.images.any()
    for channels in (1, 2, 3, 4):
        with suppress(DiffctlError):
            assert read_picture(path, (SIDE, SIDE), channels).shape == (SIDE, SIDE, channels)
    open_images(path.parent)
    assert not rows.bad


def correct_png(data: bytes) -> bytes:
    """Correct the checksums of a PNG's chunks."""
    if not data.startswith(PNG):
        return data
    made, at = bytearray(PNG), len(PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        content = data[at + 4 : at + 8 + length]
        made += data[at : at + 4] + content + struct.pack(">I", zlib.crc32(content))
        at += 12 + length
    return bytes(made + data[at:])


LABEL_LISTS = [
    b"file,label\n0.png,cat\na/2.jpg,dog\n",
    b"\xef\xbb\xbfFile,Class,split\r\n0.png,1,train\r\na/2.jpg,10,test\r\n",
    b'note,path,label\n"a ""b""\n",./0.png,"x, y"\nz,a\\2.jpg,\xc3\xa9\n',
]


def read_label_list(path: Path) -> None:
    """Open a folder of two files with this list of classes."""
    (path.parent / "a").mkdir()
    for name in ("0.png", "a/2.jpg"):
        (path.parent / name).touch()
    config = DataConfig(name="image-folder", path=path.parent, image_size=8, labels=path.name)
    classes = build_source(config).open().classes
    assert classes
    assert all(name.isprintable() for name in classes)


PARSERS = {
    "archives": Parser(archive_seeds, unpack, mutators=[mutate_entry]),
    "npz": Parser(npz_seeds, read_npz, "input.npz", [mutate_header, mutate_entry]),
    "statistics": Parser(statistics_seeds, read_statistics, mutators=[mutate_header, mutate_entry]),
    "idx": Parser(idx_seeds, read_idx, mutators=[mutate_gzip]),
    "images": Parser(image_seeds, read_image, "input.png", repair=correct_png),
    "label_csv": Parser(lambda: LABEL_LISTS, read_label_list, "labels.csv"),
}
