"""Published recipes as their authors' command lines, against presets and profiles."""

from dataclasses import dataclass
from typing import Any

import pytest

from diffusion.config import Config, load
from diffusion.model.presets import PRESETS
from diffusion.model.unet_config import UNetConfig
from diffusion.process.process_registry import ProcessConfig
from diffusion.system.section import Section
from diffusion.train.lr_schedule import ConstantLR
from diffusion.train.plan import HARDWARE_FIELDS, OBSERVATION_FIELDS
from diffusion.train.train_config import TrainConfig
from tests.conftest import ROOT

# Defaults of openai/improved-diffusion and openai/guided-diffusion. Neither clips gradients.
DEFAULTS = {
    "attention_resolutions": "16,8",
    "class_cond": "False",
    "dropout": "0.0",
    "ema_rate": "0.9999",
    "lr_anneal_steps": "0",
    "num_head_channels": "-1",
    "num_heads": "4",
    "predict_xstart": "False",
    "resblock_updown": "False",
    "schedule_sampler": "uniform",
    "use_kl": "False",
    "use_new_attention_order": "False",
    "use_scale_shift_norm": "True",
    "weight_decay": "0.0",
}
MULTIPLIERS = {"64": (1, 2, 3, 4), "32": (1, 2, 2, 2)}  # by image_size
OURS = (
    OBSERVATION_FIELDS | HARDWARE_FIELDS | {"seed", "precision", "tf32"}
)  # fields of `train` outside a recipe


@dataclass(frozen=True)
class Recipe:
    """The flags of a published training, and the settings that its code fixes."""

    preset: str
    command: str
    steps: int
    rescale_timesteps: bool

    @property
    def flags(self) -> dict[str, str]:
        words = self.command.split()
        return DEFAULTS | {
            name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)
        }

    @property
    def time_scale(self) -> float:
        return 1000 / int(self.flags["diffusion_steps"]) if self.rescale_timesteps else 1.0

    def model(self) -> UNetConfig:
        flags = self.flags
        per_head = int(flags["num_head_channels"])
        return UNetConfig(
            channels=int(flags["num_channels"]),
            channel_mult=MULTIPLIERS[flags["image_size"]],
            num_res_blocks=int(flags["num_res_blocks"]),
            attention_resolutions=tuple(map(int, flags["attention_resolutions"].split(","))),
            head_channels=None if per_head == -1 else per_head,
            heads=int(flags["num_heads"]) if per_head == -1 else None,
            embedding="adagn" if flags["use_scale_shift_norm"] == "True" else "additive",
            resample="biggan" if flags["resblock_updown"] == "True" else "plain",
            dropout=float(flags["dropout"]),
            class_cond=flags["class_cond"] == "True",
            time_scale=self.time_scale,
        )

    def process(self) -> ProcessConfig:
        flags = self.flags
        assert (flags["learn_sigma"], flags["use_kl"], flags["predict_xstart"]) == ("True", "False", "False")
        return ProcessConfig(
            timesteps=int(flags["diffusion_steps"]),
            schedule=flags["noise_schedule"],
            variance="learned",
            loss="hybrid",
            t_sampler=flags["schedule_sampler"],
            prediction="eps",
            weighting="none",
        )

    def train(self) -> TrainConfig:
        flags = self.flags
        assert flags["lr_anneal_steps"] == "0"
        return TrainConfig(
            steps=self.steps,
            batch_size=int(flags["batch_size"]),
            lr=ConstantLR(rate=float(flags["lr"])),
            weight_decay=float(flags["weight_decay"]),
            grad_clip=None,
            ema_decay=float(flags["ema_rate"]),
            p_uncond=0.0,
        )


# The command lines are those of the repositories' READMEs; batch and rate of ADM are of its table 12.
RECIPES = {
    "imagenet64": Recipe(
        "iddpm-imagenet64",
        "--image_size 64 --num_channels 128 --num_res_blocks 3 --learn_sigma True "
        "--diffusion_steps 4000 --noise_schedule cosine --lr 1e-4 --batch_size 128",
        1_500_000,
        rescale_timesteps=True,
    ),
    "cifar10": Recipe(
        "iddpm-cifar10",
        "--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True --dropout 0.3 "
        "--diffusion_steps 4000 --noise_schedule cosine --lr 1e-4 --batch_size 128",
        500_000,
        rescale_timesteps=True,
    ),
    "imagenet64-adm": Recipe(
        "adm-64",
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1 "
        "--image_size 64 --learn_sigma True --noise_schedule cosine --num_channels 192 "
        "--num_head_channels 64 --num_res_blocks 3 --resblock_updown True --use_new_attention_order True "
        "--use_fp16 True --use_scale_shift_norm True --lr 3e-4 --batch_size 2048",
        540_000,
        rescale_timesteps=False,
    ),
}
# Profiles that adapt a recipe to other data: its name, and the fields that differ.
ADAPTED = {
    "cifar100": ("cifar10", {"model.class_cond", "train.p_uncond"}),
    "mini-imagenet": (
        "imagenet64",
        {"model.class_cond", "model.dropout", "train.p_uncond", "train.steps"},
    ),
}
OWN = {"digits", "fashion-mnist", "image-folder", "image-folder-cpu"}  # recipes of this project


def test_every_profile_is_assigned_to_a_recipe() -> None:
    assert {path.stem for path in (ROOT / "profiles").glob("*.yaml")} == {*RECIPES, *ADAPTED, *OWN}


def profile(name: str) -> Config:
    return load(ROOT / f"profiles/{name}.yaml")


def values(section: Section) -> dict[str, Any]:
    """Return the fields that determine a result."""
    return {key: value for key, value in section.model_dump().items() if key not in OURS}


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_profile_equals_its_papers_recipe(name: str) -> None:
    config, recipe = profile(name), RECIPES[name]
    assert values(config.model) == values(recipe.model())
    assert values(config.process) == values(recipe.process())
    assert values(config.train) == values(recipe.train())


@pytest.mark.parametrize("name", RECIPES)
def test_a_preset_equals_its_papers_recipe(name: str) -> None:
    recipe = RECIPES[name]
    preset = PRESETS[recipe.preset]
    assert values(UNetConfig(**preset.model)) == values(recipe.model())
    assert values(ProcessConfig(**preset.process)) == values(recipe.process())
    assert values(TrainConfig(**preset.train)) == values(recipe.train())
    assert (preset.data, str(preset.image_size)) == (profile(name).data.name, recipe.flags["image_size"])


@pytest.mark.parametrize("name", ADAPTED)
def test_an_adapted_profile_differs_in_the_listed_fields(name: str) -> None:
    origin, expected = ADAPTED[name]
    ours, theirs = profile(name), profile(origin)
    differing = {
        f"{section}.{key}"
        for section in ("model", "process", "train")
        for key, value in values(getattr(ours, section)).items()
        if value != values(getattr(theirs, section))[key]
    }
    assert differing == expected
