"""Models that enlarge images: real ones, those of a base model, and the noise on them."""

import copy
import math
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from cli.actions.registry import champion_rollback
from diffusion.check import preflight
from diffusion.config import load
from diffusion.engine.engine import Engine
from diffusion.images.pictures import png_bytes, read_picture
from diffusion.images.pixels import to_model, to_nhwc
from diffusion.images.store import ImageStore, open_store, write_store
from diffusion.layout import HELD_OUT, MODEL
from diffusion.model.model_file import LoadedModel, load_model
from diffusion.process.denoiser import Condition
from diffusion.process.noise import ImageNoise
from diffusion.protocol.base_model import BaseConfig, base_text
from diffusion.protocol.grid import SAMPLING_VERSION, Cell, cell_settings, open_cells
from diffusion.protocol.sample_sections import SampleConfig, SweepConfig
from diffusion.protocol.settings import SampleSettings, base_settings
from diffusion.sample.cell_images import cell_labels, make_cell
from diffusion.sample.conditions import base_condition, chosen_condition, image_condition, mixed_condition
from diffusion.sample.generate import generate
from diffusion.sample.guides import Guides, check_base
from diffusion.sample.low_res import RealImages, noised_condition
from diffusion.sample.network_files import NetworkArtefacts, NetworkFiles, network_files
from diffusion.sample.sampler import NonFiniteError
from diffusion.sample.sampling_card import sampling_card
from diffusion.system.errors import UsageError
from tests.conftest import write_params
from tests.helpers.networks import (
    artefact_of,
    assert_equal_but_for_rounding,
    counting,
    loaded_classifier,
    network_of,
    small_model,
    spec_of,
)
from tests.helpers.raw_data import random_images
from tests.helpers.scores_document import document

CPU = torch.device("cpu")
LOW_RES = {"low_res": 4, "cond_noise": 0.5}
BASE = {"file": "base.safetensors", "sampling": {"steps": 3, "eta": 1.0}}
CASCADE = {"steps": 4, "eta": 1.0, "base": BASE, "cond_noise": 0.2}


def model_of(seed: int, **changes: object) -> LoadedModel:
    spec = spec_of(**changes)
    return LoadedModel(network_of(spec, seed), artefact_of(spec))


SMALL_SHAPE = {"image_size": 4, "attention_resolutions": ()}
UPSAMPLER, SMALL = model_of(0, **LOW_RES), model_of(1, **SMALL_SHAPE)
GUIDES = Guides(base=SMALL)


