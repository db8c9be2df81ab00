"""Interfaces of samplers: options and NFE in the card, and batched trajectories.

These have a time and a weight per row, do not wait for the device, and need no float64 on one without it.
"""

import json
import math
from functools import partial

import pytest
import torch

from diffusion.process.denoiser import Condition
from diffusion.process.noise_process import NetworkDenoiser, build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.grid import settings_card
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.samplers import HeunOptions
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.classifier_guidance import classifier_gradient, shift_eps, shift_mean
from diffusion.sample.guidance import GuidedRows, build_guidance, guide_rows, guided
from diffusion.sample.sampler import NaNGuard, build_sampler, run_sampler
from tests.helpers.networks import loaded_model
from tests.helpers.no_sync_tensors import DEVICE, no_float64, nothing_waits

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
A_PROCESS = build_process(ProcessConfig(timesteps=100, prediction="velocity"))
FLOW = build_process(ProcessConfig(schedule="flow", prediction="flow"))
MODEL = loaded_model()


def test_options_of_a_sampler_are_validated_and_complete_in_the_card():
    settings = SampleSettings(sampler="heun", steps=5, sampler_options={"s_churn": 2.0})
    card = settings_card(settings)
    assert (card["nfe"], json.loads(card["sampler_options"])) == (9, HeunOptions(s_churn=2.0).model_dump())
    known = {key: card[key] for key in SampleSettings.model_fields if key in card}
    assert settings_card(SampleSettings(**known)) == card
    with pytest.raises(ValueError, match="sampler_options of heun: s_churn"):
        SampleSettings(sampler="heun", sampler_options={"s_churn": "perhaps"})
    with pytest.raises(ValueError, match="sampler heun does not use eta"):
        SampleSettings(sampler="heun", eta=1.0)


WATCHES = pytest.mark.parametrize("watch", [nothing_waits, no_float64])


@pytest.mark.parametrize(
    "options", [{"eta": 0.0}, {"eta": 0.7, "noise": "large"}, {"eta": 1.0, "noise": "learned"},
                {"sampler": "dpm-solver++"}, {"sampler": "unipc"}, {"sampler": "ipndm"},
                {"sampler": "heun", "sampler_options": {"s_churn": 2.0}},
                {"sampler": "dpm-solver++-3m-sde"}, {"sampler": "consistency"}],
)  # fmt: skip
@pytest.mark.parametrize(
    ("guidance", "prediction"),
    [(0.0, "eps"), (1.5, "velocity")],
)
@WATCHES
def test_sampling_steps_do_not_wait_for_the_device(watch, options, guidance, prediction):
    """Meta tensors have no values, so any wait for the device fails. Only the final check may wait."""
    process = build_process(ProcessConfig(timesteps=100, prediction=prediction))
    settings = SampleSettings(steps=6, guidance=guidance, **options)
    made = walk_on_meta(watch, settings, guided(meta_denoiser(process), settings, process), process)
    assert made.nfe * settings.guided_nfe == settings.nfe


def meta_denoiser(process):
    return NetworkDenoiser(lambda x, t, labels: torch.cat([x, x], 1), process)


def meta_inputs():
    """Return x and the condition of three rows without values."""
    labels = torch.empty(3, dtype=torch.long, device="meta")
    return torch.empty(3, *SHAPE, device="meta"), Condition(3, labels, 10)


def walk_on_meta(watch, settings, denoiser, process):
    """Return the end of a trajectory without values, under a watch."""
    x, condition = meta_inputs()
    grid, guard = process.grid([0, 20, 40, 60, 80, 99]), NaNGuard()
    guard.raise_pending = lambda: None
    trajectory = build_sampler(settings)(grid, x, lambda: torch.empty_like(x))
    with watch():
        made = run_sampler(trajectory, denoiser, condition, guard=guard)
    assert made.x.device == DEVICE
    return made


@pytest.mark.parametrize("shift", [shift_mean, partial(shift_eps, process=A_PROCESS), None])
@pytest.mark.parametrize(
    ("guidance", "rule"), [(0.0, "classifier-free"), *[(1.5, name) for name in GUIDANCE_RULES]]
)
@WATCHES
def test_guidance_in_an_interval_and_by_a_classifier_does_not_wait_for_the_device(
    watch, guidance, rule, shift
):
    """The classifier's gradient comes from a real backward pass."""
    network = meta_denoiser(A_PROCESS)
    guide = "worse" if GUIDANCE_RULES[rule].needs_guide else None
    process = FLOW if rule == "cfg-zero" else A_PROCESS
    options = {"zero_calls": 0} if rule == "cfg-zero" else {}
    named = {"guidance_rule": rule, "guide": guide, "guidance_rule_options": options}
    settings = SampleSettings(guidance=guidance, guidance_interval=(0.3, 5.0), **named)
    denoiser = guided(network, settings, process, network)
    if shift is not None:
        pool = torch.nn.Linear(math.prod(SHAPE), 10, device="meta")
        gradient = classifier_gradient(lambda x, t: pool(x.flatten(1)) * t, 2.0)
        denoiser = shift(denoiser, gradient)
    walk_on_meta(watch, SampleSettings(steps=6, eta=1.0), denoiser, A_PROCESS)


@pytest.mark.parametrize("weights", [(0.0, 0.0, 0.0), (0.0, 1.5, 2.0)])
@pytest.mark.parametrize("times", [torch.tensor([5, 0, 99]), torch.tensor([5.0, 0.5, 99.0])])
@WATCHES
def test_forward_pass_with_times_per_row_does_not_wait_for_the_device(watch, times, weights):
    """As in the engine: the times of the rows are host tensors."""
    x, condition = meta_inputs()
    rule = build_guidance(SampleSettings(guidance=1.0), A_PROCESS)
    parts = [GuidedRows(slice(row, row + 1), rule, weight) for row, weight in enumerate(weights)]
    with watch():
        prediction = guide_rows(meta_denoiser(A_PROCESS), None, parts)(x, times, condition)
    assert {part.device for part in prediction if part is not None} == {DEVICE}
