"""Weight transfer: the rules preserve the outputs of the pretrained network, or raise an error."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.model.network_registry import build_network
from diffusion.model.unet import UNet
from diffusion.model.weight_transfer import (
    Incompatible,
    Transferred,
    TransferSource,
    transfer,
    transfer_unchanged,
)
from tests.helpers.networks import network_of, spec_of
from tests.model.test_dit import spec_of as dit

T = torch.tensor([0, 40, 99])
NAMES = tuple(f"class{number}" for number in range(10))


def build_from_pretrained(classes=NAMES, pretrained_spec=None, kind=spec_of, **changes: Any):
    """Return the pretrained network, a network with the transferred weights, and the transfer result."""
    pretrained = network_of(kind(**(pretrained_spec or {})))
    spec = kind(**{"num_classes": len(classes), "null_class": bool(classes), **changes})
    network = build_network(spec).eval().requires_grad_(False)
    source = TransferSource(pretrained.state_dict(), pretrained.spec, NAMES[: pretrained.spec.num_classes])
    result = transfer(source, spec, classes, network.state_dict())
    network.load_state_dict(result.weights)
    return pretrained, network, result


def images(network) -> Tensor:
    return torch.randn(3, *network.spec.shape)


def labels(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True), (True, True)])
def test_augmentation_layer_can_be_dropped_or_added_without_effect(before, after):
    pretrained, network, result = build_from_pretrained(
        pretrained_spec={"augmented": before}, augmented=after
    )
    assert result.new == ({"augmentation.weight"} if after and not before else frozenset())
    inputs, condition = (images(network), T, labels(3, 0, 10)), torch.ones(3, 9)
    expected = pretrained(*inputs, condition if before and after else None)
    assert torch.equal(network(*inputs, condition if after else None), expected)


def test_classes_transfer_by_name_and_new_ones_copy_null_class():
    pretrained, network, result = build_from_pretrained(("class7", "boats", "class2"))
    x = images(pretrained)
    assert torch.equal(network(x, T, labels(0, 1, 2)), pretrained(x, T, labels(7, 10, 2)))
    assert torch.equal(network(x, T, labels(3, 3, 3)), pretrained(x, T, labels(10, 10, 10))), "the null class"
    assert result.new == {"classes.weight"}


@pytest.mark.parametrize("null_class", [True, False])
def test_unconditional_network_matches_null_class_of_pretrained(null_class):
    pretrained, network, result = build_from_pretrained((), pretrained_spec={"null_class": null_class})
    x = images(pretrained)
    if not null_class:
        pretrained.classes.weight[0] = pretrained.classes.weight.mean(dim=0)
    assert close(network(x, T), pretrained(x, T, labels(*[10 if null_class else 0] * 3)))
    assert result.new == frozenset()


def test_classes_of_unconditional_pretrained_match_its_output():
    pretrained, network, result = build_from_pretrained(
        ("a", "b"), pretrained_spec={"num_classes": 0, "null_class": False}
    )
    x = images(pretrained)
    assert close(network(x, T, labels(0, 1, 2)), pretrained(x, T))
    assert result.new == {"classes.weight"}


@pytest.mark.parametrize(
    ("patch", "kind"),
    [({}, spec_of), ({"patch_size": 2, "attention_resolutions": ()}, spec_of), ({}, dit)],
)
def test_grey_to_rgb_repeats_output_for_grey_image(patch, kind):
    pretrained, network, _ = build_from_pretrained(
        pretrained_spec=patch, kind=kind, **patch, in_channels=3, out_channels=6
    )
    x, y = images(pretrained), labels(1, 2, 3)
    grey, rgb = pretrained(x, T, y), network(x.repeat(1, 3, 1, 1), T, y)
    assert close(rgb, grey.repeat_interleave(3, dim=1)), "predictions first, then the variances"


def test_rgb_to_grey_averages_output_for_grey_image():
    pretrained, network, _ = build_from_pretrained(pretrained_spec={"in_channels": 3, "out_channels": 6})
    x, y = images(network), labels(1, 2, 3)
    rgb = pretrained(x.repeat(1, 3, 1, 1), T, y)
    assert close(network(x, T, y), torch.stack([rgb[:, :3].mean(1), rgb[:, 3:].mean(1)], dim=1))


@pytest.mark.parametrize("kind", [spec_of, dit])
def test_learned_variance_is_dropped_or_initialized(kind):
    pretrained, network, _ = build_from_pretrained(kind=kind, out_channels=1, augmented=True)
    x, y = images(pretrained), labels(1, 2, 3)
    assert close(network(x, T, y), pretrained(x, T, y)[:, :1])
    pretrained, network, _ = build_from_pretrained(kind=kind, pretrained_spec={"out_channels": 1})
    output = network(x, T, y)
    assert close(output[:, :1], pretrained(x, T, y))
    assert not output[:, 1:].any(), "the head is initialized to zero"


@pytest.mark.parametrize(("kind", "changes"), [(spec_of, {"attention_resolutions": (8,)}), (dit, {})])
def test_larger_image_size_transfers_all_weights(kind, changes):
    pretrained, network, _ = build_from_pretrained(kind=kind, image_size=16, **changes)
    assert all(
        torch.equal(weight, pretrained.state_dict()[name]) for name, weight in network.state_dict().items()
    )
    assert network(images(network), T, labels(0, 1, 2)).shape == (3, 2, 16, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 16}, r"model\.channels is 16, and the pretrained model has 8"),
        ({"head_channels": None, "heads": 1}, r"model\.head"),
        ({"time_scale": 0.5}, r"model\.time_scale is 0\.5, and the pretrained model has 1\.0"),
        (
            {"image_size": 16, "attention_resolutions": (16,)},
            r"decoder\.0\.1\.\w+\.\w+ is \(.*\) in the pretrained model, and missing",
        ),
        ({"kind": dit, "patch_size": 4}, r"model\.patch_size is 4, and the pretrained model has 2"),
        ({"in_channels": 2, "out_channels": 4}, "2 channels and a pretrained model of 1"),
    ],
)
def test_error_names_incompatible_option(changes, message):
    with pytest.raises(Incompatible, match=message):
        build_from_pretrained(**changes)


def test_transfer_works_on_meta_device():
    with torch.device("meta"):
        pretrained, network = UNet(spec_of()), UNet(spec_of(channels=16))
        weights = pretrained.state_dict()
        source = TransferSource(weights, pretrained.spec, NAMES)
        with pytest.raises(Incompatible, match=r"model\.channels"):
            transfer(source, network.spec, NAMES, network.state_dict())
        result = transfer(source, pretrained.spec, ("x",) * 10, weights)
    shapes, wanted = ({name: one.shape for name, one in each.items()} for each in (result.weights, weights))
    assert shapes == wanted


def test_transfer_unchanged_requires_equal_shapes_and_classes():
    network = network_of(spec_of())
    source = TransferSource(network.state_dict(), network.spec, NAMES)
    assert transfer_unchanged(source, network.spec, NAMES, network.state_dict()) == Transferred(
        dict(source.weights)
    )
    with pytest.raises(Incompatible, match="same classes in the same order"):
        transfer_unchanged(source, network.spec, NAMES[::-1], network.state_dict())
    fewer = {name: weight for name, weight in network.state_dict().items() if name != "stem.bias"}
    with pytest.raises(Incompatible, match=r"stem\.bias is \(8,\) .* and missing in the network"):
        transfer_unchanged(source, network.spec, NAMES, fewer)
    other = {**network.state_dict(), "stem.bias": torch.zeros(3)}
    with pytest.raises(Incompatible, match=r"stem\.bias is \(8,\) in the pretrained model, and \(3,\)"):
        transfer_unchanged(source, network.spec, NAMES, other)
