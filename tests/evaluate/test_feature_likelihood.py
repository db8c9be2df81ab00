"""FLD: closed forms of the mixture, and copies, near-copies and fresh images."""

import math

import numpy as np
import torch

from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extractors import Features
from diffusion.evaluate.features.reference_features import Reference
from diffusion.evaluate.scores import feature_likelihood as fld
from diffusion.evaluate.scores.feature_likelihood import FeatureLikelihood, fit_variances, log_likelihood
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.protocol.card import Limits, neighbour_card
from tests.evaluate.test_scorer import META

FLD, FD = "fld_effnet_lite0_64", "fd_effnet_lite0_64"


def test_likelihood_equals_the_density_of_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    points, centers = (torch.randn(count, 3, generator=generator, dtype=torch.float64) for count in (7, 4))
    variances = torch.rand(4, generator=generator, dtype=torch.float64) + 0.1
    parts = torch.distributions.MultivariateNormal(
        centers, variances[:, None, None] * torch.eye(3, dtype=torch.float64)
    )
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(4)), parts)
    found = log_likelihood(fld.squared_distances(points, centers), variances, 3)
    torch.testing.assert_close(found * 3, mixture.log_prob(points))


def test_variances_are_the_closed_form_of_one_gaussian_and_a_maximum_for_several(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    points, centers = (torch.randn(count, 2, generator=generator, dtype=torch.float64) for count in (200, 5))
    squares = fld.squared_distances(points, centers)
    far = torch.full((200, 1), 1e15, dtype=torch.float64)  # a background that explains nothing
    torch.testing.assert_close(fit_variances(squares[:, :1], far, 2), squares[:, 0].mean()[None] / 2)
    monkeypatch.setattr(fld, "MAX_ITERATIONS", 2000)
    monkeypatch.setattr(fld, "TOLERANCE", 0.0)
    logs = fit_variances(squares, far, 2).log().requires_grad_()
    log_likelihood(squares, logs.exp(), 2).mean().backward()
    assert float(logs.grad.abs().max()) < 1e-5


def images(seed, count):
    """Return features (count, 12) of five groups."""
    groups = np.random.default_rng(9).normal(size=(5, 12)) * 2
    rng = np.random.default_rng(seed)
    return (groups[rng.integers(5, size=count)] + rng.normal(size=(count, 12))).astype(np.float32)


def test_copies_and_near_copies_score_high_although_their_frechet_distance_is_low():
    train, test, fresh = images(0, 600), images(1, 600), images(2, 300)
    noise = np.random.default_rng(3).normal(size=(300, 12)).astype(np.float32)
    reference = Reference({**META, "heldout_split": "test"}, train, Features(test))
    scorer = Scorer(reference, EvaluateConfig(feature_likelihood=True))
    sets = {
        "fresh": fresh,
        "near": train[:300] + 0.1 * noise,
        "copies": train[:300],
        "far": fresh + 2 * noise,
    }
    scores = {name: scorer.scores(Features(sample)) for name, sample in sets.items()}
    found = {name: values[FLD] for name, values in scores.items()}
    assert abs(found["fresh"]) < 3
    assert abs(scorer.scores(Features(images(4, 2400)))[FLD]) < 3  # more than half of the training images
    assert 10 < found["far"] < found["near"] < found["copies"] / 10
    assert scores["copies"][FD] < scores["fresh"][FD] < scores["far"][FD]
    assert FLD not in Scorer(reference, EvaluateConfig()).scores(Features(fresh))


def test_divergences_of_equal_cards_are_of_as_many_images():
    train, test, sample = images(0, 40), images(1, 90), images(2, 80)
    reference = Reference({**META, "heldout_split": "test"}, train, Features(test))
    first, second = (
        Scorer(reference, EvaluateConfig(feature_likelihood=True, prc_samples=100, prc_images=most))
        for most in (50, 100)
    )
    assert neighbour_card(80, 40, first.limits) == neighbour_card(80, 40, second.limits)
    assert first.scores(Features(sample))[FLD] == second.scores(Features(sample))[FLD]


def test_equal_or_constant_features_give_finite_values():
    train = images(0, 20)
    train[:, 3] = 1.0
    likelihood = FeatureLikelihood(train, train[:10], Limits(100, 100), torch.device("cpu"))
    assert math.isfinite(likelihood(np.repeat(train[:1], 10, axis=0)))
