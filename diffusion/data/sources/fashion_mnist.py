"""Fashion-MNIST: 70,000 greyscale images of clothes, 28×28 pixels (Xiao et al. 2017, 1708.07747)."""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from diffusion.config import DataConfig
from diffusion.data.source import ArrayReader, RawData, Split
from diffusion.data.store import Images
from diffusion.errors import DiffctlError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class FashionMnist:
    """Four gzipped IDX files, from Debian's package where it is installed."""

    def open(self, config: DataConfig) -> RawData:
        """The official split: 60,000 to train on, 10,000 to test."""
        sources: dict[str, str] = {}
        splits = [self._split(prefix, sources) for prefix in ("train", "t10k")]
        return RawData(classes=CLASSES, train=splits[0], test=splits[1], sources=sources)

    def _split(self, prefix: str, sources: dict[str, str]) -> Split:
        arrays = []
        for kind in ("images-idx3", "labels-idx1"):
            path = DEBIAN / f"{prefix}-{kind}-ubyte.gz"
            content = _gunzip(path)
            sources[path.stem] = hashlib.sha256(content).hexdigest()
            arrays.append(parse_idx(content, path))
        images, labels = arrays
        return Split(ArrayReader(images[..., None]), labels.astype(np.int64))


def parse_idx(content: bytes, origin: Path) -> Images:
    """The uint8 array of an IDX file's content; DiffctlError when header and length do not agree."""
    header = np.frombuffer(content[:4], dtype=np.uint8)
    if len(header) < 4 or tuple(header[:3]) != (0, 0, 8):  # two zero bytes, then 8: unsigned bytes
        raise DiffctlError(f"{origin} is not an IDX file of bytes")
    start = 4 + 4 * int(header[3])
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4"))
    if len(content) != start + int(np.prod(shape)):
        raise DiffctlError(f"{origin} is damaged: it has {len(content) - start} bytes for shape {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _gunzip(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise DiffctlError(f"{path} is missing: install the package dataset-fashion-mnist") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DiffctlError(f"{path} is not a whole gzip file ({error})") from None
