"""The published networks by name, those of pixels with the recipe that they were published with.

`parameters` is the exact count of this library's network; the papers round it as `source` states.
"""

from dataclasses import dataclass
from typing import Any

from diffusion.system.registry import Registry

IN_CODE_DIGEST = False  # diffusion/code_digest.py


@dataclass(frozen=True)
class Size:
    """A published size of a network: its options, and its parameters on the data of the `source`."""

    model: dict[str, Any]
    parameters: int
    source: str


@dataclass(frozen=True)
class Preset(Size):
    """A published model: the sections of params.yaml that it was trained with, and what its data decided.

    `qkv_by_head` is how OpenAI's file orders the channels of attention: all of a head's q, k and v
    together, or all heads' q first.
    """

    process: dict[str, Any]
    train: dict[str, Any]
    data: str
    image_size: int
    num_classes: int
    qkv_by_head: bool = True


# ADM (2105.05233), tables 11 and 12 of the appendix; openai/guided-diffusion gives the same as flags. Its
# code and iDDPM's log the gradient's norm and do not clip (fp16_util.py there, train_util.py here).
_ADM = {"channels": 256, "num_res_blocks": 2, "attention_resolutions": (32, 16, 8)}
_ADM_UPSAMPLER = {"channels": 192, "num_res_blocks": 2, "channel_mult": (1, 1, 2, 2, 4, 4)}
_LINEAR = {"timesteps": 1000, "schedule": "linear"}
_ADM_TRAIN = {"ema_decay": 0.9999, "lr": 1e-4, "batch_size": 256, "grad_clip": None}
# iDDPM (2102.09672), appendix A, and the flags of openai/improved-diffusion with its defaults.
_IDDPM = {
    "channels": 128,
    "num_res_blocks": 3,
    "attention_resolutions": (16, 8),
    "heads": 4,
    "resample": "plain",
    "class_cond": False,
    "time_scale": 0.25,
}
_IDDPM_PROCESS = {"timesteps": 4000, "schedule": "cosine"}
_IDDPM_TRAIN = {"batch_size": 128, "lr": 1e-4, "ema_decay": 0.9999, "grad_clip": None}

_PUBLISHED = {
    "adm-64": Preset(
        model={
            **_ADM,
            "channels": 192,
            "channel_mult": (1, 2, 3, 4),
            "num_res_blocks": 3,
            "head_channels": 64,
            "dropout": 0.1,
        },
        process={"timesteps": 1000, "schedule": "cosine"},
        train={**_ADM_TRAIN, "steps": 540_000, "lr": 3e-4, "batch_size": 2048},
        data="imagenet",
        image_size=64,
        num_classes=1000,
        parameters=295_904_454,
        source="296M: ADM table 11",
        qkv_by_head=False,
    ),
    "adm-128": Preset(
        model={**_ADM, "channel_mult": (1, 1, 2, 3, 4), "heads": 4},
        process=_LINEAR,
        train={**_ADM_TRAIN, "steps": 4_360_000},
        data="imagenet",
        image_size=128,
        num_classes=1000,
        parameters=421_529_606,
        source="422M: ADM table 11",
    ),
    "adm-256": Preset(
        model={**_ADM, "channel_mult": (1, 1, 2, 2, 4, 4), "head_channels": 64},
        process=_LINEAR,
        train={**_ADM_TRAIN, "steps": 1_980_000},
        data="imagenet",
        image_size=256,
        num_classes=1000,
        parameters=553_838_086,
        source="554M: ADM table 11",
    ),
    "adm-64-to-256": Preset(
        model={**_ADM_UPSAMPLER, "attention_resolutions": (32, 16, 8), "heads": 4, "low_res": 64},
        process=_LINEAR,
        train={**_ADM_TRAIN, "steps": 500_000},
        data="imagenet",
        image_size=256,
        num_classes=1000,
        parameters=311_795_910,
        source="312M: ADM table 12",
    ),
    "adm-128-to-512": Preset(
        model={**_ADM_UPSAMPLER, "attention_resolutions": (32, 16), "head_channels": 64, "low_res": 128},
        process=_LINEAR,
        train={**_ADM_TRAIN, "steps": 1_050_000},
        data="imagenet",
        image_size=512,
        num_classes=1000,
        parameters=308_835_270,
        source="309M: ADM table 12",
    ),
    "iddpm-imagenet64": Preset(
        model={**_IDDPM, "channel_mult": (1, 2, 3, 4)},
        process=_IDDPM_PROCESS,
        train={**_IDDPM_TRAIN, "steps": 1_500_000},
        data="imagenet64",
        image_size=64,
        num_classes=0,
        parameters=121_063_942,
        source="120M: iDDPM section 6, where the widths 64, 96, 128 and 192 have 30M, 68M, 120M and 270M",
    ),
    "iddpm-cifar10": Preset(
        model={**_IDDPM, "channel_mult": (1, 2, 2, 2), "dropout": 0.3},
        process=_IDDPM_PROCESS,
        train={**_IDDPM_TRAIN, "steps": 500_000},
        data="cifar10",
        image_size=32,
        num_classes=0,
        parameters=52_546_438,
        source="50M: the published file's name, cifar10_uncond_50M_500K.pt",
    ),
    "ddpm-cifar10": Preset(  # DDPM (2006.11239), appendix B; its code clips at a norm of 1
        model={
            "channels": 128,
            "channel_mult": (1, 2, 2, 2),
            "num_res_blocks": 2,
            "attention_resolutions": (16,),
            "heads": 1,
            "embedding": "additive",
            "resample": "plain",
            "dropout": 0.1,
            "class_cond": False,
        },
        process={**_LINEAR, "variance": "large", "loss": "simple"},
        train={
            "steps": 800_000,
            "batch_size": 128,
            "lr": {"rate": 2e-4, "warmup": 5000},
            "ema_decay": 0.9999,
        },
        data="cifar10",
        image_size=32,
        num_classes=0,
        parameters=35_746_307,
        source="35.7M: DDPM appendix B",
    ),
}
PRESETS: Registry[Preset] = Registry(
    "model.preset", "a published shape of the `unet`, with its recipe", _PUBLISHED
)

# Peebles & Xie 2023 (2212.09748), table 1. They train on latents, so that there is no recipe for pixels.
_LATENTS = "DiT table 4, of patches of 2×2 in latents of 32×32×4, with ImageNet's classes"
DIT_SIZES: Registry[Size] = Registry(
    "model.preset",
    "a published size of the `dit`, for patches of 2×2 unless `patch_size` is given",
    {
        "dit-s": Size({"width": 384, "depth": 12, "heads": 6}, 32_865_056, f"33M: {_LATENTS}"),
        "dit-b": Size({"width": 768, "depth": 12, "heads": 12}, 130_315_808, f"130M: {_LATENTS}"),
        "dit-l": Size({"width": 1024, "depth": 24, "heads": 16}, 457_840_672, f"458M: {_LATENTS}"),
        "dit-xl": Size({"width": 1152, "depth": 28, "heads": 16}, 674_834_720, f"675M: {_LATENTS}"),
    },
)
