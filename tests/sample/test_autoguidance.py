"""Autoguidance (2406.02507): closed forms for mixtures, NFE, which guides fit, the engine."""

import pytest
import torch

from diffusion.analysis.mixture import Mixture, MixtureDenoiser, ring
from diffusion.engine.engine import Engine
from diffusion.model.model_file import LoadedModel
from diffusion.process.condition import Condition
from diffusion.process.denoiser import Denoiser, Prediction
from diffusion.process.process_registry import ProcessConfig, build_process
from diffusion.protocol.grid import settings_card
from diffusion.protocol.guidance_rules import GUIDANCE_RULES, GuidanceRule
from diffusion.protocol.samplers import SAMPLERS, build_sampler
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.class_labels import mixed_condition
from diffusion.sample.generate import generate
from diffusion.sample.guidance import Inputs, Weight, extrapolate, guided
from diffusion.sample.guides import Guides
from diffusion.sample.sampler import run_sampler
from diffusion.sample.sampling_steps import count_nfe, sampling_grid
from diffusion.system.errors import UsageError
from tests.helpers.networks import artefact_of, network_of, spec_of

CPU = torch.device("cpu")
PROCESS = build_process(ProcessConfig(schedule="cosine", timesteps=1000))
STD = 0.05  # of the data
MODEL_STD, GUIDE_STD = 2 * STD, 4 * STD  # a model with some error, and its guide with more of the same


def points(mixture: Mixture, worse: Mixture, weight: float, **options: object) -> torch.Tensor:
    """Return 2,000 points (2000, 2) of a model with the exact score of `mixture`, guided by `worse`."""
    values = {"steps": 100, "clip": False, "guidance": weight, "guide": "worse" if weight else None}
    settings = SampleSettings(**{**values, **options})
    x = torch.randn(2000, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model, guide = MixtureDenoiser(mixture, PROCESS), MixtureDenoiser(worse, PROCESS)
    trajectory = build_sampler(settings)(sampling_grid(settings, PROCESS), x, lambda: x)
    return run_sampler(trajectory, guided(model, settings, PROCESS, guide), Condition(2000)).x.flatten(1)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver++"])
def test_guided_gaussian_has_the_width_of_the_closed_form(sampler, weight):
    """The slope is x·σ·((1+w)/(s₁²+σ²) − w/(s₀²+σ²)), so a Gaussian ends with the width s₁·(s₁/s₀)^w."""
    centre = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    model, worse = Mixture(centre, MODEL_STD), Mixture(centre, GUIDE_STD)
    made = points(model, worse, weight, sampler=sampler, steps=400)
    expected = MODEL_STD * (MODEL_STD / GUIDE_STD) ** weight
    assert torch.allclose(made.mean(0), centre[0], atol=0.01)
    assert made.std(0).tolist() == pytest.approx([expected] * 2, rel=0.05)


def test_guided_samples_of_a_mixture_lose_their_outliers_and_no_mode():
    data, model, worse = (ring(5, radius=1.0, std=std) for std in (STD, MODEL_STD, GUIDE_STD))

    def outliers(made: torch.Tensor) -> float:
        return float((torch.cdist(made, data.means).amin(1) > 3 * STD).double().mean())

    def shares(made: torch.Tensor) -> torch.Tensor:
        return torch.bincount(torch.cdist(made, data.means).argmin(1), minlength=5) / len(made)

    plain, better = points(model, worse, 0.0), points(model, worse, 1.0)
    assert outliers(plain) == pytest.approx(torch.tensor(-9 / 8).exp().item(), abs=0.05)
    assert outliers(better) < 0.02
    assert float((shares(better) - 0.2).abs().max()) < 0.05
    assert outliers(points(model, worse, 1.0, guidance_interval=(0.0, 0.3))) < 0.05
    assert outliers(points(model, worse, 1.0, guidance_interval=(1.0, 100.0))) > 0.25


def make_model(seed: int = 0, process: dict[str, object] | None = None, **changes: object) -> LoadedModel:
    spec = spec_of(**changes)
    artefact = artefact_of(spec)
    noise = artefact.process.model_copy(update=process or {})
    return LoadedModel(network_of(spec, seed), artefact.model_copy(update={"process": noise}))


MODEL, GUIDE = make_model(), make_model(seed=1)


def images(settings: SampleSettings, indices=range(3), model=MODEL, guide=GUIDE) -> torch.Tensor:
    condition = mixed_condition(model.artefact, settings, indices)
    return generate(model, settings, indices, condition, CPU, guides=Guides(guide))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("interval", [None, (0.3, 2.0)])
def test_images_depend_on_the_guide_and_their_index_alone(sampler, interval):
    settings = SampleSettings(
        sampler=sampler, steps=5, guidance=1.0, guide="early", guidance_interval=interval
    )
    together = images(settings)
    assert int((images(settings, [1]).int() - together[1:2].int()).abs().max()) <= 1
    assert not torch.equal(images(settings, guide=make_model(seed=2)), together)
    assert not torch.equal(images(SampleSettings(sampler=sampler, steps=5)), together)
    itself = images(settings, guide=MODEL)  # D + w·(D − D)
    plain = images(SampleSettings(sampler=sampler, steps=5))
    assert int((itself.int() - plain.int()).abs().max()) <= 1


@pytest.mark.parametrize(("sampler", "interval"), [("ddim", None), ("dpm-solver++", (0.3, 2.0))])
def test_nfe_counts_the_calls_of_the_guide(sampler, interval):
    settings = SampleSettings(
        sampler=sampler, steps=6, guidance=1.0, guide="early", guidance_interval=interval
    )
    rows = {"model": 0, "guide": 0}

    def counting(name: str, model: LoadedModel) -> LoadedModel:
        def network(x, t, labels):
            rows[name] += len(x)
            return model.network(x, t, labels)

        network.state_dict = model.network.state_dict  # type: ignore[attr-defined]
        return model._replace(network=network)  # type: ignore[arg-type]

    images(settings, model=counting("model", MODEL), guide=counting("guide", GUIDE))
    nfe = count_nfe(settings, MODEL.artefact.process)
    assert rows["model"] == 3 * 6
    assert sum(rows.values()) == 3 * nfe
    assert nfe == settings.nfe == 12 if interval is None else 6 < nfe < 12


def test_a_guide_without_classes_guides_a_model_with_and_without_classes():
    settings = SampleSettings(steps=3, guidance=1.0, guide="early")
    free, guide = ({"num_classes": 0, "null_class": False}, make_model(1, num_classes=0, null_class=False))
    assert images(settings, guide=guide).shape == images(settings).shape
    images(settings, model=make_model(**free), guide=guide)
    with pytest.raises(UsageError, match="the guide needs classes, and the model has none"):
        images(settings, model=make_model(**free))


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (None, "needs the model of guide early"),
        (make_model(in_channels=3, out_channels=6), "the guide takes 8×8×3 images, the model makes 8×8×1"),
        (
            make_model(process={"timesteps": 50}),
            r"cosine \(timesteps 50\), the model with that of cosine \(timesteps 100\)$",
        ),
        (make_model(num_classes=9), "the guide was trained on other classes"),
    ],
)
def test_a_guide_that_does_not_fit_is_refused(guide, message):
    with pytest.raises(UsageError, match=message):
        images(SampleSettings(steps=2, guidance=1.0, guide="early"), guide=guide)


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


