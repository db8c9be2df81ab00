"""Feature extractors by name: loaded with verified weights, called in exact float32."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusion.evaluate.evaluate_config import Space
from diffusion.evaluate.features.extractor_weights import read_weights
from diffusion.images.pixels import to_nchw
from diffusion.images.store import Images
from diffusion.protocol.extractors import INSTALL, ExtractorSpec, build_extractor, extractor_spec
from diffusion.system.devices import scoring_device
from diffusion.system.errors import DiffctlError, UsageError, first_line
from diffusion.system.memory import keep_freed_memory

FeatureArray = NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """Features of N images, float32: `features` (N, D), and `logits` (N, K) if the extractor has any."""

    features: FeatureArray
    logits: FeatureArray | None = None

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class Extractor:
    """A loaded extractor with verified weights, on its device."""

    spec: ExtractorSpec
    weights_sha256: str
    module: nn.Module
    device: torch.device

    @property
    def batch_size(self) -> int:
        """A batch size that suits the device: small for a CPU's caches, large for a GPU."""
        return 32 if self.device.type == "cpu" else 256

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 (B, 3, H, W) → features (B, D) and logits (B, K) or None, float32 on the CPU."""
        with torch.inference_mode(), exact_float32():
            features, logits = self.module(images.to(self.device))
        return features.cpu(), None if logits is None else logits.cpu()


def load_extractor(
    name: str,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    sha256: str | None = None,
) -> Extractor:
    """Load a registered extractor with verified weights, of a file or as `read_weights` finds them.

    `sha256` replaces the published checksum. UsageError for an unknown name or a missing package,
    DiffctlError for weights that are missing, damaged, or of another network.
    """
    spec = extractor_spec(name)
    if spec.needs and find_spec(spec.needs) is None:
        raise UsageError(f"{name} needs {spec.needs}, which is not installed: {INSTALL}")
    data = read_weights(spec, weights, sha256)
    try:
        module = build_extractor(spec, data)
    except (RuntimeError, LookupError, ValueError, TypeError, ArithmeticError) as error:
        # a missing or misshapen tensor fails wherever the builder first uses it
        raise DiffctlError(f"the weights do not fit {name}: {first_line(error)}") from None
    device = torch.device(device)
    keep_freed_memory(device.type)
    return Extractor(spec, sha256 or spec.weights.sha256, module.eval().to(device), device)


def space_extractor(space: Space) -> Extractor:
    """Load the extractor of a feature space; errors as `load_extractor`."""
    return load_extractor(space.extractor, space.weights, scoring_device(), space.weights_sha256)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Disable TF32, which changes scores by more than models differ, in a block or decorated function."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def extract(
    extractor: Extractor,
    images: Images,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
    first: int = 0,
) -> Features:
    """Return the features of uint8 (N, H, W, C) images, in order. Greyscale is repeated to three channels.

    The batch size, None for one that suits the device, changes rounding only. `progress` receives the number
    of images done. DiffctlError for other channels than 1 or 3, fewer than two images, and NaN or infinite
    features, with the index of the image; `first` is that of the first one.
    """
    if images.shape[3] not in (1, 3):
        raise DiffctlError(f"scores are for images with 1 or 3 channels, and these have {images.shape[3]}")
    if len(images) < 2:
        raise DiffctlError(f"scores need at least 2 images, and there are {len(images)}")
    batch_size = batch_size or extractor.batch_size
    filled: tuple[FeatureArray, ...] = ()
    for start in range(0, len(images), batch_size):
        if progress:
            progress(start)
        batch = to_nchw(images[start : start + batch_size]).expand(-1, 3, -1, -1)
        outputs = [part for part in extractor(batch) if part is not None]
        filled = filled or tuple(np.empty((len(images), *part.shape[1:]), np.float32) for part in outputs)
        for whole, part in zip(filled, outputs, strict=True):
            whole[start : start + len(batch)] = part.numpy()
    if progress:
        progress(len(images))
    for whole in filled:
        if len(wrong := np.flatnonzero(~np.isfinite(whole).all(axis=1))):
            name = extractor.spec.name
            raise DiffctlError(
                f"the features of {name} of image {first + wrong[0]} are NaN or infinite, as are "
                f"those of {len(wrong)} of {len(whole)} images: the extractor's weights or code are damaged"
            )
    return Features(*filled)


def offset_progress(
    progress: Callable[[int, int], None] | None, before: int, total: int
) -> Callable[..., None] | None:
    """Return the progress callback of a part after `before` images of `total`; its own total is ignored."""
    return None if progress is None else lambda done, *_: progress(before + done, total)
