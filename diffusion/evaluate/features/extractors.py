"""Feature extractors by name: found, their weights checked, and asked in exact float32."""

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
from diffusion.system.malloc import keep_freed_memory


@dataclass(frozen=True)
class Extractor:
    """A loaded extractor with checked weights, on its device; `module` as its call, but on the device."""

    spec: ExtractorSpec
    weights_sha256: str
    module: nn.Module
    device: torch.device

    @property
    def batch_size(self) -> int:
        """Images at a time that suit the device: few stay in a CPU's caches, many fill a GPU."""
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
    """Load a registered extractor with checked weights.

    `weights` is a file with the weights of one that does not bring its own (None: torch's hub cache, else a
    download); `sha256` stands in for the published one. UsageError for an unknown name and for a package that
    is not installed, DiffctlError for weights that are missing, damaged, not what they should be, or of
    another shape.
    """
    spec = extractor_spec(name)
    if spec.needs and find_spec(spec.needs) is None:
        raise UsageError(f"{name} needs {spec.needs}, which is not installed: {INSTALL}")
    data = read_weights(spec, weights, sha256)
    try:
        module = build_extractor(spec, data)
    except (RuntimeError, LookupError, ValueError, TypeError, ArithmeticError) as error:
        # a tensor that is missing, or of another shape, fails wherever the builder first needs it
        raise DiffctlError(f"the weights do not fit {name}: {first_line(error)}") from None
    device = torch.device(device)
    keep_freed_memory(device.type)
    return Extractor(spec, sha256 or spec.weights.sha256, module.eval().to(device), device)


def configured_extractor(section: EvaluateConfig) -> Extractor:
    """The extractor of the section `evaluate`, on the device that there is; as `load_extractor`."""
    return _of_space(section.spaces[0])


def configured_extractors(section: EvaluateConfig) -> list[Extractor]:
    """That one and those of its further feature spaces; what any of them lacks is said before others work."""
    return [_of_space(space) for space in section.spaces]


def _of_space(space: Space) -> Extractor:
    return load_extractor(space.extractor, space.weights, scoring_device(), space.weights_sha256)


@contextmanager
def exact_float32() -> Iterator[None]:
    """float32 without TF32 inside the block, or the call that it decorates; what held before holds after it.

    Reduced precision moves scores by more than models differ.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
