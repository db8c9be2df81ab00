"""Published checkpoints of guided-diffusion and improved-diffusion, renamed, as this library's files."""

from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import ValidationError
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
    """Our weights by name, float32, and the description of a published `.pt` file of this preset's shape.

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
    ours = {}
    for name, their_name, shape in weight_names(network):
        if their_name not in theirs:
            raise DiffctlError(f"{path} is no {preset_name}: {their_name} is missing")
        tensor = theirs.pop(their_name)
        if tensor.numel() != shape.numel() or tensor.shape[:2] != shape[:2]:
            raise DiffctlError(
                f"{path} is no {preset_name}: {their_name} has shape {tuple(tensor.shape)}, "
                f"not {tuple(shape)}"
            )
        tensor = tensor.float()  # only now: a view may claim any size
        if preset.qkv_by_head and name.endswith(("qkv.weight", "qkv.bias")):
            tensor = split_qkv_by_kind(tensor, attention_heads(network, name))
        ours[name] = tensor.reshape(shape)
    if theirs:
        raise DiffctlError(f"{path} is no {preset_name}: {next(iter(theirs))} is left over")
    return ours, artefact


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors by name of a `.pt` file, read without running any code in it; DiffctlError otherwise."""
    if not path.exists():
        raise UsageError(f"no file at {path}")
    if not path.is_file():
        raise UsageError(f"{path} is no regular file: name the published checkpoint")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of any type, with torch's advice to developers as its text
        raise DiffctlError(
            f"{path} is not a checkpoint of plain weights, or it is damaged: name the published .pt file, or "
            "download it again"
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise DiffctlError(f"{path} is not a file of plain weights: it is no dictionary of tensors")
    if odd := [name for name, value in weights.items() if not _is_plain(value)]:
        raise DiffctlError(f"{path} is not a file of plain weights: {brief(odd[0])} is no plain tensor")
    return dict(weights)


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
    if first is None or last is None:
        missing = "input_blocks.0.0.weight" if first is None else "out.2.weight"
        raise DiffctlError(
            f"{path} is no U-Net of guided-diffusion or improved-diffusion: {missing} is missing"
        )
    labels = weights.get("label_emb.weight")
    if first.ndim != 4 or last.ndim != 4 or (labels is not None and labels.ndim != 2):
        raise DiffctlError(f"{path} is no U-Net of guided-diffusion or improved-diffusion: its shapes differ")
    in_channels, out_channels = first.shape[1], last.shape[0]
    classes = 0 if labels is None else len(labels)
    learned = out_channels == 2 * in_channels
    variance = (
        {"variance": "learned", "loss": "hybrid"} if learned else {"variance": "large", "loss": "simple"}
    )
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


def weight_names(network: UNet) -> Iterator[tuple[str, str, torch.Size]]:
    """(our name, their name, our shape) of every weight of the network."""
    prefixes = {
        "time.": "time_embed.",
        "classes.": "label_emb.",
        "stem.": "input_blocks.0.0.",
        "norm.": "out.0.",
        "head.": "out.2.",
    }
    for index, stage in enumerate(network.encoder, start=1):
        prefixes |= _stage_prefixes(stage, f"encoder.{index - 1}.", f"input_blocks.{index}.")
    prefixes |= _stage_prefixes(network.middle, "middle.", "middle_block.")
    for index, stage in enumerate(network.decoder):
        prefixes |= _stage_prefixes(stage, f"decoder.{index}.", f"output_blocks.{index}.")
    for name, tensor in network.state_dict().items():
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        yield name, prefixes[prefix] + name.removeprefix(prefix), tensor.shape


def _stage_prefixes(stage: nn.Module, ours: str, theirs: str) -> dict[str, str]:
    return {
        f"{ours}{index}.{part}.": f"{theirs}{index}.{their_part}."
        for index, block in enumerate(stage.children())
        for part, their_part in PARTS[type(block)].items()
    }


def attention_heads(network: UNet, name: str) -> int:
    """The number of heads of the attention that the weight `name` belongs to."""
    attention = network.get_submodule(name.rsplit(".", 2)[0])
    assert isinstance(attention, Attention)
    return attention.heads


def split_qkv_by_kind(qkv: Tensor, heads: int) -> Tensor:
    """(3C, …) channels ordered head by head (q, k, v of each) → all q first, then all k, then all v."""
    return qkv.reshape(heads, 3, -1, *qkv.shape[1:]).transpose(0, 1).reshape(qkv.shape)
