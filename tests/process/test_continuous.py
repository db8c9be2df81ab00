"""Continuous processes: EDM, flow matching, the inverse of the noise level, σ_data of the data, refusals."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion.data.prepare import pixel_std
from diffusion.images.pixels import to_model
from diffusion.images.store import open_store
from diffusion.process.denoiser import Condition
from diffusion.process.discrete import require_discrete
from diffusion.process.losses import training_losses
from diffusion.process.noise import ImageNoise
from diffusion.process.noise_process import NoiseProcess, build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.system.errors import UsageError
from diffusion.train.plan import plan_artefact, training_fingerprint
from tests.helpers import trajectories
from tests.helpers.trainings import plan_of
from tests.helpers.trajectories import randn

SIGMA_DATA = 0.7


def process_of(schedule="edm", **options):
    return build_process(ProcessConfig(schedule=schedule, sigma_data=SIGMA_DATA, **options))


def levels(count=200):
    return torch.logspace(-2.6, 1.9, count, dtype=torch.float64)


def test_network_receives_and_predicts_edms_scaled_images():
    """Table 1 of 2206.00364: c_skip, c_out, c_in, c_noise; D = c_skip·x + c_out·F(c_in·x; c_noise)."""
    process, sigma = process_of(), levels()
    variance = sigma.square() + SIGMA_DATA**2
    c_skip, c_out = SIGMA_DATA**2 / variance, sigma * SIGMA_DATA / variance.sqrt()
    x_0, noise = randn(200, 1, 2, 2, seed=0), randn(200, 1, 2, 2, seed=1)
    shaped = [part.reshape(-1, 1, 1, 1) for part in (sigma, c_skip, c_out, variance)]
    x = x_0 + shaped[0] * noise
    received, time = process.network_input(x, sigma)
    assert torch.allclose(received, x / shaped[3].sqrt())
    assert torch.allclose(time, 1000 * sigma.log() / 4)
    output = randn(200, 1, 2, 2, seed=2)
    assert torch.allclose(process.read(output, x, sigma).x0, shaped[1] * x + shaped[2] * output)
    assert torch.allclose(process.target(x_0, sigma, noise), (x_0 - shaped[1] * x) / shaped[2])


def test_edms_loss_is_the_weighted_error_of_the_denoised_image():
    """Its weight of ‖D − x_0‖² is 1/c_out² (table 1), whatever the network predicts."""
    sigma, x_0, noise, output = levels(6), *randn(3, 6, 1, 2, 2, seed=3)
    c_out = sigma * SIGMA_DATA / (sigma.square() + SIGMA_DATA**2).sqrt()
    for prediction in ("edm", "eps", "x0", "velocity", "flow"):
        process = process_of(prediction=prediction)
        x = process.q_sample(x_0, sigma, noise)
        network = lambda received, time, labels: output  # noqa: E731
        losses = training_losses(network, process, x_0, sigma, noise, Condition(6))
        error = (process.read(output, x, sigma).x0 - x_0).square().flatten(1).mean(1)
        assert torch.allclose(losses["loss"], error / c_out.square())
        if prediction == "edm":
            assert torch.allclose(losses["loss"], losses["mse"])


def test_soft_min_snr_is_k_diffusions_weight_of_the_output():
    """(σ·σ_data)²/(σ² + σ_data²)² of the scaled output's error."""
    process, sigma = process_of(weighting="min-snr-soft"), levels()
    expected = (sigma * SIGMA_DATA).square() / (sigma.square() + SIGMA_DATA**2).square()
    assert torch.allclose(process.loss_weight(sigma), expected)
    hard = process_of(weighting="min-snr", weighting_options={"gamma": 2.0}, prediction="x0")
    assert torch.allclose(hard.loss_weight(sigma), sigma.pow(-2).clamp(max=2))


