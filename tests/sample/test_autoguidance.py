"""Autoguidance (2406.02507): the closed form of a Gaussian, which guides fit."""

import pytest
import torch

from diffusion.analysis.mixture import Mixture, MixtureDenoiser
from diffusion.process.denoiser import Condition
from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.grid import settings_card
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import mixed_condition
from diffusion.sample.generate import generate
from diffusion.sample.guidance import guided
from diffusion.sample.guides import Guides
from diffusion.sample.sampler import build_sampler, run_sampler
from diffusion.sample.sampling_steps import sampling_grid
from diffusion.system.errors import UsageError
from tests.helpers.networks import loaded_model
from tests.helpers.trajectories import randn

CPU = torch.device("cpu")
PROCESS = build_process(ProcessConfig(schedule="cosine", timesteps=1000))
STD, WORSE_STD = 0.1, 0.2  # of the points of a model, and of its guide


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "weight"), [("ddim", 1.0), ("dpm-solver++", 0.5)])
def test_guided_gaussian_has_the_width_of_the_closed_form(sampler, weight):
    """The slope is x·σ·((1+w)/(s₁²+σ²) − w/(s₀²+σ²)), so a Gaussian ends with the width s₁·(s₁/s₀)^w."""
    centre = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    model, worse = (MixtureDenoiser(Mixture(centre, std), PROCESS) for std in (STD, WORSE_STD))
    settings = SampleSettings(sampler=sampler, steps=400, clip=False, guidance=weight, guide="worse")
    x = randn(2000, 2, 1, 1)
    trajectory = build_sampler(settings)(sampling_grid(settings, PROCESS), x, lambda: x)
    made = run_sampler(trajectory, guided(model, settings, PROCESS, worse), Condition(2000)).x.flatten(1)
    assert torch.allclose(made.mean(0), centre[0], atol=0.01)
    assert made.std(0).tolist() == pytest.approx([STD * (STD / WORSE_STD) ** weight] * 2, rel=0.05)


MODEL, GUIDE = loaded_model(), loaded_model(seed=1)


def images(settings: SampleSettings, indices=range(3), model=MODEL, guide=GUIDE) -> torch.Tensor:
    condition = mixed_condition(model.artefact, settings, indices)
    return generate(model, settings, indices, condition, CPU, guides=Guides(guide))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "interval"), [*((name, None) for name in SAMPLERS), ("ddim", (0.3, 2.0))]
)
def test_images_depend_on_the_guide_and_their_index_alone(sampler, interval):
    guided = {"guidance": 1.0, "guide": "early", "guidance_interval": interval}
    settings, plain = (SampleSettings(sampler=sampler, steps=5, **options) for options in (guided, {}))
    together = images(settings)
    assert int((images(settings, [1]).int() - together[1:2].int()).abs().max()) <= 1
    assert not torch.equal(images(settings, guide=loaded_model(seed=2)), together)
    assert not torch.equal(images(plain), together)
    itself = images(settings, guide=MODEL)  # D + w·(D − D)
    assert int((itself.int() - images(plain).int()).abs().max()) <= 1


def test_a_guide_has_the_models_classes_or_none():
    settings = SampleSettings(steps=3, guidance=1.0, guide="early")
    free, guide = ({"num_classes": 0, "null_class": False}, loaded_model(1, num_classes=0, null_class=False))
    assert images(settings, guide=guide).shape == images(settings).shape
    images(settings, model=loaded_model(**free), guide=guide)
    with pytest.raises(UsageError, match="the guide needs classes, and the model has none"):
        images(settings, model=loaded_model(**free))
    with pytest.raises(UsageError, match="the guide was trained on other classes"):
        images(settings, guide=loaded_model(num_classes=9))
    with pytest.raises(UsageError, match="needs the model of guide early"):
        images(settings, guide=None)


def test_equal_images_have_equal_settings_and_a_card_reads_back():
    plain, named = SampleSettings(guidance=1.0), {"guidance": 1.0, "guide": "ema:0.10@300"}
    assert SampleSettings(guidance=1.0, guidance_rule="classifier-free", guide="a") == plain
    assert SampleSettings(guide="a", guidance_rule="autoguidance") == SampleSettings()
    settings = SampleSettings(**named)
    assert SampleSettings(**named, guidance_rule="autoguidance") == settings
    card = settings_card(settings)
    assert (card["guide"], card["guidance_rule"], card["nfe"]) == ("ema:0.1@300", "autoguidance", 100)
    known = {key: card[key] for key in SampleSettings.model_fields if key in card}
    assert SampleSettings(**known) == settings
    assert not {"guide", "guidance_rule"} & settings_card(plain).keys()


@pytest.mark.parametrize(
    "guide", [None, "", "ema:", "ema:0.5", "ema:0.1@0", "ema:0.1@00", "ema:0.1@x", "ema:-1", "a" * 5000]
)
def test_an_impossible_or_missing_guide_is_refused(guide):
    with pytest.raises(ValueError, match="guide"):
        SampleSettings(guidance=1.0, guidance_rule="autoguidance", guide=guide)
