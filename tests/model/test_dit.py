"""DiT: published sizes, identity at initialisation, patches and positions, a torch oracle for a block."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from diffusion.config import parse
from diffusion.model.counted_passes import count_parameters, forward_flops
from diffusion.model.dit import NORM_EPS, DiT, DiTBlock, grid_positions
from diffusion.model.dit_config import DiTSpec
from diffusion.model.model_file import load_model, save_artefact
from diffusion.model.precision import autocast, freeze, to_bf16
from diffusion.model.presets import DIT_SIZES
from diffusion.model.unet_config import UNetSpec
from diffusion.system.errors import UsageError
from tests.conftest import params
from tests.helpers.networks import artefact_of, network_of, randomise

# 2212.09748, table 4, at 32×32×4: parameters in millions; billions of products.
MILLIONS = {"s": 33, "b": 131, "l": 459, "xl": 676}
PRODUCTS = {
    ("s", 8): 0.36, ("s", 4): 1.41, ("s", 2): 6.06, ("b", 8): 1.42, ("b", 4): 5.56, ("b", 2): 23.01,
    ("l", 8): 5.01, ("l", 4): 19.70, ("l", 2): 80.71, ("xl", 8): 7.39, ("xl", 4): 29.05, ("xl", 2): 118.64,
}  # fmt: skip
LATENTS = {"image_size": 32, "in_channels": 4, "out_channels": 8, "num_classes": 1000, "null_class": True}
T = torch.tensor([3, 70, 999])


def spec_of(**changes: Any) -> DiTSpec:
    """Return a small conditional DiT for 8×8 images with a learned variance."""
    channels, classes = changes.get("in_channels", 1), changes.get("num_classes", 10)
    shape = {"patch_size": 2, "width": 24, "depth": 2, "heads": 3, "mlp_ratio": 2.0}
    data = {"image_size": 8, "in_channels": channels, "out_channels": 2 * channels, "num_classes": classes}
    return DiTSpec(name="dit", **{**shape, **data, "null_class": classes > 0, **changes})


specs = st.builds(
    spec_of, patch_size=st.sampled_from([1, 2, 4]), depth=st.integers(1, 3), heads=st.sampled_from([1, 3, 4]),
    mlp_ratio=st.sampled_from([1.0, 2.5, 4]), dropout=st.sampled_from([0.0, 0.3]), augmented=st.booleans(),
    gradient_checkpointing=st.booleans(), num_classes=st.sampled_from([0, 10]), in_channels=st.integers(1, 4),
    image_size=st.sampled_from([8, (8, 16), (12, 4)]),
)  # fmt: skip


def inputs(spec: DiTSpec) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    x = torch.randn(3, *spec.shape, generator=torch.Generator().manual_seed(0))
    return x, T, torch.tensor([0, 5, 2]) if spec.num_classes else None


@pytest.mark.parametrize(("size", "patch"), PRODUCTS)
def test_published_sizes_have_the_papers_parameters_and_flops(size: str, patch: int) -> None:
    published = DIT_SIZES[f"dit-{size}"]
    spec = DiTSpec(name="dit", preset=f"dit-{size}", patch_size=patch, **LATENTS)
    width, depth = spec.width, spec.depth
    block = 18 * width**2 + 15 * width
    ends = (4 * patch**2 + 1) * width + 2 * width * (width + 1) + (width + 1) * 8 * patch**2
    embedding = 257 * width + (width + 1) * width + 1001 * width
    assert count_parameters(spec) == depth * block + ends + embedding
    assert count_parameters(spec) / 1e6 == pytest.approx(MILLIONS[size], rel=0.007)
    assert spec.least_parameters() <= count_parameters(spec)
    if patch == 2:
        assert published.parameters == count_parameters(spec)
        assert f"{published.parameters / 1e6:.0f}M" in published.source
    if (size, patch) in (("s", 8), ("xl", 2)):
        assert forward_flops(spec) / 2e9 == pytest.approx(PRODUCTS[size, patch], rel=0.006)


def test_each_block_is_the_identity_at_initialisation() -> None:
    network = DiT(spec_of())
    x, embedding = torch.randn(3, 16, 24), torch.randn(3, 24)
    assert all(torch.equal(block(x, embedding), x) for block in network.blocks)


def test_a_patch_is_written_where_it_was_read() -> None:
    """At initialisation no token depends on another one, so that only the changed patch changes."""
    network = DiT(spec_of(patch_size=4, in_channels=3))
    nn.init.normal_(network.head.weight)
    x, t, labels = inputs(network.spec)
    changed = x.clone()
    changed[:, 1, 5, 2] += 1
    differs = (network(changed, t, labels) != network(x, t, labels)).all(dim=1)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[4:, :4] = True
    assert all(torch.equal(row, expected) for row in differs)


def test_a_block_is_a_pre_norm_transformer_layer_where_nothing_is_modulated() -> None:
    """Scale and shift 0 and gate 1 give torch's own layer without the norms' weights; gate 2 doubles."""
    block = DiTBlock(spec_of())
    gelu = partial(F.gelu, approximate="tanh")
    theirs = nn.TransformerEncoderLayer(
        24, 3, 48, 0.0, gelu, layer_norm_eps=NORM_EPS, batch_first=True, norm_first=True
    )
    randomise(block)
    nn.init.zeros_(block.modulation.weight)
    with torch.no_grad():
        block.modulation.bias.view(6, 24).copy_(torch.tensor([0, 0, 1, 0, 0, 2])[:, None])
    pairs = {
        "self_attn.in_proj_weight": block.qkv.weight, "self_attn.in_proj_bias": block.qkv.bias,
        "self_attn.out_proj.weight": block.project.weight, "self_attn.out_proj.bias": block.project.bias,
        "linear1.weight": block.expand.weight, "linear1.bias": block.expand.bias,
        "linear2.weight": 2 * block.contract.weight, "linear2.bias": 2 * block.contract.bias,
    }  # fmt: skip
    theirs.load_state_dict({**theirs.state_dict(), **pairs})
    x = torch.randn(3, 16, 24)
    assert torch.allclose(block(x, torch.randn(3, 24)), theirs(x), atol=1e-5)


def test_positions_are_distinct_and_a_larger_grid_extends_a_smaller_one() -> None:
    small, large = (grid_positions(size, 24, torch.device("cpu")) for size in ((4, 5), (7, 7)))
    assert torch.equal(small, large.view(7, 7, 24)[:4, :5].flatten(0, 1))
    assert len({tuple(row.tolist()) for row in large}) == 49
    assert torch.cdist(large, large)[~torch.eye(49, dtype=torch.bool)].min() > 0.5


def test_output_depends_on_time_class_and_position() -> None:
    network = network_of(spec_of())
    x, t, labels = inputs(network.spec)
    output = network(x, t, labels)
    for changed in ((x, t + 1, labels), (x, t, labels + 1), (x, t, torch.full_like(labels, 10))):
        assert not torch.allclose(network(*changed), output, atol=1e-4)
    assert not torch.allclose(network(x.roll(2, 2), t, labels), output.roll(2, 2), atol=1e-3)


def test_bf16_keeps_the_first_and_the_last_layer_in_float32() -> None:
    network = freeze(network_of(spec_of(width=96)))
    x, t, labels = inputs(network.spec)
    exact, rounded = network(x, t, labels), autocast(network, "bf16")(x, t, labels)
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().max() / exact.abs().max()) < 0.05
    layers = [one for one in to_bf16(network).named_modules() if isinstance(one[1], nn.Linear | nn.Conv2d)]
    assert {name for name, one in layers if one.weight.dtype == torch.float32} == {"stem", "head"}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network.head(torch.randn(3, 16, 96).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "patch_size 3 must divide image_size 8"),
        ({"width": 30}, "width must be divisible by 4"),
        ({"heads": 5}, "heads must divide width, and 5 does not divide 24"),
        ({"mlp_ratio": 0.5}, "mlp_ratio"),
        ({"preset": "dit-m"}, r"preset: allowed are dit-s, .* \(got 'dit-m'; did you mean dit-"),
        ({"preset": "adm-64"}, r"preset: allowed are dit-s"),
        ({"channels": 32}, "dit has no such option; it belongs to unet"),
    ],
)
def test_invalid_options_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec_of(**changes)


def test_a_classifier_is_a_unet_alone() -> None:
    values = params(classifier={"model": {"name": "dit"}, "train": {"steps": 1, "batch_size": 1, "lr": 0.1}})
    with pytest.raises(UsageError, match=r"classifier\.model\.name: it must be unet here \(got dit\)"):
        parse(values, "params.yaml")
    with pytest.raises(ValidationError, match="it must be unet here"):
        UNetSpec(**spec_of().model_dump())


def test_a_model_file_holds_the_weights_and_no_positions(tmp_path: Path) -> None:
    network = network_of(spec_of())
    save_artefact(tmp_path / "m.safetensors", network.state_dict(), artefact_of(network.spec))
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.artefact.network == network.spec
    assert torch.equal(loaded.network(*inputs(network.spec)), network(*inputs(network.spec)))
    assert loaded.network.state_dict().keys() == {name for name, _ in network.named_parameters()}
