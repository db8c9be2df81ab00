"""Precision, recall, density, coverage and memorisation against libraries, papers and closed forms."""

import itertools

import numpy as np
import pytest
import torch

from diffusion.evaluate.features.extractors import Features
from diffusion.evaluate.features.reference_features import Reference
from diffusion.evaluate.scores import precision_recall
from diffusion.evaluate.scores.precision_recall import Manifold, memorisation, overlap
from diffusion.evaluate.scores.scorer import Scorer
from tests.evaluate.test_scorer import META

CPU = torch.device("cpu")


def normal(seed, count, dimension=8, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(count, dimension)) + shift).astype(np.float32)


def of(features, most=10_000):
    return Manifold(features, most, CPU)


@pytest.mark.parametrize(("block", "columns"), [(7, 16_384), (7, 2), (1024, 11), (1024, 16_384)])
def test_precision_and_recall_equal_torch_fidelity(monkeypatch, block, columns):
    from torch_fidelity.metric_prc import prc_features_to_metric

    monkeypatch.setattr(precision_recall, "BLOCK", block)
    monkeypatch.setattr(precision_recall, "COLUMNS", columns)
    ours, real = normal(0, 60, shift=0.7), normal(1, 90)
    want = prc_features_to_metric(torch.from_numpy(ours), torch.from_numpy(real), verbose=False)
    got = overlap(of(ours), of(real))
    assert got.precision == pytest.approx(want["precision"], abs=1e-7)
    assert got.recall == pytest.approx(want["recall"], abs=1e-7)


def test_neighbours_are_searched_in_blocks(monkeypatch):
    """No more distances than one block are in memory."""
    made = []

    def watched(points, others):
        made.append(len(points) * len(others))
        return cdist(points, others)

    cdist = torch.cdist
    points, others = (torch.from_numpy(normal(seed, count)) for seed, count in ((0, 50), (1, 333)))
    whole = cdist(points, others)
    monkeypatch.setattr(precision_recall, "BLOCK", 16)
    monkeypatch.setattr(precision_recall, "COLUMNS", 20)
    monkeypatch.setattr(torch, "cdist", watched)
    found = precision_recall.nearest(points, others)
    torch.testing.assert_close(found.distances, whole.min(dim=1).values)
    assert torch.equal(found.rows, whole.argmin(dim=1))
    reach, wide = precision_recall.radii(others, 3, 5)
    torch.testing.assert_close(reach, cdist(others, others).kthvalue(4, dim=1).values)
    torch.testing.assert_close(wide, cdist(others, others).kthvalue(6, dim=1).values)
    assert max(made) == 16 * 20


def test_missing_mode_lowers_recall_only():
    real = np.concatenate([normal(0, 200), normal(1, 200, shift=20)])
    got = overlap(of(normal(2, 200)), of(real))
    assert got.precision > 0.8
    assert got.recall < 0.55


def test_disjoint_sets_have_zero_overlap():
    assert overlap(of(normal(0, 50, shift=50)), of(normal(1, 50))) == (0, 0, 0, 0)


@pytest.mark.parametrize("columns", [11, 16_384])
def test_density_and_coverage_equal_the_paper(monkeypatch, columns):
    """Naeem et al. eq. 4 and 5, pair by pair."""
    monkeypatch.setattr(precision_recall, "COLUMNS", columns)
    samples, real = normal(0, 40, shift=0.5), normal(1, 70)
    reach = [sorted(np.linalg.norm(real - one, axis=1))[5] for one in real]
    inside = np.array(
        [[np.linalg.norm(y - x) <= r for x, r in zip(real, reach, strict=True)] for y in samples]
    )
    found = overlap(of(samples), of(real))
    assert found.density == pytest.approx(inside.sum() / (5 * len(samples)))
    assert found.coverage == pytest.approx(inside.any(axis=0).mean())


def split(seed, size=2000, scale=1.0):
    """Return samples, training and test images of one distribution."""
    return scale * normal(seed, size), normal(seed + 1, 150), normal(seed + 2, 50)


def test_memorisation_is_one_for_copies():
    _, train, test = split(0)
    assert memorisation(of(train), train, test).mean == 1
    assert memorisation(of(test), train, test).mean == pytest.approx(-0.75 / 0.25)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_memorisation_of_new_images_is_zero_within_chance(scale):
    """Blurred samples share their nearest images, which the deviation takes into account."""
    found = []
    for seed in range(0, 120, 3):
        sample, train, test = split(seed, 100, scale)
        found.append(memorisation(of(sample), train, test))
    means, deviations = np.array(found).T
    assert abs(means.mean()) < 3 * means.std() / np.sqrt(len(means))
    assert means.std() == pytest.approx(deviations.mean(), rel=0.35)


def resplit(train, test, rows):
    """Split the same real images again, with `rows` as the training images."""
    real = np.concatenate([train, test])
    chosen = np.zeros(len(real), bool)
    chosen[list(rows)] = True
    return real[chosen], real[~chosen]


def test_memorisation_deviation_equals_that_over_all_splits():
    """Enumerate all 56 splits of 8 real images into 5 training and 3 test images."""
    train, test, sample = normal(0, 5), normal(1, 3), normal(2, 12)
    splits = [resplit(train, test, rows) for rows in itertools.combinations(range(8), 5)]
    found = [memorisation(of(sample), *split) for split in splits]
    means, deviations = np.array(found).T
    assert means.mean() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(deviations, means.std(), rtol=1e-9)


def openai_precision_recall(real, sample):
    """Precision and recall by the arithmetic of OpenAI's evaluator: squared distances, `<=`, k = 3."""

    def squared(a, b):
        a, b = torch.from_numpy(a), torch.from_numpy(b)
        return ((a * a).sum(dim=1)[:, None] - 2 * (a @ b.T) + (b * b).sum(dim=1)).clamp(min=0)

    reach = [squared(x, x).sort(dim=1).values[:, 3] for x in (real, sample)]
    apart = squared(sample, real)
    precision = (apart <= reach[0]).any(dim=1)
    recall = (apart <= reach[1][:, None]).any(dim=0)
    return float(precision.double().mean()), float(recall.double().mean())


def test_precision_and_recall_equal_openai():
    """OpenAI's published batches have 10,000 real images and 50,000 samples, all of them used."""
    scale = np.arange(1, 65, dtype=np.float32) ** -0.5  # rectified features of falling variance
    real, sample = (scale * normal(seed, count, 64).clip(0) for seed, count in ((0, 200), (1, 1000)))
    sample *= 0.95
    scorer = Scorer(Reference(META, real, None), False, 200, CPU, 1000)
    scores = scorer.scores(Features(sample))
    names = [scorer.spec.named(name) for name in ("precision", "recall")]
    assert [scores[name] for name in names] == pytest.approx(openai_precision_recall(real, sample), abs=1e-9)
    few = Scorer(Reference(META, real, None), False, 200, CPU).scores(Features(sample))
    assert few[names[1]] > scores[names[1]] + 0.05  # of more samples each one's reach is shorter