def real_images(count: int = 30) -> RealImages:
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), np.uint8)
    classes = list(UPSAMPLER.artefact.data.classes)
    meta = {"digest": "d" * 64, "classes": classes}
    return RealImages(ImageStore(Path("real"), images, np.arange(count) // 3, meta))


@pytest.mark.parametrize("guides", [GUIDES, Guides(real=real_images())], ids=["base", "real"])
def test_image_i_depends_on_seed_and_index_alone(guides):
    settings = SampleSettings(**{**CASCADE, "base": BASE if guides.base else None, "guidance": 1.0})
    indices = range(5)
    condition = image_condition(UPSAMPLER, settings, indices, guides)
    together = generate(UPSAMPLER, settings, indices, condition, CPU, guides=guides)
    for index in (0, 3):
        own = image_condition(UPSAMPLER, settings, [index], guides)
        alone = generate(UPSAMPLER, settings, [index], own, CPU, guides=guides)
        assert int((alone[0].int() - together[index].int()).abs().max()) <= 1
    other = generate(
        UPSAMPLER, settings.model_copy(update={"seed": 1}), indices, condition, CPU, guides=guides
    )
    assert not torch.equal(other, together)


def test_a_cascade_is_its_base_and_then_its_upsampler():
    settings, indices = SampleSettings(**CASCADE), [7, 2, 9]
    condition = mixed_condition(UPSAMPLER.artefact, settings, indices)
    made = generate(UPSAMPLER, settings, indices, condition, CPU, guides=GUIDES)
    assert base_settings(settings, "linear") == SampleSettings(steps=3, eta=1.0)
    assert base_settings(settings, "edm").spacing == "karras"
    own = base_condition(SMALL.artefact, condition)
    small = generate(SMALL, SampleSettings(steps=3, eta=1.0), indices, own, CPU)
    given = replace(condition, low_res=to_model(small))
    assert torch.equal(generate(UPSAMPLER, settings, indices, given, CPU, guides=GUIDES), made)


def test_the_noise_of_an_upsampler_is_not_that_of_its_base(monkeypatch):
    drawn: list[torch.Tensor] = []
    draw = ImageNoise.draw
    monkeypatch.setattr(ImageNoise, "draw", lambda self: drawn.append(draw(self)) or drawn[-1])
    settings = SampleSettings(**CASCADE)
    condition = mixed_condition(UPSAMPLER.artefact, settings, [7])
    generate(UPSAMPLER, settings, [7], condition, CPU, guides=GUIDES)
    of_base, own = (next(x for x in drawn if x.shape[2] == size).flatten() for size in (4, 8))
    assert torch.equal(of_base, ImageNoise(0, [7], (1, 4, 4)).draw().flatten())
    assert not torch.equal(own[:16], of_base)


def test_the_noise_on_an_image_is_normal_of_its_level_and_its_own():
    settings, indices = SampleSettings(cond_noise=0.3), range(400)
    clean = torch.randn(400, 1, 4, 4)
    condition = replace(mixed_condition(UPSAMPLER.artefact, settings, indices), low_res=clean)
    spec = UPSAMPLER.artefact.network
    full = noised_condition(spec, settings, indices, condition)
    noise = (full.low_res - clean) / 0.3
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-4
    assert full.noise_level.eq(0.3).all()
    part = noised_condition(spec, settings, range(10, 13), condition.rows(slice(10, 13)))
    assert torch.equal(part.low_res, full.low_res[10:13])
    exact = noised_condition(spec, SampleSettings(), indices, condition)
    assert torch.equal(exact.low_res, clean)
    assert not exact.noise_level.any()


def test_real_images_have_their_own_labels_and_a_class_selects_among_them():
    guides = Guides(real=real_images())
    condition = image_condition(UPSAMPLER, SampleSettings(), [0, 4, 31], guides)
    assert condition.labels.tolist() == [0, 1, 0]
    assert torch.equal(
        condition.low_res[2], image_condition(UPSAMPLER, SampleSettings(), [1], guides).low_res[0]
    )
    of_class = image_condition(UPSAMPLER, SampleSettings(), [0, 4], guides, "2")
    assert of_class.labels.tolist() == [2, 2]
    rows = image_condition(UPSAMPLER, SampleSettings(), [6, 7], guides)
    assert torch.equal(of_class.low_res, rows.low_res)
    cascade = image_condition(UPSAMPLER, SampleSettings(**CASCADE), [0], guides._replace(base=SMALL))
    assert cascade.low_res is None, "the base makes it"


def test_a_classifier_guides_an_unconditional_model_towards_the_labels_of_real_images():
    unlabelled = {"num_classes": 0, "null_class": False, **LOW_RES}
    upsampler, classifier = model_of(0, **unlabelled), loaded_classifier()
    guides = Guides(classifier=classifier, real=real_images())
    settings = SampleSettings(steps=2, classifier="classifier.safetensors")
    condition = image_condition(upsampler, settings, [0, 4, 31], guides)
    assert condition.labels.tolist() == [0, 1, 0]
    assert image_condition(upsampler, settings, [0], guides, "2").labels.tolist() == [2]
    networks = NetworkArtefacts(upsampler.artefact, None, classifier.artefact, real=real_images())
    assert cell_labels(networks, settings, range(5)).tolist() == [0, 0, 0, 1, 1]
    made = generate(upsampler, settings, [0, 4, 31], condition, CPU, guides=guides)
    assert made.shape == (3, 1, 8, 8)


@pytest.mark.parametrize("rows", [4, 64])
def test_the_engine_makes_the_same_cascades_next_to_enlarged_images(rows):
    calls: list[int] = []
    upsampler, guides = counting(UPSAMPLER, calls), Guides(base=counting(SMALL, calls))
    requests = [{}, {"cond_noise": 0.0}, {"guidance": 1.0, "seed": 5}, {"base": None}]
    jobs = []
    with closing(Engine(upsampler, CPU, rows=rows, guides=guides)) as engine:
        for changes in requests:
            settings = SampleSettings(**{**CASCADE, **changes})
            condition = chosen_condition(upsampler.artefact, settings, range(3), None)
            if settings.base is None:
                condition = replace(condition, low_res=torch.zeros(3, 1, 4, 4))
            jobs.append((engine.add(settings, range(3), condition), condition))
        cancelled = engine.add(SampleSettings(**CASCADE), range(3), jobs[0][1])
        engine.cancel(cancelled)
        while engine.jobs:
            assert engine.step().rows <= rows
    assert sum(calls) == sum(len(job) * job.nfe for job, _ in jobs)
    for job, condition in jobs:
        assert job.error is None
        alone = generate(UPSAMPLER, job.settings, job.indices, condition, CPU, guides=GUIDES)
        assert int((job.images.int() - alone.int()).abs().max()) <= 1


def test_a_base_with_nan_is_named():
    network = copy.deepcopy(SMALL.network)
    next(network.parameters()).view(-1)[0] = math.nan
    guides, settings = Guides(base=SMALL._replace(network=network)), SampleSettings(**CASCADE)
    condition = mixed_condition(UPSAMPLER.artefact, settings, [0])
    with pytest.raises(NonFiniteError, match=r"so are weights of the base \("):
        generate(UPSAMPLER, settings, [0], condition, CPU, guides=guides)
    with closing(Engine(UPSAMPLER, CPU, guides=guides)) as engine:
        job = engine.add(settings, [0], condition)
        while engine.jobs:
            engine.step()
    assert "so are weights of the base (" in str(job.error)


def test_a_failure_between_both_models_ends_its_cascade_only(monkeypatch):
    settings = SampleSettings(**CASCADE)
    condition = mixed_condition(UPSAMPLER.artefact, settings, [0])
    with closing(Engine(UPSAMPLER, CPU, guides=GUIDES)) as engine:
        broken, intact = (engine.add(settings, [0], condition) for _ in range(2))
        monkeypatch.setattr(broken, "enlarge", lambda images: 1 / 0)
        while engine.jobs:
            engine.step()
    assert isinstance(broken.error, ZeroDivisionError)
    assert intact.images is not None


def test_the_card_has_the_base_and_the_nfe_of_both():
    settings = SampleSettings(**{**CASCADE, "guidance": 1.0})
    card = sampling_card(settings, NetworkArtefacts(UPSAMPLER.artefact, base=SMALL.artefact))
    assert card["base_sha256"] == SMALL.artefact.model_sha256
    assert (card["nfe"], card["base_nfe"]) == (2 * 4 + 3, 3)
    assert card["sampling_version"] == SAMPLING_VERSION + 1
    assert 8 < card["weighted_nfe"] < 8 + 3 / 2, "a pass of the base takes less than half the FLOPs"
    known = {key: card[key] for key in SampleSettings.model_fields if key in card}
    assert SampleSettings(**known) == settings
    plain = sampling_card(SampleSettings(), NetworkArtefacts(SMALL.artefact))
    assert plain["sampling_version"] == SAMPLING_VERSION
    assert not {"base", "cond_noise", "base_nfe", "base_sha256"} & plain.keys()


@pytest.mark.parametrize(
    ("settings", "guides", "message"),
    [
        ({}, Guides(), r"enlarges images of 4×4 pixels: give some \(low_res, --low-res FOLDER\), or a base"),
        ({"base": BASE}, Guides(), "the cascade needs the model of base file base.safetensors"),
        (
            {"cond_noise": 0.6},
            GUIDES,
            r"cond_noise 0.6: the model was trained up to 0.5 \(model.cond_noise\)",
        ),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(settings, guides, message):
    chosen = SampleSettings(steps=2, **settings)
    condition = mixed_condition(UPSAMPLER.artefact, chosen, [0])
    with pytest.raises(UsageError, match=message):
        generate(UPSAMPLER, chosen, [0], condition, CPU, guides=guides)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({}, "the base makes 8×8×1 images, the model enlarges 4×4×1"),
        ({**SMALL_SHAPE, "low_res": 2}, "the base enlarges images itself"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(base, message):
    with pytest.raises(UsageError, match=message):
        check_base(UPSAMPLER.artefact, artefact_of(spec_of(**base)))


@pytest.mark.parametrize(
    ("model", "base", "message"),
    [
        ({}, SMALL_SHAPE, "the model enlarges none: leave it out (sample.base, --base)"),
        (LOW_RES, {**SMALL_SHAPE, "num_classes": 20}, "the base was trained on other classes than the model"),
        (LOW_RES, {**SMALL_SHAPE, "low_res": 2}, "the base enlarges images itself"),
        (LOW_RES, {**SMALL_SHAPE, "null_class": False}, "sample.base, file b.safetensors: guidance needs a"),
    ],
)
def test_a_base_that_does_not_fit_is_refused_wherever_images_are_made(
    tmp_path, monkeypatch, invoke, model, base, message
):
    monkeypatch.chdir(tmp_path)
    small_model(MODEL, **model)
    own = {"file": str(small_model(Path("b.safetensors"), **base)), "sampling": {"steps": 2, "guidance": 1.0}}
    for command in (("sample", "--num", "1"), ("show", "reverse")):
        done = invoke(*command, "--out", "out.png", "--steps", "2", "--base", base_text(BaseConfig(**own)))
        assert (done.code, message in done.err) == (2, True)
    loaded, guides = load_model(MODEL), Guides(base=load_model(Path(own["file"])))
    settings = SampleSettings(steps=2, base=own)
    condition = Condition(16, torch.arange(16) % 10)
    why = re.escape(message.removeprefix("sample.base, file b.safetensors: "))
    with pytest.raises(UsageError, match=why):
        generate(loaded, settings, range(16), condition, CPU, guides=guides)
    with closing(Engine(loaded, CPU, guides=guides)) as engine:
        with pytest.raises(UsageError, match=why):
            engine.add(settings, range(16), condition)
        assert engine.held == engine.jobs == 0, "no job waits for ever"


def test_networks_of_other_classes_are_refused_also_without_classes_of_the_model():
    free = {**LOW_RES, "num_classes": 0, "null_class": False}
    classifier = loaded_classifier()
    networks = NetworkArtefacts(
        artefact_of(spec_of(**free)),
        classifier=classifier.artefact,
        base=artefact_of(spec_of(**SMALL_SHAPE, num_classes=20)),
    )
    settings = SampleSettings(**CASCADE)
    with pytest.raises(UsageError, match="the base was trained on other classes than the classifier"):
        networks.check(settings)
    networks._replace(classifier=None).check(settings)
    networks._replace(base=SMALL.artefact).check(settings)
    guided = settings.model_copy(update={"classifier": "c", "classifier_scale": 1.0})
    loaded, guides = model_of(0, **free), Guides(None, classifier, model_of(1, **SMALL_SHAPE, num_classes=20))
    with pytest.raises(UsageError, match="the base was trained on other classes than the classifier"):
        generate(loaded, guided, [15], Condition(1, torch.tensor([15])), CPU, guides=guides)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"steps": 500}, "sample.base, file b.safetensors: .*100"),
        ({"steps": 2, "guidance": 1.0}, "sample.base, file b.safetensors: guidance needs a model trained"),
        (None, "there is no base file missing.safetensors: give the path of a model's file"),
    ],
)
def test_a_base_and_its_settings_are_checked_before_the_training(project, sampling, message):
    own = {"file": "missing.safetensors"}
    if sampling is not None:
        small_model(Path("b.safetensors"), **SMALL_SHAPE, num_classes=0, null_class=False)
        own = {"file": "b.safetensors", "sampling": sampling}
    write_params(project, model=LOW_RES, sample={"base": own})
    with pytest.raises(UsageError, match=message):
        preflight(load(), "train")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"file": "a", "run_id": "b"}, "give one of file, run_id, champion"),
        ({"sampling": {}}, "give one of"),
        ({"file": "a", "sampling": {"step": 3}}, "sampling: step: unknown key"),
        ({"file": "a", "sampling": {"seed": 3}}, "sampling.seed: a base has no such option"),
        (
            {"file": "a", "sampling": {"spacing": "learned", "spacing_options": {"file": "grids.json"}}},
            "sampling.spacing_options.file: a base takes no file of learned times: list the levels",
        ),
    ],
)
def test_sections_of_a_base_that_mean_nothing_are_refused(base, message):
    with pytest.raises(ValueError, match=message):
        SampleSettings(base=base)