@pytest.mark.parametrize("guide", ["", "ema:", "ema:0.5", "ema:0.1@0", "ema:0.1@x", "ema:-1", "a" * 5000])
def test_an_impossible_guide_is_refused(guide):
    with pytest.raises(ValueError, match="guide"):
        SampleSettings(guidance=1.0, guide=guide)


def test_autoguidance_without_a_guide_is_refused():
    with pytest.raises(ValueError, match="guidance_rule autoguidance needs a guide"):
        SampleSettings(guidance=1.0, guidance_rule="autoguidance")


def from_grey(denoiser: Denoiser, weight: Weight, guide: Denoiser | None = None) -> Denoiser:
    """A rule of the user's: extrapolate from a grey image, which needs no second call."""

    def pair(rows: Inputs, guided_rows: Inputs) -> tuple[Prediction, Prediction]:
        nothing = torch.zeros_like(guided_rows[0])
        return denoiser(*rows), Prediction(nothing, nothing)

    return extrapolate(denoiser, pair, weight)


def test_a_new_rule_is_one_entry_offline_and_in_the_engine(monkeypatch):
    monkeypatch.setitem(GUIDANCE_RULES.data, "from-grey", GuidanceRule(f"{__name__}:from_grey", nfe=1))
    settings = SampleSettings(steps=3, guidance=0.5, guidance_rule="from-grey")
    made = images(settings, guide=None)
    assert not torch.equal(made, images(SampleSettings(steps=3)))
    card = settings_card(settings)
    assert (card["guidance_rule"], card["nfe"]) == ("from-grey", 3)
    with Engine(MODEL, CPU) as engine:
        condition = mixed_condition(MODEL.artefact, settings, range(3))
        job, other = engine.add(settings, range(3), condition), SampleSettings(steps=2, guidance=1.0)
        engine.add(other, range(2), mixed_condition(MODEL.artefact, other, range(2)))
        while engine.jobs:
            engine.step()
    assert job.images is not None
    assert int((job.images.int() - made.int()).abs().max()) <= 1