@pytest.mark.parametrize(("schedule", "predicted"), [("flow", "flow"), ("cosine", "velocity")])
def test_velocity_weight_makes_the_error_of_x_0_that_of_the_velocity(schedule, predicted):
    """JiT (2511.13720): ‖x̂_0 − x_0‖²/max(σ, 0.05)²; with another minimum the bound moves."""
    fixed = {"variance": "small", "loss": "simple"} if schedule == "cosine" else {}
    target = process_of(schedule, prediction=predicted, **fixed)
    options = {"prediction": "x0", "weighting": "velocity", **fixed}
    process = process_of(schedule, **options)
    t = torch.linspace(process.t_min, process.t_max, 200, dtype=torch.float64)
    sigma = process.alpha_sigma(t)[1]
    x_0, noise, x0_hat = randn(3, 200, 1, 2, 2, seed=4)
    x_t = process.q_sample(x_0, t, noise)
    losses = training_losses(lambda *_: x0_hat, process, x_0, t, noise, Condition(200))
    error = (x0_hat - x_0).square().flatten(1).mean(1)
    eps_hat = (x_t - process.alpha_sigma(t)[0].reshape(-1, 1, 1, 1) * x0_hat) / sigma.reshape(-1, 1, 1, 1)
    difference = target.target(x0_hat, t, eps_hat) - target.target(x_0, t, noise)
    expected = torch.where(sigma < 0.05, error / 0.05**2, difference.square().flatten(1).mean(1))
    assert bool((sigma < 0.05).any())
    assert torch.allclose(losses["loss"], expected)
    other = process_of(schedule, **options, weighting_options={"min_sigma": 0.5})
    assert torch.allclose(other.loss_weight(t), sigma.clamp(min=0.5).pow(-2))


@pytest.mark.parametrize("shift", [1.0, 0.4375, 3.0])
def test_flow_is_the_straight_line_at_shifted_times(shift):
    process, t = process_of("flow", shift=shift), torch.linspace(1e-5, 1, 300, dtype=torch.float64)
    moved = shift * t / (1 + (shift - 1) * t)
    alpha, sigma = process.alpha_sigma(t)
    assert torch.allclose(alpha, 1 - moved, atol=1e-12)
    assert torch.allclose(sigma, moved)
    assert torch.allclose(process.times_at(moved / (1 - moved)), t, atol=1e-12)
    assert torch.allclose(process.network_input(randn(1), t)[1], 1000 * moved)
    x_0, noise = randn(1, 1, 2, 2, seed=0), randn(1, 1, 2, 2, seed=1)
    assert torch.equal(process.target(x_0, t[:1], noise), noise - x_0)
    grid = process.grid(t.tolist())
    assert grid.alpha[-1] == 0
    for table in (grid.betas, grid.posterior_variance, grid.posterior_log_variance_clipped):
        assert bool(table.isfinite().all())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_zero_terminal_snr_leaves_nothing_of_the_image_at_the_last_time(schedule):
    options = {"schedule": schedule, "timesteps": 100, "variance": "learned", "loss": "hybrid"}
    plain, process = (
        build_process(ProcessConfig(**options, prediction="velocity", zero_terminal_snr=zero))
        for zero in (False, True)
    )
    alpha, before = process.full_grid().alpha, plain.full_grid().alpha
    assert alpha[-1] == 0
    assert torch.allclose(alpha[:1], before[:1])
    assert torch.allclose(alpha.diff() / alpha[0], before.diff() / (before[0] - before[-1]), atol=1e-12)
    t = torch.linspace(0, 98.9, 300, dtype=torch.float64)
    assert torch.allclose(process.times_at(process.noise_level(t)), t, atol=1e-7)
    assert bool((process.noise_level(t).diff() > 0).all())
    assert math.isfinite(process.sigma_max)
    assert process.times_at(torch.tensor([math.inf])).tolist() == [99.0]
    x_0, noise = randn(3, 1, 2, 2, seed=0), randn(3, 1, 2, 2, seed=1)
    times = torch.tensor([0, 98, 99])
    network = lambda received, time, labels: torch.zeros(3, 2, 2, 2).double()  # noqa: E731
    losses = training_losses(network, process, x_0, times, noise, Condition(3))
    assert all(bool(value.isfinite().all()) for value in losses.values())
    with pytest.raises(UsageError, match="prediction eps leave x_0 or ε undetermined at t = 99"):
        build_process(ProcessConfig(**options, zero_terminal_snr=True))


def test_deviation_of_pixels_is_about_their_mean():
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
    values = to_model(torch.from_numpy(images)).double()
    assert pixel_std([images[:20], images[20:]]) == pytest.approx(float(values.std(correction=0)), rel=1e-3)