@pytest.fixture
def held_out(tmp_path, monkeypatch):
    """A folder with a model that enlarges images and held-out images as the working directory."""
    monkeypatch.chdir(tmp_path)
    small_model(MODEL, **LOW_RES)
    classes = list(UPSAMPLER.artefact.data.classes)
    write_store(HELD_OUT, random_images(0, 6, 8, 1), np.arange(6), {"classes": classes})
    return open_store(HELD_OUT)


def test_a_cell_enlarges_held_out_images_with_their_labels(held_out):
    section = SampleConfig(num_images=8, batch_size=3)
    cell = Cell(steps=2, eta=0.0, cond_noise=0.2)
    settings = cell_settings(section, cell)
    store = make_cell(section, cell, network_files(settings, MODEL), Path("cells") / cell.name)
    assert store.labels.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert store.meta["card"]["real_sha256"] == held_out.meta["digest"]
    assert store.meta["card"]["cond_noise"] == 0.2
    sweep = SweepConfig(steps=(2,), eta=(0.0,), cond_noise=(0.2,))
    assert [*open_cells(section, sweep, Path("cells"))] == [cell]
    loaded, guides = load_model(MODEL), Guides(real=RealImages(held_out))
    condition = image_condition(loaded, settings, range(8), guides)
    made = to_nhwc(generate(loaded, settings, range(8), condition, CPU))
    assert_equal_but_for_rounding(np.array(store.images), made)


