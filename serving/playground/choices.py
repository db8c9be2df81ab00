"""The playground's choices for a model: controls, real images, costs of its sweep, NFE of a request."""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel

from diffusion.analysis.image_inputs import open_matching_store
from diffusion.choice.confidence import interval_of
from diffusion.choice.selection import settings_of
from diffusion.model.model_file import Artefact
from diffusion.process.process_registry import build_process
from diffusion.protocol.options import SamplingOption
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.sample.generate import check_settings
from diffusion.sample.guidance import guidance_weight
from diffusion.sample.sampling_steps import call_times, count_nfe
from diffusion.system.errors import DiffctlError
from serving.loaded_model import ServedModel
from serving.requests import HTTP_OPTIONS, SampleRequest

Kind = Literal["integer", "number", "choice", "flag", "interval"]
KINDS: dict[Any, Kind] = {
    int: "integer",
    float: "number",
    bool: "flag",
    tuple[float, float]: "interval",
}


LESSONS = {  # what a control does to the images; another option shows its help
    "steps": "More steps cost more time and follow the exact path from noise to image more closely; "
    "beyond some number the image no longer changes visibly.",
    "eta": "At 0 a step adds no noise (DDIM), at 1 as much as DDPM; with few steps 0 usually looks better.",
    "sampler": "ddim steps along the current prediction; dpm-solver++ extrapolates from the last two, so it "
    "needs fewer steps and adds no noise.",
    "noise": "The noise that η scales: small is the exact posterior's for known images, large that of the "
    "forward process, learned the network's own.",
    "spacing": "Where the steps are: uniform spreads them evenly over time, quadratic has more near the "
    "image, trailing counts back from pure noise in equal strides.",
    "guidance": "A larger w makes images more typical of their class and less varied, for two network "
    "evaluations per step; w is diffusers' guidance_scale − 1.",
    "guidance_interval": "Guidance only at middle noise levels keeps more variety and saves network "
    "evaluations.",
    "clip": "Clips every predicted image to the range of pixels, so that errors cannot push it beyond black "
    "and white.",
}


class OffCondition(BaseModel):
    """A control is off while the control of another `option` has one of these values."""

    option: str
    values: list[Any]


class Control(BaseModel):
    """The control of a sampling option, and what this model allows.

    Without `choices` it takes a number, a flag or an interval. `off` has the conditions under which it has
    no effect. A required one is sent with its default then, another one is left out.
    """

    name: str
    label: str
    help: str
    kind: Kind
    default: Any
    required: bool
    allowed: bool
    choices: list[str]
    least: float | None = None
    most: float | None = None
    off: list[OffCondition]


class StoreChoice(BaseModel):
    """How many real images there are to choose from, or `why` there are none."""

    images: int
    why: str | None = None


class Point(BaseModel):
    """A cell: its NFE per image, its Fréchet distance, and the confidence interval if known.

    `settings` lacks the seed. `on_front`: no other cell is both cheaper and better.
    """

    cell: str
    nfe: int
    distance: float
    low: float | None
    high: float | None
    on_front: bool
    settings: dict[str, Any]


class SweepCost(BaseModel):
    """The cells of a sweep by increasing NFE, the name of the distance, and its number of images."""

    metric: str
    num_images: int
    points: list[Point]


class Choices(BaseModel):
    """The controls of the sampling options, real images, and the costs of the model's sweep."""

    controls: list[Control]
    store: StoreChoice
    cost: SweepCost | None


def choices_of(model: ServedModel, store: Path) -> Choices:
    """Return the choices for a model, with the real images in that store."""
    scores = model.published.scores
    controls = [_control(option, model.artefact) for option in HTTP_OPTIONS.values()]
    return Choices(
        controls=[control for control in controls if control is not None],
        store=_store(store, model.artefact),
        cost=None if scores is None else sweep_cost(scores),
    )


def _control(option: SamplingOption, artefact: Artefact) -> Control | None:
    """Return the control of an option, None for one of a type that no control sets."""
    kind = "choice" if option.option.choices else KINDS.get(option.plain_type)
    if kind is None:
        return None
    spec, choices = artefact.network, list(option.option.choices)
    if option.name == "noise" and not spec.learned_variance:
        choices.remove("learned")
    name = option.name.replace("_", " ").capitalize()
    return Control(
        name=option.name,
        label=f"{name} {option.option.label}".strip(),
        help=LESSONS.get(option.name, option.option.help),
        kind=kind,
        default=option.default,
        required=option.option.axis == "required",
        allowed=option.name != "guidance" or spec.null_class,
        choices=choices,
        least=option.bound(lower=True),
        most=option.bound(lower=False),
        off=[
            OffCondition(option=condition.option, values=list(condition.values()))
            for condition in option.option.no_effect
            if condition.values is not None
        ],
    )


def _store(path: Path, artefact: Artefact) -> StoreChoice:
    try:
        return StoreChoice(images=len(open_matching_store(path, artefact)))
    except DiffctlError as error:
        return StoreChoice(images=0, why=str(error))


def sweep_cost(scores: ScoresDocument) -> SweepCost:
    """Return the NFE and the distance of each cell of a sweep."""
    metric, front = scores.spec.distance, {one.cell for one in scores.front}
    points = []
    for name, cell in scores.cells.items():
        ends = interval_of(cell, metric)
        point = Point(
            cell=name,
            nfe=cell.nfe,
            distance=cell.scores[metric],
            low=ends.low if ends else None,
            high=ends.high if ends else None,
            on_front=name in front,
            settings=settings_of(cell, name, 0).model_dump(mode="json", exclude={"seed"}),
        )
        points.append(point)
    points.sort(key=lambda point: (point.nfe, point.distance))
    return SweepCost(metric=metric, num_images=next(iter(scores.cells.values())).num_images, points=points)


class NfePreview(BaseModel):
    """NFE per image: `nfe`, and `everywhere` if guidance applied at every time.

    `questions` counts the times at which the sampler calls the denoiser, `guided` those with guidance.
    `lowest` and `highest` are σ/α at the last and the first of these times.
    """

    nfe: int
    everywhere: int
    questions: int
    guided: int
    lowest: float
    highest: float


def nfe_preview(model: ServedModel, request: SampleRequest) -> NfePreview:
    """Return the NFE of the request without sampling; raise UsageError as for images."""
    settings, config = model.resolve(request), model.artefact.process
    check_settings(model.artefact, settings)
    process = build_process(config)
    times = call_times(settings, process)
    levels = process.noise_level(torch.tensor([max(times), min(times)])).tolist()
    return NfePreview(
        nfe=count_nfe(settings, config),
        everywhere=count_nfe(settings.guided_everywhere(), config),
        questions=len(times),
        guided=sum(guidance_weight(settings, process, t) > 0 for t in times),
        highest=levels[0],
        lowest=levels[1],
    )
