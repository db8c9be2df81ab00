"""Dropout's masks by (seed, step, row of the batch), whoever computes the row and beside how many others.

For each layer and step one tape of random bits is drawn, longer than a row's mask, and a row's mask is the
window of it from a start that is drawn for this row. So the bits of one row are independent, as those of any
dropout, and so are those of two rows at each place, unless their starts are equal; and a step draws about as
many bits as two rows have, where torch's own dropout draws those of all rows.
"""

import copy

import torch
from torch import Tensor, nn

from diffusion.model.dropout import Dropout
from diffusion.model.model_config import NetworkSpec
from diffusion.process.noise import counter_generator
from diffusion.system.device_transfer import to_device
from diffusion.train.plan import TrainPlan

STARTS = 2**14  # that a row's window can have at least: in a batch of 128 seldom two rows have the same


class DropoutMasks:
    """The masks of a training's steps, set in the network's dropout layers before each pass."""

    def __init__(self, network: nn.Module, plan: TrainPlan, purpose: str, alike: nn.Module) -> None:
        self._layers = _layers(network)
        self._sizes = _sizes(alike, plan.network)
        self._name, self._rows = (purpose, plan.train.seed), plan.train.batch_size
        self._starts: list[Tensor] = []

    def draw(self, step: int, device: torch.device) -> None:
        """Draw a step's tapes, on the device, and the starts of all rows."""
        purpose, seed = self._name
        named = counter_generator(f"{purpose} tapes", seed, step).initial_seed()
        source = torch.Generator(device).manual_seed(named)
        for layer, size in zip(self._layers, self._sizes, strict=True):
            tape = torch.empty(size + max(size, STARTS), dtype=torch.bool, device=device)
            layer.tape = tape.bernoulli_(1 - layer.p, generator=source)
        uniforms = torch.empty(len(self._layers), self._rows, dtype=torch.float64)
        uniforms.uniform_(generator=counter_generator(f"{purpose} starts", seed, step))
        starts = uniforms * torch.tensor(self._sizes)[:, None].clamp(min=STARTS)
        self._starts = list(to_device(starts.long(), device))

    def take(self, rows: slice) -> None:
        """Let the next pass be of these rows of the whole batch."""
        for layer, starts in zip(self._layers, self._starts, strict=True):
            layer.starts = starts[rows]


def make_dropout_masks(
    network: nn.Module, plan: TrainPlan, purpose: str, alike: nn.Module | None = None
) -> DropoutMasks | None:
    """The masks of the network's dropout in a training of that purpose; None without dropout.

    `alike` is one of which a copy can be made, where that is not so of the network.
    """
    return DropoutMasks(network, plan, purpose, alike or network) if plan.network.dropout else None


def _layers(network: nn.Module) -> list[Dropout]:
    return [module for module in network.modules() if isinstance(module, Dropout)]


def _sizes(network: nn.Module, spec: NetworkSpec) -> list[int]:
    """How many numbers of a row each dropout layer sees, from a pass in which nothing is computed."""
    sizes: dict[nn.Module, int] = {}

    def look(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        sizes[layer] = arguments[0].numel()

    alike = _without_numbers(network).eval()
    for layer in _layers(alike):
        layer.register_forward_pre_hook(look)
    with torch.device("meta"):
        x, t = torch.empty(1, spec.in_channels, spec.image_size, spec.image_size), torch.zeros(1).long()
        alike(x, t, t if spec.num_classes else None)
    return list(sizes.values())


def _without_numbers(network: nn.Module) -> nn.Module:
    """A copy on the meta device, for which no memory is taken."""
    tensors = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor.detach().to("meta") for tensor in tensors})
