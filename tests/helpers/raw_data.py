"""Small data sets in exactly the official formats: member names, pickle protocols, keys, dtypes."""

import csv
import gzip
import hashlib
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from diffusion.data.data_config import DataConfig
from diffusion.data.prepare import prepare
from diffusion.images.store import ImageStore, content_digest, open_store

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Python2Pickler(pickle._Pickler):
    """Writes as Python 2's cPickle did: protocol 2, every string a byte string."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)

    def _save_string(self, value: str | bytes) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        if len(content) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(content)]) + content)
        else:
            self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)
        self.memoize(value)

    dispatch[str] = _save_string
    dispatch[bytes] = _save_string


def python2_pickle(value: Any) -> bytes:
    """The value as Python 2 with the NumPy of its time pickled it."""
    file = io.BytesIO()
    Python2Pickler(file).dump(value)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")


def old_numpy_pickle(value: Any) -> bytes:
    """The value as Python 3 with NumPy 1 pickled it."""
    return pickle.dumps(value, protocol=3).replace(b"numpy._core.", b"numpy.core.")


def planar(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) as rows of flattened (C, H, W)."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))


def write_cifar10(folder: Path, images: np.ndarray, labels: np.ndarray, test: int) -> Path:
    """The unpacked folder cifar-10-batches-py; the last `test` images are the test batch."""
    parts = np.array_split(np.arange(len(images) - test), 5)
    batches = {f"data_batch_{number}": rows for number, rows in enumerate(parts, 1)}
    names = {"batches.meta": {"num_cases_per_batch": 10000, "label_names": CIFAR10_CLASSES}}
    batches["test_batch"] = np.arange(len(images) - test, len(images))
    return _write_cifar(folder / "cifar-10-batches-py", images, {"labels": labels}, batches, names)


def write_cifar100(folder: Path, images: np.ndarray, fine: np.ndarray, coarse: np.ndarray, test: int) -> Path:
    """The unpacked folder cifar-100-python."""
    labels = {"fine_labels": fine, "coarse_labels": coarse}
    train, held_out = np.split(np.arange(len(images)), [-test])
    names = {
        f"{kind}_label_names": [f"{kind} {number}" for number in range(count)]
        for kind, count in (("fine", 100), ("coarse", 20))
    }
    batches = {"train": train, "test": held_out}
    return _write_cifar(folder / "cifar-100-python", images, labels, batches, {"meta": names})


def _write_cifar(
    folder: Path,
    images: np.ndarray,
    labels: dict[str, np.ndarray],
    batches: dict[str, np.ndarray],
    meta: dict[str, dict[str, Any]],
) -> Path:
    """Pickles of batches, by name with the rows of images and labels, and of the description."""
    folder.mkdir(parents=True)
    for name, rows in batches.items():
        batch = {"batch_label": name, "filenames": [f"image_s_{row:06d}.png" for row in rows]}
        of_rows = {key: values[rows].tolist() for key, values in labels.items()}
        (folder / name).write_bytes(python2_pickle({**batch, **of_rows, "data": planar(images[rows])}))
    for name, values in meta.items():
        (folder / name).write_bytes(python2_pickle(values))
    return folder


def idx_file(values: np.ndarray) -> bytes:
    """Return a gzipped IDX file of bytes."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes(), 1, mtime=0)


def write_fashion(folder: Path, images: np.ndarray, labels: np.ndarray, test: int) -> Path:
    """The four files of Fashion-MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    cut = len(images) - test
    for prefix, rows in {"train": slice(0, cut), "t10k": slice(cut, None)}.items():
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx_file(images[rows, :, :, 0]))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx_file(labels[rows]))
    return folder


def write_mini_imagenet(folder: Path, images: np.ndarray, names: list[str], form: str = "python 3") -> Path:
    """The three cache pickles: image i has class names[i]; whole classes go to one of the files.

    `form`: as Python 3 writes them, as Python 2 did, or with bytes for keys, as old loaders expect.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classes = sorted(set(names))
    parts = {"train": classes[:-2], "val": classes[-2:-1], "test": classes[-1:]}
    for part, mine in parts.items():
        rows = [row for row, name in enumerate(names) if name in mine]
        of_class = {name: [at for at, row in enumerate(rows) if names[row] == name] for name in mine}
        content: dict[Any, Any] = {"image_data": images[rows], "class_dict": of_class}
        if form == "bytes":
            of_class = {name.encode(): rows for name, rows in of_class.items()}
            content = {b"image_data": images[rows], b"class_dict": of_class}
        pickled = python2_pickle(content) if form == "python 2" else old_numpy_pickle(content)
        (folder / f"mini-imagenet-cache-{part}.pkl").write_bytes(pickled)
    return folder


