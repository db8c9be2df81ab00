"""The playground's controls for a model: its sampling options, real images and the costs of its sweep."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from diffusion.analysis.image_inputs import open_matching_store
from diffusion.model.model_file import Artefact
from diffusion.protocol.options import SamplingOption
from diffusion.system.errors import DiffctlError
from serving.loaded_model import ServedModel
from serving.playground.sweep_cost import SweepCost, sweep_cost
from serving.requests import HTTP_OPTIONS

Kind = Literal["integer", "number", "choice", "flag", "interval"]
KINDS: dict[Any, Kind] = {
    int: "integer",
    float: "number",
    bool: "flag",
    tuple[float, float]: "interval",
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
        help=option.option.help,
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
