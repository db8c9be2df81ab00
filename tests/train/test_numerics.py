"""Numbers that must not change: golden loss curves, and bf16 against fp32.

`python -m tests.train.test_numerics` writes new golden curves, for an intended change.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from diffusion.config import parse
from diffusion.images.store import ImageStore
from diffusion.model.precision import autocast, freeze, to_bf16
from diffusion.model.unet import UNet
from diffusion.train.batch import ImageLoader, batches
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.forward_passes import ForwardPasses
from diffusion.train.initial_state import new_state
from diffusion.train.plan import TrainPlan, plan_training
from diffusion.train.train_step import train_step
from tests.conftest import ROOT
from tests.helpers.networks import randomise

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[1] / "golden/losses.json"
SHRUNK_ALIKE = {"cifar100", "mini-imagenet"}  # to cifar10 and imagenet64, with the same losses
PROFILES = sorted({path.stem for path in (ROOT / "profiles").glob("*.yaml")} - SHRUNK_ALIKE)
SIZES = {"digits": (8, 1), "fashion-mnist-14": (14, 1)}
SIZES |= dict.fromkeys(("fashion-mnist", "fashion-mnist-upsampler"), (28, 1))
SIZES |= dict.fromkeys(("cifar10", "cifar10-cpu", "image-folder-cpu"), (32, 3))

# Relative root-mean-square distance of bf16's ε and v from fp32's, at random weights: eight bits of mantissa
# (2⁻⁸ = 0.4%) through some tens of layers.
BF16_BOUND = 0.03


def shrunk(profile: str) -> tuple[TrainPlan, ImageStore]:
    """Return the plan of the profile with a narrow network, and 16 random images of its size."""
    values: dict[str, Any] = yaml.safe_load((ROOT / f"profiles/{profile}.yaml").read_text())
    model = values["model"]
    heads = {"head_channels": 8} if "heads" not in model else {"heads": 2, "head_channels": None}
    values["model"] = {**model, "channels": 8, "num_res_blocks": 1, "dropout": 0.0, **heads}
    lr = values["train"]["lr"]
    lr = {**(lr if isinstance(lr, dict) else {"rate": lr}), "warmup": 2}
    values["train"] = {
        **values["train"], "steps": 10, "batch_size": 2, "lr": lr, "precision": "fp32", "microbatch": None
    }  # fmt: skip
    values["sample"].pop("guide", None)  # perhaps a snapshot of a later step
    config = parse(values, profile)
    size, channels = SIZES.get(profile, (64, 3))
    source = np.random.default_rng(0)
    images = source.integers(0, 256, (16, size, size, channels), dtype=np.uint8)
    labels = np.arange(16) % 4
    meta = {"name": profile, "classes": list("abcd"), "counts": [4] * 4, "digest": "0"}
    meta |= {"channels": channels, "image_size": size}
    return plan_training(config, meta, CPU), ImageStore(Path(), images, labels, meta)


def losses(profile: str) -> list[float]:
    """Return the losses of ten steps."""
    plan, store = shrunk(profile)
    state = new_state(plan, CPU)
    passes = ForwardPasses(plan, state.network, state.objective, ProcessGroup(CPU))
    coming = batches(plan, state.time_sampler, ImageLoader(store, CPU), range(10))
    return [float(train_step(state, passes, batch)["loss"]) for batch in coming]


@pytest.mark.parametrize("profile", PROFILES)
def test_the_first_ten_losses_equal_the_golden_ones(profile):
    assert losses(profile) == pytest.approx(json.loads(GOLDEN.read_text())[profile], rel=2e-3)


def random_network(profile: str) -> tuple[UNet, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    plan, _ = shrunk(profile)
    spec = plan.network
    network = UNet(spec)
    randomise(network)
    x = torch.randn(4, *spec.shape)
    t = torch.tensor([0, 10, 500, 999])
    return network.eval().requires_grad_(False), (x, t, torch.arange(4) if spec.num_classes else None)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the RMS of a − b relative to that of b."""
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


@pytest.mark.parametrize("profile", PROFILES)
def test_bf16_stays_within_its_bound_of_fp32(profile):
    network, arguments = random_network(profile)
    further = {}
    if network.spec.low_res is not None:
        further = {"low_res": torch.randn(4, 1, 14, 14), "noise_level": torch.rand(4)}
    exact = network(*arguments, **further)
    found = autocast(network, "bf16")(*arguments, **further)
    assert found.dtype == torch.float32
    assert 0 < distance(found, exact) < BF16_BOUND


@pytest.mark.parametrize("frozen", [True, False])
def test_the_first_and_the_last_convolution_are_not_rounded(frozen):
    """The oracle is torch's convolution of their inputs; the first one's input is x_t."""
    network, arguments = random_network("digits")
    network = freeze(network).requires_grad_(not frozen)
    computing, seen = to_bf16(network), {}

    def note(layer, inputs, output):
        seen[layer] = inputs[0].detach(), output.detach()

    for layer in (computing.stem, computing.head):
        layer.register_forward_hook(note)
    found = autocast(network, "bf16")(*arguments)
    assert torch.equal(seen[computing.stem][0], arguments[0])
    assert torch.equal(seen[computing.head][1], found)
    for ours, layer in ((network.stem, computing.stem), (network.head, computing.head)):
        x, y = seen[layer]
        exact = F.conv2d(x.float(), ours.weight, ours.bias, padding=1)
        assert (y - exact).abs().max() < 1e-6 * exact.abs().max()
    assert computing.middle[0].conv_in.weight.dtype == (torch.bfloat16 if frozen else torch.float32)


def test_the_bf16_copy_is_cached_until_the_weights_change():
    network, _ = random_network("digits")
    assert to_bf16(network) is not to_bf16(network), "a training network is not cached"
    kept = to_bf16(freeze(network))
    assert to_bf16(network) is kept
    for change in (
        lambda: network.stem.weight.mul_(2),
        lambda: network.load_state_dict({**network.state_dict()}),
        lambda: network.double(),
    ):
        change()
        assert to_bf16(network) is not kept
        kept = to_bf16(network)
        assert to_bf16(network) is kept
    assert to_bf16(network.requires_grad_(True)) is network


if __name__ == "__main__":
    torch.set_num_threads(1)
    curves = {profile: [float(f"{loss:.6g}") for loss in losses(profile)] for profile in PROFILES}
    GOLDEN.write_text(json.dumps(curves, indent=1) + "\n")
