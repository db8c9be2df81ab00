"""UNet, its presets, and all options of it and the DiT; tests/interop compares it with the originals."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from diffusion.config import Config, parse
from diffusion.model.blocks import GroupNorm
from diffusion.model.counted_passes import count_parameters
from diffusion.model.network_registry import build_network
from diffusion.model.presets import PRESETS
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec
from diffusion.process.process_registry import ProcessConfig
from diffusion.system.section import fingerprint
from diffusion.train.train_config import TrainConfig
from tests.conftest import params
from tests.helpers.networks import network_of, randomise, spec_of
from tests.model.test_dit import specs as dit_specs


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(spec, batch: int = 2):
    x = randn(batch, *spec.shape)
    labels = torch.arange(batch) % spec.num_classes if spec.num_classes else None
    return x, torch.arange(batch) * 7, labels


@st.composite
def unet_specs(draw: st.DrawFn):
    mults = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    size = draw(st.integers(1, 3)) * 2 ** (len(mults) - 1) * draw(st.sampled_from([1, 2]))
    sizes = [size >> level for level in range(len(mults))]
    channels, in_channels = draw(st.sampled_from([4, 6, 8])), draw(st.integers(1, 4))
    patch, classes = (
        draw(st.sampled_from([{}, {}, {"patch_size": 2, "pixel_channels": 6}])),
        draw(st.booleans()),
    )
    choices = {
        "num_res_blocks": [1, 2],
        "embedding": ["adagn", "additive"] if channels == 6 else ["adagn"],
        "resample": ["biggan", "plain"],
        "block": ["resnet", "convnext"],
        "dropout": [0.0, 0.3],
        "group_channels": [1, 4],
        "image_size": [side := patch.get("patch_size", 1) * size, (side, 2 * side), (3 * side, side)],
        "out_channels": [in_channels, 2 * in_channels],
        "null_class": [False, classes],
        "augmented": [False, True],
    }
    return spec_of(
        channels=channels,
        channel_mult=tuple(mults),
        attention_resolutions=tuple(draw(st.sets(st.sampled_from(sizes)))),
        in_channels=in_channels,
        num_classes=3 * classes,
        **{"head_channels": None, **draw(st.sampled_from([{}, {"head_channels": 2}, {"heads": 2}]))},
        **patch,
        **{name: draw(st.sampled_from(values)) for name, values in choices.items()},
    )


@pytest.mark.slow
@given(unet_specs() | dit_specs)
def test_every_option_gives_output_shape_and_all_gradients(spec):
    network, augmentation = build_network(spec), randn(2, 9) if spec.augmented else None
    x, t, labels = inputs(spec)
    assert torch.equal(network.eval()(x, t, labels), torch.zeros(2, spec.out_channels, *x.shape[2:]))
    randomise(network)
    output = network.train()(x, t, labels, augmentation)
    assert output.shape == (2, spec.out_channels, *x.shape[2:])
    assert bool(torch.isfinite(output).all())
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert spec.least_parameters() <= count_parameters(spec)


@settings(max_examples=20)  # some rare network amplifies rounding: norms of few pixels
@given(unet_specs() | dit_specs, st.integers(0, 1))
def test_output_is_independent_of_rest_of_batch(spec, row):
    network = network_of(spec)
    x, t, labels = inputs(spec)
    single = network(x[row : row + 1], t[row : row + 1], None if labels is None else labels[row : row + 1])
    assert torch.allclose(network(x, t, labels)[row : row + 1], single, rtol=1e-4, atol=1e-4)


def test_invalid_specs_raise_validation_error():
    with pytest.raises(ValidationError, match="null_class needs classes"):
        spec_of(num_classes=0)
    with pytest.raises(ValidationError, match="one channel a group"):
        spec_of(embedding="additive")
    with pytest.raises(ValidationError, match=r"must be divisible by 8: .* patch_size is 4"):
        spec_of(image_size=12, patch_size=4)
    with pytest.raises(ValidationError, match="pixel_channels are of a patch_size above 1"):
        spec_of(pixel_channels=8)


def test_labels_are_required_only_by_conditional_networks():
    conditional, unconditional = spec_of(), spec_of(num_classes=0, null_class=False)
    x, t, labels = inputs(conditional)
    with pytest.raises(ValueError, match="needs labels"):
        network_of(conditional)(x, t, None)
    with pytest.raises(ValueError, match="takes none"):
        network_of(unconditional)(x, t, labels)


def test_gradient_checkpointing_gives_equal_gradients():
    gradients = []
    for checkpointing in (False, True):
        network = UNet(spec_of(gradient_checkpointing=checkpointing))
        randomise(network)
        network.train()(*inputs(network.spec)).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("block", ["resnet", "convnext"])
def test_dropout_is_active_only_in_training(block):
    network = UNet(spec_of(block=block, dropout=0.5))
    randomise(network)
    arguments = inputs(network.spec)
    assert torch.equal(network.eval()(*arguments), network(*arguments))
    torch.manual_seed(0)
    assert not torch.equal(network.train()(*arguments), network(*arguments))


@pytest.mark.parametrize("patch", [2, 4])
def test_stem_of_patches_is_a_convolution_of_their_pixels_as_channels(patch):
    spec = spec_of(patch_size=patch, image_size=8 * patch, attention_resolutions=(4,), in_channels=3)
    network, x = network_of(spec), inputs(spec)[0]
    weight = F.pixel_unshuffle(network.stem.weight, patch)
    found = F.conv2d(F.pixel_unshuffle(x, patch), weight, network.stem.bias, padding=1)
    torch.testing.assert_close(network.stem(x), found)


@pytest.mark.parametrize(("least", "groups"), [(1, {8, 16}), (4, {2, 4}), (5, {1, 2}), (100, {1})])
def test_norms_have_groups_of_at_least_so_many_channels(least, groups):
    network = network_of(spec_of(channels=8, group_channels=least))
    norms = [module for module in network.modules() if isinstance(module, GroupNorm)]
    assert {norm.num_groups for norm in norms if norm.num_channels in (8, 16)} == groups


# Parameter counts from papers and file names, in millions, and their relative rounding error.
PUBLISHED = {
    "adm-64": (296, 0.002),
    "adm-128": (422, 0.002),
    "adm-256": (554, 0.002),
    "adm-64-to-256": (312, 0.002),
    "adm-128-to-512": (309, 0.002),
    "iddpm-imagenet64": (120, 0.01),
    "iddpm-cifar10": (50, 0.06),
    "ddpm-cifar10": (35.7, 0.002),
}


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts_match_papers(name):
    preset, (millions, rounding) = PRESETS[name], PUBLISHED[name]
    learned = ProcessConfig(**preset.process).variance == "learned"
    data = {"image_size": preset.image_size, "in_channels": 3, "num_classes": preset.num_classes}
    found = count_parameters(UNetSpec(**preset.model, **data, out_channels=6 if learned else 3))
    assert found == preset.parameters
    assert found / 1e6 == pytest.approx(millions, rel=rounding)
    assert str(millions) in preset.source
    assert TrainConfig(**preset.train).steps > 100_000


def with_model(**model: Any) -> Config:
    return parse({**params(), "model": model}, "params.yaml")


def test_preset_equals_explicit_model_section_and_keys_override_it():
    config = with_model(preset="adm-64")
    assert config.model == with_model(**PRESETS["adm-64"].model).model
    assert config.model.channels == 192
    assert "preset" not in config.model.model_dump()
    assert fingerprint(config) == fingerprint(with_model(**PRESETS["adm-64"].model))
    assert with_model(preset="adm-64", dropout=0.0, channels=64).model.channels == 64
    heads = with_model(preset="adm-64", heads=4).model
    assert (heads.heads, heads.head_channels) == (4, None)
