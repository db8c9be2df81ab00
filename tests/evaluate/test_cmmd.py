"""CMMD equals the published formula, pair by pair in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.evaluate.scores import cmmd as module
from diffusion.evaluate.scores.cmmd import Embeddings, cmmd

CPU = torch.device("cpu")


def unit(seed: int, count: int, shift: float = 0.0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, 24)) + shift
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def of(features: np.ndarray) -> Embeddings:
    return Embeddings(features, CPU)


def published(x: np.ndarray, y: np.ndarray) -> float:
    """1,000 times the mean kernels of all pairs, σ = 10."""

    def mean(a, b):
        squares = ((a[:, None].astype(np.float64) - b[None]) ** 2).sum(-1)
        return np.exp(-squares / (2 * 10**2)).mean()

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 40), st.integers(2, 40), st.floats(0, 2), st.sampled_from([3, 16, 2048]))
def test_cmmd_equals_the_published_formula(count, others, shift, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        x, y = unit(0, count, shift), unit(1, others)
        assert cmmd(of(x), of(y)) == pytest.approx(published(x, y), abs=2e-5)


def test_cmmd_is_a_symmetric_distance():
    x, y = unit(0, 50), unit(1, 60, 0.5)
    assert cmmd(of(x), of(x[::-1].copy())) == pytest.approx(0, abs=1e-5)
    assert cmmd(of(x), of(y)) == pytest.approx(cmmd(of(y), of(x)), abs=1e-5)
    assert cmmd(of(x), of(y)) > cmmd(of(x), of(unit(2, 60)))
