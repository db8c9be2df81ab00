"""Export of a model as a pipeline folder of Hugging Face's diffusers: UNet2DModel and DDIMScheduler.

`DDIMPipeline.from_pretrained(folder)` gives the same images for the same noise with `trailing` spacing where
S divides T, which is where that scheduler's step and its own list of timesteps agree, and with
`use_clipped_model_output=True`, which recomputes ε from the clipped x̂_0.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.images.image_size import format_size
from diffusion.model.blocks import Attention, Downsample, GroupNorm, ResBlock, Upsample
from diffusion.model.model_file import Artefact, LoadedModel
from diffusion.model.unet import UNet
from diffusion.process.loss_registry import OBJECTIVES
from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import DiscreteConfig
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import atomic_folder, write_json, write_text
from diffusion.system.output_paths import check_output_folder

PREDICTION_TYPES = {"eps": "epsilon", "x0": "sample", "velocity": "v_prediction"}

# Our name of a part of a block, and theirs: three for q, k and v, which one after another are ours.
PARTS: dict[type[nn.Module], dict[str, tuple[str, ...]]] = {
    ResBlock: {
        "norm_in": ("norm1",),
        "conv_in": ("conv1",),
        "condition.project": ("time_emb_proj",),
        "condition.norm": ("norm2",),
        "conv_out": ("conv2",),
        "skip": ("conv_shortcut",),
    },
    Attention: {"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "project": ("to_out.0",)},
    Downsample: {"conv": ("conv",)},
    Upsample: {"conv": ("conv",)},
}

README = """\
# {name}

A diffusion model exported by diffctl {details}.

```python
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("{folder}")
```

{notes}
"""


def export_diffusers(loaded: LoadedModel, folder: Path) -> None:
    """Write the pipeline folder, whole or not at all.

    UsageError when the folder is not empty or the model has an option without a counterpart there;
    DiffctlError when diffusers is not installed.
    """
    check_output_folder(folder, "the folder")
    with atomic_folder(folder.resolve()) as made:
        save_pipeline(loaded, made)
        write_text(made / "README.md", _readme(loaded.artefact, folder))


def save_pipeline(loaded: LoadedModel, folder: Path) -> None:
    """Write the pipeline into an existing folder; errors as `export_diffusers`, with nothing written."""
    network = loaded.network
    if not isinstance(network, UNet):
        raise _without_counterpart(f"model.name {loaded.artefact.network.name}")
    config, of_scheduler = unet_config(network), scheduler_config(loaded.artefact)
    try:
        from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
    except ImportError:
        raise DiffctlError("diffusers is not installed: pip install 'diffctl[interop]'") from None
    unet = UNet2DModel(**config)
    unet.load_state_dict(translate(network))
    DDIMPipeline(unet, DDIMScheduler(**of_scheduler)).save_pretrained(folder)
    write_json(folder / "class_names.json", list(loaded.artefact.data.classes))


def unet_config(network: UNet) -> dict[str, Any]:
    """Return UNet2DModel's arguments for this network; UsageError for an option that it cannot express."""
    spec = network.spec
    if spec.channel_mult[0] != 1:
        raise _without_counterpart(f"model.channel_mult that starts with {spec.channel_mult[0]}, not 1")
    for name, value in {"block": "resnet", "patch_size": 1, "time_scale": 1, "low_res": None}.items():
        if getattr(spec, name) != value:
            raise _without_counterpart(f"model.{name} {getattr(spec, name)}")
    biggan = spec.resample == "biggan"
    groups = norm_groups(network)
    if len(groups) > 1:
        found = f"GroupNorm with {', '.join(map(str, groups))} groups"
        remedy = "set model.group_channels 1, and channels that give every layer a multiple of 32"
        raise _without_counterpart(f"{found} ({remedy})")
    attends = [spec.has_attention(size) for size in spec.level_sizes(spec.size)]
    plain_down, plain_up = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if biggan else ("DownBlock2D", "UpBlock2D")
    )
    down = ["AttnDownBlock2D" if does else plain_down for does in attends]
    up = ["AttnUpBlock2D" if does else plain_up for does in reversed(attends)]
    return {
        "sample_size": spec.image_size,
        "in_channels": spec.in_channels,
        "out_channels": spec.in_channels,  # of a learned variance ε only
        "block_out_channels": [mult * spec.channels for mult in spec.channel_mult],
        "layers_per_block": spec.num_res_blocks,
        "down_block_types": down,
        "up_block_types": up,
        "downsample_type": "resnet" if biggan else "conv",
        "upsample_type": "resnet" if biggan else "conv",
        "resnet_time_scale_shift": "scale_shift" if spec.embedding == "adagn" else "default",
        "dropout": spec.dropout,
        "attention_head_dim": _head_channels(network),
        "norm_num_groups": groups[0],
        "attn_norm_num_groups": groups[0],  # else none in the middle with scale_shift
        "num_class_embeds": spec.num_classes + spec.null_class or None,
        "downsample_padding": 0 if spec.downsample_padding == "after" else 1,
        "freq_shift": spec.frequency_shift,
        "norm_eps": spec.norm_eps,
    }


