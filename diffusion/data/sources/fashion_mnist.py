"""Fashion-MNIST: 70,000 greyscale images of clothes, 28×28 pixels (Xiao et al. 2017, 1708.07747)."""

import gzip
import hashlib
import io
import math
import zlib
from pathlib import Path

import numpy as np

from diffusion.data.data_config import DataConfig
from diffusion.data.source import ArrayReader, DatasetInfo, RawData, Split
from diffusion.downloads.fetch import OnProgress, RemoteFile, fetch, raw_folder
from diffusion.system.errors import DiffctlError
from diffusion.system.files import read_error, read_regular
from diffusion.system.memory import format_bytes

NAME = "fashion-mnist"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
SERVERS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SHAPE = (28, 28, 1)
MAX_BYTES = 64 << 20  # of a file, unpacked; the training images take 47 MB


FILES = tuple(
    RemoteFile(name, tuple(server + name for server in SERVERS), f"md5:{md5}", size)
    for name, md5, size in (  # the authors' README has the checksums
        ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26421880),
        ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe", 29515),
        ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79", 4422102),
        ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310", 5148),
    )
)


class FashionMnist:
    """Four gzipped IDX files: in the configured path, from Debian's package, or downloaded."""

    def __init__(self, config: DataConfig) -> None:
        self.config, self.folder = config, raw_folder(NAME, config.path)
        if config.path is None and all((DEBIAN / remote.name).is_file() for remote in FILES):
            self.folder = DEBIAN

    def info(self) -> DatasetInfo:
        """Return how much is still to download."""
        missing = [remote for remote in FILES if not (self.folder / remote.name).is_file()]
        blocked = ""
        if missing and self.config.path is not None:
            blocked = f"{self.folder / missing[0].name} is missing: put it there, or leave out data.path"
        download = sum(remote.size for remote in missing)
        return DatasetInfo(70_000, SHAPE, len(CLASSES), download=download, blocked=blocked)

    def open(self, notify: OnProgress | None = None) -> RawData:
        """Open the official split: 60,000 training images, 10,000 test images."""
        if self.folder == raw_folder(NAME, None):
            for remote in FILES:
                fetch(remote, self.folder, notify)
        sources: dict[str, str] = {}
        train, test = (read_split(self.folder, prefix, sources) for prefix in ("train", "t10k"))
        return RawData(CLASSES, SHAPE, train, test, sources)


def read_split(folder: Path, prefix: str, sources: dict[str, str]) -> Split:
    """Return images and labels of the prefix train or t10k; DiffctlError unless they match.

    Checksums in `sources` are of the unpacked files, since packagers compress them again.
    """
    arrays = []
    for kind, axes in (("images-idx3", 3), ("labels-idx1", 1)):
        path = folder / f"{prefix}-{kind}-ubyte.gz"
        content = _gunzip(path)
        sources[path.stem] = hashlib.sha256(content).hexdigest()
        start = 4 + 4 * axes  # of the values, after the magic number and the shape
        shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
        # 8: unsigned bytes
        if content[:4] != bytes([0, 0, 8, axes]) or len(content) != start + math.prod(shape):
            raise DiffctlError(f"{path} is damaged or no IDX file of bytes with {axes} axes: get it again")
        arrays.append(np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape))
    images, labels = arrays
    if images.shape != (len(labels), *SHAPE[:2]) or not len(labels) or labels.max() >= len(CLASSES):
        shapes = f"images {images.shape} and labels {labels.shape}"
        raise DiffctlError(f"{folder}: the {prefix} {shapes} do not match")
    return Split(ArrayReader(images[..., None]), labels.astype(np.int64))


def _gunzip(path: Path) -> bytes:
    """Return the content; DiffctlError if it is missing, damaged, or larger than any file of the set."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(read_regular(path, MAX_BYTES))) as file:
            content = file.read(MAX_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DiffctlError(f"{path} is not a whole gzip file ({error}): get it again") from None
    except OSError as error:
        raise read_error(path, error) from None
    if len(content) > MAX_BYTES:
        raise DiffctlError(f"{path} unpacks to more than {format_bytes(MAX_BYTES)}: get it again")
    return content
