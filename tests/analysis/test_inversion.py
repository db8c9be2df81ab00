"""Encoding and interpolation: the exact flow of Gaussian data, and reconstruction."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.analysis import inversion
from diffusion.analysis.image_inputs import end_condition
from diffusion.analysis.inversion import encoding, interpolate, slerp
from diffusion.images.pixels import to_model, to_nchw, to_nhwc, to_uint8
from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Condition
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import spaced_timesteps
from diffusion.system.errors import UsageError
from tests.helpers import papers
from tests.helpers.networks import OptimalNetwork, artefact_of, spec_of
from tests.helpers.trajectories import grid_of, network_denoiser, randn, sample, walk

DATA = papers.GaussianData(0.2, 0.3)
FULL = grid_of("cosine", 1000)


def network(x, t, labels):
    return DATA.eps(x, float(FULL.alphas_cumprod[t[0]]))


def images(seed: int = 0) -> torch.Tensor:
    return DATA.mean + DATA.std * randn(4, 1, 32, 32, seed=seed)


def test_codes_of_gaussian_data_match_exact_flow_and_are_normal():
    x_0 = images()
    code = walk(network_denoiser(network, FULL), FULL, lambda: x_0, encoding)
    exact = DATA.flow(x_0, 1.0, float(FULL.alphas_cumprod[-1]))
    assert float((code - exact).abs().max()) < 0.03
    assert float(code.mean()) == pytest.approx(0, abs=0.07)
    assert float(code.var()) == pytest.approx(1, abs=0.1)


def test_reconstruction_error_has_first_order():
    x_0, errors = images(), []
    for steps in (25, 50, 100, 200):
        grid = grid_of("cosine", 1000, spaced_timesteps("uniform", steps, 1000))
        code = walk(network_denoiser(network, grid), grid, lambda: x_0, encoding)
        reconstruction = sample(network, grid, lambda code=code: code, clip=False)
        errors.append(float((reconstruction - x_0).abs().mean()))
    ratios = np.array(errors[:-1]) / errors[1:]
    assert (ratios > 1.6).all()  # order 1: half the error with twice the steps
    assert errors[-1] < 0.02


def test_encode_calls_network_at_start_of_each_step():
    calls, progress = [], []

    def recorder(x, t, labels):
        calls.append((int(t[0]), labels))
        return torch.zeros_like(x)

    grid = grid_of("cosine", 1000, [5, 50, 999])
    report = lambda step: progress.append((step.done, step.total))  # noqa: E731
    walk(network_denoiser(recorder, grid), grid, lambda: randn(1, 1, 2, 2), encoding, callback=report)
    assert calls == [(5, None), (5, None), (50, None)]
    assert progress == [(1, 3), (2, 3), (3, 3)]


@given(st.integers(0, 2**31), st.floats(0, 1))
def test_slerp_is_on_arc(seed, fraction):
    a, b = randn(2, 1, 1, 4, 4, seed=seed)
    a, b = a / a.norm(), b / b.norm()
    between = slerp(a, b, fraction)
    angle = math.acos(max(-1, min(1, float((a * b).sum()))))
    assert float(between.norm()) == pytest.approx(1, abs=1e-6)
    assert float((a * between).sum()) == pytest.approx(math.cos(fraction * angle), abs=1e-6)
    assert torch.allclose(slerp(b, a, 1 - fraction), between, atol=1e-9)


def test_slerp_endpoints_are_codes_of_each_image():
    a, b = randn(2, 3, 2, 4, 4)
    assert torch.allclose(slerp(a, b, 0.0), a)
    assert torch.allclose(slerp(a, b, 1.0), b)
    assert torch.allclose(slerp(a, b, 0.3)[1:2], slerp(a[1:2], b[1:2], 0.3))
    assert torch.allclose(slerp(a, a, 0.3), a)
    assert torch.allclose(slerp(a, 3 * a, 0.5), 2 * a)


MEANS, STD = (-0.4, 0.5, 0.1), 0.3  # of two classes, and of images without a label


@pytest.fixture(scope="module")
def gaussian() -> LoadedModel:
    """Return the optimal model of two classes of Gaussian pixels."""
    process, spec = ProcessConfig(timesteps=1000), spec_of(num_classes=2)
    return LoadedModel(OptimalNetwork(process, STD, MEANS), artefact_of(spec, process=process))


def two_images(*labels: int) -> np.ndarray:
    """Return one image for each of two labels, (2, 8, 8, 1) uint8."""
    x_0 = torch.cat([MEANS[k] + STD * randn(1, 1, 8, 8, seed=i) for i, k in enumerate(labels)])
    return to_nhwc(to_uint8(x_0))


def mean_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the mean absolute difference of two uint8 images."""
    return float((a.int() - b.int()).abs().float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("labels", [(0, 1), (1, 0), (2, 2)])
def test_interpolation_follows_arc_between_images(gaussian, labels, monkeypatch):
    """Compare each frame with the exact flow from its point on the arc, for the class of the nearer end."""
    monkeypatch.setattr(inversion, "FRAMES_PER_BATCH", 3)  # in two parts
    ends = two_images(*labels)
    frames = interpolate(gaussian, SampleSettings(steps=500), ends, Condition(2, torch.tensor(labels)), 5)
    classes = [papers.GaussianData(MEANS[label], STD) for label in labels]
    noisiest = float(FULL.alphas_cumprod[-1])
    x_0 = to_model(to_nchw(ends))
    a, b = (data.flow(x_0[i : i + 1], 1.0, noisiest) for i, data in enumerate(classes))
    for k, frame in enumerate(frames):
        nearer = classes[0] if k <= 2 else classes[1]
        exact = to_uint8(nearer.flow(slerp(a, b, k / 4), noisiest, 1.0))
        assert mean_difference(frame, exact[0]) < 1.5
    assert mean_difference(frames[0], to_nchw(ends)[0]) < 1.5
    assert mean_difference(frames[-1], to_nchw(ends)[1]) < 1.5


NO_LABEL = 10


@pytest.mark.parametrize(
    ("spec", "found", "klass", "expected"),
    [
        ({}, (3, 3), None, [3, 3]),
        ({}, (3, 4), None, [NO_LABEL, NO_LABEL]),  # different labels: the null class
        ({}, (None, 4), None, [NO_LABEL, NO_LABEL]),
        ({}, (3, 4), "class7", [7, 7]),
        ({"null_class": False}, (3, 4), None, [3, 4]),
        ({"null_class": False}, (None, None), "7", [7, 7]),
        ({"null_class": False, "num_classes": 0}, (None, None), None, None),
    ],
)
def test_labels_of_end_condition(spec, found, klass, expected):
    labels = end_condition(artefact_of(spec_of(**spec)), found, klass).labels
    assert (None if labels is None else labels.tolist()) == expected


def test_end_condition_requires_class_without_null_class():
    with pytest.raises(UsageError, match="give one of its classes"):
        end_condition(artefact_of(spec_of(null_class=False)), (3, None), None)
