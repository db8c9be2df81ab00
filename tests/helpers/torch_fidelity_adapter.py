"""This library's extractors under torch-fidelity's interface, to compare with its own computation."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from diffusion.evaluate.features.extractors import load_extractor
from diffusion.system.files import sha256_file


class Registered(FeatureExtractorBase):  # type: ignore[misc]  # torch-fidelity has no types
    """An extractor by its name here; its outputs in the order of `features_list`."""

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)
        self.network = load_extractor(name).module
        self.requires_grad_(False)
        self.eval()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            outputs = dict(zip(("features", "logits"), self.network(images), strict=True))
        return tuple(outputs[name] for name in self.features_list)


def register(name: str) -> str:
    """Make one of our extractors known to torch-fidelity under its name, which is returned."""
    if name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(name, Registered)
    return name


def write_random_inception(path: Path) -> str:
    """Write random Inception weights, as torch saves them; return the file's SHA-256."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> None:
            return None

    torch.manual_seed(0)
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    module = Unloaded("inception", ["2048"], feature_extractor_weights_path=empty)
    state = module.state_dict()
    for name, part in state.items():  # a trained batch norm does not have mean 0 and variance 1
        if name.endswith("running_var"):
            part.uniform_(0.1, 0.2)
        elif name.endswith(("running_mean", "bn.bias")):
            part.uniform_(-0.1, 0.1)
    torch.save(state, path)
    return sha256_file(path)
