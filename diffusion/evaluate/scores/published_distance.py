"""The Fréchet distance of samples to published statistics, which need no real images."""

from functools import cached_property

import numpy as np

from diffusion.evaluate.features.extract import FeatureArray
from diffusion.evaluate.scores.floor import fit_line
from diffusion.evaluate.scores.frechet import ProjectedSample, Target
from diffusion.evaluate.scores.jackknife import image_errors
from diffusion.evaluate.scores.moments import Float
from diffusion.evaluate.scores.torch_fidelity_scores import Statistics, frechet_distance
from diffusion.evaluate.statistics_file import PublishedStatistics


class PublishedTarget(Target):
    """The Gaussian of published statistics as a target."""

    def __init__(self, published: PublishedStatistics) -> None:
        self.mean, self.root = published.mean, published.root
        self.trace = float(published.covariance.trace())
        self.statistics = Statistics(published.mean, published.covariance)


class PublishedDistance:
    """The distance of a sample's features (N, D) to published statistics; `errors` need N ≥ 3.

    `own` are the sample's `statistics`, which the caller has already.
    """

    def __init__(self, features: FeatureArray, own: Statistics, target: PublishedTarget) -> None:
        self.features, self.own, self.target = features, own, target
        self.projected = ProjectedSample(features, target)

    @property
    def distance(self) -> float:
        """‖μ_a − μ_b‖² + Tr(Σ_a + Σ_b − 2(Σ_aΣ_b)^½) (1706.08500, eq. 6), as torch-fidelity computes it."""
        own = self.own._replace(mu=self.features.mean(axis=0, dtype=np.float64))
        return frechet_distance(own, self.target.statistics)

    @property
    def limit(self) -> float:
        """The distance for N → ∞."""
        return fit_line(self.projected).limit

    @cached_property
    def errors(self) -> Float:
        """(N,) each image's part of the distance's error; the squares sum to its variance."""
        return image_errors(self.projected.leave_one_out(), self.projected.interactions())
