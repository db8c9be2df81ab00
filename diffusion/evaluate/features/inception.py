"""TensorFlow's Inception v3 of 2015-12-05, from torch-fidelity: the network of FID, KID, IS and sFID."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diffusion.evaluate.features.extractors import load_tensors
from diffusion.protocol.extractors import ExtractorSpec
from diffusion.system.errors import DiffctlWarning

FEATURES, LOGITS = "2048", "logits_unbiased"
CLASS_LAYER = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
SPATIAL_CHANNELS = 7  # 2,023 features in total, similar to FID's 2,048
SPATIAL_BLOCK, SPATIAL_BRANCH = "Mixed_6d", "Mixed_6d.branch1x1"


def build(spec: ExtractorSpec, weights: IO[bytes]) -> nn.Module:
    """Build the network: uint8 (B, 3, H, W) → features (B, 2048) and logits (B, 1008), float32.

    If the class layer of the weights is missing or non-finite, warn and omit the logits.
    """
    tensors = load_tensors(weights)
    if _has_class_layer(tensors):
        return _network(spec, [FEATURES, LOGITS], tensors)
    network = _network(spec, [FEATURES], tensors)
    message = f"the weights of {spec.name} have no class layer: the Inception score is left out"
    warnings.warn(message, DiffctlWarning, stacklevel=2)
    return network


class SpatialInception(nn.Module):
    """uint8 (B, 3, H, W) → features (B, 17·17·7), float32, positions before channels; no logits.

    A feature map instead of its mean, for sFID (Nash et al. 2021, 2103.03841). As in OpenAI's evaluator, it
    is the first 7 channels of `mixed_6/conv:0`, which torch-fidelity calls Mixed_6d.branch1x1.
    """

    def __init__(self, spec: ExtractorSpec, weights: IO[bytes]) -> None:
        super().__init__()
        whole = _network(spec, ["768"], load_tensors(weights))
        blocks = dict(whole.named_children())  # in forward order
        before = [blocks[name] for name in list(blocks)[: list(blocks).index(SPATIAL_BLOCK)]]
        self.network = nn.Sequential(*before, whole.get_submodule(SPATIAL_BRANCH))
        self.size = spec.size

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        """Return the features of a batch."""
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        resized = interpolate_bilinear_2d_like_tensorflow1x(
            images.float(), size=(self.size, self.size), align_corners=False
        )
        features = self.network((resized - 128) / 128)[:, :SPATIAL_CHANNELS]
        return features.permute(0, 2, 3, 1).flatten(1), None


def _has_class_layer(tensors: Mapping[str, Tensor]) -> bool:
    return all(name in tensors and bool(tensors[name].isfinite().all()) for name in CLASS_LAYER)


def _network(spec: ExtractorSpec, layers: Sequence[str], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build torch-fidelity's network of the verified tensors; RuntimeError for other weights.

    A class layer that is missing, NaN or infinite is zero, because torch-fidelity requires one. Batch norms
    are folded into convolutions and channels come last, which is faster on a CPU.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    if not _has_class_layer(tensors):
        tensors = {**tensors, **{name: torch.zeros(shape) for name, shape in CLASS_LAYER.items()}}
    file = io.BytesIO()
    torch.save(tensors, file)
    file.seek(0)
    network: Any = FeatureExtractorInceptionV3(spec.name, list(layers), feature_extractor_weights_path=file)
    for block in network.modules():
        if hasattr(block, "bn"):
            block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
    module: nn.Module = network.to(memory_format=torch.channels_last)
    return module
