"""Rules that combine predictions with and without the class: as diffusers, or as a loop of their paper."""

import pytest
import torch

from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Condition, Prediction
from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.grid import SAMPLING_VERSION, settings_card
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import mixed_condition
from diffusion.sample.generate import check_settings, generate
from diffusion.sample.guidance import GuidedRows, build_guidance, guide_rows, guided
from diffusion.sample.sampler import build_sampler, run_sampler
from diffusion.sample.sampling_steps import sampling_grid
from diffusion.system.errors import UsageError
from tests.helpers.networks import artefact_of, network_of, spec_of
from tests.helpers.trajectories import randn

COSINE = build_process(ProcessConfig(schedule="cosine", timesteps=100))
FLOW = build_process(ProcessConfig(schedule="flow", prediction="flow"))
NULL = 1
SHAPE = (2, 3, 4, 4)


def settings_of(rule: str, weight: float = 2.0, options: dict | None = None, **values) -> SampleSettings:
    return SampleSettings(guidance=weight, guidance_rule=rule, guidance_rule_options=options or {}, **values)


class Drifting:
    """A denoiser whose x_0 is random at each call, with and without the class; it keeps the last two."""

    def __init__(self, process) -> None:
        self.process, self.calls = process, 0

    def __call__(self, x, t, condition):
        self.calls += 1
        source = torch.Generator().manual_seed(self.calls)
        x0 = torch.randn(x.shape, generator=source, dtype=x.dtype)
        alpha, sigma = self.process.alpha_sigma(torch.as_tensor(t))
        eps = (x - alpha * x0) / sigma
        self.x0, self.eps = x0.chunk(2), eps.chunk(2)
        return Prediction(x0, eps)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.0, "parallel": 1.0},
        {"momentum": -0.75, "radius": 2.5},
        {"momentum": 0.3, "parallel": 0.4, "radius": 100.0},
    ],
)
def test_apg_is_that_of_diffusers_over_the_calls_of_a_trajectory(options):
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

    network, condition = Drifting(COSINE), Condition(2, torch.zeros(2, dtype=torch.long), NULL)
    denoiser = guided(network, settings_of("apg", options=options, clip=False), COSINE)
    buffer, x = MomentumBuffer(options.get("momentum", -0.5)), randn(*SHAPE)
    for t in (90, 60, 30, 10):
        found = denoiser(x, t, condition)
        expected = normalized_guidance(
            *network.x0, 2.0, buffer, options.get("parallel", 0.0), options.get("radius", 0.0), True
        )
        assert torch.allclose(found.x0, expected, atol=1e-6)
        alpha, sigma = COSINE.alpha_sigma(torch.tensor(t))
        assert torch.allclose(alpha * found.x0 + sigma * found.eps, x, atol=1e-6)


