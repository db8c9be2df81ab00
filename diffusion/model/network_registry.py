"""The networks by name: `model.name` in params.yaml and in model files. It loads no torch.

A further one is a module with a builder, NetworkSpec → nn.Module, and an entry here. The module takes x
(B, C, H, W) in about [−1, 1], times (B,), whole or real, and labels (B,) exactly when it is conditional, and
gives (B, C, H, W), or 2C with iDDPM's v where the spec's variance is learned. With `augmented` a network
takes `augmentation` (B, 9) too: how images were transformed; without it they were not.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusion.system.references import load_reference, reference_module

if TYPE_CHECKING:
    from torch import nn

    from diffusion.model.model_config import NetworkSpec

CHANGES_RESULTS = False  # diffusion/code_digest.py


@dataclass(frozen=True)
class ModelEntry:
    """`builder` makes the network of a spec; `config` is the section's class, a subclass of ModelConfig.

    `spec` adds what the data decides; its class derives from both and from NetworkSpec. `transfer` is the
    rule for pretrained weights (diffusion/model/weight_transfer.py). Each is a "module:name".
    """

    builder: str
    config: str
    spec: str
    transfer: str = "diffusion.model.weight_transfer:transfer_unchanged"

    @property
    def module(self) -> str:
        """The module that computes this network."""
        return reference_module(self.builder)


MODELS = {
    "unet": ModelEntry(
        "diffusion.model.unet:UNet",
        "diffusion.model.unet_config:UNetConfig",
        "diffusion.model.unet_config:UNetSpec",
        transfer="diffusion.model.unet_transfer:transfer",
    ),
}


def build_network(spec: "NetworkSpec") -> "nn.Module":
    """The network of the spec, its weights drawn from torch's global generator."""
    network: nn.Module = load_reference(MODELS[spec.name].builder)(spec)
    return network
