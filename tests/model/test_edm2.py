"""EDM2's network: published sizes, magnitudes that layers preserve, weights that a training keeps at 1."""

import math

import pytest
import torch
from pydantic import ValidationError

from diffusion.model.counted_passes import count_parameters
from diffusion.model.edm2 import EDM2
from diffusion.model.edm2_config import EDM2Spec
from diffusion.model.magnitude import MPLayer, mp_cat, mp_silu, mp_sum, pixel_norm
from diffusion.model.precision import autocast, to_bf16
from diffusion.train.initial_state import new_state
from diffusion.train.optimizers.builders import matrix_parameters
from tests.helpers.trainings import CPU, Killed, assert_same, plan_of, run, run_in, run_until
from tests.helpers.trajectories import randn

# 2312.02696, table 2: channels, and parameters in millions, at 64×64×4 with 1,000 classes.
MILLIONS = {128: 125, 192: 280, 256: 498, 320: 777, 384: 1119}
SHAPE = {"channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "head_channels": 4}
MODEL = {"name": "edm2", **SHAPE, "attention_resolutions": [4]}


def spec_of(**changes) -> EDM2Spec:
    data = {"image_size": 8, "in_channels": 3, "out_channels": 3, "num_classes": 5}
    return EDM2Spec(**{**MODEL, **data, **changes})


@pytest.mark.parametrize("channels", MILLIONS)
def test_published_sizes_have_the_papers_parameters(channels):
    data = {"image_size": 64, "in_channels": 4, "out_channels": 4, "num_classes": 1000}
    shape = {"channel_mult": [1, 2, 3, 4], "num_res_blocks": 3, "attention_resolutions": [16, 8]}
    spec = EDM2Spec(name="edm2", channels=channels, **shape, **data)
    count = count_parameters(spec)
    assert round(count / 1e6) == pytest.approx(MILLIONS[channels], abs=0.6)
    assert spec.least_parameters() < count


def test_layers_keep_the_variance_of_independent_numbers():
    a, b = torch.randn(2, 64, 32, 20, 20, generator=torch.Generator().manual_seed(0))
    layers = [MPLayer(32, 48, 3), MPLayer(32, 24, 1)]
    for layer in layers:
        layer.weight.data.mul_(7)  # the parameter's magnitude has no effect
    found = [
        *(layer(a)[..., 2:-2, 2:-2] for layer in layers),
        mp_sum(a, b, 0.3),
        mp_cat(a, b[:, :8]),
        pixel_norm(5 * a),
    ]
    for one in found:
        assert one.square().mean().item() == pytest.approx(1, rel=0.05)
    assert mp_silu(a).square().mean().item() == pytest.approx(1, rel=0.01)
    both = mp_cat(a, b[:, :8]).square()
    assert both[:, :32].sum().item() == pytest.approx(both[:, 32:].sum().item(), rel=0.02)


def test_features_have_magnitude_one_at_initialisation():
    network = EDM2(spec_of(channels=32, head_channels=16))
    outputs = []
    for stage in [*network.encoder, *network.decoder]:
        stage.register_forward_hook(lambda module, given, output: outputs.append(output))
    x, t = randn(16, 3, 8, 8).float(), torch.linspace(-900, 300, 16)
    assert network(x, t, torch.arange(16) % 5).abs().max() == 0, "its gain starts at zero"
    sizes = [output.square().mean().sqrt().item() for output in outputs]
    assert len(sizes) == 9
    assert all(0.75 < size < 1.25 for size in sizes), sizes


def test_condition_reaches_the_output_and_reduced_precision_is_close():
    network = EDM2(spec_of(null_class=True)).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("gain"):
            parameter.data.fill_(1.0)
    x, t, labels = randn(2, 3, 8, 8).float(), torch.tensor([10.0, 900.0]), torch.tensor([0, 5])
    exact = network(x, t, labels)
    assert not torch.allclose(exact, network(x, t, labels - labels))
    assert not torch.allclose(exact, network(x, t + 300, labels))
    for reduced in (autocast(network, "bf16"), to_bf16(network)):
        assert (reduced(x, t, labels).float() - exact).abs().max() < 0.1 * exact.abs().max()
    with pytest.raises(ValueError, match="a conditional network needs labels"):
        network(x, t)


@pytest.mark.slow
def test_training_keeps_weights_at_magnitude_one_and_resumes_bitwise(store, tmp_path):
    plan = plan_of(
        store, model=MODEL, process={"variance": "small", "loss": "simple"}, train={"save_every": 3}
    )
    whole = new_state(plan, CPU)
    run(whole, store)
    layers = [module for module in whole.network.modules() if isinstance(module, MPLayer)]
    for layer in layers:
        assert layer.weight.flatten(1).square().mean(1).sqrt().tolist() == pytest.approx(
            [1.0] * len(layer.weight), rel=1e-5
        )
    run_in(store, plan, tmp_path, stop_at=5, error=Killed())
    _, resumed, begun = run_in(store, plan, tmp_path)
    assert begun == 3
    assert_same(resumed, whole)


def test_nan_steps_leave_the_weights_alone(store):
    state = new_state(plan_of(store, model=MODEL, process={"variance": "small", "loss": "simple"}), CPU)
    run_until(state, store, 3)
    before = {name: value.clone() for name, value in state.network.state_dict().items()}
    hook = state.network.gain.register_hook(lambda gradient: gradient * math.nan)
    run_until(state, store, 5)
    hook.remove()
    assert state.skipped == 2
    assert all(torch.equal(value, before[name]) for name, value in state.network.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"image_size": 9}, "image_size 9 must be divisible by 2"),
        ({"head_channels": 3}, "3 does not divide 8 channels"),
        ({"attention_resolutions": [7]}, "feature maps have"),
    ],
)
def test_impossible_shapes_are_refused(changes, problem):
    with pytest.raises(ValidationError, match=problem):
        spec_of(**changes)


def test_muon_leaves_the_layers_of_images_and_labels_to_adamw():
    network = EDM2(spec_of(num_classes=10))
    matrices = {id(weight) for weight in matrix_parameters(network)}
    names = {name for name, weight in network.named_parameters() if id(weight) in matrices}
    assert "time.weight" in names
    assert names.isdisjoint({"stem.weight", "classes.weight"})
