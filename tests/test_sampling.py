"""The reverse step against DDPM, iDDPM and DDIM, and whole walks against closed forms."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.errors import UsageError
from diffusion.gaussian import log_variance
from diffusion.sampling import Step, reverse_step, sample
from diffusion.schedule import Schedule, spaced_timesteps
from tests import papers

NAMES = st.sampled_from(["linear", "cosine"])
SPACINGS = st.sampled_from(["uniform", "quadratic", "trailing"])
IMAGES = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))  # channels, height, width


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Draws:
    """Counted draws of noise; what a walk asks for is what its generator gives."""

    def __init__(self, *shape: int, seed: int = 0) -> None:
        self.shape, self.source, self.count = shape, torch.Generator().manual_seed(seed), 0

    def __call__(self) -> torch.Tensor:
        self.count += 1
        return torch.randn(*self.shape, generator=self.source, dtype=torch.float64)


@st.composite
def walks(draw: st.DrawFn, smallest: int = 1) -> Schedule:
    timesteps = draw(st.integers(2, 300))
    steps = draw(st.integers(min(smallest, timesteps), timesteps))
    schedule = Schedule.named(draw(NAMES), timesteps)
    return schedule.spaced(spaced_timesteps(draw(SPACINGS), steps, timesteps))


@st.composite
def noisy_walks(draw: st.DrawFn) -> tuple[Schedule, float]:
    """A walk of at least two steps and an η that it allows, as often above 1 as below."""
    schedule = draw(walks(2))
    return schedule, draw(st.floats(0, 1) | st.floats(1, schedule.largest_eta()))


def true_eps(schedule: Schedule, x_0: torch.Tensor):
    """The network that knows x_0: it gives the ε that leads from x_0 to x_t, and checks its timesteps."""
    table = dict(zip(schedule.timesteps.tolist(), schedule.alphas_cumprod, strict=True))

    def network(x, t, labels):
        alpha_bar = table[int(t[0])]
        assert bool((t == t[0]).all())
        return (x - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()

    return network


@settings(deadline=None, max_examples=60)
@given(walks(), IMAGES, st.booleans())
def test_the_true_eps_brings_eta_0_back_to_x0(schedule, image, clip):
    x_0 = randn(2, *image, seed=1).clamp(-1, 1)
    x = sample(true_eps(schedule, x_0), schedule, Draws(2, *image), eta=0.0, clip=clip)
    assert torch.allclose(x, x_0, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(noisy_walks(), IMAGES, st.data())
def test_one_step_is_ddim_eq_12(walk, image, data):
    schedule, eta = walk
    i = data.draw(st.integers(0, len(schedule) - 1))
    x, eps, z = randn(3, 2, *image)
    a, b = float(schedule.alphas_cumprod[i]), float(schedule.alphas_cumprod_prev[i])
    sigma = papers.ddim_sigma(a, b, eta)
    mean = papers.ddim_step(x.numpy(), eps.numpy(), a, b, sigma)
    index = torch.full((2,), i)
    without, _ = reverse_step(schedule, x, index, eps, None, eta=eta, clip=False)
    tolerance = 1e-7 / math.sqrt(a)
    assert np.allclose(without, mean, rtol=1e-6, atol=tolerance)
    for noise, s in (("small", sigma), ("large", eta * papers.ddim_sigma_hat(a, b))):
        noisy, _ = reverse_step(schedule, x, index, eps, None, eta=eta, noise=noise, clip=False, z=z)
        assert np.allclose(noisy, mean + s * z.numpy(), rtol=1e-6, atol=tolerance)


@settings(deadline=None, max_examples=60)
@given(NAMES, st.integers(2, 1000), IMAGES, st.data())
def test_eta_1_with_every_step_is_the_ddpm_posterior(name, timesteps, image, data):
    schedule = Schedule.named(name, timesteps)
    i = data.draw(st.integers(1, timesteps - 1))
    x, eps, z = randn(3, 2, *image)
    a, b = float(schedule.alphas_cumprod[i]), float(schedule.alphas_cumprod_prev[i])
    index = torch.full((2,), i)
    mean = papers.ddpm_mean(x.numpy(), eps.numpy(), a / b, a)
    _, variance = papers.bayes_posterior(a / b, b, np.zeros(1), np.zeros(1))
    tolerance = 1e-6 / math.sqrt(a)
    found, _ = reverse_step(schedule, x, index, eps, None, eta=1.0, clip=False)
    assert np.allclose(found, mean, rtol=1e-6, atol=tolerance)
    for noise, var in (("small", variance), ("large", 1 - a / b)):
        noisy, _ = reverse_step(schedule, x, index, eps, None, eta=1.0, noise=noise, clip=False, z=z)
        assert np.allclose(noisy, mean + math.sqrt(var) * z.numpy(), rtol=1e-6, atol=tolerance)


@settings(deadline=None, max_examples=60)
@given(NAMES, st.integers(3, 1000), IMAGES, st.data())
def test_eta_1_with_every_step_and_learned_noise_is_the_iddpm_posterior(name, timesteps, image, data):
    schedule = Schedule.named(name, timesteps)
    i = data.draw(st.integers(1, timesteps - 1))
    x, eps, z, v = randn(4, 2, *image)
    v = v.clamp(-1, 1)
    a, b = float(schedule.alphas_cumprod[i]), float(schedule.alphas_cumprod_prev[i])
    _, beta_tilde = papers.bayes_posterior(a / b, b, np.zeros(1), np.zeros(1))
    variance = papers.iddpm_variance(v.numpy(), 1 - a / b, beta_tilde)
    mean = papers.ddpm_mean(x.numpy(), eps.numpy(), a / b, a)
    noisy, _ = reverse_step(
        schedule, x, torch.full((2,), i), eps, v, eta=1.0, noise="learned", clip=False, z=z
    )
    assert np.allclose(noisy, mean + np.sqrt(variance) * z.numpy(), rtol=1e-6, atol=1e-6 / math.sqrt(a))


@settings(deadline=None, max_examples=60)
@given(noisy_walks(), IMAGES, st.data())
def test_learned_noise_along_a_spacing_interpolates_between_the_spaced_variances(walk, image, data):
    schedule, eta = walk
    i = data.draw(st.integers(1, len(schedule) - 1))
    x, eps, z, v = randn(4, 2, *image)
    index = torch.full((2,), i)
    without, _ = reverse_step(schedule, x, index, eps, v, eta=eta, clip=False)
    noisy, _ = reverse_step(schedule, x, index, eps, v, eta=eta, noise="learned", clip=False, z=z)
    beta, beta_tilde = float(schedule.betas[i]), float(schedule.posterior_variance[i])
    expected = eta * np.sqrt(papers.iddpm_variance(v.numpy(), beta, beta_tilde)) * z.numpy()
    assert np.allclose(noisy - without, expected, rtol=1e-5, atol=1e-9 + 1e-12 * float(without.abs().max()))


@settings(deadline=None, max_examples=60)
@given(noisy_walks(), IMAGES, st.data())
def test_clipping_recomputes_eps_from_the_clipped_x0(walk, image, data):
    schedule, eta = walk
    i = data.draw(st.integers(0, len(schedule) - 1))
    x, eps = randn(2, 2, *image)
    a, b = float(schedule.alphas_cumprod[i]), float(schedule.alphas_cumprod_prev[i])
    x0_hat = np.clip((x - math.sqrt(1 - a) * eps) / math.sqrt(a), -1, 1)
    again = (x - math.sqrt(a) * x0_hat) / math.sqrt(1 - a)
    sigma = papers.ddim_sigma(a, b, eta)
    expected = math.sqrt(b) * x0_hat + math.sqrt(max(0, 1 - b - sigma**2)) * again
    found, found_x0 = reverse_step(schedule, x, torch.full((2,), i), eps, None, eta=eta, clip=True)
    assert np.allclose(found_x0, x0_hat, atol=1e-9)
    assert np.allclose(found, expected, atol=1e-7)


@settings(deadline=None, max_examples=30)
@given(NAMES, st.integers(2, 300), IMAGES, st.data())
def test_clipped_ddim_at_eta_1_is_the_posterior_of_the_clipped_x0(name, timesteps, image, data):
    """DDIM equals DDPM only if ε follows the clipped x̂_0."""
    schedule = Schedule.named(name, timesteps)
    i = data.draw(st.integers(0, timesteps - 1))
    x, eps = randn(2, 1, *image)
    a, b = float(schedule.alphas_cumprod[i]), float(schedule.alphas_cumprod_prev[i])
    found, x0_hat = reverse_step(schedule, x, torch.tensor([i]), eps, None, eta=1.0)
    mean, _ = papers.bayes_posterior(a / b, b, x0_hat.numpy(), x.numpy())
    assert np.allclose(found, mean, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(walks(), st.sampled_from([0.0, 0.5, 1.0]))
def test_noise_is_drawn_once_for_x_t_and_once_a_noisy_step(schedule, eta):
    draws = Draws(1, 1, 2, 2)
    seen: list[Step] = []
    x = sample(lambda x, t, labels: 0.5 * x, schedule, draws, eta=eta, callback=seen.append)
    assert draws.count == (1 if eta == 0 else len(schedule))
    assert [step.done for step in seen] == list(range(1, len(schedule) + 1))
    assert torch.equal(seen[-1].x, x)
    assert torch.equal(seen[-1].x, seen[-1].x0_hat)  # ᾱ = 1 at the end: the last x is x̂_0 itself


def test_the_network_sees_original_timesteps_and_labels():
    schedule = Schedule.named("cosine", 100).spaced([3, 50, 99])
    seen = []

    def network(x, t, labels):
        seen.append((t.tolist(), labels.tolist()))
        return torch.zeros_like(x)

    sample(network, schedule, Draws(2, 1, 2, 2), labels=torch.tensor([4, 7]))
    assert seen == [([t, t], [4, 7]) for t in (99, 50, 3)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_learned_network_gives_eps_and_v(channels):
    schedule = Schedule.named("cosine", 50).spaced(spaced_timesteps("uniform", 5, 50))
    v = randn(2, channels, 2, 2, seed=9).clamp(-1, 1)

    def network(x, t, labels):
        return torch.cat([0.3 * x, v], 1)

    def of_eps(x, t, labels):
        return 0.3 * x

    shape = (2, channels, 2, 2)
    small = sample(network, schedule, Draws(*shape), eta=0.7)
    assert torch.equal(small, sample(of_eps, schedule, Draws(*shape), eta=0.7))
    learned = sample(network, schedule, Draws(*shape), eta=0.7, noise="learned")
    assert not torch.equal(small, learned)
    scale = log_variance(schedule, "learned", v, v, torch.full((2,), 4)).mul(0.5).exp()
    assert bool((scale > 0).all())


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("noise", ["small", "large"])
def test_gaussian_data_is_sampled_with_its_mean_and_variance(name, eta, noise):
    data, schedule = papers.GaussianData(0.3, 0.4), Schedule.named(name, 1000)
    table = schedule.alphas_cumprod

    def network(x, t, labels):
        return data.eps(x, float(table[t[0]]))

    x = sample(network, schedule, Draws(1, 1, 100, 100), eta=eta, noise=noise, clip=False)
    count = x.numel()
    assert float(x.mean()) == pytest.approx(0.3, abs=4 * 0.4 / math.sqrt(count) + 0.003)
    assert float(x.var()) == pytest.approx(0.16, rel=4 * math.sqrt(2 / count) + 0.02)


@settings(deadline=None, max_examples=25)
@given(noisy_walks(), st.floats(-0.8, 0.8), st.floats(0.05, 1))
def test_a_gaussian_walk_has_the_distribution_of_its_linear_recursion(walk, mean, std):
    """Each step is affine in x, so mean and variance of the images follow exactly for every S and η."""
    schedule, eta = walk
    data = papers.GaussianData(mean, std)
    m, var = 0.0, 1.0
    for i in reversed(range(len(schedule))):
        a, b = float(schedule.alphas_cumprod[i]), float(schedule.alphas_cumprod_prev[i])
        sigma = papers.ddim_sigma(a, b, eta)
        at = [float(papers.ddim_step(x, data.eps(x, a), a, b, sigma)) for x in (np.zeros(()), np.ones(()))]
        slope, m = at[1] - at[0], at[0] + (at[1] - at[0]) * m
        var = slope**2 * var + (sigma**2 if i else 0)
    table = dict(zip(schedule.timesteps.tolist(), schedule.alphas_cumprod.tolist(), strict=True))

    def network(x, t, labels):
        return data.eps(x, table[int(t[0])])

    x = sample(network, schedule, Draws(1, 1, 64, 64), eta=eta, clip=False)
    assert float(x.mean()) == pytest.approx(m, abs=5 * math.sqrt(var / 4096) + 1e-6)
    assert float(x.var()) == pytest.approx(var, rel=5 * math.sqrt(2 / 4096), abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(walks(2), st.floats(1e-3, 2))
def test_eta_too_large_is_refused_with_the_largest_that_is_not(schedule, above):
    largest = schedule.largest_eta()
    with pytest.raises(UsageError, match=r"give 0 to \d\.\d{4}$") as refusal:
        sample(lambda x, t, labels: x, schedule, Draws(1, 1, 2, 2), eta=largest * (1 + above))
    told = float(re.findall(r"[\d.]+$", str(refusal.value))[0])
    assert 0 <= largest - told < 1.0001e-4
    for eta in (told, largest):
        x = sample(lambda x, t, labels: 0 * x, schedule, Draws(1, 1, 2, 2), eta=eta)
        assert bool(torch.isfinite(x).all())


def test_one_step_takes_any_eta_from_0_on():
    schedule = Schedule.named("cosine", 10).spaced([9])
    sample(lambda x, t, labels: x, schedule, Draws(1, 1, 2, 2), eta=1e6)
    with pytest.raises(UsageError, match="eta -1 does not fit 1 steps: give 0 to inf"):
        sample(lambda x, t, labels: x, schedule, Draws(1, 1, 2, 2), eta=-1)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_gradient_towards_no_class_is_refused(eta):
    schedule, draws = Schedule.named("cosine", 10), Draws(1, 1, 2, 2)
    with pytest.raises(UsageError, match="a classifier guides towards a class: give one"):
        sample(lambda x, t, labels: x, schedule, draws, eta=eta, gradient=lambda x, t, labels: x)
    assert draws.count == 0


def test_negative_eta_and_learned_noise_without_v_are_refused():
    schedule = Schedule.named("cosine", 10)
    with pytest.raises(UsageError, match=r"eta -0\.1"):
        sample(lambda x, t, labels: x, schedule, Draws(1, 1, 2, 2), eta=-0.1)
    with pytest.raises(UsageError, match="learned variance"):
        sample(lambda x, t, labels: x, schedule, Draws(1, 1, 2, 2), eta=1.0, noise="learned")
