"""Import of a pipeline folder of Hugging Face's diffusers, with a UNet2DModel and a scheduler of betas.

Only the two configurations and the weights are read, and no code of the pipeline runs. Weights have the names
of the export. A configuration that the U-Net here cannot express is refused with its key.
"""

import re
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from diffusion.images.image_size import ImageSize, height_and_width
from diffusion.interop.from_openai import read_weights, take_weights
from diffusion.interop.to_diffusers import PREDICTION_TYPES, diffusers_names, norm_groups
from diffusion.model.model_file import Artefact, DataCard
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec
from diffusion.model.weights_header import Unfilled
from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import DiscreteConfig, ProcessConfig
from diffusion.system.checksums import JsonObject, read_json
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import sha256_file
from diffusion.system.limits import MAX_STEPS
from diffusion.system.section import Kind, brief, explain

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
CLASS_NAMES = "class_names.json"  # of our export
MAX_CONFIG_BYTES = 2**20  # bytes; ours have some kilobytes, most of them betas
SCHEDULES = ("linear", "cosine")  # that are made of betas
SAME_BETAS = 1e-5  # relative: they are kept as float32 or as text

# Blocks by how they halve or double, at levels with attention and without.
Plain = Literal["DownBlock2D", "UpBlock2D"]
BigGAN = Literal["ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"]
Attending = Literal["AttnDownBlock2D", "AttnUpBlock2D"]
Block = Plain | BigGAN | Attending
PLAIN, BIGGAN, ATTENTION = (set(get_args(kind)) for kind in (Plain, BigGAN, Attending))
# The names that attention's weights had before 2023, and have now.
RENAMED_WEIGHTS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_NAME = re.compile(rf"(attentions\.\d+)\.({'|'.join(RENAMED_WEIGHTS)})\.")

Resampling = Literal["conv", "resnet"]
Count = Annotated[int, Field(ge=1, le=2**20)]


class UNetFile(BaseModel):
    """UNet2DModel's config.json: its arguments and their defaults. A value that is not listed is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sample_size: ImageSize
    in_channels: Count = 3
    out_channels: Count = 3
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: Count | None = None
    freq_shift: Literal[0, 1] = 0
    flip_sin_to_cos: bool = True
    down_block_types: Annotated[list[Block], Field(min_length=1, max_length=8)]
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: Annotated[list[Block], Field(min_length=1, max_length=8)]
    block_out_channels: Annotated[list[Count], Field(min_length=1, max_length=8)]
    layers_per_block: Count = 2
    mid_block_scale_factor: Annotated[float, Field(ge=1, le=1)] = 1
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Resampling = "conv"
    upsample_type: Resampling = "conv"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    attention_head_dim: Count | None = 8
    norm_num_groups: Count = 32
    attn_norm_num_groups: Count | None = None
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: Literal[True] = True
    class_embed_type: None = None
    num_class_embeds: Count | None = None
    num_train_timesteps: Count | None = None

    @property
    def halves_within_blocks(self) -> bool:
        """Whether residual blocks resample, as BigGAN's do."""
        kinds = {*self.down_block_types, *self.up_block_types}
        return bool(kinds & BIGGAN) or self.downsample_type == "resnet"

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> "UNetFile":
        down, up = self.down_block_types, self.up_block_types
        if [kind in ATTENTION for kind in down] != [kind in ATTENTION for kind in reversed(up)]:
            raise ValueError("up_block_types: attention is not at the levels of down_block_types")
        if len(self.block_out_channels) != len(down):
            raise ValueError(f"block_out_channels: {len(self.block_out_channels)} for {len(down)} levels")
        kinds, wrong = {*down, *up}, PLAIN if self.halves_within_blocks else BIGGAN
        types = {self.downsample_type, self.upsample_type} if kinds & ATTENTION else set()
        if kinds & wrong or len(types) > 1 or (types and (types == {"resnet"}) != self.halves_within_blocks):
            raise ValueError("down_block_types and downsample_type: levels resample in different ways")
        if any(width % self.block_out_channels[0] for width in self.block_out_channels):
            raise ValueError("block_out_channels: the first does not divide all others")
        if self.resnet_time_scale_shift == "scale_shift" and self.attn_norm_num_groups is None:
            raise ValueError("attn_norm_num_groups: null leaves out the norm of the middle's attention")
        if self.attn_norm_num_groups not in (None, self.norm_num_groups):
            raise ValueError(f"attn_norm_num_groups is not norm_num_groups, {self.norm_num_groups}")
        if self.time_embedding_dim not in (None, 4 * self.block_out_channels[0]):
            raise ValueError(f"time_embedding_dim is not {4 * self.block_out_channels[0]}")
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise ValueError(f"out_channels: {self.out_channels} for images of {self.in_channels} channels")
        return self


