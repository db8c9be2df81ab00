"""Classifier-free guidance: CFG eq. 6, and guidance within an interval of noise levels, with its NFE."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.analysis.mixture import Mixture, MixtureDenoiser, ring
from diffusion.process.denoiser import Condition, Prediction
from diffusion.process.noise_process import NetworkDenoiser, NoiseProcess, build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.guidance import GuidedRows, build_guidance, guide_rows, guided
from diffusion.sample.sampler import build_sampler, run_sampler
from diffusion.sample.sampling_steps import count_nfe, sampling_grid
from diffusion.system.errors import UsageError
from tests.helpers.trajectories import process_of

NULL = 5
PROCESS = process_of("cosine", 100)


class Recorder:
    """A network whose ε and v depend on the class. It records the batch size of each forward pass."""

    def __init__(self, channels: int, learned: bool) -> None:
        self.channels, self.learned, self.batches = channels, learned, []

    def __call__(self, x, t, labels):
        self.batches.append(len(x))
        by_class = labels.reshape(-1, 1, 1, 1).to(x)
        eps = x * (1 + by_class) + t.reshape(-1, 1, 1, 1)
        return torch.cat([eps, eps - 100 * by_class], 1) if self.learned else eps


def settings_of(weight: float, **options) -> SampleSettings:
    return SampleSettings(guidance=weight, **options)


def inputs(channels: int):
    x = torch.randn(3, channels, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, torch.tensor([7, 8, 9]), Condition(3, torch.tensor([0, 2, 4]), NULL)


@given(st.integers(1, 4), st.booleans(), st.floats(0.01, 10))
def test_guidance_changes_the_mean_of_all_channels_but_no_variance(channels, learned, weight):
    network = Recorder(channels, learned)
    denoiser = NetworkDenoiser(network, PROCESS)
    x, t, condition = inputs(channels)
    found = guided(denoiser, settings_of(weight), PROCESS)(x, t, condition)
    assert network.batches == [6]  # one forward pass on a doubled batch
    conditional, unconditional = denoiser(x, t, condition), denoiser(x, t, condition.null())
    eps = (1 + weight) * conditional.eps - weight * unconditional.eps
    assert torch.allclose(found.eps, eps)
    alpha, sigma = (part.reshape(-1, 1, 1, 1) for part in PROCESS.alpha_sigma(t))
    assert torch.allclose(alpha * found.x0 + sigma * found.eps, x, atol=1e-9)
    assert (found.variance_fraction is None) != learned
    if learned:
        assert torch.equal(found.variance_fraction, conditional.variance_fraction)


@given(st.lists(st.sampled_from([0.0, 0.5, 3.0]), min_size=3, max_size=3), st.booleans())
def test_rows_have_their_own_weight_and_unguided_rows_cost_one_nfe(weights, one_time):
    network = Recorder(2, learned=True)
    denoiser = NetworkDenoiser(network, PROCESS)
    x, t, condition = inputs(2)
    times = 7 if one_time else t
    rule = build_guidance(settings_of(1.0), PROCESS)
    parts = [GuidedRows(slice(row, row + 1), rule, weight) for row, weight in enumerate(weights)]
    found = guide_rows(denoiser, None, parts)(x, times, condition)
    assert network.batches == [3 + sum(weight > 0 for weight in weights)]
    for row, weight in enumerate(weights):
        alone = slice(row, row + 1)
        time = 7 if one_time else t[alone]
        alone_guided = guided(denoiser, settings_of(weight), PROCESS)
        expected = alone_guided(x[alone], time, condition.rows(alone))
        for part, expected_part in zip(found.rows(alone), expected, strict=True):
            assert part is expected_part is None or torch.allclose(part, expected_part)


def test_guidance_requires_labels_and_a_null_class():
    x, t, condition = inputs(1)
    denoiser = guided(NetworkDenoiser(Recorder(1, False), PROCESS), settings_of(1.0), PROCESS)
    with pytest.raises(UsageError, match="unconditional"):
        denoiser(x, t, condition.unlabelled())
    with pytest.raises(UsageError, match="p_uncond"):
        denoiser(x, t, Condition(3, condition.labels))


# Guidance within an interval of noise levels.

DATA = ring(5, radius=1.0, std=0.1)


def mixture_of(label: int) -> Mixture:
    return DATA if label == NULL else Mixture(DATA.means[label : label + 1], DATA.std)


class ClassDenoiser:
    """The optimal denoiser of a class, or of the mixture for the null class. It counts its rows."""

    def __init__(self, process: NoiseProcess) -> None:
        self.process, self.rows = process, 0

    def __call__(self, x, t, condition):
        self.rows += len(x)
        parts = [
            MixtureDenoiser(mixture_of(int(label)), self.process)(x[[row]], t, Condition(1))
            for row, label in enumerate(condition.labels)
        ]
        return Prediction(torch.cat([part.x0 for part in parts]), torch.cat([part.eps for part in parts]))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_interval_guidance_matches_a_reference_loop(schedule):
    process, interval, w = build_process(ProcessConfig(schedule=schedule, timesteps=50)), (0.3, 2.0), 1.5
    chosen = SampleSettings(steps=12, guidance=w, guidance_interval=interval, clip=False)
    labels, source = torch.tensor([0, 3, 3]), torch.Generator().manual_seed(0)
    x_t = torch.randn(3, 2, 1, 1, generator=source, dtype=torch.float64)
    grid, denoiser = sampling_grid(chosen, process), ClassDenoiser(process)
    within = guided(denoiser, chosen, process)
    made = run_sampler(build_sampler(chosen)(grid, x_t, lambda: x_t), within, Condition(3, labels, NULL)).x

    bars, inside = grid.alphas_cumprod.tolist(), 0
    for row, label in enumerate(labels.tolist()):
        x = x_t[row].reshape(1, 2)
        for index in reversed(range(len(bars))):
            bar, bar_prev = bars[index], bars[index - 1] if index else 1.0
            alpha, sigma = bar**0.5, (1 - bar) ** 0.5
            x0 = mixture_of(label).x0(x, alpha, sigma)
            if 0.3 < ((1 - bar) / bar) ** 0.5 <= 2.0:
                x0, inside = (1 + w) * x0 - w * DATA.x0(x, alpha, sigma), inside + 1
            x = bar_prev**0.5 * x0 + (1 - bar_prev) ** 0.5 * (x - alpha * x0) / sigma
        assert torch.allclose(made[row].reshape(1, 2), x, atol=1e-9)
    assert 0 < inside < 3 * 12
    assert denoiser.rows == 3 * 12 + inside == 3 * count_nfe(chosen, process.config)
