"""Registration: rescore an outdated champion with the current code, then apply the gate.

Both steps are idempotent: a rescored champion has the current card, and a model is registered once.
"""

import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from diffusion.choice.confidence import card_diff
from diffusion.choice.selection import best_model_scores
from diffusion.layout import MODEL_RUNS, PREPARED, REFERENCE, SCORES
from diffusion.protocol.grid import Cell
from diffusion.protocol.sample_sections import SampleConfig
from diffusion.protocol.scores_document import ScoresDocument, read_scores
from diffusion.protocol.settings import CommonSettings
from diffusion.system.errors import DiffctlError, TemporaryError, reason
from diffusion.system.section import validate
from flows.output_relay import echo
from flows.sweep_cells import ProgressOf, Show
from tracking.connectivity import MlflowError
from tracking.registry.promotion import NO_OVERRIDE, GateDecision, Override
from tracking.registry.registered_models import (
    OutdatedChampion,
    fetch_scores_of,
    outdated_champion,
    promote,
    register,
    register_rescored,
)


def no_progress(label: str) -> AbstractContextManager[Show]:
    """Ignore progress."""
    return nullcontext(lambda done, total: None)


def register_model(override: Override = NO_OVERRIDE, progress: ProgressOf = no_progress) -> GateDecision:
    """Register models/ with metrics/scores.json and compare it with the champion.

    A champion that differs only in code versions or has fewer real images is first rescored from its own
    weights. If that fails, a message is printed, and the gate finds the two not comparable. Raise
    DiffctlError as `register`.
    """
    _rescore_champion(best_model_scores(read_scores(SCORES)), override, progress)
    return register(override)


def promote_version(
    name: str, number: int, override: Override = NO_OVERRIDE, progress: ProgressOf = no_progress
) -> GateDecision:
    """Compare a version with the champion, as `register_model`; raise UsageError if there is none."""
    _rescore_champion(fetch_scores_of(name, number), override, progress)
    return promote(name, number, override)


def _rescore_champion(document: ScoresDocument, override: Override, progress: ProgressOf) -> None:
    """Rescore an outdated champion, unless the user forces the decision or requests a dry run."""
    if override.force or override.dry_run:
        return
    try:
        if champion := outdated_champion(document):
            rescored = rescore(champion, document, progress)
            echo(f"champion: {register_rescored(champion, rescored)}\n", err=True)
    except (MlflowError, TemporaryError):
        raise
    except Exception as error:  # such as out of memory, or of a plugin: the new model is registered
        echo(f"the champion could not be rescored: {reason(error)}\n", err=True)


def rescore(champion: OutdatedChampion, document: ScoresDocument, progress: ProgressOf) -> ScoresDocument:
    """Return the champion's best cell scored by this code; raise DiffctlError under another protocol."""
    from diffusion.config import load
    from diffusion.evaluate.sweep_scores import evaluate
    from diffusion.sample.cell_images import make_cell
    from diffusion.sample.network_files import real_images

    cell, config, card = Cell(**champion.cell.axes), load(), champion.cell.card
    target = document.cells[cell.name]
    differing = ", ".join(card_diff(champion.cell, target))
    version = f"version {champion.version.version}, scored with another {differing}"
    echo(f"==> champion: {version}: rescoring {cell.name}\n", err=True)
    known = {field: card[field] for field in CommonSettings.model_fields if field in card}
    known |= {"num_images": champion.cell.num_images, "batch_size": config.sample.batch_size}
    section = validate(SampleConfig, known, "the card of the champion's best cell does not fit")
    MODEL_RUNS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MODEL_RUNS, prefix=".rescored-") as folder:
        with progress("sample") as show:
            real = real_images(section, champion.files.model)  # they are not registered
            files = champion.files._replace(real=real)
            store = make_cell(section, cell, files, Path(folder) / cell.name, show)
        with progress("evaluate") as show:
            rescored = evaluate({cell: store}, config.evaluate, REFERENCE, show, PREPARED)
    if fields := card_diff(rescored.cells[cell.name], target):
        raise DiffctlError(f"its new card differs in {', '.join(fields)}: `diffctl run` scores models/ again")
    return rescored
