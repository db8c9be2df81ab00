"""An extractor's weights: found or downloaded, their SHA-256 checked, read without running their pickle.

A network is handed bytes that were checked: torch-fidelity's checks no hash, unpickles whatever it is given
and fails with a bare URLError offline.
"""

import hashlib
import io
import pickle
import warnings
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from diffusion.downloads.fetch import RemoteFile, Retry, fetch
from diffusion.protocol.extractors import EXTRACTORS, ExtractorSpec, Weights
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.references import load_reference

A_PROGRAM = "it is a TorchScript archive, which is a program: save its state_dict() with torch.save"


def read_weights(
    spec: ExtractorSpec, path: Path | None = None, sha256: str | None = None
) -> io.BytesIO | None:
    """The bytes of an extractor's weights, whose SHA-256 is right and which hold nothing but tensors.

    They come with its package, or are `path`, or lie in torch's hub cache ($TORCH_HOME/hub/checkpoints), or
    are downloaded into it; None where it has none. `sha256` stands in for the published one. DiffctlError
    says in one sentence what is missing or wrong, and what to do.
    """
    if path is not None and spec.weights.comes_along:
        raise UsageError(f"weights are for {_downloaded()} alone: {spec.name} brings its own")
    if path is not None and not path.is_file():
        raise UsageError(f"there is no file with weights at {path}")
    if not spec.weights.sha256:
        return None
    wanted = sha256 or spec.weights.sha256
    found = path or _locate(spec.weights, wanted)
    data = found.read_bytes()
    if (actual := hashlib.sha256(data).hexdigest()) != wanted:
        raise DiffctlError(
            f"{found} does not hold the weights of {spec.name}: its SHA-256 is {actual[:16]}…, "
            f"not {wanted[:16]}…; remove it or name another file"
        )
    try:
        load_tensors(io.BytesIO(data))
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        raise DiffctlError(f"{found} holds more or less than plain weights ({first_line(error)})") from None
    return io.BytesIO(data)


def load_tensors(weights: IO[bytes]) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, or of one that torch saved, whose pickle runs nothing.

    RuntimeError for one that holds anything else.
    """
    data = weights.read()
    weights.seek(0)
    if data[8:9] == b"{":  # a safetensors file: the length of a header in JSON, and the header
        return load_safetensors(data)
    try:
        with warnings.catch_warnings(category=UserWarning, action="ignore"):  # of what is refused below
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except RuntimeError as error:
        raise RuntimeError(A_PROGRAM) from None if "TorchScript" in str(error) else error
    if not isinstance(found, dict) or not all(isinstance(part, Tensor) for part in found.values()):
        raise RuntimeError("it is no mapping of names to tensors")
    return dict(found)


def cached_path(weights: Weights) -> Path:
    """Where a file that is downloaded lies, or will lie."""
    return Path(torch.hub.get_dir()) / "checkpoints" / weights.file


def _locate(weights: Weights, sha256: str) -> Path:
    """The file, downloaded into torch's hub cache when it is not there."""
    if weights.package:
        return Path(load_reference(weights.package)())
    remote = RemoteFile(weights.file, (weights.url,), f"sha256:{sha256}", weights.size)
    folder = cached_path(weights).parent
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return fetch(remote, folder, retry=Retry(stalls=1))  # offline is said at once
    except DiffctlError as error:
        installed = next(name for name, spec in EXTRACTORS.items() if spec.weights.comes_along)
        raise DiffctlError(
            f"{error}; or name the file in evaluate.weights (of a further space, in its entry of "
            f"evaluate.also), or take {installed}"
        ) from None


def _downloaded() -> str:
    """The extractors whose weights can be given, by name."""
    return " and ".join(name for name, spec in EXTRACTORS.items() if not spec.weights.comes_along)


def first_line(error: BaseException) -> str:
    """The beginning of what an error says."""
    return str(error).strip().split("\n")[0] or type(error).__name__
