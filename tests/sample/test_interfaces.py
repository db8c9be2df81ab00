"""Extension interfaces: a new sampler or process needs only its own code and one registry entry.

Also the interface for batched trajectories: a time and weight per row, no wait for the device, no float64 on
a device without it.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pydantic import Field

from diffusion.config import parse
from diffusion.model.model_file import LoadedModel, load_model, save_artefact
from diffusion.process.condition import Condition
from diffusion.process.denoiser import NetworkDenoiser
from diffusion.process.discrete import DiscreteProcess
from diffusion.process.losses import training_losses
from diffusion.process.process_registry import (
    PROCESSES,
    DiscreteConfig,
    ProcessConfig,
    ProcessEntry,
    build_process,
)
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.grid import grid, settings_card
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.samplers import SAMPLERS, SamplerEntry, build_sampler
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.cell_images import sampling_card
from diffusion.sample.class_labels import mixed_condition
from diffusion.sample.generate import generate, guided_denoiser
from diffusion.sample.guidance import (
    classifier_free,
    classifier_gradient,
    interval_guidance,
    shift_eps,
    shift_mean,
)
from diffusion.sample.network_files import NetworkArtefacts
from diffusion.sample.sampler import DenoiserCall, NaNGuard, Step, Trajectory, run_sampler
from diffusion.system.section import Section, fingerprint
from tests.conftest import params
from tests.helpers import papers
from tests.helpers.networks import artefact_of, network_of, spec_of
from tests.helpers.no_sync_tensors import DEVICE, NothingWaits, Waited, no_float64

CPU = torch.device("cpu")
DATA = papers.GaussianData(0.3, 0.4)
SHAPE = (1, 8, 8)
A_PROCESS = build_process(ProcessConfig(timesteps=100, prediction="velocity"))


# A sampler: the trapezoidal rule for the probability-flow ODE dx̄/dσ̄ = ε with x̄ = x/α, σ̄ = σ/α.


class TrapezoidOptions(Section):
    """`correct` adds a second denoiser call at the end of each step except the last."""

    correct: bool = True


def trapezoid(
    settings: SampleSettings,
) -> Callable[[TimeGrid, torch.Tensor, Callable[[], torch.Tensor]], Trajectory]:
    options = TrapezoidOptions(**settings.sampler_options)

    def trajectory(grid: TimeGrid, x: torch.Tensor, noise: Callable[[], torch.Tensor]) -> Trajectory:
        for done, step in enumerate(grid.walk(), start=1):
            prediction = yield DenoiserCall(x, step.t)
            x0_hat = prediction.x0.clamp(-1, 1) if settings.clip else prediction.x0
            if step.is_last:
                x = x0_hat
            else:
                span = step.sigma_prev / step.alpha_prev - step.sigma / step.alpha
                ahead = step.alpha_prev * (x / step.alpha + span * prediction.eps)
                if options.correct:
                    after = yield DenoiserCall(ahead, grid.walk()[done].t)
                    ahead = step.alpha_prev * (x / step.alpha + span * (prediction.eps + after.eps) / 2)
                x = ahead
            yield Step(done, len(grid), x, x0_hat)

    return trajectory


TRAPEZOID = SamplerEntry(
    "tests.sample.test_interfaces:trapezoid",
    nfe=lambda steps: 2 * steps - 1,
    options="tests.sample.test_interfaces:TrapezoidOptions",
)


@pytest.fixture
def with_trapezoid(monkeypatch):
    monkeypatch.setitem(SAMPLERS.data, "trapezoid", TRAPEZOID)


# A process: a straight-line flow from image to noise, with its own option for a time shift.


class FlowConfig(DiscreteConfig):
    shift: float = Field(default=1.0, gt=0)


class Flow(DiscreteProcess):
    """α = 1 − u and σ = u for u = s·v/(1 + (s−1)v), v = (t + 1)/T; not variance-preserving; α_{T−1} = 0."""

    config: FlowConfig

    def alpha_sigma(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        v, shift = (t.double() + 1) / self.timesteps, self.config.shift
        u = shift * v / (1 + (shift - 1) * v)
        return 1 - u, u


@pytest.fixture
def with_flow(monkeypatch):
    entry = ProcessEntry(
        "tests.sample.test_interfaces:Flow", config="tests.sample.test_interfaces:FlowConfig"
    )
    monkeypatch.setitem(PROCESSES.data, "line", entry)


FLOW = {"schedule": "line", "prediction": "flow", "shift": 3.0, "timesteps": 100}


def make_condition(model: LoadedModel, settings: SampleSettings, indices: Any) -> Condition:
    return mixed_condition(model.artefact, settings, indices)


def make_model(**process: Any) -> LoadedModel:
    spec = spec_of()
    values = {"timesteps": 100, **process}
    return LoadedModel(network_of(spec), artefact_of(spec, process=ProcessConfig.model_validate(values)))


def test_new_sampler_needs_only_a_registry_entry(with_trapezoid):
    model = make_model()
    settings = SampleSettings(sampler="trapezoid", steps=5, seed=3, sampler_options={"correct": True})
    made = generate(model, settings, range(4), make_condition(model, settings, range(4)), CPU)
    assert made.shape == (4, *SHAPE)
    card = settings_card(settings)
    assert card["nfe"] == 9
    assert card["sampler_options"] == '{"correct":true}'
    assert settings_card(settings.model_copy(update={"sampler_options": {}})) == card
    known = {key: card[key] for key in SampleSettings.model_fields if key in card}
    assert SampleSettings(**known) == settings
    with pytest.raises(ValueError, match="sampler_options of trapezoid: correct"):
        SampleSettings(sampler="trapezoid", sampler_options={"correct": "perhaps"})
    with pytest.raises(ValueError, match="sampler trapezoid does not use eta"):
        SampleSettings(sampler="trapezoid", eta=1.0)
    config = parse(params(sweep={"steps": [2], "eta": [0.0, 1.0], "sampler": ["ddim", "trapezoid"]}), "test")
    assert [cell.name for cell in grid(config.sample, config.sweep)] == [
        "steps2-eta0-sampler_ddim", "steps2-eta0-sampler_trapezoid", "steps2-eta1-sampler_ddim"
    ]  # fmt: skip


COUNTED = ("ddim", "dpm-solver++", "trapezoid")
NFE_CASES = [  # every pair of values of sampler, grid, guidance and interval
    (sampler, schedule, guidance, interval)
    for row, interval in enumerate([None, (0.0, 1e9), (0.0, 0.4), (0.4, 3.0), (2e4, 1e9)])
    for column, schedule in enumerate([(1, "uniform"), (2, "quadratic"), (7, "trailing"), (7, "uniform")])
    for sampler, guidance in [(COUNTED[(row + column) % 3], 1.5 * ((row + column // 2) % 2))]
]


@pytest.mark.parametrize(("sampler", "schedule", "guidance", "interval"), NFE_CASES)
def test_nfe_of_the_card_equals_network_rows_per_image(with_trapezoid, sampler, schedule, guidance, interval):
    model, rows, (steps, spacing) = make_model(), [], schedule
    settings = SampleSettings(
        sampler=sampler, steps=steps, spacing=spacing, guidance=guidance, guidance_interval=interval
    )

    def counting_network(x, t, labels):
        rows.append(len(x))
        return model.network(x, t, labels)

    counting = LoadedModel(counting_network, model.artefact)  # type: ignore[arg-type]
    generate(counting, settings, range(3), make_condition(model, settings, range(3)), CPU)
    assert sum(rows) / 3 == sampling_card(settings, NetworkArtefacts(model.artefact))["nfe"]


def test_new_process_needs_only_a_registry_entry(with_flow, tmp_path):
    model = make_model(**FLOW)
    process = build_process(model.artefact.process)
    source = torch.Generator().manual_seed(0)
    x_0, noise = torch.rand(5, *SHAPE, generator=source) * 2 - 1, torch.randn(5, *SHAPE, generator=source)
    t, condition = torch.tensor([0, 1, 50, 98, 99]), Condition(5, torch.arange(5))
    losses = training_losses(model.network, process, x_0, t, noise, condition)
    assert all(bool(value.isfinite().all()) for value in losses.values())
    for chosen in (
        SampleSettings(steps=10, eta=1.0, noise="learned"),
        SampleSettings(steps=10, eta=0.5, guidance=1.0),
        SampleSettings(steps=10, sampler="dpm-solver++"),
    ):
        made = generate(model, chosen, range(3), make_condition(model, chosen, range(3)), CPU)
        assert made.float().std() > 1
    save_artefact(tmp_path / "m.safetensors", model.network.state_dict(), model.artefact)
    assert load_model(tmp_path / "m.safetensors").artefact.process == FlowConfig(**FLOW)
    config = parse(params(process=FLOW), "test")
    assert config.process == FlowConfig(**FLOW)
    assert fingerprint(config) != fingerprint(parse(params(process={**FLOW, "shift": 2.0}), "test"))


@pytest.mark.parametrize("sampler", [{"eta": 0.0}, {"eta": 1.0}, {"sampler": "dpm-solver++"}])
def test_flow_sampling_reproduces_gaussian_mean_and_variance(with_flow, sampler):
    process = Flow(FlowConfig(**{**FLOW, "timesteps": 1000}))

    def network(x, t, labels):
        alpha, sigma = (part.reshape(-1, 1, 1, 1) for part in process.alpha_sigma(t))
        variance = alpha.square() * DATA.std**2 + sigma.square()
        x0 = DATA.mean + alpha * DATA.std**2 / variance * (x - alpha * DATA.mean)
        return process.target(x0, t, (x - alpha * x0) / sigma)

    full, source = process.full_grid(), torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(1, 1, 100, 100, generator=source, dtype=torch.float64)  # noqa: E731
    made = build_sampler(SampleSettings(steps=1000, clip=False, **sampler))(full, draw(), draw)
    x = run_sampler(made, NetworkDenoiser(network, process), Condition(1)).x
    assert float(x.mean()) == pytest.approx(DATA.mean, abs=4 * DATA.std / 100 + 0.003)
    assert float(x.std()) == pytest.approx(DATA.std, rel=4 / math.sqrt(2) / 100 + 0.02)


# Batched trajectories.


WATCHES = pytest.mark.parametrize("watch", [NothingWaits, no_float64])


def test_denoiser_accepts_one_time_or_one_time_per_row():
    model = make_model()
    denoiser = guided_denoiser(model, SampleSettings(guidance=1.0))
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    condition = Condition(3, torch.arange(3), 10)
    once = denoiser(x, 7, condition)
    each = denoiser(x, torch.tensor([7, 7, 7]), condition)
    between = denoiser(x, 7.0, condition)
    for a, b, c in zip(once, each, between, strict=True):
        if a is not None:
            assert torch.allclose(a, b, atol=1e-5)
            assert torch.allclose(a, c, atol=1e-5)
    assert not torch.allclose(once.x0, denoiser(x, 7.5, condition).x0, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"eta": 0.0}, {"eta": 0.7, "noise": "large"}, {"eta": 1.0, "noise": "learned"},
                {"sampler": "dpm-solver++"}, {"sampler": "unipc"}, {"sampler": "ipndm"},
                {"sampler": "heun", "sampler_options": {"s_churn": 2.0}},
                {"sampler": "dpm-solver++-3m-sde"}],
)  # fmt: skip
@pytest.mark.parametrize("guidance", [0.0, 1.5, torch.tensor([0.0, 1.5, 2.0])])
@pytest.mark.parametrize("prediction", ["eps", "velocity"])
@WATCHES
def test_sampling_steps_do_not_wait_for_the_device(watch, options, guidance, prediction):
    """Meta tensors have no values, so any wait for the device fails. Only the final check may wait."""
    x = torch.empty(3, *SHAPE, device="meta")
    process = build_process(ProcessConfig(timesteps=100, prediction=prediction))
    settings = SampleSettings(steps=6, **options)
    network = NetworkDenoiser(lambda x, t, labels: torch.cat([x, x], 1), process)
    condition = Condition(3, torch.empty(3, dtype=torch.long, device="meta"), 10)
    trajectory = build_sampler(settings)(
        process.grid([0, 20, 40, 60, 80, 99]), x, lambda: torch.empty_like(x)
    )
    guard = NaNGuard()
    guard.raise_pending = lambda: None
    with watch():
        made = run_sampler(trajectory, classifier_free(network, guidance), condition, guard=guard)
    assert made.x.device.type == "meta"
    assert made.nfe == settings.nfe


@pytest.mark.parametrize("shift", [shift_mean, partial(shift_eps, process=A_PROCESS), None])
@pytest.mark.parametrize(
    ("guidance", "rule"), [(0.0, "classifier-free"), *[(1.5, name) for name in GUIDANCE_RULES]]
)
@WATCHES
def test_guidance_in_an_interval_and_by_a_classifier_does_not_wait_for_the_device(
    watch, guidance, rule, shift
):
    """The classifier's gradient comes from a real backward pass."""
    network = NetworkDenoiser(lambda x, t, labels: torch.cat([x, x], 1), A_PROCESS)
    wrap = partial(GUIDANCE_RULES[rule].load(), guide=network)
    denoiser = interval_guidance(network, guidance, (0.3, 5.0), A_PROCESS, wrap)
    if shift is not None:
        pool = torch.nn.Linear(math.prod(SHAPE), 10, device="meta")
        gradient = classifier_gradient(lambda x, t: pool(x.flatten(1)) * t, 2.0)
        denoiser = shift(denoiser, gradient)
    x = torch.empty(3, *SHAPE, device="meta")
    condition = Condition(3, torch.empty(3, dtype=torch.long, device="meta"), 10)
    grid = A_PROCESS.grid([0, 20, 40, 60, 80, 99])
    trajectory = build_sampler(SampleSettings(steps=6, eta=1.0))(grid, x, lambda: torch.empty_like(x))
    guard = NaNGuard()
    guard.raise_pending = lambda: None
    with watch():
        made = run_sampler(trajectory, denoiser, condition, guard=guard)
    assert made.x.device == DEVICE


