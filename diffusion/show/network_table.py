"""A network as a table: its parts in forward order, their outputs, parameters and FLOPs.

FLOPs count multiplications and additions of matrix products and convolutions, as torch's FlopCounterMode
does. DiT's paper counts a multiplication with its addition once. Element-wise operations are not counted.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion.model.layers import example_pass
from diffusion.model.network_registry import NetworkSpec, build_network
from diffusion.model.weights_header import Unfilled
from diffusion.report.figure_base import figure_style, line_colour, new_figure
from diffusion.show.figure import FigureData, columns, format_quantity


@dataclass(frozen=True)
class Part:
    """Consecutive modules with outputs of one size.

    `name` is the network's attribute, `blocks` counts modules by class, `shape` is the last output's. It is
    empty for a layer that only training uses, such as that of an augmentation.
    """

    name: str
    blocks: dict[str, int]
    shape: tuple[int, ...]
    parameters: int
    flops: int


@dataclass(frozen=True)
class Model(FigureData):
    """The parts of a network in forward order, for one image, and the sums of their amounts."""

    name: str
    parts: list[Part]
    parameters: int
    flops: int

    @figure_style()
    def draw(self) -> Figure:
        """Draw bars of parameters and FLOPs, one row per part."""
        figure = new_figure(0.5 + 0.26 * len(self.parts))
        left, right = figure.subplots(1, 2, sharey=True)
        rows = range(len(self.parts))
        named = {"parameters": left, "flops": right}
        for number, (name, axes) in enumerate(named.items()):
            amounts = [getattr(part, name) for part in self.parts]
            axes.barh(rows, amounts, color=line_colour(number), height=0.62)
            style: Any = {"textcoords": "offset points", "va": "center", "fontsize": 8}
            for row, amount in zip(rows, amounts, strict=True):
                axes.annotate(format_quantity(amount), (amount, row), (4, 0), **style)
            axes.set(xlim=(0, 1.22 * max(amounts)), xticks=[])
            axes.set_title("FLOPs an image" if name == "flops" else name, fontsize=10)
            axes.grid(visible=False)
            axes.spines["bottom"].set_visible(False)
            axes.tick_params(axis="y", length=0)
        left.set_yticks(rows, [f"{part.name}  {size_of(part.shape)}" for part in self.parts])
        left.invert_yaxis()
        return figure

    def lines(self, width: int) -> list[str]:
        """Return the table, with the sums in the last row."""
        head = ["part", "blocks", "output", "parameters", "FLOPs"]
        rows = []
        for part in self.parts:
            blocks = (f"{count} {kind}" if count > 1 else kind for kind, count in part.blocks.items())
            amounts = [f"{part.parameters:,}", format_quantity(part.flops)]
            rows.append([part.name, ", ".join(blocks), size_of(part.shape), *amounts])
        total = [self.name, "", "", f"{self.parameters:,}", format_quantity(self.flops)]
        return columns([head, *rows, total], 2)


def size_of(shape: tuple[int, ...]) -> str:
    """Format a map as channels × height × width, a vector as its length."""
    return "×".join(map(str, shape))


def model(spec: NetworkSpec) -> Model:
    """Return the table of a network, built without memory for its weights."""
    with torch.device("meta"), Unfilled():
        network = build_network(spec).eval()
        shapes, flops = _pass(network, spec)
    parts, own = [], stages(network)
    for (name, _), members in groupby(own, key=lambda item: (item[0].partition(".")[0], shapes[item[0]][1:])):
        paths, modules = zip(*members, strict=True)
        parameters = sum(parameter.numel() for module in modules for parameter in module.parameters())
        amounts = parameters, sum(flops[path] for path in paths)
        blocks = (list(module) if isinstance(module, nn.ModuleList) else [module] for module in modules)
        kinds = Counter(type(block).__name__ for inner in blocks for block in inner)
        parts.append(Part(name, dict(kinds), shapes[paths[-1]], *amounts))
    sums = sum(part.parameters for part in parts), sum(part.flops for part in parts)
    title = "{}: {} parameters, {} FLOPs an image".format(spec.name, *map(format_quantity, sums))
    return Model(title, spec.name, parts, *sums)


def stages(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the network's children by name, and the members of plain module lists."""
    for name, child in network.named_children():
        if type(child) is nn.ModuleList:
            yield from ((f"{name}.{place}", member) for place, member in child.named_children())
        else:
            yield name, child


def _pass(network: nn.Module, spec: NetworkSpec) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Run one image through the network; return the shapes and FLOPs of the stages by name."""
    shapes: dict[str, tuple[int, ...]] = {name: () for name, _ in stages(network)}

    def note(name: str, module: nn.Module, given: Any, made: Tensor) -> None:
        shapes[name] = tuple(made.shape[1:])

    for name, module in stages(network):
        module.register_forward_hook(partial(note, name))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        example_pass(network, spec)
    root = type(network).__name__
    counts = counter.get_flop_counts()
    return shapes, {name: sum(counts.get(f"{root}.{name}", {}).values()) for name, _ in stages(network)}
