"""The pickles of CIFAR, Mini-ImageNet and the downsampled ImageNet, which are read and not run."""

import pickle
import pickletools
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from diffusion.data.class_names import class_names
from diffusion.data.readers.image_batches import entry, read_batch
from diffusion.data.readers.pickles import IN_MEMORY, read_pickle
from diffusion.data.sources.mini_imagenet import read_part
from diffusion.system.errors import DiffctlError
from tests.fuzz.mutators import EXTREMES
from tests.helpers.raw_data import old_numpy_pickle, planar, python2_pickle, random_images

NAMES = (
    b"os\nsystem\n", b"builtins\neval\n", b"builtins\ngetattr\n", b"numpy\ndtype\n", b"_codecs\nencode\n",
    b"numpy.core.multiarray\n_reconstruct\n", b"numpy.core.multiarray\nscalar\n", b"builtins\nbytes\n",
    b"numpy.core.numeric\n_frombuffer\n", b"collections\nOrderedDict\n", b"numpy\nndarray\n",
)  # fmt: skip
TEXTS = (b"u1", b"O", b"<f8", b"latin1", b"u1,u1", b"(9,9)u1", b"data", b"<", b"true", b"9" * 5000)
CODES = [operation.code.encode("latin1") for operation in pickletools.opcodes]


@cache
def seeds() -> list[bytes]:
    """Batches, names of classes and a part of Mini-ImageNet, as Python 2 and 3 write them."""
    images, labels = planar(random_images(0, 3, 4)), [1, 2, 3]
    batch = {"labels": labels, "data": images, "filenames": ["a", "b", "c"], "fine_labels": labels}
    large = {"labels": labels, "data": np.zeros((3, IN_MEMORY), np.uint8)[:, :48], "x": bytes(IN_MEMORY + 1)}
    part = {"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": {"n1": [0], "n2": [1]}}
    names = {
        "label_names": ["cat", "dog"],
        b"num_vis": 3072,
        "scalar": np.int64(7),
        "last": (1.5, None, 2**70),
    }
    fortran = {"labels": labels, "data": np.asfortranarray(images)}
    made = [python2_pickle(value) for value in (batch, part, {"label_names": ["cat"]})]
    made += [old_numpy_pickle(value, protocol) for value in (batch, fortran) for protocol in (2, 3)]
    return [*made, *(pickle.dumps(value, 4) for value in (batch, names)), pickle.dumps(large, 5)]


def parse(path: Path) -> None:
    """Read it, and take it for each of the kinds; it has to be one."""
    content = read_pickle(path)
    wrong = None
    for kind in (_batch, _names, read_part):
        try:
            kind(path)
            return
        except DiffctlError as error:
            wrong = error
    assert content is None or wrong is not None
    raise wrong or DiffctlError("nothing")


def _batch(path: Path) -> None:
    images, labels = read_batch(path, "labels", first_label=1, classes=10, pixels=48)
    assert images.read(0, len(labels)).shape == (len(labels), 48)


def _names(path: Path) -> None:
    class_names(entry(read_pickle(path), "label_names", path), path)


def mutate_operations(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes | None:
    """Operations put in, left out, doubled or taken from elsewhere."""
    starts = _starts(data)
    if len(starts) < 2:
        return None
    at, again = rng.randrange(len(starts) - 1), rng.randrange(len(starts) - 1)
    one = data[starts[at] : starts[at + 1]]
    other = data[starts[again] : starts[again + 1]]
    how = rng.random()
    if how < 0.5:
        one = _operation(rng) * rng.choice((1, 1, 1, 2, 60)) + one
    elif how < 0.6:
        one = b""
    elif how < 0.7:
        one = one * rng.choice((2, 100))
    elif how < 0.85:
        one = other
    else:  # a value that holds itself, many times over
        one = one + b"q\x00" + b"h\x00h\x00\x86q\x00" * rng.choice((2, 40))
    return data[: starts[at]] + one + data[starts[at + 1] :]


def _starts(data: bytes) -> list[int]:
    """Where the operations begin, and the end."""
    starts = []
    try:
        starts.extend(place for _, _, place in pickletools.genops(data) if place is not None)
    except Exception:  # a broken input before
        starts.append(len(data))
    return [*starts, len(data)]


def _operation(rng: random.Random) -> bytes:
    text, size = rng.choice(TEXTS), rng.choice(EXTREMES)
    return rng.choice(
        (
            rng.choice(CODES),
            b"c" + rng.choice(NAMES),
            b"c" + rng.choice(NAMES) + b")R",
            b"X" + len(text).to_bytes(4, "little") + text,
            b"\x8b" + (size % 2**32).to_bytes(4, "little"),
            b"\x8e" + (size % 2**64).to_bytes(8, "little"),
            b"\x8a\x08" + (size % 2**64).to_bytes(8, "little"),
            b"q" + bytes([rng.randrange(20)]),
            b"h" + bytes([rng.randrange(20)]),
            b"\x93", b"R", b"b", b"(", b"t", b"}", b"]", b"u", b"e", b"\x85", b"\x86", b"\x87", b"N", b")",
        )
    )  # fmt: skip


MUTATORS = (mutate_operations,)
