"""The playground's choices for a model: controls, real images, costs of its sweep, NFE of a request."""

from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffusion.analysis.image_inputs import open_matching_store
from diffusion.choice.confidence import interval_of
from diffusion.process.noise_process import build_process
from diffusion.protocol.edits import METHODS
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.options import Option
from diffusion.protocol.resolution import has_learned_times, settings_of
from diffusion.protocol.sampling_options import REGISTRIES_WITH_OPTIONS
from diffusion.protocol.scores_document import CellScores, ScoresDocument
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import LEARNED
from diffusion.sample.generate import check_settings
from diffusion.sample.guidance import build_guidance, guidance_weight
from diffusion.sample.sampling_steps import call_times, count_nfe
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.registry import WithOptions, load_reference
from serving.schemas import HTTP_OPTIONS, SampleRequest
from serving.served_model import ServedModel

KINDS: dict[Any, str] = {int: "integer", float: "number", bool: "flag", tuple[float, float]: "interval"}
JSON_KINDS = {"integer": "integer", "number": "number", "boolean": "flag"}
LESSONS = {  # what a control does to the images; another option shows its help
    "steps": "More steps cost more time and follow the exact path from noise to image more closely; "
    "beyond some number the image no longer changes visibly.",
    "eta": "At 0 a step adds no noise (DDIM), at 1 as much as DDPM; with few steps 0 usually looks better.",
    "sampler": "ddim and euler step along the current prediction; dpm-solver++, unipc and ipndm extrapolate "
    "from earlier ones, so they need fewer steps; heun calls the network twice per step; consistency is for "
    "models that were tuned by the loss consistency.",
    "noise": "The noise that η scales: small is the exact posterior's for known images, large that of the "
    "forward process, learned the network's own.",
    "spacing": "Where the steps are: uniform spreads them evenly over time, quadratic has more near the "
    "image, trailing counts back from pure noise in equal strides, learned are those found for this "
    "model.",
    "guidance": "A larger w makes images more typical of their class and less varied, for two network "
    "evaluations per step; w is diffusers' guidance_scale − 1.",
    "guidance_rule": "Guidance extrapolates from the model without the class, or from a guide, a worse "
    "model, which makes images better without making them less varied.",
    "guide": "A worse model of the same data: what it does badly, guidance corrects.",
    "guidance_interval": "Guidance only at middle noise levels keeps more variety and saves network "
    "evaluations.",
    "clip": "Clips every predicted image to the range of pixels, so that errors cannot push it beyond black "
    "and white.",
}


METHOD_LESSONS = {  # as LESSONS; another method shows its source
    "ddnm": "Puts the known pixels into every predicted image; a good start, also with few steps.",
    "projection": "As ddnm, but around the sampler of the settings, with its η.",
    "dps": "Moves down the gradient of the misfit at the known pixels: twice the cost, not an exact fit.",
    "repaint": "Noises the known pixels at each step, and goes back and forth: many network evaluations.",
}


def choices_of(model: ServedModel, store: Path) -> dict[str, Any]:
    """Return the `controls` for a model, the real images in that `store`, and the `cost` of its sweep.

    `entry_options` has the controls of the options that one sampler or spacing alone has, by its name.
    `edit_methods` are those that fill masks. `store` has the number of `images`, or `why` there are none.
    """
    scores = model.scores
    found = (_control(option, model) for option in HTTP_OPTIONS.values())
    controls = {control["name"]: control for control in found if control is not None}
    try:
        images, why = len(open_matching_store(store, model.artefact)), None
    except DiffctlError as error:
        images, why = 0, str(error)
    return {
        "controls": list(controls.values()),
        "entry_options": {
            option: {name: list(_entry_controls(option, entry)) for name, entry in entries.items()}
            for option, entries in REGISTRIES_WITH_OPTIONS.items()
            if option in controls
        },
        "edit_methods": [
            {"name": name, "help": METHOD_LESSONS.get(name, entry.source), "own_step": entry.own_step}
            for name, entry in METHODS.items()
            if entry.needs_operator and (entry.operators is None or "mask" in entry.operators)
        ],
        "store": {"images": images, "why": why},
        "cost": None if scores is None else sweep_cost(scores),
    }


