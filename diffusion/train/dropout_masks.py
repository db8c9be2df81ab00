"""Dropout masks from (seed, step, row of the batch), independent of ranks and micro-batches.

For each layer and step one tape of random bits is drawn, longer than a row's mask. A row's mask is a window
of the tape, at an offset that is drawn for the row. So the bits of one row are independent, as in any
dropout, and so are those of two rows at each position, unless their offsets are equal. A step draws about as
many bits as two rows have, where torch's dropout draws those of all rows.
"""

import copy

import torch
from torch import Tensor, nn

from diffusion.model.blocks import Dropout
from diffusion.model.network_registry import NetworkSpec
from diffusion.process.noise import counter_generator
from diffusion.system.devices import to_device
from diffusion.train.plan import TrainPlan

MIN_OFFSETS = 2**14  # possible offsets of a row: in a batch of 128 rows two seldom coincide


class DropoutMasks:
    """The masks of a training's steps, set in the network's dropout layers before each forward pass.

    `template` has the network's layers and can be copied.
    """

    def __init__(self, network: nn.Module, plan: TrainPlan, purpose: str, template: nn.Module) -> None:
        self._layers = _layers(network)
        self._sizes = _row_sizes(template, plan.network)
        self._name, self._rows = (purpose, plan.train.seed), plan.train.batch_size
        self._starts: list[Tensor] = []

    def draw(self, step: int, device: torch.device) -> None:
        """Draw a step's tapes, on the device, and the offsets of all rows."""
        purpose, seed = self._name
        named = counter_generator(f"{purpose} tapes", seed, step).initial_seed()
        source = torch.Generator(device).manual_seed(named)
        for layer, size in zip(self._layers, self._sizes, strict=True):
            tape = torch.empty(size + max(size, MIN_OFFSETS), dtype=torch.bool, device=device)
            layer.tape = tape.bernoulli_(1 - layer.p, generator=source)
        uniforms = torch.empty(len(self._layers), self._rows, dtype=torch.float64)
        uniforms.uniform_(generator=counter_generator(f"{purpose} starts", seed, step))
        starts = uniforms * torch.tensor(self._sizes)[:, None].clamp(min=MIN_OFFSETS)
        self._starts = list(to_device(starts.long(), device))

    def select_rows(self, rows: slice) -> None:
        """Set the masks of these rows of the batch for the next forward pass."""
        for layer, starts in zip(self._layers, self._starts, strict=True):
            layer.starts = starts[rows]


def make_dropout_masks(
    network: nn.Module, plan: TrainPlan, purpose: str, template: nn.Module | None = None
) -> DropoutMasks | None:
    """Return the masks for a training with that purpose; None without dropout.

    `template` replaces a network that cannot be copied.
    """
    template = template or network
    has_dropout = any(layer.p > 0 for layer in _layers(template))
    return DropoutMasks(network, plan, purpose, template) if has_dropout else None


def _layers(network: nn.Module) -> list[Dropout]:
    return [module for module in network.modules() if isinstance(module, Dropout)]


def _row_sizes(network: nn.Module, spec: NetworkSpec) -> list[int]:
    """Return the size of a row's input to each dropout layer, from a forward pass on the meta device."""
    sizes: dict[nn.Module, int] = {}

    def record(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        sizes[layer] = arguments[0].numel()

    tensors = (*network.parameters(), *network.buffers())
    meta = {id(tensor): tensor.detach().to("meta") for tensor in tensors}
    template = copy.deepcopy(network, meta).eval()
    for layer in _layers(template):
        layer.register_forward_pre_hook(record)
    with torch.device("meta"):
        x, t = torch.empty(1, spec.in_channels, spec.image_size, spec.image_size), torch.zeros(1).long()
        template(x, t, t if spec.num_classes else None)
    return list(sizes.values())
