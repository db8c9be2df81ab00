"""Published recipes against presets and profiles."""

from typing import Any

import pytest

from diffusion.config import load
from diffusion.model.presets import PRESETS
from diffusion.model.unet_config import UNetConfig
from diffusion.process.process_registry import ProcessConfig
from diffusion.system.section import Section
from diffusion.train.optimizers.lr_schedule import ConstantLR
from diffusion.train.plan import HARDWARE_FIELDS, OBSERVATION_FIELDS
from diffusion.train.train_config import TrainConfig
from tests.conftest import ROOT

OURS = OBSERVATION_FIELDS | HARDWARE_FIELDS | {"seed", "precision", "tf32"}  # of `train`, outside a recipe


IDDPM = {"channels": 128, "heads": 4, "head_channels": None, "attention_resolutions": (16, 8)}
IDDPM |= {"resample": "plain", "class_cond": False, "time_scale": 0.25}
ADM = {"channels": 192, "heads": None, "head_channels": 64, "attention_resolutions": (32, 16, 8)}
ADM |= {"resample": "biggan", "class_cond": True, "time_scale": 1.0}
# By the READMEs of openai/improved-diffusion and openai/guided-diffusion, and by ADM's table 12: the preset,
# multipliers of the channels, dropout, T, steps, batch size and learning rate.
RECIPES = {
    "imagenet64": ("iddpm-imagenet64", IDDPM, (1, 2, 3, 4), 0.0, 4000, 1_500_000, 128, 1e-4),
    "cifar10": ("iddpm-cifar10", IDDPM, (1, 2, 2, 2), 0.3, 4000, 500_000, 128, 1e-4),
    "imagenet64-adm": ("adm-64", ADM, (1, 2, 3, 4), 0.1, 1000, 540_000, 2048, 3e-4),
}


def recipe(name: str) -> list[dict[str, Any]]:
    """Return the fields of model, process and train, with the defaults and fixed settings of the code."""
    _, model, mult, dropout, timesteps, steps, batch_size, rate = RECIPES[name]
    process = {"schedule": "cosine", "variance": "learned", "loss": "hybrid", "t_sampler": "uniform"}
    train = {"weight_decay": 0.0, "grad_clip": None, "ema_decay": 0.9999, "p_uncond": 0.0}
    train |= {"steps": steps, "batch_size": batch_size, "lr": ConstantLR(rate=rate)}
    shape = {"embedding": "adagn", "num_res_blocks": 3, "channel_mult": mult, "dropout": dropout}
    return [
        values(UNetConfig(**shape, **model)),
        values(ProcessConfig(timesteps=timesteps, prediction="eps", weighting="none", **process)),
        values(TrainConfig(**train)),
    ]


def values(section: Section) -> dict[str, Any]:
    """Return the fields that determine a result."""
    return {key: value for key, value in section.model_dump().items() if key not in OURS}


@pytest.mark.parametrize("name", RECIPES)
def test_profile_and_preset_equal_their_papers_recipe(name: str) -> None:
    config, preset = load(ROOT / f"profiles/{name}.yaml"), PRESETS[RECIPES[name][0]]
    made = UNetConfig(**preset.model), ProcessConfig(**preset.process), TrainConfig(**preset.train)
    for sections in ((config.model, config.process, config.train), made):
        assert [values(section) for section in sections] == recipe(name)
    downsampled = name == "imagenet64-adm"  # in the profile; ADM's code resizes the photographs
    assert preset.data == ("imagenet" if downsampled else config.data.name)
    assert preset.image_size == (32 if name == "cifar10" else 64)
