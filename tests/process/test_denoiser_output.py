"""Prediction targets: all parameterizations describe the same model."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.check import check
from diffusion.config import parse
from diffusion.process.discrete import DiscreteProcess
from diffusion.process.noise_process import build_process
from diffusion.process.parameterization import PREDICTIONS
from diffusion.process.process_registry import PROCESSES, ProcessEntry
from diffusion.system.errors import UsageError
from tests.conftest import params
from tests.helpers.trajectories import process_of, randn

SCHEDULES = st.sampled_from(["linear", "cosine"])
PARAMETERIZATIONS = st.sampled_from(sorted(PREDICTIONS))


@given(SCHEDULES, PARAMETERIZATIONS, st.integers(2, 1000), st.booleans(), st.integers(0, 2**31))
def test_read_recovers_image_and_noise_from_target(name, prediction, timesteps, is_real, seed):
    process = process_of(name, timesteps, prediction=prediction)
    generator = torch.Generator().manual_seed(seed)
    t = torch.randint(timesteps, (6,), generator=generator)
    if is_real:
        t = torch.rand(6, generator=generator, dtype=torch.float64) * (timesteps - 1)
    x_0, noise = randn(2, 6, 2, 4, 4, seed=seed)
    x_t = process.q_sample(x_0, t, noise)
    found = process.read(process.target(x_0, t, noise), x_t, t)
    alpha, sigma = (part.reshape(-1, 1, 1, 1) for part in process.alpha_sigma(t))
    # Division by a small α or σ amplifies rounding errors.
    assert bool(((found.x0 - x_0).abs() < 1e-10 / alpha).all())
    assert bool(((found.eps - noise).abs() < 1e-10 / sigma).all())
    assert found.variance_fraction is None


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_target_matches_papers(prediction):
    process, t = process_of("cosine", 1000, prediction=prediction), torch.tensor([3, 500, 999])
    x_0, noise = randn(2, 3, 1, 2, 2, seed=0)
    alpha, sigma = (part.reshape(-1, 1, 1, 1) for part in process.alpha_sigma(t))
    expected = {"eps": noise, "x0": x_0, "velocity": alpha * noise - sigma * x_0, "flow": noise - x_0}
    x_t, spread = process.q_sample(x_0, t, noise), (alpha.square() / 4 + sigma.square()).sqrt()
    c_skip, c_out = alpha / 4 / spread.square(), sigma / 2 / spread  # σ_data = 0.5
    expected["edm"] = (x_0 - c_skip * x_t) / c_out
    assert torch.allclose(process.target(x_0, t, noise), expected[prediction], atol=1e-12)


class Ends(DiscreteProcess):
    """A straight line from α = first to `last`, with σ² = 1 − α²."""

    first, last = 0.9, 0.0

    def alpha_sigma(self, t):
        alpha = torch.lerp(*torch.tensor([self.first, self.last]).double(), t.double() / (self.timesteps - 1))
        return alpha, (1 - alpha.square()).sqrt()


@pytest.mark.parametrize(
    ("ends", "prediction", "at"),
    [
        ((0.9, 0.0), "eps", 9),
        *(((0.9, 0.0), prediction, None) for prediction in ("x0", "velocity", "flow")),
        ((1.0, 0.1), "x0", 0),
        ((1.0, 0.1), "velocity", 0),  # σ = 0: no ε follows from a clipped x̂_0
        ((0.9, -0.1), "eps", 9),
        ((0.9, math.nan), "velocity", 0),
    ],
)
def test_process_that_leaves_a_prediction_unsolvable_is_refused(monkeypatch, ends, prediction, at):
    monkeypatch.setitem(PROCESSES.data, "line", ProcessEntry(f"{__name__}:Ends"))
    monkeypatch.setattr(Ends, "first", ends[0])
    monkeypatch.setattr(Ends, "last", ends[1])
    section = {"schedule": "line", "timesteps": 10, "prediction": prediction}
    config = parse(params(process=section, sweep={"steps": [2]}), "test")
    if at is None:
        assert build_process(config.process).full_grid().alpha[-1] == 0
        return
    with pytest.raises(UsageError, match=f"schedule line and process.prediction {prediction} .* t = {at},"):
        build_process(config.process)
    *_, found = check(config)  # after the plugins
    assert (found.level, found.subject) == ("error", "process")
