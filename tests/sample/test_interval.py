"""Guidance within an interval of noise levels: reference results for Gaussian mixtures, and the NFE."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.analysis.mixture import Mixture, ring
from diffusion.engine.engine import Engine
from diffusion.model.model_file import LoadedModel
from diffusion.process.condition import Condition
from diffusion.process.denoiser import Prediction
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_registry import ProcessConfig, build_process
from diffusion.protocol.samplers import SAMPLERS, build_sampler
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import SPACINGS
from diffusion.sample.class_labels import mixed_condition
from diffusion.sample.generate import generate
from diffusion.sample.guidance import classifier_free, guidance_weight, interval_guidance
from diffusion.sample.sampler import run_sampler
from diffusion.sample.sampling_steps import call_times, count_nfe, sampling_grid
from tests.helpers.networks import artefact_of, network_of, spec_of

CPU = torch.device("cpu")
MODEL = LoadedModel(network_of(spec_of()), artefact_of(spec_of()))
EVERYWHERE, NOWHERE = (0.0, 1e9), (1e-6, 1e-5)
DATA, NULL = ring(5, radius=1.0, std=0.1), 5

SAMPLER_OPTIONS = [{"eta": 0.0}, {"eta": 0.7, "noise": "learned"}, {"eta": 1.0}, {"sampler": "dpm-solver++"}]


def images(chosen: SampleSettings, indices=range(3)) -> torch.Tensor:
    return generate(MODEL, chosen, indices, mixed_condition(MODEL.artefact, chosen, indices), CPU)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("options", SAMPLER_OPTIONS)
def test_full_interval_is_plain_guidance_and_empty_interval_is_unguided(options, spacing):
    values = {"steps": 4, "seed": 2, "spacing": spacing, **options}
    guided, unguided = SampleSettings(guidance=2.0, **values), SampleSettings(**values)
    everywhere, nowhere = (
        guided.model_copy(update={"guidance_interval": interval}) for interval in (EVERYWHERE, NOWHERE)
    )
    assert torch.equal(images(everywhere), images(guided))
    assert torch.equal(images(nowhere), images(unguided))
    assert not torch.equal(images(guided), images(unguided))
    process = MODEL.artefact.process
    assert count_nfe(everywhere, process) == guided.nfe
    assert count_nfe(nowhere, process) == unguided.nfe


class MixtureDenoiser:
    """The optimal denoiser of a class, or of the mixture for the null class. It counts its rows."""

    def __init__(self, process: NoiseProcess) -> None:
        self.process, self.rows = process, 0

    def __call__(self, x, t, condition):
        self.rows += len(x)
        alpha, sigma = self.process.alpha_sigma(
            t if isinstance(t, torch.Tensor) else torch.tensor([t] * len(x))
        )
        x0 = torch.stack([
            part_x0(int(label), x[row].reshape(1, 2), float(alpha[row]), float(sigma[row]))
            for row, label in enumerate(condition.labels)
        ]).reshape(x.shape)  # fmt: skip
        wide = (-1, 1, 1, 1)
        return Prediction(x0, (x - alpha.reshape(wide) * x0) / sigma.reshape(wide), None)


def part_x0(label: int, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    mixture = DATA if label == NULL else Mixture(DATA.means[label : label + 1], DATA.std)
    return mixture.x0(x, alpha, sigma)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_interval_guidance_matches_a_reference_loop(schedule):
    process, interval, w = build_process(ProcessConfig(schedule=schedule, timesteps=50)), (0.3, 2.0), 1.5
    chosen = SampleSettings(steps=12, guidance=w, guidance_interval=interval, clip=False)
    labels, source = torch.tensor([0, 3, 3]), torch.Generator().manual_seed(0)
    x_t = torch.randn(3, 2, 1, 1, generator=source, dtype=torch.float64)
    grid, denoiser = sampling_grid(chosen, process), MixtureDenoiser(process)
    guided = interval_guidance(denoiser, w, interval, process)
    made = run_sampler(build_sampler(chosen)(grid, x_t, lambda: x_t), guided, Condition(3, labels, NULL)).x

    bars, inside = grid.alphas_cumprod.tolist(), 0
    for row, label in enumerate(labels.tolist()):
        x = x_t[row].reshape(1, 2)
        for index in reversed(range(len(bars))):
            bar, bar_prev = bars[index], bars[index - 1] if index else 1.0
            alpha, sigma = bar**0.5, (1 - bar) ** 0.5
            x0 = part_x0(label, x, alpha, sigma)
            if 0.3 < ((1 - bar) / bar) ** 0.5 <= 2.0:
                x0, inside = (1 + w) * x0 - w * part_x0(NULL, x, alpha, sigma), inside + 1
            x = bar_prev**0.5 * x0 + (1 - bar_prev) ** 0.5 * (x - alpha * x0) / sigma
        assert torch.allclose(made[row].reshape(1, 2), x, atol=1e-9)
    assert 0 < inside < 3 * 12
    assert denoiser.rows == 3 * 12 + inside == 3 * count_nfe(chosen, process.config)


def test_interval_uses_the_noise_level_of_each_row():
    process = build_process(ProcessConfig(timesteps=50))
    x = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    condition, times = Condition(3, torch.tensor([0, 1, 2]), NULL), torch.tensor([1, 25, 49])
    denoiser = MixtureDenoiser(process)
    found = interval_guidance(denoiser, 2.0, (0.3, 3.0), process)(x, times, condition)
    assert denoiser.rows == 3 + 1
    weights = torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)
    expected = classifier_free(MixtureDenoiser(process), weights)(x, times, condition)
    assert torch.equal(found.x0, expected.x0)
    for row, t in enumerate(times.tolist()):
        alone = interval_guidance(denoiser, 2.0, (0.3, 3.0), process)(
            x[[row]], t, condition.rows(slice(row, row + 1))
        )
        assert torch.allclose(alone.eps, found.eps[[row]])


def test_guided_steps_depend_only_on_the_noise_level():
    for schedule, timesteps in (("cosine", 1000), ("linear", 1000), ("cosine", 50)):
        process = build_process(ProcessConfig(schedule=schedule, timesteps=timesteps))
        bar = process.full_grid().alphas_cumprod
        levels = process.noise_level(torch.arange(timesteps))
        assert torch.allclose(levels, ((1 - bar) / bar).sqrt())
        chosen = SampleSettings(steps=timesteps, guidance=1.0, guidance_interval=(0.2, 5.0))
        guided = [guidance_weight(chosen, process, t) > 0 for t in call_times(chosen, process)]
        assert guided == [bool(0.2 < level <= 5.0) for level in levels.flip(0)]


REQUESTS = st.tuples(
    st.sampled_from(list(SAMPLERS)), st.integers(2, 6), st.sampled_from(["uniform", "ddim-quadratic"]),
    st.sampled_from([0.0, 2.0]), st.sampled_from([None, EVERYWHERE, NOWHERE, (0.0, 0.7), (0.3, 4.0)]),
    st.integers(1, 3),
)  # fmt: skip


@settings(deadline=None, max_examples=6)
@given(requests=st.lists(REQUESTS, min_size=1, max_size=4), rows=st.integers(2, 9))
def test_batched_requests_with_different_intervals_match_separate_runs(requests, rows):
    batch_sizes: list[int] = []

    def counting_network(x, t, labels):
        batch_sizes.append(len(x))
        return MODEL.network(x, t, labels)

    counting_network.state_dict = MODEL.network.state_dict  # type: ignore[attr-defined]
    with Engine(LoadedModel(counting_network, MODEL.artefact), CPU, rows=rows) as engine:  # type: ignore[arg-type]
        jobs = []
        for number, (sampler, steps, spacing, guidance, interval, count) in enumerate(requests):
            chosen = SampleSettings(
                sampler=sampler, steps=steps, spacing=spacing, seed=number, guidance=guidance,
                guidance_interval=interval,
            )  # fmt: skip
            jobs.append(
                engine.add(chosen, range(count), mixed_condition(MODEL.artefact, chosen, range(count)))
            )
        given_rows = 0
        while engine.jobs:
            made = engine.step()
            assert made.rows <= rows
            given_rows += made.rows
    assert sum(batch_sizes) == given_rows == sum(len(job) * job.nfe for job in jobs)
    for job in jobs:
        assert job.error is None
        assert int((job.images.int() - images(job.settings, job.indices).int()).abs().max()) <= 1
        assert job.nfe == count_nfe(job.settings, MODEL.artefact.process)
