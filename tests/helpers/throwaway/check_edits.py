"""The added operator and method: the operator's matrix, and the measurement of the method's results."""

import pytest
import torch

from diffusion.edit.method import build_method
from diffusion.edit.operators import Measurement, build_operator
from diffusion.process.denoiser import Condition, Prediction
from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.edits import EditSettings
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampler import run_sampler
from diffusion.sample.sampling_steps import sampling_grid

SHAPE = (1, 4, 3)


@pytest.mark.parametrize("text", ["interlace", "interlace+blur:0.5"])
def test_pseudo_inverse_is_that_of_the_matrix(text: str) -> None:
    operator = build_operator(text, SHAPE)
    matrix = operator.apply(torch.eye(12, dtype=torch.float64).reshape(12, *SHAPE)).flatten(1).T
    y = torch.randn(2, *operator.shape, dtype=torch.float64)
    wanted = y.flatten(1) @ torch.linalg.pinv(matrix).T
    assert torch.allclose(operator.pseudo_inverse(y).flatten(1), wanted)
    assert torch.allclose(operator.adjoint(y).flatten(1), y.flatten(1) @ matrix)


@pytest.mark.parametrize("text", ["interlace", "downsample:3"])
def test_results_have_the_measurement_and_differ_in_the_rest(text: str) -> None:
    shape = (1, 3, 6)
    operator, process = build_operator(text, shape), build_process(ProcessConfig(timesteps=50))
    x = torch.rand(1, *shape, dtype=torch.float64)
    measurement = Measurement(operator, operator.apply(x).repeat(5, 1, 1, 1))
    edit, settings = EditSettings(method="ilvr", operator=text), SampleSettings(steps=5)
    grid, source = sampling_grid(settings, process), torch.Generator().manual_seed(0)

    def noise() -> torch.Tensor:
        return torch.randn(5, *shape, generator=source, dtype=torch.float64)

    trajectory = build_method(edit, settings, measurement, process)(grid, noise(), noise)
    ends = run_sampler(trajectory, lambda x, t, condition: Prediction(0.5 * x, 0.5 * x), Condition(5)).x
    assert torch.allclose(operator.apply(ends), measurement.y)
    assert float(ends.var(0).sum()) > 0.01
