"""Edited images of a network: their measurements, any batch, the engine, tiles, refusals."""

import itertools
import re
from contextlib import closing, nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion.edit.editor import Editor, count_edit_nfe, edit_trajectory
from diffusion.edit.inputs import fit_input, masked_operator, measure
from diffusion.edit.method import build_method
from diffusion.edit.operators import Mask, Measurement, build_operator
from diffusion.engine.engine import Engine
from diffusion.images.pixels import to_model, to_uint8
from diffusion.process.denoiser import Condition, Prediction
from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.edits import EditSettings
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import labels_condition
from diffusion.sample.generate import generate
from diffusion.sample.tiles import tile_starts, tiled
from diffusion.system.errors import UsageError
from diffusion.system.section import validate
from tests.helpers.networks import counting, loaded_model

CPU = torch.device("cpu")
MODEL = loaded_model()
COUNT = 19  # more than a chunk of the engine
METHODS = {
    "ddnm": ({}, {"operator": "downsample:2"}),
    "projection": ({"sampler": "heun", "guidance": 0.5}, {"operator": "blur:0.7"}),
    "dps": ({"guidance": 0.5}, {"operator": "mask:2,2,6,6", "sigma_y": 0.1}),
    "repaint": ({}, {"operator": "mask:2,2,6,6", "method_options": {"travel_length": 1, "travel_repeat": 2}}),
    "sdedit": ({"sampler": "unipc"}, {"method_options": {"strength": 0.6}}),
}


def pictures(count: int = COUNT) -> Tensor:
    source = torch.Generator().manual_seed(1)
    return to_model(torch.randint(256, (count, 1, 8, 8), generator=source, dtype=torch.uint8))


def inputs(method: str, count: int = COUNT) -> tuple[SampleSettings, EditSettings, Measurement, Condition]:
    """Return the arguments of an edit of `count` pictures."""
    sampling, options = METHODS[method]
    edit, x = EditSettings(method=method, **options), pictures(count)
    operator = None if edit.operator is None else build_operator(edit.operator, (1, 8, 8))
    y = x if operator is None else operator.apply(x)
    condition = labels_condition(MODEL.artefact, torch.arange(count) % 10, count)
    return SampleSettings(steps=4, **sampling), edit, Measurement(operator, y, edit.sigma_y), condition


@pytest.mark.parametrize("method", METHODS)
def test_image_depends_on_its_seed_index_and_measurement_only(method: str) -> None:
    settings, edit, measurement, condition = inputs(method)
    rows: list[int] = []
    model = counting(MODEL, rows)
    whole = Editor(model, settings, edit, CPU).images(measurement, range(COUNT), condition)
    process = build_process(MODEL.artefact.process)
    nfe = count_edit_nfe(edit, settings, measurement, process)
    trajectory = edit_trajectory(edit, settings, measurement, process, nfe)
    passes = nfe // 2 if method == "dps" else nfe
    assert sum(rows) == COUNT * passes
    part = slice(3, 5)
    alone = Editor(MODEL, settings, edit, CPU).images(measurement.rows(part), [3, 4], condition.rows(part))
    assert int((alone.int() - whole[part].int()).abs().max()) <= 1
    with closing(Engine(MODEL, CPU, rows=40)) as engine:
        plain_condition = condition.rows(slice(2))
        plain = engine.add(SampleSettings(steps=3, eta=1.0), range(2), plain_condition)
        job = engine.add(settings, range(COUNT), condition, trajectory)
        other = engine.add(settings, [0], condition.rows(slice(1)), trajectory)
        while engine.jobs:
            engine.step()
    assert job.error is None
    assert job.images is not None
    assert job.nfe == trajectory.nfe
    assert int((job.images.int() - whole.int()).abs().max()) <= 1
    assert other.images is not None
    assert int((other.images.int() - whole[:1].int()).abs().max()) <= 1
    wanted = generate(MODEL, plain.settings, range(2), plain_condition, CPU)
    assert plain.images is not None
    assert int((plain.images.int() - wanted.int()).abs().max()) <= 1


