"""A grid of sampling settings of a trained model, sampled and scored."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import typer

from cli.actions.scores.score_tables import show_sweep_scores
from cli.commands.scores import Sweep
from cli.models.model_choice import given_options, selected_source
from cli.shared.options import OWN_OPTIONS, flag_of
from cli.stages.evaluate_stage import score_cells
from cli.stages.sample_stage import sample_cells
from diffusion.config import Config, load
from diffusion.evaluate.features.extractors import space_extractor
from diffusion.evaluate.features.reference_features import open_references
from diffusion.evaluate.statistics_file import configured_statistics
from diffusion.layout import PREPARED, REFERENCE, SCORE_CURVES, SCORES, SWEEP_RUN
from diffusion.protocol.grid import cell_settings, grid, open_cells
from diffusion.protocol.option_tables import ALL_OPTIONS, MODEL_AXES
from diffusion.protocol.sample_sections import SampleConfig, SweepConfig, axis_values, check_axes
from diffusion.protocol.scores_document import ScoresDocument, document_values
from diffusion.sample.network_files import check_future_model
from diffusion.system.errors import UsageError
from diffusion.system.locks import file_lock
from diffusion.system.section import validate
from flows.run_lock import join_run
from flows.sweep_cells import hold_samples
from tracking.runs.base_models import fetch_base
from tracking.runs.score_logging import log_sweep


def sweep_model(options: Sweep) -> None:
    config = load()
    given = given_options(options.axes)
    own = {name: given.pop(name) for name in OWN_OPTIONS if name in given}
    sweep = _axes(config.sweep, given)
    changes: dict[str, Any] = {} if options.num_images is None else {"num_images": options.num_images}
    changes |= {name: None for name in given if _is_nullable(name)}  # the axis replaces the section's value
    for name in own:
        changes |= {name: own[name], **_only_value(name.removesuffix("_options"), config.sample, sweep)}
    sample = validate(SampleConfig, {**config.sample.model_dump(), **changes}, "these options do not fit")
    config = config.model_copy(update={"sample": sample, "sweep": sweep})
    try:
        check_axes(config.sample, config.sweep, given)
    except ValueError as error:
        raise UsageError(str(error)) from None
    busy = f"another sweep uses {SWEEP_RUN}: wait for it or stop it"
    with join_run(), hold_samples():  # before the fetch: `diffctl prune` removes fetched models
        source = selected_source(options)  # before the work: the champion may change meanwhile
        is_guided = any(cell_settings(sample, cell).is_guided for cell in grid(sample, sweep))
        known = source.named_networks() if is_guided or sample.base else {}
        base = None if sample.base is None else known.get(str(sample.base)) or fetch_base(sample.base)
        with file_lock(SWEEP_RUN / "lock", timeout=0, busy=busy):
            document = score_grid(config, source.model, SWEEP_RUN, base, known)
    if source.run_id is not None:
        log_sweep(source.run_id, document)
    options.answer(document_values(document), partial(_show, document, source.run_id))


def score_grid(
    config: Config, model: Path, folder: Path, base: Path | None, known: Mapping[str, Path] = {}
) -> ScoresDocument:
    """Sample every cell of the grid of a model and score it against data/reference.

    Writes `samples/`, `scores.json` and `scores.csv` in `folder`. Complete cells are reused, others removed.
    `base` is the file of the base of a cascade, `known` has those of guides and classifiers by their names.
    """
    samples = folder / "samples"
    sample_cells(model, config.sample, config.sweep, samples, base, known)
    cells = open_cells(config.sample, config.sweep, samples)
    return score_cells(cells, config.evaluate, folder / SCORES.name, folder / SCORE_CURVES.name)


def check_scoring(config: Config) -> None:
    """Raise before any work as the sampling and scoring of a grid would for a missing or stale file.

    These are guides, classifiers, extractors' weights, published statistics and data/reference.
    """
    check_networks(config)
    section = config.evaluate
    for space in section.spaces:
        configured_statistics(space)
    extractors = [space_extractor(space) for space in section.spaces]
    open_references(REFERENCE, extractors, section.reference, PREPARED, section.reference_images)


def check_networks(config: Config) -> None:
    """Raise before any work if a guide or classifier of a grid is missing or does not fit."""
    for cell in grid(config.sample, config.sweep):
        check_future_model(cell_settings(config.sample, cell), None)


def _show(document: ScoresDocument, run_id: str | None) -> None:
    show_sweep_scores(document)
    typer.echo(f"\nimages and scores: {SWEEP_RUN}")
    if run_id:
        typer.echo(f"logged to run {run_id}")


def _axes(usual: SweepConfig, given: dict[str, str]) -> SweepConfig:
    """Return the grid of the given axes, the others as in params.yaml; UsageError for invalid values."""
    listed: dict[str, list[str | None]] = {}
    for axis, text in given.items():
        parts = map(str.strip, text.split(","))
        listed[axis] = [None if part == "none" and _is_nullable(axis) else part for part in parts]
    return validate(SweepConfig, {**usual.model_dump(), **listed}, "this grid does not fit")


def _only_value(axis: str, sample: SampleConfig, sweep: SweepConfig) -> dict[str, Any]:
    """Return the sampler or spacing of all cells, which given options are of; UsageError for several."""
    field, values = axis_values(axis, dict(sample), dict(sweep))
    if len(values) > 1:
        flag = flag_of(f"{axis}_options")
        raise UsageError(f"{flag} is of one {axis}, and {field} has {', '.join(values)}: give one --{axis}")
    return {axis: values[0]}


def _is_nullable(axis: str) -> bool:
    """Return whether `none` is a value of an axis, and a sampler's option has no value by default."""
    return axis not in MODEL_AXES and ALL_OPTIONS[axis].default is None
