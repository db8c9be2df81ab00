"""Published checkpoints of guided-diffusion and improved-diffusion, renamed, as this library's files."""

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion.model.blocks import Attention, Downsample, ResBlock, Upsample
from diffusion.model.model_file import Artefact, DataCard
from diffusion.model.presets import PRESETS, Preset
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec
from diffusion.model.weights_header import Unfilled
from diffusion.process.process_registry import ProcessConfig
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import sha256_file
from diffusion.system.section import brief, explain
from diffusion.train.train_config import TrainConfig

# Our name of a part of a block, and theirs.
PARTS: dict[type[nn.Module], dict[str, str]] = {
    ResBlock: {
        "norm_in": "in_layers.0",
        "conv_in": "in_layers.2",
        "condition.project": "emb_layers.1",
        "condition.norm": "out_layers.0",
        "conv_out": "out_layers.3",
        "skip": "skip_connection",
    },
    Attention: {"norm": "norm", "qkv": "qkv", "project": "proj_out"},
    Downsample: {"conv": "op"},
    Upsample: {"conv": "conv"},
}


def import_openai(path: Path, preset_name: str) -> tuple[dict[str, Tensor], Artefact]:
    """Return our weights by name (float32) and the metadata of a published `.pt` file of this preset.

    The channels and whether there are classes come from the file. UsageError for an unknown preset;
    DiffctlError when the file holds no plain weights, or names the first key that is missing, left over or
    of another shape.
    """
    if preset_name not in PRESETS:
        raise UsageError(f"there is no preset {preset_name!r}: give one of {', '.join(PRESETS)}")
    preset = PRESETS[preset_name]
    theirs = read_weights(path)
    artefact, spec = describe(path, preset, theirs)
    with torch.device("meta"), Unfilled():
        network = UNet(spec)
    ours = take_weights(f"{path} is no {preset_name}", network, weight_names(network), theirs)
    for name in ours:
        if preset.qkv_by_head and name.endswith(("qkv.weight", "qkv.bias")):
            attention = network.get_submodule(name.rsplit(".", 2)[0])
            assert isinstance(attention, Attention)
            ours[name] = split_qkv_by_kind(ours[name], attention.heads)
    return ours, artefact


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or `.pt` file by name, without running code; else DiffctlError."""
    if not path.is_file():
        raise UsageError(f"no file at {path}: name the published checkpoint")
    weights: Any = None
    with suppress(Exception):  # of any type, with torch's advice to developers as its text
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    is_named = isinstance(weights, dict) and all(isinstance(name, str) for name in weights)
    if not is_named or not all(map(_is_plain, weights.values())):
        raise DiffctlError(f"{path} is not a checkpoint of plain weights, or damaged: download it again")
    return dict(weights)


def take_weights(
    origin: str, network: UNet, names: Mapping[str, tuple[str, ...]], theirs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the network's weights by name (float32); several tensors for one name are concatenated.

    DiffctlError with `origin` names the first tensor that is missing, left over or of another shape.
    """
    shapes, ours = network.state_dict(), {}
    for name, named in names.items():
        if missing := [one for one in named if one not in theirs]:
            raise DiffctlError(f"{origin}: {missing[0]} is missing")
        parts, shape = [theirs.pop(one) for one in named], shapes[name].shape
        has = parts[0].shape
        whole = (len(parts) * has[0], *has[1:]) if has else ()
        fits = all(part.shape == has for part in parts) and math.prod(whole) == shape.numel()
        if not fits or whole[:2] != shape[:2]:  # an attention's convolution may have fewer dimensions
            raise DiffctlError(f"{origin}: {named[0]} has shape {tuple(has)}, not that of {tuple(shape)}")
        ours[name] = torch.cat([part.float() for part in parts]).reshape(shape)
    if theirs:
        raise DiffctlError(f"{origin}: {brief(next(iter(theirs)), str)} is left over")
    return ours


def _is_plain(value: object) -> bool:
    """Whether it is a tensor of numbers that lie in the file: a view may claim more than its storage has."""
    return (
        type(value) is Tensor
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.is_floating_point()
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )


def describe(path: Path, preset: Preset, weights: dict[str, Tensor]) -> tuple[Artefact, UNetSpec]:
    """Return the metadata and spec of the preset, with the weights' channels and classes."""
    first, last = weights.get("input_blocks.0.0.weight"), weights.get("out.2.weight")
    labels = weights.get("label_emb.weight")
    if first is None or last is None or (first.ndim, last.ndim) != (4, 4):
        raise DiffctlError(f"{path} is no U-Net of guided-diffusion or improved-diffusion")
    images = 2 if "low_res" in preset.model else 1  # x_t and an enlarged one
    in_channels, out_channels = first.shape[1] // images, last.shape[0]
    classes = 0 if labels is None else labels.shape[:1].numel()
    learned = out_channels == 2 * in_channels
    fixed = {"variance": "large", "loss": "simple"}
    variance = {"variance": "learned", "loss": "hybrid"} if learned else fixed
    try:
        network = UNetSpec(
            **{**preset.model, "class_cond": classes > 0},
            image_size=preset.image_size,
            in_channels=in_channels,
            out_channels=out_channels,
            num_classes=classes,
        )
        artefact = Artefact(
            network=network,
            process=ProcessConfig(**{**preset.process, **variance}),
            train=TrainConfig(**preset.train).model_dump(mode="json"),
            data=DataCard(
                name=preset.data,
                classes=tuple(str(label) for label in range(classes)),
                digest=f"file:{sha256_file(path)}",  # the data are not known; what was imported is
            ),
            step=preset.train["steps"],
            precision="fp32",
        )
    except ValidationError as error:
        raise DiffctlError(explain(error, f"{path} cannot be used", UNetSpec)) from None
    return artefact, network


def weight_names(network: UNet) -> dict[str, tuple[str, ...]]:
    """Return their name of every weight of the network, by our name."""
    names: dict[str, tuple[str, ...]] = {}
    prefixes = {
        "time.": "time_embed.",
        "classes.": "label_emb.",
        "stem.": "input_blocks.0.0.",
        "norm.": "out.0.",
        "head.": "out.2.",
    }
    stages = {f"encoder.{index}": f"input_blocks.{index + 1}" for index in range(len(network.encoder))}
    stages |= {f"decoder.{index}": f"output_blocks.{index}" for index in range(len(network.decoder))}
    for ours, theirs in {**stages, "middle": "middle_block"}.items():
        for index, block in enumerate(network.get_submodule(ours).children()):
            for part, their_part in PARTS[type(block)].items():
                prefixes[f"{ours}.{index}.{part}."] = f"{theirs}.{index}.{their_part}."
    for name in network.state_dict():
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        names[name] = (prefixes[prefix] + name.removeprefix(prefix),)
    return names


def split_qkv_by_kind(qkv: Tensor, heads: int) -> Tensor:
    """Reorder channels (3C, …) from q, k and v of each head in turn to all q, then all k, then all v."""
    return qkv.reshape(heads, 3, -1, *qkv.shape[1:]).transpose(0, 1).reshape(qkv.shape)
