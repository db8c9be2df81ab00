"""UNet: shapes for every option, conditioning, attention and resampling against reference formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from diffusion.model.blocks import (
    Attention,
    Conditioning,
    GroupNorm,
    ResBlock,
    resample,
)
from diffusion.model.embedding import timestep_embedding
from diffusion.model.unet import UNet
from tests.helpers.networks import network_of, randomise, spec_of


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(spec, batch: int = 2):
    x = randn(batch, spec.in_channels, spec.image_size, spec.image_size)
    labels = torch.arange(batch) % spec.num_classes if spec.num_classes else None
    return x, torch.arange(batch) * 7, labels


@st.composite
def specs(draw: st.DrawFn):
    levels = draw(st.integers(1, 3))
    size = draw(st.integers(1, 3)) * 2 ** (levels - 1) * draw(st.sampled_from([1, 2]))
    sizes = [size >> level for level in range(levels)]
    patch = draw(st.sampled_from([1, 1, 2]))
    channels = draw(st.sampled_from([4, 6, 8]))
    heads = draw(st.sampled_from([{}, {"head_channels": 2}, {"heads": 2}]))
    in_channels = draw(st.integers(1, 4))
    classes = draw(st.sampled_from([0, 3]))
    return spec_of(
        channels=channels,
        channel_mult=tuple(draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels))),
        num_res_blocks=draw(st.integers(1, 2)),
        attention_resolutions=tuple(draw(st.sets(st.sampled_from(sizes)))),
        **{"head_channels": None, **heads},
        embedding=draw(st.sampled_from(["adagn", "additive"] if channels == 6 else ["adagn"])),
        resample=draw(st.sampled_from(["biggan", "plain"])),
        block=draw(st.sampled_from(["resnet", "convnext"])),
        dropout=draw(st.sampled_from([0.0, 0.3])),
        patch_size=patch,
        group_channels=draw(st.sampled_from([1, 4])),
        **({"pixel_channels": 6} if patch > 1 else {}),
        image_size=patch * size,
        in_channels=in_channels,
        out_channels=in_channels * draw(st.integers(1, 2)),
        num_classes=classes,
        null_class=bool(classes) and draw(st.booleans()),
    )


@settings(deadline=None, max_examples=60)
@given(specs())
def test_every_option_gives_output_shape_and_all_gradients(spec):
    network = UNet(spec)
    x, t, labels = inputs(spec)
    assert torch.equal(network.eval()(x, t, labels), torch.zeros(2, spec.out_channels, *x.shape[2:]))
    randomise(network)
    output = network(x, t, labels)
    assert output.shape == (2, spec.out_channels, spec.image_size, spec.image_size)
    assert bool(torch.isfinite(output).all())
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@settings(deadline=None, max_examples=20)
@given(specs(), st.integers(0, 1))
def test_output_is_independent_of_rest_of_batch(spec, row):
    network = network_of(spec)
    x, t, labels = inputs(spec)
    single = network(x[row : row + 1], t[row : row + 1], None if labels is None else labels[row : row + 1])
    assert torch.allclose(network(x, t, labels)[row : row + 1], single, rtol=1e-4, atol=1e-4)


def test_invalid_specs_raise_validation_error():
    with pytest.raises(ValidationError, match="must be divisible by 4"):
        spec_of(image_size=30, channel_mult=(1, 2, 2))
    with pytest.raises(ValidationError, match=r"\[5\] cannot be used"):
        spec_of(attention_resolutions=(5,))
    with pytest.raises(ValidationError, match="does not divide"):
        spec_of(head_channels=3)
    with pytest.raises(ValidationError, match="exclude each other"):
        spec_of(heads=2)
    with pytest.raises(ValidationError, match="null_class needs classes"):
        spec_of(num_classes=0)
    with pytest.raises(ValidationError, match="one channel a group"):
        spec_of(embedding="additive")
    with pytest.raises(ValidationError, match="must be divisible by 8: channel_mult has 2 levels of"):
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


@pytest.mark.parametrize("changes", [{}, {"embedding": "additive", "channels": 48, "head_channels": 16}])
def test_timestep_class_and_null_class_change_output(changes):
    spec = spec_of(**changes)
    network = network_of(spec)
    x, t, labels = inputs(spec)
    base = network(x, t, labels)
    assert not torch.allclose(base, network(x, t + 1, labels))
    assert not torch.allclose(base, network(x, t, labels + 1))
    assert not torch.allclose(base, network(x, t, torch.full_like(labels, spec.num_classes)))
    with pytest.raises(IndexError):
        network(x, t, torch.full_like(labels, spec.num_classes + 1))


@pytest.mark.parametrize("block", ["resnet", "convnext"])
def test_gradient_checkpointing_gives_equal_gradients(block):
    gradients = []
    for checkpointing in (False, True):
        network = UNet(spec_of(block=block, gradient_checkpointing=checkpointing))
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


@pytest.mark.parametrize("width", [2, 7, 8, 128])
def test_timestep_embedding_is_sinusoidal(width):
    embedding = timestep_embedding(torch.tensor([0, 3, 999]), width)
    half = width // 2
    for row, t in enumerate((0, 3, 999)):
        for k in range(half):
            angle = t * 10_000 ** (-k / half)
            assert float(embedding[row, k]) == pytest.approx(math.cos(angle), abs=2e-4)
            assert float(embedding[row, half + k]) == pytest.approx(math.sin(angle), abs=2e-4)
    assert embedding.shape == (3, width)


@settings(deadline=None)
@given(st.integers(1, 600))
def test_group_norm_uses_32_groups_or_a_divisor(channels):
    groups = GroupNorm(channels).num_groups
    assert channels % groups == 0
    assert groups <= 32
    assert groups == 32 or channels % 32 != 0


@pytest.mark.parametrize(("least", "groups"), [(1, {8, 16}), (4, {2, 4}), (5, {1, 2}), (100, {1})])
def test_norms_have_groups_of_at_least_so_many_channels(least, groups):
    network = network_of(spec_of(channels=8, group_channels=least))
    norms = [module for module in network.modules() if isinstance(module, GroupNorm)]
    assert {norm.num_groups for norm in norms if norm.num_channels in (8, 16)} == groups
    x, t, labels = inputs(network.spec)
    assert network(x, t, labels).isfinite().all()


def test_adaptive_group_norm_scales_and_shifts_the_norm():
    module = Conditioning(8, 5, "adagn")
    randomise(module)
    h, embedding = randn(2, 8, 3, 3), randn(2, 5, seed=1)
    scale, shift = module.project(embedding)[:, :, None, None].chunk(2, 1)
    assert torch.allclose(module(h, embedding), module.norm(h) * (1 + scale) + shift, atol=1e-5)


def test_additive_embedding_is_added_before_the_norm():
    module = Conditioning(8, 5, "additive")
    randomise(module)
    h, embedding = randn(2, 8, 3, 3), randn(2, 5, seed=1)
    expected = module.norm(h + module.project(embedding)[:, :, None, None])
    assert torch.allclose(module(h, embedding), expected, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_softmax_of_scaled_products_per_head(heads):
    module = Attention(8, heads)
    randomise(module)
    x = randn(2, 8, 3, 5)
    qkv = F.conv2d(module.norm(x), module.qkv.weight, module.qkv.bias).flatten(2)
    expected = torch.zeros(2, 8, 15)
    width = 8 // heads
    for head in range(heads):
        q, k, v = (qkv[:, part * 8 + head * width : part * 8 + (head + 1) * width] for part in range(3))
        weights = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(width), -1)
        expected[:, head * width : (head + 1) * width] = torch.einsum("bqk,bck->bcq", weights, v)
    out = x + F.conv2d(expected.reshape(x.shape), module.project.weight, module.project.bias)
    assert torch.allclose(module(x, None), out, atol=1e-4)


@pytest.mark.parametrize("resampling", ["none", "up", "down"])
def test_residual_block_resamples_both_branches(resampling):
    block = ResBlock(4, 8, 5, resampling=resampling)
    randomise(block)
    x, embedding = randn(2, 4, 6, 6), randn(2, 5, seed=1)
    h = block.conv_in(resample(F.silu(block.norm_in(x)), resampling))
    h = block.conv_out(F.silu(block.condition(h, embedding)))
    assert torch.allclose(block.eval()(x, embedding), block.skip(resample(x, resampling)) + h, atol=1e-5)


def test_attention_is_at_configured_resolutions():
    def count(*attention: int) -> int:
        spec = spec_of(
            channel_mult=(1, 2, 2), image_size=16, num_res_blocks=2, attention_resolutions=attention
        )
        return sum(isinstance(module, Attention) for module in UNet(spec).modules())

    assert count() == 1  # the middle always has one
    assert count(16) == count(8) == count(4) == 1 + 2 + 3  # two blocks down, three up
    assert count(16, 8, 4) == 1 + 3 * 5