@pytest.mark.parametrize("guidance", [0.0, torch.tensor([0.0, 1.5, 2.0], dtype=torch.float64)])
@pytest.mark.parametrize("times", [torch.tensor([5, 0, 99]), torch.tensor([5.0, 0.5, 99.0])])
@WATCHES
def test_forward_pass_with_times_per_row_does_not_wait_for_the_device(watch, times, guidance):
    """As in the engine: the times and guidance weights of the rows are host tensors."""
    process = build_process(ProcessConfig(timesteps=100, prediction="velocity"))
    network = NetworkDenoiser(lambda x, t, labels: torch.cat([x, x], 1), process)
    x = torch.empty(3, *SHAPE, device="meta")
    condition = Condition(3, torch.empty(3, dtype=torch.long, device="meta"), 10)
    with watch():
        prediction = classifier_free(network, guidance)(x, times, condition)
    assert {part.device for part in prediction if part is not None} == {DEVICE}


@pytest.mark.parametrize("operation", [
    lambda x, host: x.to("cpu", dtype=torch.float64), lambda x, host: host.to("meta"),
    lambda x, host: x[host > 0], lambda x, host: x[x > 0], lambda x, host: x.copy_(host),
    lambda x, host: float(x.sum()), lambda x, host: x.nonzero(), lambda x, host: x.new_tensor([1.0, 2.0]),
    lambda x, host: torch.tensor([1], device="meta"),
])  # fmt: skip
def test_every_kind_of_wait_is_detected(operation):
    with pytest.raises((Waited, RuntimeError, NotImplementedError)), NothingWaits():
        operation(torch.empty(3, device="meta"), torch.ones(3))
