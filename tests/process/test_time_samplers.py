"""Distributions of training's times: closed forms, unbiased draws, importance sampling (iDDPM eq. 18)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.process.loss_registry import TIME_DISTRIBUTIONS
from diffusion.process.noise_process import NoiseProcess, build_process
from diffusion.process.process_registry import DiscreteConfig, ProcessConfig
from diffusion.process.time_samplers import HISTORY, UNIFORM_SHARE, LossAware, build_time_sampler
from diffusion.train.batch import stratified_uniforms
from tests.helpers.trajectories import process_of


def uniforms(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(timesteps: int, seed: int = 0, count: int = HISTORY) -> tuple[LossAware, np.ndarray]:
    sampler = LossAware(process_of("linear", timesteps))
    losses = np.random.default_rng(seed).uniform(0.01, 2, (count, timesteps))
    for row in losses:
        sampler.update(torch.arange(timesteps), torch.from_numpy(row))
    return sampler, losses


def test_loss_aware_sampler_inverts_cumulative_probabilities():
    sampler, _ = filled(7)
    p = sampler.probabilities()
    cumulative = p.cumsum(0)
    assert sampler.draw(cumulative - p / 2)[0].tolist() == list(range(7))
    # A boundary belongs to the next timestep.
    assert sampler.draw(cumulative[:-1])[0].tolist() == list(range(1, 7))


@pytest.mark.parametrize(("times", "losses"), [([0, 1, 2], [1.0, 2.0, 3.0]), ([0, 1, 2, 3], [0.0] * 4)])
def test_loss_aware_sampler_is_uniform_without_a_full_history_or_any_loss(times, losses):
    sampler = LossAware(process_of("linear", 4))
    for _ in range(HISTORY):
        sampler.update(torch.tensor(times), torch.tensor(losses))
    assert torch.allclose(sampler.probabilities(), torch.full((4,), 0.25, dtype=torch.float64))
    assert sampler.draw(uniforms(100))[1].tolist() == pytest.approx([1] * 100)


@given(st.integers(2, 60), st.integers(0, 1000), st.integers(0, 5))
def test_probabilities_match_iddpm_eq_18_of_the_last_ten_losses(timesteps, seed, older):
    sampler, losses = filled(timesteps, seed, HISTORY + older)
    root = np.sqrt((losses[older:] ** 2).mean(0))
    expected = (1 - UNIFORM_SHARE) * root / root.sum() + UNIFORM_SHARE / timesteps
    assert np.allclose(sampler.probabilities(), expected)
    assert float(sampler.probabilities().sum()) == pytest.approx(1)


def test_repeated_timestep_in_batch_is_recorded_twice():
    sampler = LossAware(process_of("linear", 2))
    sampler.update(torch.tensor([1, 1, 0]), torch.tensor([1.0, 2.0, 3.0]))
    assert sampler.counts.tolist() == [1, 2]
    assert sampler.losses[1, :2].tolist() == [1.0, 2.0]


def process_with(kind: str, **config) -> NoiseProcess:
    if kind in ("edm", "flow"):
        return build_process(ProcessConfig(schedule=kind, **config))
    return process_of(kind, 1000, variance="small", loss="simple", **config)


@pytest.mark.parametrize("kind", ["edm", "flow", "linear", "cosine"])
def test_log_normal_times_have_edms_noise_levels(kind):
    process = process_with(kind, t_sampler="log-normal")
    t = build_time_sampler(process).times(uniforms(20_000))
    level = process.noise_level(t).log()
    assert t.dtype == (torch.float64 if kind in ("edm", "flow") else torch.int64)
    assert float(level.mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(level.std()) == pytest.approx(1.2, abs=0.03)
    assert process.t_min <= float(t.min()) <= float(t.max()) <= process.t_max


def test_logit_normal_share_of_the_range_has_its_logits():
    options = {"mean": 0.5, "std": 0.7}
    process = process_with("edm", t_sampler="logit-normal", t_sampler_options=options)
    share = (build_time_sampler(process).times(uniforms(20_000)) - process.t_min) / (80 - 0.002)
    assert float(share.logit().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(share.logit().std()) == pytest.approx(0.7, abs=0.02)
    whole = build_time_sampler(process_with("linear", t_sampler="logit-normal")).times(uniforms(20_000))
    assert float(((whole + 0.5) / 1000).logit().std()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("name", TIME_DISTRIBUTIONS)
def test_times_grow_with_the_uniform_numbers_and_stay_in_the_range(name):
    loss = {"loss": "hybrid", "variance": "learned"} if TIME_DISTRIBUTIONS[name].needs_bound else {}
    process = process_of("cosine", 50, **{"variance": "small", "loss": "simple", **loss, "t_sampler": name})
    extremes = torch.cat([torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), uniforms(500)]).sort()[0]
    t, weights = build_time_sampler(process).draw(extremes)
    assert bool((t.diff() >= 0).all())
    assert (int(t[0]), int(t[-1])) == (0, 49)
    assert weights.shape == t.shape


def test_options_are_validated_and_stored_without_defaults():
    config = ProcessConfig(schedule="edm", t_sampler="log-normal", t_sampler_options={"mean": -1.2, "std": 2})
    assert config.t_sampler_options == {"std": 2.0}
    assert ProcessConfig(weighting="min-snr", weighting_options={"gamma": 5}).weighting_options == {}
    with pytest.raises(ValueError, match="t_sampler_options of logit-normal: std: it must be greater"):
        ProcessConfig(schedule="flow", t_sampler="logit-normal", t_sampler_options={"std": 0})
    with pytest.raises(ValueError, match=r"t_sampler_options of uniform: mean"):
        ProcessConfig(schedule="flow", t_sampler_options={"mean": 0})
    with pytest.raises(ValueError, match="loss vlb needs t_sampler uniform or loss-aware"):
        DiscreteConfig(loss="vlb", t_sampler="logit-normal")


@given(st.integers(1, 64), st.integers(0, 100), st.integers(0, 100))
def test_stratified_numbers_have_one_in_each_part_and_do_not_depend_on_the_share(count, seed, step):
    name = ("train", seed, step)
    numbers = stratified_uniforms(name, range(count), count)
    assert sorted((numbers * count).long().tolist()) == list(range(count)) or count == 1
    middle = count // 3
    parts = [stratified_uniforms(name, rows, count) for rows in (range(middle), range(middle, count))]
    assert torch.equal(torch.cat(parts), numbers)
    assert not torch.equal(stratified_uniforms(("train", seed, step + 1), range(count), count), numbers)


def test_first_stratified_number_is_uniform_over_the_steps():
    first = torch.stack([stratified_uniforms(("train", 0, step), range(1), 8)[0] for step in range(2000)])
    assert float(first.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(first.var()) == pytest.approx(1 / 12, abs=0.005)
