"""What a network takes from another one: the rules keep what the start says, or refuse by name."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.model.unet import UNet
from diffusion.model.weight_transfer import Incompatible, Source, Transferred, transfer, transfer_unchanged
from tests.helpers.networks import network_of, spec_of

T = torch.tensor([0, 40, 99])
NAMES = tuple(f"class{number}" for number in range(10))


def begun(classes: tuple[str, ...] = NAMES, start: dict[str, Any] | None = None, **wanted: Any):
    """The start, the network that has taken its weights, and what was taken."""
    trained = network_of(spec_of(**(start or {})))
    spec = spec_of(**{"num_classes": len(classes), "null_class": bool(classes), **wanted})
    network = UNet(spec).eval().requires_grad_(False)
    names = NAMES[: trained.spec.num_classes]
    taken = transfer(Source(trained.state_dict(), trained.spec, names), spec, classes, network.state_dict())
    network.load_state_dict(taken.weights)
    return trained, network, taken


def images(network: UNet, channels: int | None = None) -> Tensor:
    size = network.spec.image_size
    return torch.randn(3, channels or network.spec.in_channels, size, size)


def labels(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_same_shape_takes_all_weights():
    start, network, taken = begun()
    assert taken.new == frozenset()
    x = images(start)
    assert torch.equal(network(x, T, labels(3, 0, 10)), start(x, T, labels(3, 0, 10)))


def test_the_layer_that_is_told_of_augmentation_comes_and_goes():
    x, seen = torch.randn(3, 1, 8, 8), labels(3, 0, 10)
    start, network, taken = begun(start={"augmented": True})
    assert taken.new == frozenset()
    assert torch.equal(network(x, T, seen), start(x, T, seen)), "left out it is missed by nobody"
    start, network, taken = begun(augmented=True)
    assert taken.new == {"augmentation.weight"}
    assert torch.equal(network(x, T, seen, torch.ones(3, 9)), start(x, T, seen)), "it begins as zeros"
    start, network, taken = begun(start={"augmented": True}, augmented=True)
    assert taken.new == frozenset()
    assert torch.equal(network(x, T, seen, torch.ones(3, 9)), start(x, T, seen, torch.ones(3, 9)))


def test_classes_are_taken_by_name_and_others_begin_as_no_class():
    start, network, taken = begun(("class7", "boats", "class2"))
    x = images(start)
    assert torch.equal(network(x, T, labels(0, 1, 2)), start(x, T, labels(7, 10, 2)))
    assert torch.equal(network(x, T, labels(3, 3, 3)), start(x, T, labels(10, 10, 10))), "the empty label"
    assert taken.new == {"classes.weight"}


def test_without_an_empty_label_no_class_is_the_mean_of_all():
    start, network, _ = begun(("boats",), start={"null_class": False})
    mean = start.classes.weight.mean(dim=0)
    assert all(torch.equal(row, mean) for row in network.classes.weight)


@pytest.mark.parametrize("null_class", [True, False])
def test_an_unconditional_network_says_what_the_start_says_of_no_class(null_class):
    start, network, taken = begun((), start={"null_class": null_class})
    x = images(start)
    if not null_class:
        start.classes.weight[0] = start.classes.weight.mean(dim=0)
    assert close(network(x, T), start(x, T, labels(*[10 if null_class else 0] * 3)))
    assert taken.new == frozenset()


def test_every_class_of_an_unconditional_start_begins_as_it():
    start, network, taken = begun(("a", "b"), start={"num_classes": 0, "null_class": False})
    x = images(start)
    assert close(network(x, T, labels(0, 1, 2)), start(x, T))
    assert taken.new == {"classes.weight"}


def test_a_grey_picture_in_rgb_is_seen_and_answered_as_in_grey():
    start, network, _ = begun(in_channels=3, out_channels=6)
    x, of = images(start), labels(1, 2, 3)
    grey, rgb = start(x, T, of), network(x.repeat(1, 3, 1, 1), T, of)
    assert close(rgb, grey.repeat_interleave(3, dim=1)), "predictions first, then the variances"


def test_a_grey_network_says_the_mean_of_what_the_rgb_start_says_of_a_grey_picture():
    start, network, _ = begun(start={"in_channels": 3, "out_channels": 6})
    x, of = images(network), labels(1, 2, 3)
    said = start(x.repeat(1, 3, 1, 1), T, of)
    assert close(network(x, T, of), torch.stack([said[:, :3].mean(1), said[:, 3:].mean(1)], dim=1))


def test_a_learned_variance_is_left_out_or_begins_as_drawn():
    start, network, _ = begun(out_channels=1)
    x, of = images(start), labels(1, 2, 3)
    assert close(network(x, T, of), start(x, T, of)[:, :1])
    start, network, _ = begun(start={"out_channels": 1})
    said = network(x, T, of)
    assert close(said[:, :1], start(x, T, of))
    assert not said[:, 1:].any(), "the head is drawn as zero"


def test_larger_images_with_attention_at_the_same_levels():
    start, network, _ = begun(image_size=16, attention_resolutions=(8,))
    assert all(torch.equal(own, start.state_dict()[name]) for name, own in network.state_dict().items())
    assert network(images(network), T, labels(0, 1, 2)).shape == (3, 2, 16, 16)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"channels": 16}, r"model\.channels is 16, and the start has 8"),
        ({"channel_mult": (1, 1)}, r"model\.channel_mult is \[1, 1\], and the start has \[1, 2\]"),
        ({"head_channels": None, "heads": 1}, r"model\.head"),
        ({"time_scale": 0.5}, r"model\.time_scale is 0\.5, and the start has 1\.0"),
        (
            {"image_size": 16, "attention_resolutions": (16,)},
            r"the start has decoder\.0\.1\.\w+\.\w+, which the network does not know",
        ),
        (
            {"attention_resolutions": ()},
            r"the start has \w+\.\d\.1\.\w+\.\w+, which the network does not know",
        ),
        ({"in_channels": 2, "out_channels": 4}, "2 channels and the start's 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(wanted, said):
    with pytest.raises(Incompatible, match=said):
        begun(**wanted)


def test_two_classes_of_one_name_are_refused():
    network = network_of(spec_of())
    start = Source(network.state_dict(), network.spec, ("a",) * 10)
    with pytest.raises(Incompatible, match="names two classes alike"):
        transfer(start, network.spec, NAMES, network.state_dict())


def test_without_values_it_is_refused_alike():
    with torch.device("meta"):
        start, network = UNet(spec_of()), UNet(spec_of(channels=16))
        with pytest.raises(Incompatible, match=r"model\.channels"):
            transfer(Source(start.state_dict(), start.spec, NAMES), network.spec, NAMES, network.state_dict())
        taken = transfer(
            Source(start.state_dict(), start.spec, NAMES), start.spec, ("x",) * 10, start.state_dict()
        )
    assert {name: one.shape for name, one in taken.weights.items()} == {
        name: one.shape for name, one in start.state_dict().items()
    }


def test_a_network_without_a_rule_takes_equal_shapes_and_classes_alone():
    network = network_of(spec_of())
    start = Source(network.state_dict(), network.spec, NAMES)
    assert transfer_unchanged(start, network.spec, NAMES, network.state_dict()) == Transferred(
        dict(start.weights)
    )
    with pytest.raises(Incompatible, match="same classes in the same order"):
        transfer_unchanged(start, network.spec, NAMES[::-1], network.state_dict())
    fewer = {name: one for name, one in network.state_dict().items() if name != "stem.bias"}
    with pytest.raises(Incompatible, match=r"the start has stem\.bias, which the network does not know"):
        transfer_unchanged(start, network.spec, NAMES, fewer)
    other = {**network.state_dict(), "stem.bias": torch.zeros(3)}
    with pytest.raises(Incompatible, match=r"stem\.bias has shape \(8,\) in the start"):
        transfer_unchanged(start, network.spec, NAMES, other)
