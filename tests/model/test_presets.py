"""Presets of published networks: parameter counts, and the effect of model.preset in params.yaml."""

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
from diffusion.process.process_registry import ProcessConfig
from diffusion.system.errors import UsageError
from diffusion.system.section import fingerprint
from diffusion.train.train_config import TrainConfig
from tests.conftest import params

# Parameter counts from papers and file names, in millions, and their relative rounding error.
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
    data_shape = {"image_size": preset.image_size, "in_channels": 3, "out_channels": 6 if learned else 3}
    return UNetSpec(**{**preset.model, **data_shape, "num_classes": preset.num_classes, **changes})


def count(spec: UNetSpec) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet(spec).parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts_match_papers(name):
    found = count(spec_of(PRESETS[name]))
    assert found == PRESETS[name].parameters
    millions, rounding = PUBLISHED[name]
    assert found / 1e6 == pytest.approx(millions, rel=rounding)
    assert str(millions) in PRESETS[name].source


@pytest.mark.slow
@given(
    st.integers(1, 4).map(lambda groups: 32 * groups), st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(1, 3), st.sampled_from(["resnet", "convnext"]), st.sampled_from(["adagn", "additive"]),
)  # fmt: skip
def test_least_parameters_is_lower_bound(channels, mults, blocks, block, embedding):
    shape = {"channels": channels * 2, "channel_mult": mults, "num_res_blocks": blocks, "block": block}
    spec = UNetSpec(**shape, embedding=embedding, image_size=8, in_channels=1, out_channels=1)
    assert spec.least_parameters() <= count(spec)


@pytest.mark.parametrize(("channels", "millions"), [(64, 30), (96, 68), (128, 120), (192, 270)])
def test_iddpm_imagenet64_parameter_counts_match_section_6(channels, millions):
    found = count(spec_of(PRESETS["iddpm-imagenet64"], channels=channels))
    assert found / 1e6 == pytest.approx(millions, rel=0.011)


def test_unconditional_adm_256_parameter_count():
    assert count(spec_of(PRESETS["adm-256"], num_classes=0)) == 553_838_086 - 1000 * 1024


@pytest.mark.parametrize("name", PRESETS)
def test_published_settings_are_valid(name):
    preset = PRESETS[name]
    assert TrainConfig(**preset.train).steps > 100_000
    assert ProcessConfig(**preset.process).timesteps in (1000, 4000)
    assert DataCard(name=preset.data, digest="").name
    assert UNetConfig(preset=name).class_cond == (preset.num_classes > 0)


def with_model(**model: Any) -> Config:
    values = params()
    values["model"] = model
    return parse(values, "params.yaml")


def test_preset_equals_explicit_model_section():
    config = with_model(preset="adm-64")
    assert config.model == with_model(**PRESETS["adm-64"].model).model
    assert config.model.channels == 192
    assert "preset" not in config.model.model_dump()
    assert fingerprint(config) == fingerprint(with_model(**PRESETS["adm-64"].model))


def test_model_keys_override_preset():
    assert with_model(preset="adm-64", dropout=0.0, channels=64).model.channels == 64
    heads = with_model(preset="adm-64", heads=4).model
    assert (heads.heads, heads.head_channels) == (4, None)


def test_unknown_preset_raises_usage_error():
    with pytest.raises(UsageError, match=r"model: preset: allowed are adm-64, .*ddpm-cifar10 \(got 'adm-32'"):
        with_model(preset="adm-32")


def test_time_scale_multiplies_timesteps():
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
