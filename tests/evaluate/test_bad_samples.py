"""Degenerate samples and references: each has the right numbers, or a clear error."""

import numpy as np
import pytest

from diffusion.evaluate.features.extract import Features, extract
from diffusion.evaluate.features.reference_features import Reference
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.system.errors import DiffctlError
from tests.evaluate.test_scorer import META

FD, KD = "fd_effnet_lite0_64", "kd_effnet_lite0_64"


def normal(seed, count, dimension=16):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dimension)).astype(np.float32)


def scorer_of(real, heldout=None, **known):
    return Scorer(Reference(META, real, None if heldout is None else Features(heldout), **known), True, 1000)


class Blind:
    """An extractor that returns NaN for bright images."""

    batch_size = 4
    spec = EXTRACTORS["inception-v3-spatial"]

    def __call__(self, batch):
        import torch

        features = torch.ones(len(batch), 8)
        features[batch[:, 0, 0, 0] > 250, 3] = float("nan")
        return features, None


def test_nan_features_name_the_image():
    images = np.zeros((10, 4, 4, 1), np.uint8)
    images[[6, 9]] = 255
    with pytest.raises(DiffctlError, match=r"inception-v3-spatial of image 6 are .* of 2 of 10"):
        extract(Blind(), images)
    assert len(extract(Blind(), images[:6])) == 6


@pytest.mark.parametrize("count", [15, 16, 17, 40])
def test_equal_images_have_a_closed_form_distance_without_error(count):
    real = normal(0, 300)
    scores = scorer_of(real, normal(1, 100)).scores(Features(np.ones((count, 16), np.float32)))
    want = ((1 - real.mean(axis=0)) ** 2).sum() + real.var(axis=0, ddof=1).sum()
    assert scores[FD] == pytest.approx(want, rel=1e-5)
    for name in (FD, KD):
        assert np.isfinite(scores[f"{name}_high"] - scores[f"{name}_low"])
    assert scores[f"{FD}_high"] - scores[f"{FD}_low"] == pytest.approx(0, abs=1e-4)


def test_two_images_have_scores_without_intervals():
    found = scorer_of(normal(0, 300), normal(1, 100)).scored(Features(normal(2, 2)))
    assert all(np.isfinite(value) for value in found.scores.values())
    assert not found.errors
    assert not any(name.endswith(("_low", "_high")) for name in found.scores)


def test_reference_as_sample_has_distance_zero():
    real = normal(0, 200)
    scores = scorer_of(real, normal(1, 200)).scores(Features(real))
    assert abs(scores[FD]) < 1e-4
    assert scores[f"{FD}_low"] <= scores[FD] <= scores[f"{FD}_high"]
    assert scores["excess"] < 0
    assert scores["memorisation"] == 1
    assert scores["precision_effnet_lite0_64"] == scores["recall_effnet_lite0_64"] == 1


def test_scores_are_continuous_where_images_equal_features():
    scorer, sample = scorer_of(normal(0, 400, 40), normal(1, 400, 40)), normal(2, 41, 40)
    found = [scorer.scores(Features(sample[:count])) for count in (39, 40, 41)]
    widths = [one[f"{FD}_high"] - one[f"{FD}_low"] for one in found]
    assert max(widths) < 1.5 * min(widths)
    assert found[0][FD] > found[1][FD] > found[2][FD]


@pytest.mark.parametrize("ours", [1, 2])
def test_class_with_one_image_has_no_score(ours):
    meta = {**META, "classes": ["a", "b"]}
    labels = np.array([0] * 30 + [1])
    scorer = Scorer(Reference(meta, normal(0, 31), None, labels), True, 1000)
    found = scorer.classes(Features(normal(1, 10 + ours)), np.array([0] * 10 + [1] * ours), ["a", "b"])
    assert list(found) == ["a"]
    assert found["a"]["num_images"] == 10


def test_excess_over_an_extrapolated_floor_has_no_interval():
    """An extrapolated floor has no sampling error that could be estimated."""
    sample, real = Features(normal(2, 60)), normal(0, 300)
    measured, guessed = scorer_of(real, normal(1, 60)), scorer_of(real, normal(1, 40))
    assert "excess_low" not in guessed.scores(sample)
    scores = measured.scores(sample)
    of_distance, of_excess = (scores[f"{name}_high"] - scores[f"{name}_low"] for name in (FD, "excess"))
    assert of_excess > 1.2 * of_distance  # the floor's own error is of the same size
