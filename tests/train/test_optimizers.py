"""Muon: orthogonal updates against torch's Muon and singular values, AdamW for all else."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diffusion.train.optimizers import MOMENTUM, Muon, matrix_parameters, orthogonalize

RATE = 0.01


def of_spectrum(rows: int, columns: int, values: torch.Tensor, seed: int) -> tuple[torch.Tensor, ...]:
    """Return a matrix with these singular values, and its singular vectors."""
    source, few = torch.Generator().manual_seed(seed), min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, few, generator=source))[0]
    right = torch.linalg.qr(torch.randn(columns, few, generator=source))[0]
    return left * values @ right.mT, left, right


@given(
    rows=st.integers(8, 48),
    columns=st.integers(8, 48),
    weakest=st.floats(0.03, 1.0),
    scale=st.sampled_from([1e-4, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_singular_vectors_stay_and_singular_values_are_near_one(rows, columns, weakest, scale, seed):
    values = torch.linspace(1, weakest, min(rows, columns))
    matrix, left, right = of_spectrum(rows, columns, values * scale, seed)
    inside = left.mT @ orthogonalize(matrix[None])[0] @ right
    assert inside.diagonal().min() > 0.5
    assert inside.diagonal().max() < 1.3
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), atol=1e-3, rtol=0)


def test_a_zero_matrix_stays_zero_and_matrices_are_independent():
    matrices = torch.stack([torch.zeros(8, 12), torch.randn(8, 12)])
    both = orthogonalize(matrices)
    assert torch.equal(both[0], torch.zeros(8, 12))
    torch.testing.assert_close(both[1], orthogonalize(matrices[1:])[0])
    torch.testing.assert_close(both.mT, orthogonalize(matrices.mT))


def test_a_step_equals_torchs_muon_to_bf16():
    source = torch.Generator().manual_seed(0)
    ours, theirs = (nn.Parameter(torch.randn(24, 40, generator=source.manual_seed(0))) for _ in range(2))
    mine = Muon([{"params": [ours]}], [ours], lr=RATE, weight_decay=0.1, fused=True)
    known = torch.optim.Muon(
        [theirs], lr=RATE, weight_decay=0.1, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
    )
    moved = ours.detach().clone()
    for _ in range(5):
        gradient = torch.randn(24, 40, generator=source)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        known.step()
    moved -= ours.detach()
    assert (ours - theirs).norm() < 0.01 * moved.norm()


def test_other_parameters_use_adamw_and_a_convolution_is_a_matrix():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Embedding(8, 9), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 2, 3)
    )
    classes, first, conv, last = network
    assert matrix_parameters(network) == [conv.weight]  # the last one's two rows are too few
    others = (classes.weight, first.weight, first.bias, conv.bias, last.weight)
    same = nn.Parameter(conv.weight.detach().flatten(1).clone())
    copies = [nn.Parameter(weight.detach().clone()) for weight in others]
    mine = Muon([{"params": list(network.parameters())}], matrix_parameters(network), lr=RATE, fused=True)
    flat = Muon([{"params": [same]}], [same], lr=RATE, fused=True)
    adam = torch.optim.AdamW(copies, lr=RATE, weight_decay=0.01, fused=True)
    for _ in range(3):
        for weight in network.parameters():
            weight.grad = torch.randn_like(weight)
        same.grad = conv.weight.grad.flatten(1).clone()
        for copy, weight in zip(copies, others, strict=True):
            copy.grad = weight.grad.clone()
        for optimizer in (mine, flat, adam):
            optimizer.step()
    assert torch.equal(conv.weight.flatten(1), same)
    for copy, weight in zip(copies, others, strict=True):
        assert torch.equal(weight, copy)
