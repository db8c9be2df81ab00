"""Scores of pairs of images against libraries and papers: precision, recall, memorisation, KID and CMMD."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extractors import Features
from diffusion.evaluate.features.reference_features import Reference
from diffusion.evaluate.scores import kernel_distance as kernel
from diffusion.evaluate.scores import precision_recall
from diffusion.evaluate.scores.kernel_distance import Kernel, kernel_distance, leave_one_out, own_sums
from diffusion.evaluate.scores.precision_recall import Manifold, memorisation, overlap
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.protocol.card import SEED, SUBSETS, subset_size
from tests.evaluate.test_scorer import META
from tests.helpers import digits_sweep

normal = partial(digits_sweep.normal, dimension=8)
CPU = torch.device("cpu")


def of(images, most=10_000):
    return Manifold(images, most, CPU)


@pytest.fixture(params=[(7, 2), (1024, 16_384)], ids=["blocks", "whole"])
def searched(request, monkeypatch):
    """Search neighbours in blocks of these sizes; assert that no more distances are in memory at a time."""
    made, cdist = [], torch.cdist
    for name, size in zip(("BLOCK", "COLUMNS"), request.param, strict=True):
        monkeypatch.setattr(precision_recall, name, size)
    monkeypatch.setattr(torch, "cdist", lambda a, b: made.append(len(a) * len(b)) or cdist(a, b))
    yield
    assert 0 < max(made) <= request.param[0] * request.param[1]


PAIR = normal(0, 60, shift=0.7), normal(1, 90)
FIDELITY = prc_features_to_metric(*map(torch.from_numpy, PAIR), verbose=False)


@pytest.mark.usefixtures("searched")
def test_precision_and_recall_equal_torch_fidelity():
    want = FIDELITY["precision"], FIDELITY["recall"]
    assert overlap(*map(of, PAIR))[:2] == pytest.approx(want, abs=1e-7)


@pytest.mark.usefixtures("searched")
def test_density_and_coverage_equal_the_paper():
    """Naeem et al. eq. 4 and 5, pair by pair."""
    samples, real = normal(0, 40, shift=0.5), normal(1, 70)
    reach = [sorted(np.linalg.norm(real - one, axis=1))[5] for one in real]
    inside = np.array(
        [[np.linalg.norm(y - x) <= r for x, r in zip(real, reach, strict=True)] for y in samples]
    )
    found = overlap(of(samples), of(real))
    assert found.density == pytest.approx(inside.sum() / (5 * len(samples)))
    assert found.coverage == pytest.approx(inside.any(axis=0).mean())


def test_memorisation_is_one_for_copies():
    train, test = normal(1, 150), normal(2, 50)
    assert memorisation(of(train), train, test).mean == 1
    assert memorisation(of(test), train, test).mean == pytest.approx(-0.75 / 0.25)


def resplit(train, test, rows):
    """Split the same real images again, with `rows` as the training images."""
    real = np.concatenate([train, test])
    chosen = np.zeros(len(real), bool)
    chosen[list(rows)] = True
    return real[chosen], real[~chosen]


@pytest.mark.usefixtures("searched")
def test_memorisation_deviation_equals_that_over_all_splits():
    """Enumerate all 56 splits of 8 real images into 5 training and 3 test images."""
    train, test, sample = normal(0, 5), normal(1, 3), normal(2, 12)
    splits = [resplit(train, test, rows) for rows in itertools.combinations(range(8), 5)]
    found = [memorisation(of(sample), *split) for split in splits]
    means, deviations = np.array(found).T
    assert means.mean() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(deviations, means.std(), rtol=1e-9)


def test_precision_and_recall_are_of_as_many_images_as_the_section_has():
    """OpenAI's published batches have 10,000 real images and 50,000 samples, all of them used."""
    real, sample = normal(0, 200), 0.95 * normal(1, 1000)
    found = [
        Scorer(Reference(META, real, None), EvaluateConfig(prc_images=200, **more)).scores(Features(sample))
        for more in ({"prc_samples": 1000}, {})
    ]
    whole = overlap(of(sample), of(real))
    names = [f"{name}_effnet_lite0_64" for name in ("precision", "recall")]
    assert [found[0][name] for name in names] == pytest.approx([whole.precision, whole.recall], abs=1e-9)
    assert found[1][names[1]] != found[0][names[1]]  # by default of 200 samples


