"""Weights of extractors: found or downloaded, verified by SHA-256, read without running pickled code.

torch-fidelity verifies no checksum, unpickles any file, and fails offline with a bare URLError.
"""

import hashlib
import io
import pickle
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from diffusion.downloads.fetch import RemoteFile, RetryPolicy, fetch
from diffusion.protocol.extractors import EXTRACTORS, ExtractorSpec, Weights
from diffusion.system.errors import DiffctlError, UsageError, first_line
from diffusion.system.references import load_reference

CHANGES_RESULTS = False  # diffusion/code_digest.py


def read_weights(
    spec: ExtractorSpec, path: Path | None = None, sha256: str | None = None
) -> io.BytesIO | None:
    """Return the bytes of an extractor's weights, with verified SHA-256 and only tensors inside.

    They are bundled with a package, or in the file `path`, or in torch's hub cache
    ($TORCH_HOME/hub/checkpoints), or downloaded into it. None if the extractor has no weights. `sha256`
    replaces the published checksum. A DiffctlError states what is missing or wrong.
    """
    if path is not None and spec.weights.comes_along:
        raise UsageError(f"{spec.name} has bundled weights: leave `weights` out")
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
    remote = RemoteFile(weights.file, (weights.url,), f"sha256:{sha256}", weights.size)
    folder = cached_path(weights).parent
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return fetch(remote, folder, policy=RetryPolicy(attempts=1))  # fails at once if offline
    except DiffctlError as error:
        installed = next(name for name, spec in EXTRACTORS.items() if spec.weights.comes_along)
        raise DiffctlError(
            f"{error}; or name the file in evaluate.weights (of a further space, in its entry of "
            f"evaluate.extra_extractors), or take {installed}"
        ) from None