class SchedulerFile(BaseModel):
    """The fields of scheduler_config.json that decide a process; its sampling options are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    num_train_timesteps: Annotated[int, Field(ge=2, le=MAX_STEPS)]
    beta_schedule: Literal["linear", "squaredcos_cap_v2"]
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    trained_betas: Annotated[list[float], Field(max_length=MAX_STEPS)] | None = None
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    variance_type: str = "fixed_small"
    rescale_betas_zero_snr: Literal[False] = False


def import_diffusers(folder: Path) -> tuple[dict[str, Tensor], Artefact]:
    """Return our weights by name (float32) and the metadata of a pipeline folder or a flat folder.

    UsageError if there is no folder. DiffctlError if a file is damaged; it names the first key that is
    unsupported, missing, unused or of another shape.
    """
    if not folder.is_dir():
        raise UsageError(f"no folder at {folder}: name the pipeline's, with model_index.json in it")
    of_unet = _read(_part(folder, "unet") / "config.json", UNetFile)
    of_scheduler = _read(_part(folder, "scheduler") / "scheduler_config.json", SchedulerFile)
    path, theirs = _weights(_part(folder, "unet"))
    names = _class_names(folder, of_unet)
    spec, process = _spec(folder, of_unet, len(names)), _process(folder, of_scheduler, of_unet)
    artefact = Artefact(
        network=spec,
        process=process,
        train={},
        data=DataCard(name=folder.resolve().name, classes=names, digest=f"file:{sha256_file(path)}"),
        step=0,  # unknown
        precision="fp32",
    )
    with torch.device("meta"), Unfilled():
        network = UNet(spec)
    if (groups := norm_groups(network)) != [of_unet.norm_num_groups]:
        text = f"norm_num_groups {of_unet.norm_num_groups} cannot be expressed: here it would be {groups}"
        raise DiffctlError(f"{folder}: {text}")
    ours = take_weights(str(path), network, diffusers_names(network), theirs)
    if not of_unet.flip_sin_to_cos:  # sines first: their columns change places
        ours["time.0.weight"] = ours["time.0.weight"].roll(spec.channels // 2, dims=1)
    return ours, artefact


def _part(folder: Path, name: str) -> Path:
    """Return the folder of a part; older pipelines have all files in one folder."""
    return folder / name if (folder / name).is_dir() else folder


def _read(path: Path, kind: type[Kind]) -> Kind:
    try:
        values = read_json(path, JsonObject, MAX_CONFIG_BYTES)
        return kind.model_validate({key: value for key, value in values.items() if not key.startswith("_")})
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: name the folder of a pipeline with a UNet2DModel") from None
    except ValidationError as error:
        raise DiffctlError(explain(error, f"{path} cannot be expressed here", kind)) from None


def _weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Return the file of weights, and its tensors under the current names."""
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise UsageError(f"{folder} has no {' or '.join(WEIGHTS)}: the weights are not there")
    return path, {
        OLD_NAME.sub(lambda match: f"{match[1]}.{RENAMED_WEIGHTS[match[2]]}.", name): tensor
        for name, tensor in read_weights(path).items()
    }