def test_apg_keeps_no_error_of_high_noise_in_its_momentum():
    condition, x = Condition(2, torch.zeros(2, dtype=torch.long), NULL), randn(*SHAPE)

    def network(x, t, condition):  # x̂_0 = 0, but for an error of 0.1 of ε without the class at T − 1
        alpha, sigma = COSINE.alpha_sigma(torch.tensor(t))
        eps = x / sigma
        eps[len(x) // 2 :] += 0.1 * (t == 99)
        return Prediction((x - sigma * eps) / alpha, eps)

    denoiser = guided(network, settings_of("apg"), COSINE)
    denoiser(x, 99, condition)
    assert float(denoiser(x, 50, condition).x0.abs().max()) < 10, "unclipped about 200"


@pytest.mark.parametrize("zero_calls", [0, 1, 3])
def test_cfg_zero_is_that_of_diffusers(zero_calls):
    from diffusers.guiders.classifier_free_zero_star_guidance import ClassifierFreeZeroStarGuidance

    network, condition = Drifting(FLOW), Condition(2, torch.zeros(2, dtype=torch.long), NULL)
    denoiser = guided(network, settings_of("cfg-zero", options={"zero_calls": zero_calls}), FLOW)
    peer, x = ClassifierFreeZeroStarGuidance(guidance_scale=3.0, zero_init_steps=zero_calls), randn(*SHAPE)
    for step, t in enumerate((0.9, 0.5, 0.3, 0.2)):
        peer.set_state(step, 4, torch.tensor(t))
        found = denoiser(x, t, condition)
        conditional, free = (eps - x0 for x0, eps in zip(network.x0, network.eps, strict=True))
        expected = peer.forward(conditional.float(), free.float()).pred
        assert torch.allclose((found.eps - found.x0).float(), expected, atol=1e-4)
        assert torch.allclose((1 - t) * found.x0 + t * found.eps, x, atol=1e-9)


@pytest.mark.parametrize(
    ("rule", "process"), [("apg", COSINE), ("classifier-free", COSINE), ("cfg-zero", FLOW), ("cfg++", COSINE)]
)
def test_predictions_of_zero_stay_finite(rule, process):
    condition, x = Condition(2, torch.zeros(2, dtype=torch.long), NULL), randn(*SHAPE)

    def untrained(x, t, condition):  # v = 0 and x̂_0 = 0, as of a network with zeros in its last layer
        return Prediction(torch.zeros_like(x), torch.zeros_like(x))

    found = guided(untrained, settings_of(rule), process)(x, 10 if process is COSINE else 0.5, condition)
    assert torch.isfinite(found.x0).all()
    assert torch.isfinite(found.eps).all()


def test_cfg_zero_does_not_move_in_its_first_calls():
    settings = settings_of("cfg-zero", sampler="euler", steps=4, options={"zero_calls": 3})
    grid, x = sampling_grid(settings, FLOW), randn(*SHAPE)
    condition = Condition(2, torch.zeros(2, dtype=torch.long), NULL)
    visited: list[torch.Tensor] = []
    run_sampler(
        build_sampler(settings)(grid, x, lambda: x),
        guided(Drifting(FLOW), settings, FLOW),
        condition,
        lambda step: visited.append(step.x),
    )
    assert [torch.allclose(one, x, atol=1e-9) for one in visited] == [True, True, True, False]
    for sampler, zero in (("euler", 4), ("heun", 7)):
        late = settings_of("cfg-zero", sampler=sampler, steps=4, options={"zero_calls": zero})
        with pytest.raises(UsageError, match=f"{zero} of cfg-zero is not below the {zero} network calls"):
            guided(Drifting(FLOW), late, FLOW)
    for values, zero in (({}, 1), ({"guidance_interval": (0, 5)}, 0), ({"guidance_interval": (0, 1e9)}, 3)):
        guided(Drifting(FLOW), settings_of("cfg-zero", options={"zero_calls": zero}, **values), FLOW)
    limited = settings_of("cfg-zero", guidance_interval=(0, 5))
    with pytest.raises(UsageError, match=r"interval leaves out a call that .*zero_calls 1 of cfg-zero"):
        guided(Drifting(FLOW), limited, FLOW)


@pytest.mark.parametrize("interval", [None, (0.5, 3.0)])
@pytest.mark.parametrize("clip", [False, True])
def test_cfg_plus_plus_matches_a_loop_of_its_algorithm(clip, interval):
    """Outside of an interval the steps are DDIM's."""
    settings = settings_of("cfg++", 0.6, clip=clip, steps=6, guidance_interval=interval)
    network, reference, x = Drifting(COSINE), Drifting(COSINE), randn(*SHAPE)
    grid, condition = sampling_grid(settings, COSINE), Condition(2, torch.zeros(2, dtype=torch.long), NULL)
    made: list[torch.Tensor] = []
    run_sampler(
        build_sampler(settings)(grid, x, lambda: x),
        guided(network, settings, COSINE),
        condition,
        lambda step: made.append(step.x),
    )
    for step, found in zip(grid.reverse_steps(), made, strict=True):
        is_guided = interval is None or interval[0] < step.sigma / step.alpha <= interval[1]
        x0_hat, eps, *_ = reference(torch.cat([x, x]) if is_guided else x, step.t, condition)
        if is_guided:
            (of_class, free), (_, eps) = reference.x0, reference.eps
            x0_hat = free + 0.6 * (of_class - free)
        if clip:
            x0_hat = x0_hat.clamp(-1, 1)
            eps = eps if is_guided else (x - step.alpha * x0_hat) / step.sigma
        x = step.alpha_prev * x0_hat + step.sigma_prev * eps
        assert torch.allclose(found, x, atol=1e-9)


def test_unguided_rows_next_to_cfg_plus_plus_do_not_keep_their_noise():
    rule = build_guidance(settings_of("cfg++", 0.6), COSINE)
    parts = [GuidedRows(slice(row, row + 1), rule, weight) for row, weight in enumerate((0.6, 0.0))]
    condition = Condition(2, torch.zeros(2, dtype=torch.long), NULL)
    found = guide_rows(Drifting(COSINE), None, parts)(randn(*SHAPE), 50, condition)
    assert found.keeps_eps.tolist() == [True, False]


@pytest.mark.parametrize(
    ("rule", "process"),
    [
        ("apg", {"variance": "small", "loss": "simple"}),
        ("cfg-zero", {"schedule": "flow", "prediction": "flow"}),
    ],
)
def test_image_i_depends_on_its_own_trajectory_alone(rule, process):
    spec = spec_of(out_channels=1)
    model = LoadedModel(network_of(spec), artefact_of(spec, process=ProcessConfig(**process)))
    settings = settings_of(rule, steps=4, options={"radius": 0.5, "momentum": 0.5} if rule == "apg" else {})

    def images(indices, chosen=settings):
        condition = mixed_condition(model.artefact, chosen, indices)
        return generate(model, chosen, indices, condition, torch.device("cpu")).int()

    together = images(range(4))
    assert int((images([2]) - together[2:3]).abs().max()) <= 1
    assert not torch.equal(images(range(4), SampleSettings(steps=4, guidance=2.0)), together)


def test_rules_that_do_not_fit_are_refused_and_options_follow_their_rule():
    model = artefact_of(spec_of())
    with pytest.raises(UsageError, match=r"cfg-zero is of process\.schedule flow"):
        check_settings(model, settings_of("cfg-zero", steps=3))
    with pytest.raises(UsageError, match=r"cfg\+\+ is of sampler ddim, not heun"):
        check_settings(model, settings_of("cfg++", steps=3, sampler="heun"))
    assert not settings_of("cfg-zero", clip=True).clip
    with pytest.raises(ValueError, match="guidance_rule_options of apg: radius"):
        settings_of("apg", options={"radius": 0})
    settings = settings_of("apg", options={"radius": 3.0}, steps=3)
    card = settings_card(settings)
    assert card["sampling_version"] == SAMPLING_VERSION + 1
    known = {key: card[key] for key in SampleSettings.model_fields if key in card}
    assert settings_card(SampleSettings(**known)) == card
    assert SampleSettings(**{**dict(settings), "guidance": 0.0}) == SampleSettings(steps=3)
    limited = settings_of("cfg++", 0.6, steps=3, guidance_interval=(0.5, 3))
    versions = [settings_card(one)["sampling_version"] for one in (limited, limited.guided_everywhere())]
    assert versions == [SAMPLING_VERSION + 1, SAMPLING_VERSION]
