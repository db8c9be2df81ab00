import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from diffusion.evaluation.features import Features, extract
from diffusion.evaluation.floor import floor_at
from diffusion.evaluation.scores import (
    KID_SUBSETS,
    SEED,
    Statistics,
    all_scores,
    frechet_distance,
    inception_score,
    kernel_distance,
    kid_subset_size,
    statistics,
)
from tests.digits_sweep import effnet, real_digits


@pytest.fixture(scope="module")
def extractor():
    return effnet()


@pytest.fixture(scope="module")
def digits(extractor):
    """Features of 300 real digits."""
    return extract(extractor, real_digits()[0][:300])


def covariance(rng, size):
    root = rng.normal(size=(size, size))
    return root @ root.T / size + 0.1 * np.eye(size)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 12))
def test_the_distance_of_gaussians_is_its_closed_form(seed, size):
    rng = np.random.default_rng(seed)
    mu_a, mu_b = rng.normal(size=(2, size))
    sigma_a, sigma_b = covariance(rng, size), covariance(rng, size)
    closed = np.sum((mu_a - mu_b) ** 2) + np.trace(sigma_a + sigma_b - 2 * sqrtm(sigma_a @ sigma_b).real)
    got = frechet_distance(Statistics(mu_a, sigma_a), Statistics(mu_b, sigma_b))
    assert got == pytest.approx(closed, rel=1e-8, abs=1e-8)


def test_a_large_gaussian_sample_has_the_distance_of_its_distribution():
    rng = np.random.default_rng(0)
    sigma_a, sigma_b = covariance(rng, 6), covariance(rng, 6)
    mu_a, mu_b = np.zeros(6), np.full(6, 0.5)
    samples = [
        rng.multivariate_normal(mu, sigma, 100_000).astype(np.float32)
        for mu, sigma in ((mu_a, sigma_a), (mu_b, sigma_b))
    ]
    closed = frechet_distance(Statistics(mu_a, sigma_a), Statistics(mu_b, sigma_b))
    assert frechet_distance(*map(statistics, samples)) == pytest.approx(closed, rel=0.02)


def test_a_set_against_itself_is_zero(digits):
    own = statistics(digits.features)
    assert abs(frechet_distance(own, own)) < 1e-3 * np.trace(own.sigma)


def test_a_distance_is_symmetric(digits):
    a, b = statistics(digits.features[:150]), statistics(digits.features[150:])
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-5)


@settings(deadline=None)
@given(st.integers(2, 10**6), st.integers(2, 10**6))
def test_a_subset_fits_both_sets(count, reference_count):
    size = kid_subset_size(count, reference_count)
    assert 2 <= size <= 500
    assert size <= min(count, reference_count)
    assert size <= max(2, min(count, reference_count) // 2)


@pytest.mark.parametrize("count", [2, 3, 7, 50])
def test_few_images_give_finite_scores(digits, extractor, count):
    sample = Features(digits.features[:count], digits.logits[:count])
    reference = digits.features[100:]
    scores = all_scores(extractor.spec, sample, reference, statistics(reference))
    assert all(np.isfinite(value) for value in scores.values())
    assert set(scores) == {
        "fd_effnet_lite0_64",
        "kd_effnet_lite0_64",
        "kd_effnet_lite0_64_std",
        "is_effnet_lite0_64",
        "is_effnet_lite0_64_std",
    }


def test_kid_is_unbiased_and_sees_a_shift():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 400, 16)).astype(np.float32)
    same, shifted = kernel_distance(a, b), kernel_distance(a + 1, b)
    assert abs(same.mean) < 3 * same.std
    assert shifted.mean > 10 * same.std


def test_kid_equals_the_mean_of_its_subsets_written_out(digits):
    """An independent oracle: the unbiased estimator of 1801.01401, sec. 4, on the same subsets."""
    a, b = digits.features[:120].astype(float), digits.features[120:].astype(float)
    rng, size, values = np.random.RandomState(SEED), kid_subset_size(len(a), len(b)), []
    off_diagonal = ~np.eye(size, dtype=bool)
    for _ in range(KID_SUBSETS):
        x, y = a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)]
        kxx, kyy, kxy = ((p @ q.T / p.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        values.append(kxx[off_diagonal].mean() + kyy[off_diagonal].mean() - 2 * kxy.mean())
    got = kernel_distance(digits.features[:120], digits.features[120:])
    assert got.mean == pytest.approx(np.mean(values), rel=1e-3)


def test_inception_score_of_certain_and_of_blind_logits():
    certain = np.tile(100 * np.eye(5, dtype=np.float32), (200, 1))
    assert inception_score(certain).mean == pytest.approx(5, rel=0.02)
    assert inception_score(np.zeros((100, 5), np.float32)).mean == pytest.approx(1)


class Tensors(torch.utils.data.Dataset):
    """Images as torch-fidelity wants them: uint8 (3, H, W)."""

    def __init__(self, images):
        self.images = torch.from_numpy(images.transpose(0, 3, 1, 2).repeat(3, axis=1))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def test_scores_are_those_of_torch_fidelity(extractor):
    from torch_fidelity import calculate_metrics

    images, _ = real_digits()
    ours, real = images[:100], images[100:250]
    got = all_scores(
        extractor.spec,
        extract(extractor, ours, 50),
        (reference := extract(extractor, real, 50).features),
        statistics(reference),
    )
    want = calculate_metrics(
        input1=Tensors(ours),
        input2=Tensors(real),
        feature_extractor=extractor.spec.name,
        fid=True,
        kid=True,
        isc=True,
        kid_subset_size=kid_subset_size(len(ours), len(real)),
        batch_size=50,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert got["fd_effnet_lite0_64"] == pytest.approx(want["frechet_inception_distance"], rel=1e-6)
    assert got["kd_effnet_lite0_64"] == pytest.approx(want["kernel_inception_distance_mean"], rel=1e-6)
    assert got["kd_effnet_lite0_64_std"] == pytest.approx(want["kernel_inception_distance_std"], rel=1e-6)
    assert got["is_effnet_lite0_64"] == pytest.approx(want["inception_score_mean"], rel=1e-6)


def test_the_floor_is_measured_where_there_are_enough_images():
    rng = np.random.default_rng(2)
    reference, heldout = rng.normal(size=(2, 2000, 8)).astype(np.float32)
    own = statistics(reference)
    all_of_them = floor_at(2000, heldout, reference, own)
    assert not all_of_them.extrapolated
    assert all_of_them.distance == pytest.approx(frechet_distance(statistics(heldout), own), rel=1e-6)
    assert floor_at(100, heldout, reference, own).distance > all_of_them.distance


def test_an_extrapolated_floor_is_marked_and_near_the_measured_one():
    rng = np.random.default_rng(3)
    reference, heldout = rng.normal(size=(2, 4000, 16)).astype(np.float32)
    own = statistics(reference)
    guessed = floor_at(2000, heldout[:500], reference, own)
    assert guessed.extrapolated
    assert guessed.num_images == 2000
    # Each image of a 16-dimensional Gaussian costs about D(D + 3)/4N, here 0.038 of 0.152 at N = 500.
    assert guessed.distance == pytest.approx(floor_at(2000, heldout, reference, own).distance, abs=0.05)
    assert floor_at(10**7, heldout[:500], reference, own).distance >= 0


def test_two_heldout_images_still_give_a_floor():
    rng = np.random.default_rng(4)
    reference = rng.normal(size=(50, 4)).astype(np.float32)
    floor = floor_at(100, reference[:2], reference, statistics(reference))
    assert floor.extrapolated
    assert np.isfinite(floor.distance)
