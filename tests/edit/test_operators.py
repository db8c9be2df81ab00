"""Linear operators against their dense matrices, scipy and Pillow; products; texts that are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from diffusion.edit.operators import MIN_SINGULAR_VALUE, LinearOperator, build_operator
from diffusion.images.pixels import to_model, to_uint8
from diffusion.system.errors import UsageError
from tests.helpers.trajectories import randn

SHAPE = (3, 4, 6)
TEXTS = (
    "mask:1,0,5,3", "downsample:2", "gray", "blur:0.6", "blur:1.2", "gray+downsample:2", "downsample:2+gray",
    "gray+mask:0,0,2,4", "downsample:2+mask:0,0,1,1", "gray+blur:0.8", "gray+downsample:2+blur:0.5", "mask",
)  # fmt: skip
KEPT = torch.arange(24).reshape(4, 6) % 3 > 0  # a mask that is a picture


def operator_of(text: str, shape: tuple[int, int, int] = SHAPE) -> LinearOperator:
    return build_operator(text, shape, KEPT if text == "mask" else None)


def dense(operator: LinearOperator) -> Tensor:
    """Return the matrix of an operator."""
    size = int(np.prod(operator.image_shape))
    unit = torch.eye(size, dtype=torch.float64).reshape(size, *operator.image_shape)
    return operator.apply(unit).flatten(1).T


@given(st.sampled_from(TEXTS), st.integers(0, 2**31))
def test_adjoint_pseudo_inverse_and_spectrum_are_those_of_the_matrix(text: str, seed: int) -> None:
    operator = operator_of(text)
    matrix, x = dense(operator), randn(2, *SHAPE, seed=seed)
    y = randn(2, *operator.shape, seed=seed + 1)
    flat_x, flat_y = x.flatten(1), y.flatten(1)
    assert torch.allclose(operator.apply(x).flatten(1), flat_x @ matrix.T)
    assert torch.allclose(operator.adjoint(y).flatten(1), flat_y @ matrix)
    inverse = torch.linalg.pinv(matrix, rtol=1e-6)
    assert torch.allclose(operator.pseudo_inverse(y).flatten(1), flat_y @ inverse.T)
    projected = operator.project(x, operator.apply(y.new_zeros(2, *SHAPE) + 0.3))
    assert torch.allclose(operator.apply(projected), operator.apply(torch.full_like(x, 0.3)))
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    shaped = torch.where(values > 1e-9, values.clamp(min=0).sqrt(), 0.0)
    wanted = flat_x @ (vectors * (shaped + 1).reciprocal()) @ vectors.T
    assert torch.allclose(operator.spectral(x, lambda s: 1 / (1 + s)).flatten(1), wanted)
    is_orthogonal = torch.allclose(matrix @ matrix.T, operator.gain**2 * torch.eye(len(matrix)).double())
    assert is_orthogonal or not operator.has_orthogonal_rows


def test_operators_are_those_of_scipy_and_pillow() -> None:
    x = randn(1, 1, 12, 16)
    blurred = gaussian_filter(x[0, 0].numpy(), 0.5, mode="reflect", truncate=4.0)
    assert np.allclose(build_operator("blur:0.5", (1, 12, 16)).apply(x)[0, 0], blurred, atol=1e-12)
    cut = build_operator("blur:1.5", (1, 12, 16))
    values = torch.linalg.svdvals(dense(cut))
    assert 0 < int((values > 1e-9).sum()) < len(values)
    assert float(values[values > 1e-9].min()) >= MIN_SINGULAR_VALUE
    assert (
        float((cut.apply(x)[0, 0] - gaussian_filter(x[0, 0].numpy(), 1.5, mode="reflect")).abs().max()) < 0.2
    )
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    small = np.asarray(Image.fromarray(picture).reduce(4)).transpose(2, 0, 1)
    luma = np.asarray(Image.fromarray(picture).convert("L"))[None]
    colours = to_model(torch.from_numpy(picture.transpose(2, 0, 1).copy())[None])
    for text, wanted in (("downsample:4", small), ("gray", luma)):
        found = to_uint8(build_operator(text, (3, 8, 8)).apply(colours))[0].numpy()
        assert np.abs(found.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("blur:1.5+downsample:2", ["pseudo-inverse is not known", "must be the last factor"]),
        ("mask:0,0,1,1+gray", ["pseudo-inverse is not known"]),
        ("downsample:5", ["downsample:5 does not divide 4×6 pixels (height × width)"]),
        ("gray+gray", ["gray needs images with 3 channels (got 1)"]),
        ("mask:0,0,7,4", ["is no box in 4×6 pixels (height × width)"]),
        ("mask:0,0,6,4", ["hides every pixel"]),
        ("mask", ["needs the hidden pixels"]),
        ("blurr:1.5", ["did you mean blur?"]),
        ("blur", ["blur:SIGMA is the form of blur (got 'blur')"]),
        ("gray:1", ["gray is the form of gray"]),
        ("blur:0", ["sigma", "greater than 0"]),
        ("downsample:1.5", ["factor", "whole number"]),
    ],
)
def test_texts_that_do_not_fit_are_refused(text: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as refusal:
        build_operator(text, SHAPE)
    assert all(part in str(refusal.value) for part in parts), str(refusal.value)