def _control(option: Option, model: ServedModel) -> dict[str, Any] | None:
    """Return the control of an option and what the model allows; None if no control sets its type.

    `off` has the conditions under which it has no effect: another option and its values. Then a
    `required` one is sent with its default, and an optional one is left out.
    """
    spec, choices = model.artefact.network, list(option.choices)
    if option.name == "noise" and not spec.learned_variance:
        choices.remove("learned")
    if option.name == "spacing" and not any(map(has_learned_times, _cells(model))):
        choices.remove(LEARNED)
    if option.name == "guidance_rule":
        choices = _possible_rules(model)
    if option.name == "guide":
        choices = [] if model.guide is None else [model.guide]
    kind = "choice" if choices else KINDS.get(option.plain_type)
    if kind is None or (option.name == "cond_noise" and not spec.cond_noise):
        return None
    name = option.name.replace("_", " ").capitalize()
    return {
        "name": option.name,
        "label": f"{name} {option.label}".strip(),
        "help": LESSONS.get(option.name, option.help),
        "kind": kind,
        "default": option.default,
        "required": option.axis == "required",
        "allowed": option.name != "guidance" or bool(_possible_rules(model)),
        "nullable": option.default is None and (option.name != "guide" or spec.null_class),
        "choices": choices,
        "least": option.bound(lower=True),
        "most": spec.cond_noise if option.name == "cond_noise" else option.bound(lower=False),
        "off": [
            {"option": condition.option, "values": list(condition.values())}
            for condition in option.no_effect
            if condition.values is not None
        ],
    }


def _cells(model: ServedModel) -> Collection[CellScores]:
    return () if model.scores is None else model.scores.cells.values()


def _possible_rules(model: ServedModel) -> list[str]:
    """Return the guidance rules that work with this model and its guide, if it has one."""
    has_guide, has_null = model.guide is not None, model.artefact.network.null_class
    process, possible = build_process(model.artefact.process), []
    for name, rule in GUIDANCE_RULES.items():
        if (has_guide or not rule.needs_guide) and (has_null or not rule.needs_null):
            with suppress(UsageError):  # a rule that does not fit the process
                settings = SampleSettings(guidance=1.0, guidance_rule=name, guide=model.guide)
                build_guidance(settings, process)
                possible.append(name)
    return possible


def _entry_controls(option: str, entry: WithOptions) -> Iterator[dict[str, Any]]:
    """Yield the controls of the options that this sampler or spacing alone has; of an unknown type none."""
    for name, schema in load_reference(entry.options).model_json_schema().get("properties", {}).items():
        alternatives = schema.get("anyOf", [schema])
        values = [one for one in alternatives if one.get("type") != "null"]
        value, choices = values[0], values[0].get("enum", [])
        kind = "choice" if choices else JSON_KINDS.get(value.get("type"))
        if kind is None or len(values) > 1:
            continue
        yield {
            "name": f"{option}_options.{name}",
            "label": name,
            "help": schema.get("description", name),
            "kind": kind,
            "default": schema.get("default"),
            "nullable": len(alternatives) > 1,
            "choices": choices,
            "least": value.get("minimum", value.get("exclusiveMinimum")),
            "most": value.get("maximum", value.get("exclusiveMaximum")),
        }


def sweep_cost(scores: ScoresDocument) -> dict[str, Any]:
    """Return NFE and the ranking distance of a sweep's cells by increasing NFE, marked if `on_front`."""
    metric, front = scores.front[0].metric, {one.cell for one in scores.front}
    points: list[dict[str, Any]] = []
    for name, cell in sorted(scores.cells.items(), key=lambda one: (one[1].nfe, one[1].scores[metric])):
        ends = interval_of(cell, metric)
        points.append(
            {
                "cell": name,
                "nfe": cell.nfe,
                "distance": cell.scores[metric],
                "low": ends.low if ends else None,
                "high": ends.high if ends else None,
                "on_front": name in front,
                "settings": settings_of(cell, name).model_dump(mode="json", exclude={"seed"}),
            }
        )
    num_images = next(iter(scores.cells.values())).num_images
    return {"metric": metric, "num_images": num_images, "points": points}


def nfe_preview(model: ServedModel, request: SampleRequest) -> dict[str, Any]:
    """Return the NFE per image of a request without sampling; raise UsageError as for images.

    `everywhere` is the NFE if guidance applied at every time. `times` counts the times at which the sampler
    calls the denoiser, `guided` those with guidance.
    """
    settings, config = model.resolve(request), model.artefact.process
    check_settings(model.artefact, settings)
    process, of_base = build_process(config), model.base_nfe(settings)
    times = call_times(settings, process)
    return {
        "nfe": count_nfe(settings, config) + of_base,
        "everywhere": count_nfe(settings.guided_everywhere(), config) + of_base,
        "times": len(times),
        "guided": sum(guidance_weight(settings, process, t) > 0 for t in times),
    }
