"""The papers' formulas in numpy, one at a time and from the text, as an oracle for the library."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Array = NDArray[np.float64]


def ddpm_betas(timesteps: int) -> Array:
    """DDPM sec. 4: from 1e-4 to 0.02 linearly, for T = 1000; the sum of β is kept for another T."""
    return np.minimum(np.linspace(0.1 / timesteps, 20 / timesteps, timesteps), 0.999)


def cosine_alpha_bar(timesteps: int) -> Array:
    """iDDPM eq. 17: ᾱ_t = f(t)/f(0) for t = 1 … T, before any clipping of β."""
    u = np.arange(timesteps + 1) / timesteps
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return f[1:] / f[0]


def bayes_posterior(alpha: float, alpha_bar_prev: float, x_0: Array, x_t: Array) -> tuple[Array, float]:
    """q(x_{t−1}|x_t, x_0) as a product of q(x_t|x_{t−1}) and q(x_{t−1}|x_0): its mean and variance."""
    if alpha_bar_prev == 1:
        return x_0, 0.0
    beta = 1 - alpha
    precision = alpha / beta + 1 / (1 - alpha_bar_prev)
    pull = np.sqrt(alpha) * x_t / beta + np.sqrt(alpha_bar_prev) * x_0 / (1 - alpha_bar_prev)
    return pull / precision, 1 / precision


def ddim_sigma(alpha_bar: float, alpha_bar_prev: float, eta: float) -> float:
    """DDIM eq. 16."""
    return float(
        eta * np.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar)) * np.sqrt(1 - alpha_bar / alpha_bar_prev)
    )


def ddim_sigma_hat(alpha_bar: float, alpha_bar_prev: float) -> float:
    """The σ̂ of DDIM's Table 1."""
    return float(np.sqrt(1 - alpha_bar / alpha_bar_prev))


def ddim_step(x: Array, eps: Array, alpha_bar: float, alpha_bar_prev: float, sigma: float) -> Array:
    """DDIM eq. 12 without its noise."""
    x_0 = (x - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar)
    return np.sqrt(alpha_bar_prev) * x_0 + np.sqrt(max(0, 1 - alpha_bar_prev - sigma**2)) * eps


def iddpm_variance(v: Array, beta: float, beta_tilde: float) -> Array:
    """iDDPM eq. 15, with its v in [0, 1] written as (v+1)/2."""
    f = (v + 1) / 2
    return np.exp(f * np.log(beta) + (1 - f) * np.log(beta_tilde))


def eight_bit_nll(x_0: Array, mean: Array, std: Array) -> Array:
    """DDPM eq. 13 in nats, the tails computed on the side where they are small."""
    distance = np.abs(x_0 - mean)
    inside = norm.cdf((1 / 255 - distance) / std) - norm.cdf((-1 / 255 - distance) / std)
    below = norm.logcdf((x_0 + 1 / 255 - mean) / std)
    above = norm.logsf((x_0 - 1 / 255 - mean) / std)
    with np.errstate(divide="ignore"):
        return -np.where(x_0 <= -1, below, np.where(x_0 >= 1, above, np.log(inside)))


class GaussianData:
    """Pixels drawn from N(mean, std²): the best possible ε and posterior have closed forms."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def eps(self, x_t, alpha_bar):
        """E[ε | x_t]."""
        return (1 - alpha_bar) ** 0.5 * (x_t - alpha_bar**0.5 * self.mean) / self.marginal(alpha_bar)

    def marginal(self, alpha_bar):
        """Var[x_t]."""
        return alpha_bar * self.std**2 + 1 - alpha_bar

    def x0_variance(self, alpha_bar):
        """Var[x_0 | x_t]."""
        return self.std**2 * (1 - alpha_bar) / self.marginal(alpha_bar)

    def flow(self, x_t, alpha_bar, alpha_bar_to):
        """The probability-flow ODE's exact solution from x_t to another ᾱ, the limit of η = 0."""
        scale = (self.marginal(alpha_bar_to) / self.marginal(alpha_bar)) ** 0.5
        return alpha_bar_to**0.5 * self.mean + scale * (x_t - alpha_bar**0.5 * self.mean)
