"""Every process with every prediction and sampler: Gaussian data keep their mean and variance.

The networks are closed forms of a pixel. The triples have each sampler and each prediction of each process.
"""

import pytest
import torch
from torch import Tensor

from diffusion.process.denoiser import Condition, Network
from diffusion.process.noise_process import NetworkDenoiser, NoiseProcess, build_process
from diffusion.process.parameterization import PREDICTIONS
from diffusion.process.process_registry import PROCESSES, ProcessConfig
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampler import build_sampler, run_sampler

MEAN, STD, PIXELS = 0.3, 0.5, 4_000
FIRST_ORDER = {"ddim", "euler", "euler-ancestral"}  # they need more steps for the same variance
DENOISING = sorted(name for name in SAMPLERS.built_in if not SAMPLERS[name].for_consistency)
UNSOLVABLE = ("flow", "eps")  # α is 0 at the last time, where ε alone leaves x_0 undetermined
TRIPLES = [
    (schedule, predictions[(row + column) % len(predictions)], sampler)
    for row, schedule in enumerate(sorted(PROCESSES.built_in))
    for predictions in [[name for name in sorted(PREDICTIONS.built_in) if (schedule, name) != UNSOLVABLE]]
    for column, sampler in enumerate(DENOISING)
]


def process_with(schedule: str, prediction: str) -> NoiseProcess:
    whole = {} if schedule in ("edm", "flow") else {"variance": "small", "loss": "simple"}
    return build_process(ProcessConfig(schedule=schedule, prediction=prediction, **whole))


def karras_grid(process: NoiseProcess, steps: int) -> TimeGrid:
    """Return times at levels even in (σ/α)^(1/7), the last of them the noisiest time."""
    low, high = process.sigma_min ** (1 / 7), min(process.sigma_max, 200.0) ** (1 / 7)
    levels = torch.linspace(low, high, steps, dtype=torch.float64) ** 7
    return process.grid([*process.times_at(levels).tolist()[:-1], process.t_max])


def embedded_level(process: NoiseProcess, time: Tensor) -> Tensor:
    """Return the noise level of the number that a network embeds."""
    if process.config.schedule == "edm":
        return (time / 250).exp()
    if process.config.schedule == "flow":
        return time / (1000 - time)
    return process.noise_level(time)


def optimal_network(process: NoiseProcess) -> Network:
    """Return a network with the posterior mean of Gaussian data, in the parameterization of the process."""

    def network(received: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        t = process.times_at(embedded_level(process, time[:1]))
        alpha, sigma = process.alpha_sigma(t)
        x = received / process.network_input(torch.ones(1, 1, 1, 1, dtype=torch.float64), t)[0]
        level = (sigma / alpha).clamp(max=1e12)
        x_0 = MEAN + (x / alpha.clamp(min=1e-12) - MEAN) / (1 + level.square() / STD**2)
        return process.target(x_0, t, (x - alpha * x_0) / sigma)

    return network


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "prediction", "sampler"), TRIPLES)
def test_gaussian_data_keep_mean_and_variance(schedule: str, prediction: str, sampler: str) -> None:
    process, steps = process_with(schedule, prediction), 300 if sampler in FIRST_ORDER else 40
    eta = 1.0 if SAMPLERS[sampler].uses_eta else 0.0
    settings = SampleSettings(sampler=sampler, steps=steps, eta=eta, clip=False)
    grid, source = karras_grid(process, steps), torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(1, 1, 1, PIXELS, generator=source, dtype=torch.float64)  # noqa: E731
    trajectory = build_sampler(settings)(grid, grid.initial_noise_scale * noise(), noise)
    denoiser = NetworkDenoiser(optimal_network(process), process)
    made = run_sampler(trajectory, denoiser, Condition(1)).x
    assert float(made.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(made.std()) == pytest.approx(STD, rel=0.04)
