"""`show variance`: bounds in closed form, and Σ of a model with a known variance."""

import numpy as np
import pytest
import torch

from diffusion.model.model_file import LoadedModel
from diffusion.process.condition import Condition
from diffusion.process.process_registry import ProcessConfig
from diffusion.show.variance import MAX_STEPS, learned_variance, make_grid, shown_steps, variance_bounds
from diffusion.system.errors import UsageError
from tests.helpers import papers
from tests.helpers.networks import OptimalNetwork, artefact_of, network_of, spec_of

UNCONDITIONAL = {"num_classes": 0, "null_class": False}


@pytest.mark.parametrize("steps", [None, 1, 7])
def test_bounds_equal_the_posterior(steps: int | None) -> None:
    config = ProcessConfig(timesteps=100)
    grid = make_grid(config, steps, "uniform")
    shown = variance_bounds(grid)
    bar = np.concatenate([[1.0], grid.alphas_cumprod.numpy()])
    assert len(shown.small) == (steps or 100)
    assert shown.small == pytest.approx((1 - bar[:-1]) / (1 - bar[1:]), rel=1e-9)
    assert shown.learned is None


def test_learned_variance_equals_iddpm() -> None:
    """For Gaussian data the best Σ is equal for all pixels, so that all three lines coincide."""
    process, std = ProcessConfig(timesteps=100), 0.3
    network = OptimalNetwork(process, std)
    artefact = artefact_of(spec_of(**UNCONDITIONAL), process=process)
    grid = make_grid(process, None, "uniform")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    shown = learned_variance(LoadedModel(network, artefact), grid, images, Condition(3))
    assert shown.fractions is not None
    assert shown.learned is not None
    assert shown.fractions[0] == pytest.approx(shown.fractions[2], abs=1e-6)
    betas, small = grid.betas.numpy(), grid.posterior_variance.numpy()
    for place, step in enumerate(shown.seen):
        v = float(network(torch.zeros(1, 1, 8, 8), torch.tensor([step]))[0, 1, 0, 0])
        assert shown.fractions[1, place] == pytest.approx((v + 1) / 2, abs=1e-6)
        if step == 0:
            assert np.isnan(shown.learned[1, place])  # no noise is added there
        else:
            sigma = papers.iddpm_variance(np.array(v), betas[step], small[step])
            assert shown.learned[1, place] == pytest.approx(sigma / betas[step], rel=1e-5)


def test_noise_is_per_image_and_fixed_variance_is_refused() -> None:
    spec = spec_of(**UNCONDITIONAL)
    loaded = LoadedModel(network_of(spec), artefact_of(spec))
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    grid = make_grid(loaded.artefact.process, 5, "uniform")
    first, again = (learned_variance(loaded, grid, images, Condition(2), seed=1).fractions for _ in range(2))
    other = learned_variance(loaded, grid, images, Condition(2), seed=2).fractions
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    fixed = spec_of(out_channels=1, **UNCONDITIONAL)
    with pytest.raises(UsageError, match="fixed"):
        learned_variance(LoadedModel(network_of(fixed), artefact_of(fixed)), grid, images, Condition(2))


@pytest.mark.parametrize("steps", [1, 2, MAX_STEPS, MAX_STEPS + 1, 1000])
def test_shown_steps_include_both_ends(steps: int) -> None:
    seen = shown_steps(steps)
    assert len(seen) <= MAX_STEPS
    assert (seen[0], seen[-1]) == (0, steps - 1)
    assert (np.diff(seen) > 0).all()
