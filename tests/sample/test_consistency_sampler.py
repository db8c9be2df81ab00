"""Consistency sampling with the exact consistency function of Gaussian data."""

import math

import pytest
import torch
from torch import Tensor

from cli.stages.preview import _preview_settings
from diffusion.process.denoiser import Condition, Prediction, time_tensor
from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampler import build_sampler
from diffusion.sample.sampling_steps import call_times, sampling_grid
from diffusion.system.errors import UsageError
from tests.helpers.trajectories import walk

STD = 0.6
PROCESSES = [
    build_process(ProcessConfig(schedule=name, sigma_data=0.5 if name == "edm" else None))
    for name in ("edm", "cosine", "flow")
]


def settings_of(steps: int, spacing: str = "karras", **options: object) -> SampleSettings:
    return SampleSettings(
        sampler="consistency", steps=steps, spacing=spacing, clip=False, sampler_options=options,
        spacing_options={"sigma_max": 80} if spacing == "karras" else {},
    )  # fmt: skip


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("spacing", ["karras", "uniform"])
def test_any_number_of_steps_gives_the_exact_distribution(process, spacing):
    """Rows are the responses to x_T and to each draw of noise, so their squares sum to the variance."""

    def end_of_flow(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        alpha, sigma = map(float, process.alpha_sigma(time_tensor(t)))
        x0 = STD / math.hypot(alpha * STD, sigma) * x
        return Prediction(x0, (x - alpha * x0) / sigma)

    for steps in (1, 2, 3, 10):
        chosen = settings_of(steps, spacing)
        grid = sampling_grid(chosen, process)
        draws = iter(torch.eye(steps, dtype=torch.float64).reshape(steps, steps, 1, 1, 1))
        start = math.hypot(float(grid.alpha[-1]) * STD, float(grid.sigma[-1])) * next(draws)
        ends = walk(end_of_flow, grid, iter([start, *draws]).__next__, build_sampler(chosen))
        assert float(ends.square().sum()) == pytest.approx(STD**2)
        assert next(draws, None) is None


@pytest.mark.parametrize("process", PROCESSES)
def test_previews_of_a_tuning_are_sampled_in_two_calls(process):
    config = process.config.model_copy(update={"loss": "consistency"})
    levels = process.noise_level(
        torch.tensor(call_times(_preview_settings(config), process), dtype=torch.float64)
    )
    assert levels.tolist() == pytest.approx([80, 0.821])
    assert _preview_settings(process.config).steps == 20


def test_the_second_of_two_calls_is_at_sigma_mid():
    edm = PROCESSES[0]
    assert call_times(settings_of(2), edm) == pytest.approx([80, 0.821])
    assert call_times(settings_of(2, sigma_mid=1.526), edm) == pytest.approx([80, 1.526])
    assert call_times(settings_of(2, sigma_mid=None), edm) == pytest.approx([80, 0.002])
    assert call_times(settings_of(3), edm)[1:] == call_times(settings_of(3, sigma_mid=0.5), edm)[1:]
    with pytest.raises(UsageError, match=r"sigma_mid 90 is not below the first noise level 80: lower it"):
        call_times(settings_of(2, sigma_mid=90.0), edm)


def test_listed_and_learned_times_are_kept():
    listed = SampleSettings(sampler="consistency", timesteps=(300, 999))
    assert call_times(listed, PROCESSES[1]) == [999, 300]
    learned = {"spacing": "learned", "spacing_options": {"levels": (80.0, 2.5)}}
    chosen = SampleSettings(sampler="consistency", steps=2, **learned)
    assert call_times(chosen, PROCESSES[0]) == pytest.approx([80, 2.5])