def scheduler_config(artefact: Artefact) -> dict[str, Any]:
    """Return DDIMScheduler's arguments for the model's process; UsageError if it cannot express it."""
    process, grid = artefact.process, build_process(artefact.process).probe_grid()
    if OBJECTIVES[process.loss].is_consistency:  # x̂_0 is no mean then, as DDIM reads it
        raise _without_counterpart(f"process.loss {process.loss}")
    power = grid.alpha.square() + grid.sigma.square()
    if not isinstance(process, DiscreteConfig) or not torch.allclose(power, torch.ones_like(power)):
        raise _without_counterpart(f"process.schedule {process.schedule}")
    if process.prediction not in PREDICTION_TYPES:
        raise _without_counterpart(f"process.prediction {process.prediction}")
    return {
        "num_train_timesteps": process.timesteps,
        "trained_betas": grid.betas.tolist(),
        "clip_sample": True,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "prediction_type": PREDICTION_TYPES[process.prediction],
        "timestep_spacing": "trailing",
    }


def translate(network: UNet) -> dict[str, Tensor]:
    """Return the weights under UNet2DModel's names, with separate matrices for q, k and v."""
    theirs: dict[str, Tensor] = {}
    weights = network.state_dict()
    for name, named in diffusers_names(network).items():
        for one, part in zip(named, weights[name].cpu().chunk(len(named)), strict=True):
            is_matrix = ".to_" in one and one.endswith("weight")  # here a 1×1 convolution
            theirs[one] = part.flatten(1) if is_matrix else part
    channels = network.spec.in_channels
    for name in ("conv_out.weight", "conv_out.bias"):
        theirs[name] = theirs[name][:channels]
    return theirs


def diffusers_names(network: UNet) -> dict[str, tuple[str, ...]]:
    """Return UNet2DModel's names of each weight, by our name."""
    prefixes: dict[str, tuple[str, ...]] = {
        "time.0.": ("time_embedding.linear_1.",),
        "time.2.": ("time_embedding.linear_2.",),
        "classes.": ("class_embedding.",),
        "stem.": ("conv_in.",),
        "norm.": ("conv_norm_out.",),
        "head.": ("conv_out.",),
    }
    for ours, theirs in _block_names(network).items():
        for part, named in PARTS[type(network.get_submodule(ours))].items():
            prefixes[f"{ours}.{part}."] = tuple(f"{theirs}.{one}." for one in named)
    names = {}
    for name in network.state_dict():
        if name.startswith("augmentation."):
            continue  # without augmentation, as in sampling, it adds nothing
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        names[name] = tuple(theirs + name.removeprefix(prefix) for theirs in prefixes[prefix])
    return names


def _block_names(network: UNet) -> dict[str, str]:
    """Return their name of every residual, attention and resampling block, by our name."""
    names = {
        "middle.0": "mid_block.resnets.0",
        "middle.1": "mid_block.attentions.0",
        "middle.2": "mid_block.resnets.1",
    }
    for ours, theirs, stages in (("encoder", "down", network.encoder), ("decoder", "up", network.decoder)):
        for number, stage in enumerate(stages):
            level, place = divmod(number, network.spec.num_res_blocks + 1)
            for index, block in enumerate(stage.children()):
                kind = f"{theirs}samplers.0"
                if isinstance(block, Attention):
                    kind = f"attentions.{place}"
                elif isinstance(block, ResBlock) and block.resampling == "none":
                    kind = f"resnets.{place}"
                names[f"{ours}.{number}.{index}"] = f"{theirs}_blocks.{level}.{kind}"
    return names


def _head_channels(network: UNet) -> int | None:
    """Return the channels of a head, None if every attention has one head; UsageError if they differ."""
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    widths = {module.norm.num_channels // module.heads for module in attentions}
    if len(widths) == 1:
        return int(widths.pop())
    if all(module.heads == 1 for module in attentions):
        return None
    raise _without_counterpart("model.heads with attention at levels of different channels")


def norm_groups(network: UNet) -> list[int]:
    """Return the different numbers of groups of its norms, in order."""
    return sorted({module.num_groups for module in network.modules() if isinstance(module, GroupNorm)})


def _without_counterpart(option: str) -> UsageError:
    return UsageError(
        f"diffusers' UNet2DModel and DDIMScheduler have no {option}: this model cannot be exported"
    )


def pipeline_notes(artefact: Artefact) -> list[str]:
    """Return how the pipeline differs from the model, and how it is used, as sentences in Markdown."""
    spec, most = artefact.network, artefact.process.max_steps
    notes = [
        f"The scheduler's spacing is `trailing`; give a number of steps that divides {most}.",
        "`use_clipped_model_output=True` recomputes ε from the clipped image, as diffctl does by default.",
    ]
    if spec.num_classes:
        notes.append(
            f"The UNet takes `class_labels` 0 … {spec.num_classes - 1} (class_names.json); DDIMPipeline "
            "passes none, so call the UNet and the scheduler in a loop."
        )
    if spec.null_class:
        notes.append(f"Label {spec.num_classes} is the empty one of classifier-free guidance.")
    if spec.learned_variance:
        notes.append("The learned variance was left out: diffusers' DDIM uses ε alone.")
    return notes


def _readme(artefact: Artefact, folder: Path) -> str:
    spec = artefact.network
    return README.format(
        name=artefact.data.name,
        details=f"({format_size(spec.size)}, {artefact.step:,} steps of training)",
        folder=folder.name,
        notes="\n".join(f"- {note}" for note in pipeline_notes(artefact)),
    )