@pytest.mark.parametrize("method", ["ddnm", "projection"])
@pytest.mark.parametrize(
    "operator", ["mask:2,2,6,6", "downsample:2", "blur:0.7", "downsample:2+mask:0,0,2,2"]
)
def test_results_have_the_measurement_before_and_after_rounding(operator: str, method: str) -> None:
    settings, _, _, condition = inputs("ddnm")
    built = build_operator(operator, (1, 8, 8))
    measurement = Measurement(built, built.apply(pictures()))
    edit = EditSettings(method=method, operator=operator)
    ends: list[Tensor] = []
    images = Editor(MODEL, settings, edit, CPU).images(
        measurement, range(COUNT), condition, lambda step: ends.append(step.x)
    )
    assert float((built.apply(ends[-1]) - measurement.y).abs().max()) < 1e-5
    if operator.startswith("mask"):
        assert torch.equal(built.apply(to_model(images)), measurement.y)
    else:  # rounding; and clipping, where a restored pixel is outside of the range
        inside = (ends[-1].abs() <= 1).flatten(1).all(1)
        error = (built.apply(to_model(images)) - measurement.y).abs().flatten(1).amax(1)
        assert float(error[inside].max()) <= 1 / 255 + 1e-6 if inside.any() else True


def test_tiles_cover_an_image_and_average_their_overlaps() -> None:
    for length in range(8, 60):
        starts = tile_starts(length, 8)
        assert starts[0] == 0
        assert starts[-1] == length - 8
        assert all(0 < after - before <= 4 for before, after in itertools.pairwise(starts))
    calls: list[Tensor] = []

    def denoiser(x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        calls.append(x)
        return Prediction(x + x.mean((1, 2, 3), keepdim=True), x, keeps_eps=condition.labels == 1)

    x = torch.randn(2, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    condition = Condition(2, torch.tensor([1, 2]))
    prediction = tiled(lambda: denoiser, (8, 8), batch_size=4)(x, 3, condition)
    (tiles,) = calls
    assert tiles.shape == (4, 1, 8, 8)
    left, right = x[..., :8].mean((1, 2, 3)), x[..., 4:].mean((1, 2, 3))
    shift = (prediction.x0 - x)[:, 0, 0]
    assert torch.allclose(shift[:, 0], left, atol=1e-6)
    assert torch.allclose(shift[:, 5], (left + right) / 2, atol=1e-6)
    assert torch.allclose(shift[:, 11], right, atol=1e-6)
    assert torch.allclose(prediction.eps, x)
    assert prediction.keeps_eps is not None
    assert prediction.keeps_eps.tolist() == [True, False]


def test_forward_pass_has_at_most_a_batch_of_tiles_with_the_state_of_their_guidance() -> None:
    rows: list[int] = []
    condition = labels_condition(MODEL.artefact, torch.tensor([1, 2]), 2)
    settings = SampleSettings(steps=3, guidance=2.0, guidance_rule="apg")
    operator = build_operator("mask:4,4,9,9", (1, 12, 16))
    measurement = Measurement(operator, operator.apply(torch.zeros(2, 1, 12, 16)))
    edit = EditSettings(method="ddnm", operator=operator.text)
    found = []
    for batch_size, most in ((64, 24), (5, 8), (1, 4)):  # 6 tiles of 2 images, with and without labels
        rows.clear()
        editor = Editor(counting(MODEL, rows), settings, edit, CPU, batch_size=batch_size)
        found.append(editor.images(measurement, [0, 1], condition, lambda step: None).int())
        assert max(rows) == most
    assert max(int((one - found[0]).abs().max()) for one in found) <= 1


def test_larger_images_are_edited_in_tiles() -> None:
    operator = build_operator("mask:4,4,9,9", (1, 12, 16))
    x = torch.rand(1, 1, 12, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    measurement = Measurement(operator, operator.apply(x))
    edit = EditSettings(method="ddnm", operator=operator.text)
    condition = labels_condition(MODEL.artefact, torch.tensor([1]), 1)
    images = Editor(MODEL, SampleSettings(steps=3), edit, CPU).images(measurement, [0], condition)
    assert images.shape == (1, 1, 12, 16)
    assert float((operator.apply(to_model(images)) - measurement.y).abs().max()) <= 1 / 255 + 1e-6


@pytest.mark.parametrize("size", [(80, 80), (81, 100), (8, 8)])
@pytest.mark.parametrize("mask_size", [(80, 80), (81, 100), (8, 8), (333, 300)])
def test_a_mask_of_another_size_hides_what_it_touches(
    size: tuple[int, int], mask_size: tuple[int, int]
) -> None:
    picture, mask = np.full((*size, 1), 200, np.uint8), np.zeros((*mask_size, 1), np.uint8)
    for pixels, value in ((picture, 0), (mask, 255)):
        height, width = pixels.shape[:2]
        pixels[: height // 4, width // 2 : width // 2 + width // 4] = value
        if min(height, width) > 8:
            pixels[:, width // 3 : width // 3 + 1] = value  # a line, thinner than a pixel of the model
    operator = masked_operator("mask", (1, 8, 8), mask)
    y = measure(operator, [fit_input(picture, (8, 8), operator, degrade=False)], 0.0, degrade=False).y
    assert isinstance(operator, Mask)
    assert not operator.kept[:2, 4:6].any()
    if size == mask_size:
        assert (to_uint8(y)[0, 0][operator.kept] == 200).all()
    if min(mask_size) > 8:
        assert not operator.kept[:, 2].any()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"method": "ddnm"}, "method ddnm restores a measurement: give an operator, or use sdedit"),
        ({"method": "sdedit", "operator": "gray"}, "method sdedit takes no operator (got gray)"),
        ({"method": "repaint", "operator": "downsample:2"}, "restores mask only (got downsample): use ddnm"),
        (
            {"method": "projection", "operator": "gray", "sigma_y": 0.1},
            "accepts no noise: sigma_y needs ddnm or dps",
        ),
        ({"method": "ddmn", "operator": "gray"}, "did you mean ddnm?"),
        ({"method": "dps", "operator": "gray", "method_options": {"eta": 2}}, "eta: it must be less than or"),
        ({"method": "ddnm", "operator": "grey"}, "did you mean gray?"),
    ],
)
def test_methods_that_do_not_fit_are_refused_by_name(values: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as refusal:
        validate(EditSettings, values, "the edit")
    assert words in str(refusal.value), str(refusal.value)


@pytest.mark.parametrize("change", [{"sampler": "heun"}, {"eta": 0.5}, {"noise": "large", "eta": 0.0}])
def test_methods_with_their_own_step_take_no_sampler(change: dict[str, object]) -> None:
    settings, edit, measurement, condition = inputs("ddnm", 1)
    settings = settings.model_copy(update=change)
    with pytest.raises(UsageError, match=r"method ddnm has its own step and takes no \w+ \(got"):
        Editor(MODEL, settings, edit, CPU).images(measurement, [0], condition)


@pytest.mark.parametrize(
    ("method", "values", "words"),
    [
        ("sdedit", {"guidance_rule": "cfg-zero"}, "zero_calls 1 of cfg-zero would keep: set zero_calls 0"),
        ("sdedit", {"guidance_rule": "cfg-zero", "guidance_rule_options": {"zero_calls": 0}}, None),
        ("projection", {"guidance_rule": "cfg++"}, "recomputes ε, which guidance_rule cfg++ keeps"),
        ("ddnm", {"guidance_rule": "cfg++"}, None),
    ],
)
def test_guidance_rules_that_do_not_fit_a_method_are_refused(
    method: str, values: dict[str, object], words: str | None
) -> None:
    _, edit, measurement, _ = inputs(method, 1)
    process = build_process(ProcessConfig(schedule="flow", prediction="flow"))
    settings = SampleSettings(steps=4, guidance=1.0, **values)
    with pytest.raises(UsageError, match=re.escape(words)) if words else nullcontext():
        build_method(edit, settings, measurement, process)