def _class_names(folder: Path, config: UNetFile) -> tuple[str, ...]:
    """Return the class names in label order: those of our export, else numbers.

    DiffctlError unless the network has a row for each name, and at most one more for the null label.
    """
    rows = config.num_class_embeds or 0
    try:
        names = tuple(read_json(folder / CLASS_NAMES, list[str], MAX_CONFIG_BYTES))
    except FileNotFoundError:
        return tuple(str(label) for label in range(rows))
    if rows - len(names) not in (0, 1) or (rows and not names):
        raise DiffctlError(f"{folder / CLASS_NAMES} names {len(names)} classes, and the network has {rows}")
    return names


def _spec(folder: Path, config: UNetFile, classes: int) -> UNetSpec:
    """Return the spec of the network of this configuration."""
    first, levels = config.block_out_channels[0], enumerate(config.down_block_types)
    within, side = config.halves_within_blocks, min(height_and_width(config.sample_size))
    try:
        return UNetSpec(
            channels=first,
            channel_mult=tuple(width // first for width in config.block_out_channels),
            num_res_blocks=config.layers_per_block,
            attention_resolutions=tuple(side >> level for level, kind in levels if kind in ATTENTION),
            **_heads(config),
            embedding="adagn" if config.resnet_time_scale_shift == "scale_shift" else "additive",
            resample="biggan" if within else "plain",
            downsample_padding="after" if config.downsample_padding == 0 and not within else "both",
            frequency_shift=config.freq_shift,
            norm_eps=config.norm_eps,
            dropout=config.dropout,
            class_cond=classes > 0,
            image_size=config.sample_size,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_classes=classes,
            null_class=(config.num_class_embeds or 0) > classes,
        )
    except ValidationError as error:
        raise DiffctlError(explain(error, f"{folder} cannot be expressed here", UNetSpec)) from None


def _heads(config: UNetFile) -> dict[str, Any]:
    """Return the option for attention's heads: `head_channels` if it divides all levels, else `heads`."""
    width = config.attention_head_dim
    levels = zip(config.block_out_channels, config.down_block_types, strict=True)
    if width is None:
        return {"heads": 1}
    attending = {config.block_out_channels[-1], *(level for level, kind in levels if kind in ATTENTION)}
    if len(attending) == 1 and any(level % width for level in config.block_out_channels):
        return {"heads": max(1, attending.pop() // width)}
    return {"head_channels": width}


def _process(folder: Path, config: SchedulerFile, unet: UNetFile) -> ProcessConfig:
    """Return the process with these betas; DiffctlError if no schedule of ours has them."""
    learned = unet.out_channels == 2 * unet.in_channels
    if learned != config.variance_type.startswith("learned") or config.variance_type == "learned":
        kind = brief(config.variance_type)
        raise DiffctlError(f"{folder}: variance_type {kind} cannot be expressed with these out_channels")
    fixed: Literal["small", "large"] = "large" if config.variance_type.startswith("fixed_large") else "small"
    betas = _betas(config)
    ours = {theirs: name for name, theirs in PREDICTION_TYPES.items()}
    for schedule, zero_snr in product(SCHEDULES, (False, True)):
        if zero_snr and config.prediction_type == "epsilon":
            continue  # pure noise has no ε to predict x_0 from
        process = DiscreteConfig(
            timesteps=config.num_train_timesteps,
            schedule=schedule,
            variance="learned" if learned else fixed,
            loss="hybrid" if learned else "simple",
            prediction=ours[config.prediction_type],
            zero_terminal_snr=zero_snr,
        )
        own = build_process(process).probe_grid().betas
        if own.shape == betas.shape and torch.allclose(own, betas, rtol=SAME_BETAS, atol=0):
            return process
    named = "trained_betas" if config.trained_betas is not None else f"beta_schedule {config.beta_schedule}"
    raise DiffctlError(f"{folder}: {named} is none of the schedules {', '.join(SCHEDULES)}")


def _betas(config: SchedulerFile) -> Tensor:
    """Return the betas (T,) float64 as diffusers' schedulers compute them."""
    if config.trained_betas is not None:
        return torch.tensor(config.trained_betas, dtype=torch.float64)
    steps, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.beta_schedule == "squaredcos_cap_v2":
        of_time = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008
        bar = (of_time * torch.pi / 2).cos().square()
        return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    return torch.linspace(start, end, steps, dtype=torch.float64)