def write_small_imagenet(
    folder: Path, images: np.ndarray, labels: np.ndarray, test: int, form: str = "npz"
) -> Path:
    """Ten training batches and the validation batch, labels from 1; `form`: npz, compressed or pickle."""
    folder.mkdir(parents=True, exist_ok=True)
    cut = len(images) - test
    parts = np.array_split(np.arange(cut), 10)
    batches = {f"train_data_batch_{number}": rows for number, rows in enumerate(parts, 1)}
    for name, rows in {**batches, "val_data": np.arange(cut, len(images))}.items():
        batch: dict[str, Any] = {"data": planar(images[rows]), "labels": (labels[rows] + 1).tolist()}
        if name != "val_data":
            batch["mean"] = planar(images[rows]).mean(axis=0)
        if form == "pickle":
            (folder / name).write_bytes(old_numpy_pickle(batch))
        else:
            save = np.savez_compressed if form == "compressed" else np.savez
            save(folder / f"{name}.npz", **batch)
    return folder


def write_imagenet(
    folder: Path, train: dict[str, list[np.ndarray]], val: list[tuple[str, np.ndarray]]
) -> Path:
    """Kaggle's layout: `train` images by synset, `val` as (synset, image); lossless files named .JPEG."""
    root = folder / "ILSVRC/Data/CLS-LOC"
    for synset, images in train.items():
        (root / "train" / synset).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(root / "train" / synset / f"{synset}_{number}.JPEG", format="PNG")
    (root / "val").mkdir(parents=True)
    with open(folder / "LOC_val_solution.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("ImageId", "PredictionString"))
        for number, (synset, image) in reversed(list(enumerate(val, 1))):
            name = f"ILSVRC2012_val_{number:08d}"
            Image.fromarray(image).save(root / "val" / f"{name}.JPEG", format="PNG")
            writer.writerow((name, f"{synset} 12 34 56 78 {synset} 1 2 3 4 "))
    lines = [f"{synset} name of {synset}, second name" for synset in sorted(train)]
    (folder / "LOC_synset_mapping.txt").write_text("\n".join(lines) + "\n")
    return folder


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """Return the content of an image file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write_folder(root: Path, images: dict[str, np.ndarray], suffix: str = "png") -> Path:
    """Image files by relative name without suffix."""
    for name, image in images.items():
        path = root / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(path, lossless=True)
    return root


def write_numbered(root: Path, images: np.ndarray, classes: str = "") -> Path:
    """PNG files 0, 1, … in folders named by the letters of `classes` in turn; by default in the root."""
    folders = [f"{name}/" for name in classes] or [""]
    return write_folder(root, {f"{folders[at % len(folders)]}{at}": one for at, one in enumerate(images)})


def zip_bytes(members: Mapping[str, str | bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip with these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return file.getvalue()


def random_images(seed: int, count: int, size: int, channels: int = 3) -> np.ndarray:
    """Noise (count, size, size, channels): any mistake in order or layout shows."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def prepared(tmp_path: Path, **config: Any) -> tuple[ImageStore, ImageStore]:
    """Both stores of a configuration, each checked against its own digest."""
    out = tmp_path / "prepared"
    prepare(DataConfig(**config), out, work=tmp_path / "work")
    stores = open_store(out / "train"), open_store(out / "test")
    for store in stores:
        assert content_digest(store.images, store.labels) == store.digest
        assert store.meta["count"] == len(store)
        if store.labels is not None:
            assert (
                store.meta["counts"]
                == np.bincount(store.labels, minlength=len(store.meta["classes"])).tolist()
            )
    return stores


def by_image(store: ImageStore) -> dict[bytes, str]:
    """The class name of every image by its bytes."""
    names = store.meta["classes"]
    return {image.tobytes(): names[label] for image, label in zip(store.images, store.labels, strict=True)}


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
