"""`show forward`, `steps`, `variance`, `reverse` and `samplers`: closed forms, samplers' paths."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.images.pixels import to_nhwc, to_uint8
from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Condition
from diffusion.process.noise import ImageNoise
from diffusion.process.process_registry import ProcessConfig, build_process
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import SPACINGS, spaced_timesteps
from diffusion.sample.generate import generate, mixed_condition
from diffusion.sample.sampling_steps import sampling_grid
from diffusion.show.forward import MAX_SIDE, forward
from diffusion.show.reverse import reverse
from diffusion.show.sampler_paths import MIXTURE, sampler_paths, samplers
from diffusion.show.step_spacing import steps
from diffusion.show.variance import MAX_STEPS, learned_variance, make_grid, shown_steps, variance_bounds
from diffusion.system.errors import UsageError
from tests.helpers import papers
from tests.helpers.networks import OptimalNetwork, artefact_of, network_of, spec_of
from tests.helpers.trajectories import process_of

CONFIG = ProcessConfig(timesteps=50)
UNCONDITIONAL = {"num_classes": 0, "null_class": False}


@pytest.mark.parametrize("timesteps", [100, 1000])
def test_curves_equal_the_papers(timesteps: int) -> None:
    shown = forward(ProcessConfig(timesteps=timesteps, schedule="linear", variance="small", loss="simple"))
    assert next(iter(shown.schedules)) == "linear"
    assert set(shown.schedules) == {"linear", "cosine"}
    linear, cosine = shown.schedules["linear"], shown.schedules["cosine"]
    assert linear.alphas_cumprod == pytest.approx(np.cumprod(1 - papers.ddpm_betas(timesteps)), rel=1e-9)
    unclipped = papers.cosine_alpha_bar(timesteps)[:-1]
    assert cosine.alphas_cumprod[:-1] == pytest.approx(unclipped, rel=1e-9)
    for one in shown.schedules.values():
        bar = one.alphas_cumprod
        assert one.log_snr == pytest.approx(np.log(bar / (1 - bar)), abs=1e-6)
    assert shown.noised == {}


def test_image_ends_as_its_noise_and_a_large_one_is_shrunk() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    shown = forward(ProcessConfig(), image, seed=5)
    noise = to_nhwc(to_uint8(ImageNoise(5, [0], (3, 8, 8)).draw()))[0].astype(int)
    assert shown.times[0] == 0
    assert shown.times[-1] == 999
    for noised in shown.noised.values():
        assert noised.shape == (len(shown.times), 8, 8, 3)
        assert np.abs(noised[0].astype(int) - image).max() <= 10  # σ of the first time is 0.01
        assert np.abs(noised[-1].astype(int) - noise).max() <= 1
    again = forward(ProcessConfig(), image, seed=6).noised["cosine"]
    assert not np.array_equal(again, shown.noised["cosine"])
    large = forward(ProcessConfig(timesteps=3), np.zeros((600, 300, 1), np.uint8))
    assert large.times == [0, 1, 2]
    assert large.noised["cosine"].shape == (3, MAX_SIDE, MAX_SIDE // 2, 1)


@given(st.integers(1, 50))
def test_times_equal_those_of_the_samplers(count: int) -> None:
    shown = steps(CONFIG, count)
    process = build_process(CONFIG)
    assert shown.spacings.keys() >= {name for name, entry in SPACINGS.items() if not entry.is_paper_grid}
    assert ("ddim-uniform" in shown.spacings) == (count > 1 and 50 % count == 0)
    for name, spaced in shown.spacings.items():
        grid = sampling_grid(SampleSettings(spacing=name, steps=count), process)
        assert len(spaced.times) == count
        assert spaced.times == grid.times.tolist()
        at = grid.alphas_cumprod.numpy()
        assert spaced.log_snr == pytest.approx(np.log(at / (1 - at)), abs=1e-9)
        assert spaced.noise_level == pytest.approx(np.sqrt((1 - at) / at))
        assert spaced.largest_eta >= 1 or count == 1


def test_text_lists_every_time() -> None:
    assert "  " + " ".join(map(str, spaced_timesteps("quadratic", 7, 50))) in steps(CONFIG, 7).lines(100)


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


CPU, LONG = torch.device("cpu"), ProcessConfig(timesteps=200)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    spec = spec_of()
    return LoadedModel(network_of(spec), artefact_of(spec))


@pytest.mark.parametrize(("sampler", "eta", "noise"), [("ddim", 0, "small"), ("ddim", 1, "learned")])
def test_trajectory_equals_that_of_sample(loaded: LoadedModel, sampler: str, eta: float, noise: str) -> None:
    settings = SampleSettings(steps=12, eta=eta, noise=noise, sampler=sampler, seed=3)
    condition = mixed_condition(loaded.artefact, settings, [4])
    shown = reverse(loaded, settings, 4, condition, CPU)
    around = mixed_condition(loaded.artefact, settings, range(3, 6))
    batch = generate(loaded, settings, range(3, 6), around, CPU)
    assert np.abs(shown.image.astype(int) - to_nhwc(batch)[1]).max() <= 1  # but for rounding
    start = ImageNoise(3, [4], (1, 8, 8)).draw()
    assert np.array_equal(shown.x[0], to_nhwc(to_uint8(start))[0])
    walked = spaced_timesteps("uniform", 12, 100)[::-1]
    assert (shown.times[0], shown.times[-1], len(shown.times)) == (walked[0], walked[-1], 8)
    assert set(shown.times) <= set(walked)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_last_prediction_is_the_image(loaded: LoadedModel, sampler: str, steps: int) -> None:
    settings = SampleSettings(steps=steps, sampler=sampler)
    shown = reverse(loaded, settings, 0, mixed_condition(loaded.artefact, settings, [0]), CPU)
    assert np.array_equal(shown.x0_hat[-1], shown.image)
    assert len(shown.x) == len(shown.x0_hat) == len(shown.times) == min(steps, 8)


def test_every_sampler_starts_from_the_same_noise() -> None:
    shown = samplers(LONG, 6, count=40)
    assert {name.split(",")[0] for name in shown.paths_by_sampler} == set(SAMPLERS)
    starts = [result.paths[0] for result in shown.paths_by_sampler.values()]
    assert all(np.array_equal(starts[0], start) for start in starts)
    for name, result in shown.paths_by_sampler.items():
        assert result.paths.shape == (7, 40, 2)
        assert result.nfe == SAMPLERS[name.split(",")[0]].nfe(6)


def test_deterministic_samplers_converge_to_the_exact_flow() -> None:
    few, many = samplers(LONG, 5, count=60), samplers(LONG, 80, count=60)
    for name in ("ddim, η = 0", "dpm-solver++"):
        assert many.off(many.paths_by_sampler[name]) < few.off(few.paths_by_sampler[name]) / 2
    assert np.array_equal(few.exact, many.exact)


def test_exact_flow_ends_in_the_mixture() -> None:
    """Distances from a centre are Rayleigh: √(π/2) standard deviations on average."""
    shown = samplers(LONG, 2, count=400)
    assert shown.spread(shown.data) == pytest.approx((np.pi / 2) ** 0.5, rel=0.1)
    assert shown.spread(shown.exact) == pytest.approx(shown.spread(shown.data), rel=0.15)


def test_single_step_ends_at_the_posterior_mean() -> None:
    process, start = process_of("cosine", 200), torch.randn(5, 2, dtype=torch.float64)
    ends = sampler_paths(process, SampleSettings(steps=1, clip=False), start, torch.Generator()).ends
    alpha, sigma = process.alpha_sigma(torch.tensor(199))
    assert ends == pytest.approx(MIXTURE.x0(start, alpha, sigma).numpy(), abs=1e-9)
