"""The settings of images: requested ones, those of the best cell, those of the process, defaults.

They are resolved in this order, here alone. This module loads no torch.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion.process.process_registry import PROCESSES
from diffusion.protocol.grid import sampling_version
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.learned_grid import with_learned_levels
from diffusion.protocol.option_tables import SAMPLING_OPTIONS
from diffusion.protocol.options import split_list
from diffusion.protocol.scores_document import CellScores, FrontCell, ScoresDocument
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import LEARNED
from diffusion.system.errors import UsageError
from diffusion.system.section import validate

IN_CODE_DIGEST = False  # diffusion/code_digest.py


class ResolvedSettings(NamedTuple):
    """Settings of images, and for each option where its value comes from.

    That is the `request`, the `sweep` (a cell of the model's scores), the `process`, or the `default`.
    """

    settings: SampleSettings
    origins: dict[str, str]


def resolve_settings(
    schedule: str,
    given: Mapping[str, Any],
    scores: ScoresDocument | None = None,
    *,
    budget: int | None = None,
    best_cell: bool = True,
    read_files: bool = False,
    where: str = "these options do not fit",
) -> ResolvedSettings:
    """Return the settings of images of a model whose process has this `schedule`.

    `given` are the requested options, where None is a value. `scores` are those of this model: an option that
    is not given is that of their best cell, or of the best cell for a `budget` of NFE, which excludes other
    options than the seed. Without `best_cell` only learned times are taken from them. With `read_files` the
    levels in a file of learned times replace its name. `where` begins the UsageError for invalid settings.
    """
    if budget is not None:
        return _affordable(scores, budget, given)
    process: dict[str, Any] = {"spacing": PROCESSES[schedule].spacing}
    swept = {} if scores is None or not best_cell else _fitting(best_settings(scores), given)
    own = given.get("spacing_options")
    swept |= _learned_times(scores, {**process, **swept, **given, "spacing_options": own})
    chosen = {**process, **swept, **given}
    if read_files:
        chosen = with_learned_levels(chosen, SAMPLING_OPTIONS["steps"].default)
    settings = validate(SampleSettings, chosen, where)
    return ResolvedSettings(settings, _origins(given, swept, process))


def best_settings(scores: ScoresDocument) -> SampleSettings:
    """Return the settings of the best cell, with seed 0."""
    return settings_of(scores.cells[scores.best.cell], scores.best.cell)


def settings_of(cell: CellScores, name: str, seed: int = 0) -> SampleSettings:
    """Return the settings in a cell's card, with another seed; UsageError if they are invalid."""
    known = {key: cell.card[key] for key in SampleSettings.model_fields if key in cell.card}
    return validate(SampleSettings, {**known, "seed": seed}, f"the card of {name} does not fit")


def recommended(scores: ScoresDocument, budget: int) -> FrontCell | None:
    """Return the best cell for at most `budget` NFE per image; None if the cheapest costs more."""
    return min((one for one in scores.front if one.nfe <= budget), key=lambda one: one.value, default=None)


def check_sampled_by_this_code(scores: ScoresDocument) -> None:
    """Raise UsageError if other code sampled the images of the scores."""
    for cell in scores.cells.values():
        if cell.card.get("sampling_version") != (wanted := sampling_version(cell.card)):
            found = f"the scores are not of sampling_version {wanted}, as this code samples"
            raise UsageError(f"{found}: `diffctl run` makes new ones")


def has_learned_times(cell: CellScores) -> bool:
    """Return whether the images of a cell have learned times."""
    return cell.card.get("spacing") == LEARNED


def learned_options(scores: ScoresDocument, steps: int) -> dict[str, Any]:
    """Return the options of spacing learned in the cell with these steps; UsageError without such a cell."""
    cells = {cell.steps: (cell, name) for name, cell in scores.cells.items() if has_learned_times(cell)}
    if steps not in cells:
        found = ", ".join(map(str, sorted(cells))) or "no number of"
        raise UsageError(f"the sweep has learned times for {found} steps, not {steps}: use another spacing")
    return settings_of(*cells[steps]).spacing_options


def _affordable(scores: ScoresDocument | None, budget: int, given: Mapping[str, Any]) -> ResolvedSettings:
    """Return the settings of the best cell for a budget, with the given seed."""
    if others := given.keys() - {"seed"}:
        raise UsageError(f"budget takes {min(others)} from the model's sweep: give one of the two")
    if scores is None:
        raise UsageError("the model has no scores to choose by: give steps instead of budget")
    check_sampled_by_this_code(scores)
    choice, least = recommended(scores, budget), scores.front[0]
    if choice is None:
        found = f"no cell of the sweep takes {budget} network evaluations or fewer"
        raise UsageError(f"{found}: the cheapest is {least.cell} with {least.nfe}")
    settings = settings_of(scores.cells[choice.cell], choice.cell, given.get("seed", 0))
    return ResolvedSettings(settings, _origins(given, settings.model_dump(exclude={"seed"}), {}))


def _origins(*layers: Mapping[str, Any]) -> dict[str, str]:
    """Return by option the first layer that has it: request, sweep, process, else default."""
    given, *_ = layers
    if given.get("timesteps") is not None:
        layers = ({**given, "steps": None}, *layers[1:])
    names = ("request", "sweep", "process")
    return {
        field: next((name for name, layer in zip(names, layers, strict=True) if field in layer), "default")
        for field in SampleSettings.model_fields
    }


def _learned_times(scores: ScoresDocument | None, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of spacing learned, from the sweep, if chosen settings lack them; else no options.

    UsageError if the sweep has no cell with learned times and these steps.
    """
    is_learned = chosen.get("spacing") == LEARNED and chosen.get("timesteps") is None
    if scores is None or not is_learned or chosen.get("spacing_options"):
        return {}
    steps = chosen.get("steps", SAMPLING_OPTIONS["steps"].default)
    return {"spacing_options": learned_options(scores, steps)}


def _fitting(best: SampleSettings, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the best cell that fit the given ones.

    Left out are: steps, times and noise of another sampler, and guidance by a rule that only its own sampler
    has; the options of another spacing or guidance rule; the number of steps next to timesteps, eta with a
    single step, and the `clip` of a rule that never clips.
    """
    other_sampler = given.get("sampler", best.sampler) != best.sampler
    timesteps = split_list(given.get("timesteps"))
    of_sampler = other_sampler and GUIDANCE_RULES[best.rule].keeps_eps
    other_rule = of_sampler or given.get("guidance_rule", best.guidance_rule) != best.guidance_rule
    unguided = other_rule or not given.get("guidance", best.guidance)
    conflicts = {
        **dict.fromkeys(("sampler", "sampler_options", "noise", "spacing", "timesteps"), other_sampler),
        "spacing_options": other_sampler or given.get("spacing", best.spacing) != best.spacing,
        **dict.fromkeys(("guidance", "guidance_rule"), of_sampler),  # the weight is of the rule's scale
        "guidance_rule_options": other_rule,
        "clip": bool(best.guidance) and not GUIDANCE_RULES[best.rule].clips and unguided,
        "steps": other_sampler or timesteps is not None or (best.steps == 1 and bool(given.get("eta"))),
        "eta": other_sampler or given.get("steps", len(timesteps or ())) == 1,
    }
    return best.model_dump(exclude={name for name, is_so in conflicts.items() if is_so})