def test_a_rollback_samples_an_image_of_a_model_without_a_base(held_out, monkeypatch):
    made: list[torch.Tensor] = []
    sample = champion_rollback.generate
    monkeypatch.setattr(
        champion_rollback, "generate", lambda *args, **named: made.append(sample(*args, **named))
    )
    champion_rollback._sample_one(NetworkFiles(MODEL), document({(2, 0.0): 0.1}))
    assert made[0].shape == (1, 1, 8, 8)


def test_a_picture_shows_low_resolutions_results_and_originals(held_out, invoke):
    options = ["--steps", "2", "--scale", "1"]
    assert invoke("sample", "--num", "12", "--out", "real.png", "--steps", "2").code == 0
    assert read_picture(Path("real.png"), None, 1).shape == (8 * (6 * 9 - 1), 8 * (10 * 9 - 1), 1)
    Path("small").mkdir()
    for name, image in zip("ba", shrunk := random_images(1, 2, 4, 1), strict=True):
        Path("small", f"{name}.png").write_bytes(png_bytes(image))
    done = invoke("sample", "--num", "2", "--low-res", "small", "--out", "given.png", *options)
    assert done.code == 0
    shown = read_picture(Path("given.png"), None, 1)
    assert shown.shape == (2 * 9 - 1, 2 * 9 - 1, 1)
    assert np.array_equal(shown[:8:2, :8:2], shrunk[1]), "in the order of names"
    both = invoke("sample", "--low-res", "small", "--base", "b.safetensors", "--out", "given.png")
    assert (both.code, "--low-res and --base exclude each other: leave one out" in both.err) == (2, True)
    small_model(MODEL)
    refused = invoke("sample", "--num", "2", "--low-res", "small", "--out", "given.png", "--force")
    assert (refused.code, "--low-res is for a model that enlarges images" in refused.err) == (2, True)
