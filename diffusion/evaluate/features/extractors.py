"""Feature extractors by name: loaded with verified weights, called in exact float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.evaluate.evaluate_config import EvaluateConfig, Space
from diffusion.evaluate.features.extractor_weights import first_line, read_weights
from diffusion.protocol.extractors import INSTALL, ExtractorSpec, build_extractor, extractor_spec
from diffusion.system.devices import scoring_device
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.memory import keep_freed_memory


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
    """Load a registered extractor with verified weights.

    Args:
        weights: a file, for an extractor without bundled weights. None looks in torch's hub cache, then
            downloads.
        sha256: replaces the published checksum.

    Raises:
        UsageError: for an unknown name, and for a package that is not installed.
        DiffctlError: for weights that are missing, damaged, or of another network.
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


def configured_extractor(section: EvaluateConfig) -> Extractor:
    """Load the first extractor of the section `evaluate`; errors as `load_extractor`."""
    return _of_space(section.spaces[0])


def configured_extractors(section: EvaluateConfig) -> list[Extractor]:
    """Load the extractors of all feature spaces; errors as `load_extractor`."""
    return [_of_space(space) for space in section.spaces]


def _of_space(space: Space) -> Extractor:
    return load_extractor(space.extractor, space.weights, scoring_device(), space.weights_sha256)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Disable TF32 in a block or a decorated function, and restore the settings afterwards.

    Reduced precision changes scores by more than models differ.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
