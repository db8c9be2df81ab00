"""Networks that enlarge an image: what they see of it, and what they refuse."""

import pytest
import torch
from pydantic import ValidationError

from diffusion.model.network_registry import NetworkSpec, build_network
from diffusion.process.denoiser import shrink
from tests.helpers.networks import network_of, randomise, spec_of
from tests.model.test_dit import spec_of as dit_spec

LOW_RES = {"low_res": 4, "cond_noise": 0.5}
T, LABELS, LEVELS = torch.tensor([3, 500]), torch.tensor([1, 10]), torch.tensor([0.1, 0.4])


def test_means_over_blocks_are_enlarged_bilinearly():
    image = torch.tensor([0.0, 2.0, 4.0, 8.0]).expand(1, 1, 4, 4)
    small = shrink(image, (2, 2))
    assert small.tolist() == [[[[1.0, 6.0]] * 2]]
    network = build_network(spec_of(image_size=4, low_res=2, attention_resolutions=()))
    joined = network.join(image, small)
    assert torch.equal(joined[:, :1], image)
    assert joined[0, 1].tolist() == [[1.0, 0.75 * 1 + 0.25 * 6, 0.25 * 1 + 0.75 * 6, 6.0]] * 4


@pytest.mark.parametrize(
    "spec",
    [spec_of(**LOW_RES), spec_of(patch_size=2, attention_resolutions=(), **LOW_RES), dit_spec(**LOW_RES)],
    ids=["unet", "patches", "dit"],
)
def test_the_output_depends_on_each_images_own_condition(spec: NetworkSpec):
    network = network_of(spec)
    x, low_res = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 4, 4)
    output = network(x, T, LABELS, low_res=low_res, noise_level=LEVELS)
    alone = [
        network(x[i:][:1], T[i:][:1], LABELS[i:][:1], low_res=low_res[i:][:1], noise_level=LEVELS[i:][:1])
        for i in (0, 1)
    ]
    assert torch.allclose(output, torch.cat(alone), rtol=1e-4, atol=1e-4)
    for changed in ({"low_res": low_res + 0.1}, {"noise_level": LEVELS + 0.1}):
        other = network(x, T, LABELS, **{"low_res": low_res, "noise_level": LEVELS, **changed})
        assert not torch.allclose(output, other, rtol=1e-3)
    for missing in ({"low_res": low_res}, {"noise_level": LEVELS}):
        with pytest.raises(ValueError, match="another one takes none"):
            network(x, T, LABELS, **missing)


def test_a_new_network_ignores_the_level_and_other_networks_are_as_before():
    network = build_network(spec_of(**LOW_RES))
    randomise(network.head)
    x, low_res = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 4, 4)
    outputs = [network(x, T, LABELS, low_res=low_res, noise_level=level) for level in (LEVELS, LEVELS + 1)]
    assert torch.equal(*outputs)
    assert not {"low_res", "cond_noise"} & spec_of().model_dump().keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low_res": 3}, "low_res: 3×3 does not give image_size 8×8 by a whole factor of at least 2"),
        ({"low_res": 8}, "low_res: 8×8 does not give"),
        ({"low_res": [2, 4]}, "low_res: 2×4 does not give"),
        ({"cond_noise": 0.1}, "cond_noise 0.1 is noise on a low-resolution image: set low_res"),
    ],
)
def test_sides_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        spec_of(**changes)