# Kernel distances: KID and CMMD.


def distance(a, b):
    drawn = kernel.subsets(len(a), len(b), subset_size(len(a), len(b)))
    return kernel_distance(Kernel(a, a), Kernel(a, b), drawn, own_sums(Kernel(b, b), drawn[1]))


@pytest.mark.parametrize(
    ("count", "real_count", "whole"), [(40, 90, True), (40, 90, False), (90, 40, False), (3, 400, True)]
)
def test_kernel_distance_equals_torch_fidelity(monkeypatch, count, real_count, whole):
    if not whole:
        monkeypatch.setattr(kernel, "WHOLE", 0)
    a, b = digits_sweep.normal(0, count), digits_sweep.normal(1, real_count, shift=0.5)
    size = subset_size(count, real_count)
    options = {"kid_subsets": SUBSETS, "kid_subset_size": size, "rng_seed": SEED, "verbose": False}
    want = kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), **options)
    got = distance(a, b)
    assert got.mean() == pytest.approx(want["kernel_inception_distance_mean"], rel=1e-6)
    assert got.std() == pytest.approx(want["kernel_inception_distance_std"], rel=1e-6)


def test_kernel_distance_is_of_subsets_as_large_as_the_section_has():
    real, sample = normal(0, 150), normal(1, 90)
    for size in (60, 20):
        scorer = Scorer(Reference(META, real, None), EvaluateConfig(kid_subset_size=size))
        options = {"kid_subset_size": min(size, 45), "rng_seed": SEED, "verbose": False}
        want = kid_features_to_metric(*map(torch.from_numpy, (sample, real)), **options)
        got = scorer.scores(Features(sample))["kd_effnet_lite0_64"]
        assert got == pytest.approx(want["kernel_inception_distance_mean"], rel=1e-5)


def unbiased(x, y):
    """The estimator of 1801.01401, sec. 4, written out."""
    kxx, kyy, kxy = ((p @ q.T / p.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    pairs = [k[~np.eye(len(k), dtype=bool)].mean() for k in (kxx, kyy)]
    return sum(pairs) - 2 * kxy.mean()


def test_leave_one_out_is_exact_up_to_a_constant():
    a, b = digits_sweep.normal(0, 30), digits_sweep.normal(1, 50, shift=0.5)
    want = np.array([unbiased(np.delete(a, i, axis=0).astype(float), b.astype(float)) for i in range(30)])
    got = leave_one_out(Kernel(a, a), Kernel(a, b))
    np.testing.assert_allclose(got - got.mean(), want - want.mean(), atol=1e-5)


def unit(seed: int, count: int, shift: float = 0.0) -> np.ndarray:
    rows = digits_sweep.normal(seed, count, 24, shift)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def published(x: np.ndarray, y: np.ndarray) -> float:
    """1,000 times the mean kernels of all pairs, σ = 10."""

    def mean(a, b):
        squares = ((a[:, None].astype(np.float64) - b[None]) ** 2).sum(-1)
        return np.exp(-squares / (2 * 10**2)).mean()

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


@given(st.integers(2, 40), st.integers(2, 40), st.floats(0, 2), st.sampled_from([3, 16, 2048]))
def test_cmmd_equals_the_published_formula(count, others, shift, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "CMMD_BLOCK", block)
        x, y = unit(0, count, shift), unit(1, others)
        ours, real = torch.from_numpy(x), torch.from_numpy(y)
        got = kernel.cmmd(ours, real, kernel.mean_kernel(real, real))
        assert got == pytest.approx(published(x, y), abs=2e-5)
