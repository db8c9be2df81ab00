"""Processes over real time: the inverse of the noise level, the scale of x_T, and what is discrete only."""

import math

import pytest
import torch
from torch import Tensor

from diffusion.process.condition import Condition
from diffusion.process.denoiser import NetworkDenoiser
from diffusion.process.discrete import require_discrete
from diffusion.process.losses import training_losses
from diffusion.process.noise import ImageNoise
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_registry import ProcessConfig, build_process
from diffusion.sample.ddim import Ddim
from diffusion.sample.sampler import run_sampler
from diffusion.system.errors import UsageError
from tests.helpers.trajectories import process_of, randn


class Line(NoiseProcess):
    """α = 1 − t and σ = t for t from 1e-5 to 1: a continuous process whose α ends at 0."""

    t_min, t_max = 1e-5, 1.0

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        return 1 - t, t


def line(prediction: str = "velocity") -> NoiseProcess:
    process = Line(ProcessConfig(prediction=prediction, variance="small", loss="simple"))
    process.check_solvable()
    return process


PROCESSES = {
    "linear": process_of("linear", 1000),
    "cosine": process_of("cosine", 50),
    "line": line(),
}
EDM = build_process(ProcessConfig(schedule="edm", prediction="velocity"))


@pytest.mark.parametrize("name", PROCESSES)
def test_times_at_inverts_the_noise_level_and_clamps(name):
    process = PROCESSES[name]
    t = process.t_min + (process.t_max - process.t_min) * torch.rand(200, dtype=torch.float64) ** 3
    levels = process.noise_level(t)
    assert torch.allclose(process.noise_level(process.times_at(levels)), levels, rtol=1e-9, atol=0)
    assert torch.allclose(process.times_at(levels), t, rtol=1e-9, atol=1e-9)
    assert torch.allclose(process.log_snr(t), -levels.log(), rtol=1e-12, atol=1e-12)
    outside = torch.tensor([0.0, process.sigma_min / 2, process.sigma_max * 2, math.inf]).double()
    low, high = process.t_min, process.t_max
    found = process.times_at(outside).tolist()
    assert found[:2] + found[3:] == [low, low, high]
    assert found[2] == high
    assert process.times_at(levels.reshape(2, 100)).shape == (2, 100)


@pytest.mark.parametrize(("process", "times"), [(line(), [0.1, 0.4, 1.0]), (EDM, [0.002, 1.0, 80.0])])
def test_sampling_begins_at_the_noise_of_the_last_time(process, times):
    """The network knows the image: any start ends there, and x_T has the standard deviation σ."""
    x_0, received = randn(1, 1, 2, 2), []
    grid = process.grid(times)

    def network(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        received.append(t)
        time = torch.tensor(times[-len(received)], dtype=torch.float64)
        alpha, sigma = process.alpha_sigma(time)
        return process.target(x_0.expand_as(x), time, (x - alpha * x_0) / sigma)

    noise, unscaled = (ImageNoise(0, range(2), (1, 2, 2), scale) for scale in (grid.initial_noise_scale, 1.0))
    x = noise.draw()
    assert torch.equal(x, unscaled.draw() * times[-1])
    assert torch.equal(noise.draw(), unscaled.draw())
    denoiser = NetworkDenoiser(network, process)
    made = run_sampler(Ddim(eta=1.0, clip=False)(grid, x.double(), noise.draw), denoiser, Condition(2)).x
    assert torch.allclose(made, x_0.expand_as(made), atol=1e-9)
    embedded = process.embedded_time(torch.tensor(times[::-1], dtype=torch.float64))
    assert torch.equal(torch.stack(received)[:, 0], embedded)


def test_continuous_process_trains_and_refuses_what_needs_a_discrete_one():
    process, t = line(), torch.tensor([1e-5, 0.3, 1.0], dtype=torch.float64)
    x_0, noise = randn(3, 1, 2, 2, seed=0), randn(3, 1, 2, 2, seed=1)
    losses = training_losses(lambda x, t, labels: torch.zeros_like(x), process, x_0, t, noise, Condition(3))
    assert torch.allclose(losses["loss"], process.target(x_0, t, noise).square().flatten(1).mean(1))
    assert process.timesteps is None
    with pytest.raises(UsageError, match="the bound needs a discrete process"):
        require_discrete(process, "the bound")
    with pytest.raises(UsageError, match=r"prediction eps leave x_0 .* at t = 1, where α = 0"):
        line("eps")
