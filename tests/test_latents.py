"""Encoding and interpolation: the exact flow for Gaussian data, and the way back."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.latents import encode, slerp
from diffusion.sampling import sample
from diffusion.schedule import Schedule, spaced_timesteps
from tests import papers

DATA = papers.GaussianData(0.2, 0.3)
FULL = Schedule.named("cosine", 1000)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spaced(steps: int) -> Schedule:
    return FULL.spaced(spaced_timesteps("uniform", steps, 1000))


def network(x, t, labels):
    return DATA.eps(x, float(FULL.alphas_cumprod[t[0]]))


def images(seed: int = 0) -> torch.Tensor:
    return DATA.mean + DATA.std * randn(4, 1, 32, 32, seed=seed)


def test_codes_of_gaussian_data_follow_the_exact_flow_and_are_normal():
    x_0 = images()
    code = encode(network, FULL, x_0)
    exact = DATA.flow(x_0, 1.0, float(FULL.alphas_cumprod[-1]))
    assert float((code - exact).abs().max()) < 0.03
    assert float(code.mean()) == pytest.approx(0, abs=0.07)
    assert float(code.var()) == pytest.approx(1, abs=0.1)


def test_the_way_back_is_exact_in_the_limit():
    x_0 = images()
    errors = []
    for steps in (25, 50, 100, 200):
        schedule = spaced(steps)
        code = encode(network, schedule, x_0)
        back = sample(network, schedule, lambda code=code: code, clip=False)
        errors.append(float((back - x_0).abs().mean()))
    ratios = np.array(errors[:-1]) / errors[1:]
    assert (ratios > 1.6).all()  # order 1: half the error with twice the steps
    assert errors[-1] < 0.02


def test_the_network_is_asked_where_each_step_starts():
    seen = []

    def recorder(x, t, labels):
        seen.append((int(t[0]), labels))
        return torch.zeros_like(x)

    encode(recorder, FULL.spaced([5, 50, 999]), randn(1, 1, 2, 2), None)
    assert seen == [(5, None), (5, None), (50, None)]
    done = []
    encode(recorder, FULL.spaced([5, 999]), randn(1, 1, 2, 2), None, lambda *step: done.append(step))
    assert done == [(1, 2), (2, 2)]


@settings(deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_slerp_lies_on_the_arc(seed, fraction):
    a, b = randn(2, 1, 1, 4, 4, seed=seed)
    a, b = a / a.norm(), b / b.norm()
    between = slerp(a, b, fraction)
    angle = math.acos(max(-1, min(1, float((a * b).sum()))))
    assert float(between.norm()) == pytest.approx(1, abs=1e-6)
    assert float((a * between).sum()) == pytest.approx(math.cos(fraction * angle), abs=1e-6)
    assert torch.allclose(slerp(b, a, 1 - fraction), between, atol=1e-9)


def test_slerp_ends_at_the_codes_image_by_image():
    a, b = randn(2, 3, 2, 4, 4)
    assert torch.allclose(slerp(a, b, 0.0), a)
    assert torch.allclose(slerp(a, b, 1.0), b)
    assert torch.allclose(slerp(a, b, 0.3)[1:2], slerp(a[1:2], b[1:2], 0.3))
    assert torch.allclose(slerp(a, a, 0.3), a)
    assert torch.allclose(slerp(a, 3 * a, 0.5), 2 * a)