def test_plan_measures_what_depends_on_data_before_the_fingerprint(digits_store):
    store = open_store(digits_store)
    plan = plan_of(store, process={"schedule": "edm"})
    assert plan_artefact(plan).process.sigma_data == store.meta["pixel_std"]
    same = plan_of(store, process={"schedule": "edm", "sigma_data": store.meta["pixel_std"]})
    assert training_fingerprint(same) == training_fingerprint(plan)
    other = plan_of(store, process={"schedule": "edm", "sigma_data": 0.25})
    assert training_fingerprint(other) != training_fingerprint(plan)
    assert plan_of(store).process.sigma_data is None
    flow = plan_of(store, process={"schedule": "flow", "shift": "auto"}).process
    assert flow.shift == math.sqrt(64 / 4096)
    del store.meta["pixel_std"]
    plan_of(store)
    with pytest.raises(UsageError, match=r"process\.sigma_data was not measured"):
        plan_of(store, process={"schedule": "edm"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": 1000}, "edm has no such option; it belongs to linear and cosine"),
        ({"shift": 2.0}, "edm has no such option; it belongs to flow"),
        ({"loss": "vlb"}, "loss vlb needs variance learned of a discrete process: use simple"),
        ({"t_sampler": "loss-aware"}, "t_sampler loss-aware is for losses with the bound"),
        ({"sigma_min": 80.0}, "sigma_min 80 is not less than sigma_max 80"),
    ],
)
def test_options_of_discrete_processes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ProcessConfig(schedule="edm", **options)


class Line(NoiseProcess):
    """α = 1 − t and σ = t for t from 1e-5 to 1: a continuous process whose α ends at 0."""

    t_min, t_max = 1e-5, 1.0

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        return 1 - t, t


LINE = Line(ProcessConfig(prediction="velocity", variance="small", loss="simple"))
EDM = build_process(ProcessConfig(schedule="edm", prediction="velocity", sigma_min=0.001))


@pytest.mark.parametrize(
    "process", [trajectories.process_of("linear", 1000), trajectories.process_of("cosine", 50), LINE]
)
def test_times_at_inverts_the_noise_level_and_clamps(process):
    t = process.t_min + (process.t_max - process.t_min) * torch.rand(200, dtype=torch.float64) ** 3
    levels = process.noise_level(t)
    assert torch.allclose(process.noise_level(process.times_at(levels)), levels, rtol=1e-9, atol=0)
    assert torch.allclose(process.times_at(levels), t, rtol=1e-9, atol=1e-9)
    assert torch.allclose(process.log_snr(t), -levels.log(), rtol=1e-12, atol=1e-12)
    outside = torch.tensor([0.0, process.sigma_min / 2, process.sigma_max * 2, math.inf]).double()
    low, high = process.t_min, process.t_max
    found = process.times_at(outside).tolist()
    assert found == [low, low, high, high]
    assert process.times_at(levels.reshape(2, 100)).shape == (2, 100)


@pytest.mark.parametrize(("process", "last", "scale"), [(LINE, 1.0, 1.0), (EDM, 80.0, 80.0), (EDM, 2.0, 2.0)])
def test_sampling_begins_at_the_noise_of_the_last_time(process, last, scale):
    initial = process.grid([0.1, last]).initial_noise_scale
    noise, unscaled = (ImageNoise(0, range(2), (1, 2, 2), factor) for factor in (initial, 1.0))
    assert torch.equal(noise.draw(), unscaled.draw() * scale)
    assert torch.equal(noise.draw(), unscaled.draw())


def test_continuous_process_trains_and_refuses_what_needs_a_discrete_one():
    t, x_0, noise = torch.tensor([1e-5, 0.3, 1.0], dtype=torch.float64), *randn(2, 3, 1, 2, 2)
    losses = training_losses(lambda x, t, labels: torch.zeros_like(x), LINE, x_0, t, noise, Condition(3))
    assert torch.allclose(losses["loss"], LINE.target(x_0, t, noise).square().flatten(1).mean(1))
    assert LINE.timesteps is None
    with pytest.raises(UsageError, match="the bound needs a discrete process"):
        require_discrete(LINE, "the bound")
