"""What images bring together to the spread of a sum over the eigenvalues of their scatter."""

import numpy as np

from diffusion.evaluate.scores.jackknife import Interactions
from diffusion.evaluate.scores.moments import Float

STEP = 0.5  # of the quadrature, in log t
TAIL = 12.0  # how far it goes beyond the eigenvalues, in log t


def root_sum_interactions(values: Float, freedom: int) -> Interactions:
    """Those of Σ √λ over the non-zero eigenvalues `values` (k,), rising, of a scatter of `freedom` degrees.

    √λ = 1/2π ∫ log(1 + λ/t) t^(−½) dt, and log det(S + s) and log det(S + t) of a random scatter S covary by
    −2 log(1 − a) = Σ_k 2 aᵏ/k (Bai & Silverstein 2004, th. 1.1): the k-th term is what cycles of k images do.
    By the Silverstein equation 1 − a(s, t) = m(s) m(t) (t − s)/(m(s) − m(t)) with the companion transform
    m(t) = mean 1/(λ + t) over as many eigenvalues as degrees of freedom, the zero ones included: only what is
    measured enters. It needs many directions; a is of images that agree in two moments with Gaussian ones.
    The mean is taken off, which has pairs interact once more, by 2a/N: it matters where few directions do.
    """
    if not len(values):
        return Interactions(0.0, 0.0)
    values = values[-freedom:]
    zeros = freedom - len(values)
    t = np.exp(np.arange(np.log(values[0]) - TAIL, np.log(values[-1]) + TAIL, STEP))
    inverse = 1 / (values[:, None] + t)
    transform = (inverse.sum(axis=0) + zeros / t) / freedom
    product = (inverse.T @ inverse + zeros / np.outer(t, t)) / freedom  # (m(s) − m(t))/(t − s)
    rest = np.minimum(np.outer(transform, transform) / product, 1)  # 1 − a
    weights = np.sqrt(t) * STEP / (2 * np.pi)
    centring = 2 * (1 - rest) / (freedom + 1)
    own = -2 * (np.log(rest) + (1 - rest)) + centring
    surplus = 2 * (1 - rest) / rest + 2 * np.log(rest) + centring  # the first is Σ_k k · 2 aᵏ/k
    return Interactions(float(weights @ surplus @ weights), float(weights @ own @ weights))
