"""The published networks: their parameter counts, and what model.preset means in params.yaml."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diffusion.config import Config, parse
from diffusion.model.model_file import DataCard
from diffusion.model.presets import PRESETS, Preset
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetConfig, UNetSpec
from diffusion.process.process_config import ProcessConfig
from diffusion.system.errors import UsageError
from diffusion.system.section import fingerprint
from diffusion.train.train_config import TrainConfig
from tests.conftest import params

# What the papers and the published files' names say, in millions, and to how much of it they round.
PUBLISHED = {
    "adm-64": (296, 0.002),
    "adm-128": (422, 0.002),
    "adm-256": (554, 0.002),
    "iddpm-imagenet64": (120, 0.01),
    "iddpm-cifar10": (50, 0.06),
    "ddpm-cifar10": (35.7, 0.002),
}


def spec_of(preset: Preset, **changes: Any) -> UNetSpec:
    learned = ProcessConfig(**preset.process).variance == "learned"
    decided = {"image_size": preset.image_size, "in_channels": 3, "out_channels": 6 if learned else 3}
    return UNetSpec(**{**preset.model, **decided, "num_classes": preset.num_classes, **changes})


def count(spec: UNetSpec) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet(spec).parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts(name):
    found = count(spec_of(PRESETS[name]))
    assert found == PRESETS[name].parameters
    millions, rounding = PUBLISHED[name]
    assert found / 1e6 == pytest.approx(millions, rel=rounding)
    assert str(millions) in PRESETS[name].source


@pytest.mark.parametrize("name", PRESETS)
def test_no_published_network_is_taken_for_too_large(name):
    """The closed form says less than there are, by no more than five times."""
    spec = spec_of(PRESETS[name])
    assert spec.least_parameters() <= PRESETS[name].parameters <= 5 * spec.least_parameters()


@pytest.mark.slow
@given(
    st.integers(1, 4).map(lambda wide: 32 * wide), st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(1, 3), st.sampled_from(["resnet", "convnext"]), st.sampled_from(["adagn", "additive"]),
)  # fmt: skip
def test_the_closed_form_of_parameters_is_never_too_much(channels, mults, blocks, block, embedding):
    shape = {"channels": channels * 2, "channel_mult": mults, "num_res_blocks": blocks, "block": block}
    spec = UNetSpec(**shape, embedding=embedding, image_size=8, in_channels=1, out_channels=1)
    assert spec.least_parameters() <= count(spec)


@pytest.mark.parametrize(("channels", "millions"), [(64, 30), (96, 68), (128, 120), (192, 270)])
def test_the_imagenet_network_at_the_widths_of_iddpms_section_6(channels, millions):
    found = count(spec_of(PRESETS["iddpm-imagenet64"], channels=channels))
    assert found / 1e6 == pytest.approx(millions, rel=0.011)


def test_the_count_of_the_unconditional_256_pixel_network():
    assert count(spec_of(PRESETS["adm-256"], num_classes=0)) == 553_838_086 - 1000 * 1024


def ddpm_parameters() -> int:
    """DDPM appendix B's network counted by hand: 3×3 convolutions, one attention head, additive embedding."""

    def conv(a: int, b: int, k: int = 3) -> int:
        return a * b * k * k + b

    def block(a: int, b: int) -> int:
        skip = conv(a, b, 1) if a != b else 0
        return 2 * a + conv(a, b) + (512 * b + b) + 2 * b + conv(b, b) + skip

    def attention(c: int) -> int:
        return 2 * c + 4 * conv(c, c, 1)

    total = (128 * 512 + 512) + (512 * 512 + 512) + conv(3, 128)
    total += 2 * block(128, 128) + conv(128, 128)
    total += block(128, 256) + block(256, 256) + 2 * attention(256) + conv(256, 256)
    total += 2 * block(256, 256) + conv(256, 256)
    total += 2 * block(256, 256)
    total += 2 * block(256, 256) + attention(256)
    total += 3 * block(512, 256) + conv(256, 256)
    total += 3 * block(512, 256) + conv(256, 256)
    total += 2 * block(512, 256) + block(384, 256) + 3 * attention(256) + conv(256, 256)
    total += block(384, 128) + 2 * block(256, 128)
    return total + 2 * 128 + conv(128, 3)


def test_the_ddpm_network_counted_by_hand():
    assert ddpm_parameters() == PRESETS["ddpm-cifar10"].parameters


@pytest.mark.parametrize("name", PRESETS)
def test_the_published_recipe_is_valid(name):
    preset = PRESETS[name]
    assert TrainConfig(**preset.train).steps > 100_000
    assert ProcessConfig(**preset.process).timesteps in (1000, 4000)
    assert DataCard(name=preset.data, digest="").name
    assert UNetConfig(preset=name).class_cond == (preset.num_classes > 0)


def with_model(**model: Any) -> Config:
    values = params()
    values["model"] = model
    return parse(values, "params.yaml")


def test_a_preset_is_the_same_as_its_shape_written_out():
    chosen = with_model(preset="adm-64")
    assert chosen.model == with_model(**PRESETS["adm-64"].model).model
    assert chosen.model.channels == 192
    assert "preset" not in chosen.model.model_dump()
    assert fingerprint(chosen) == fingerprint(with_model(**PRESETS["adm-64"].model))


def test_keys_beside_a_preset_change_it():
    assert with_model(preset="adm-64", dropout=0.0, channels=64).model.channels == 64
    heads = with_model(preset="adm-64", heads=4).model
    assert (heads.heads, heads.head_channels) == (4, None)


def test_an_unknown_preset_is_one_sentence():
    with pytest.raises(
        UsageError, match=r"model: preset: allowed are adm-64, .*ddpm-cifar10 \(got 'adm-32'\)"
    ):
        with_model(preset="adm-32")


def test_time_scale_is_what_the_network_sees_of_t():
    torch.manual_seed(0)
    shape = {"channels": 8, "channel_mult": (1,), "image_size": 4, "in_channels": 1, "out_channels": 1}
    plain, scaled = UNet(UNetSpec(**shape)), UNet(UNetSpec(**shape, time_scale=0.25))
    nn.init.normal_(plain.head.weight)
    for parameter in plain.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    scaled.load_state_dict(plain.state_dict())
    x = torch.randn(2, 1, 4, 4)
    at_8, at_2 = torch.tensor([8, 8]), torch.tensor([2, 2])
    assert torch.equal(scaled(x, at_8), plain(x, at_2))
    assert not torch.allclose(scaled(x, at_8), plain(x, at_8))
