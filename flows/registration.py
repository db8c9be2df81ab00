"""The registration: the champion's scores brought up to today's code where need be, then the gate.

Both are idempotent: a champion that was scored anew has today's card, and a model is registered once.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.layout import MODEL_RUNS, PREPARED, REFERENCE, SCORES
from diffusion.system.errors import DiffctlError, TemporaryError, reason
from flows.output_relay import echo
from tracking.connectivity import MlflowError
from tracking.registry.model_registry import (
    OutdatedChampion,
    outdated_champion,
    promote,
    register,
    register_rescored,
    version_scores,
)
from tracking.registry.promotion import NO_OVERRIDE, Decision, Override

if TYPE_CHECKING:
    from diffusion.protocol.scores import CellScores
    from diffusion.protocol.scores_document import ScoresDocument

Show = Callable[[int, int], None]
ProgressOf = Callable[[str], AbstractContextManager[Show]]
"""Given a label, a context with a function to call with (done, total)."""


@contextmanager
def unseen(label: str) -> Iterator[Show]:
    """Progress that nobody is shown."""
    yield lambda done, total: None


def register_model(override: Override = NO_OVERRIDE, progress: ProgressOf = unseen) -> Decision:
    """Register models/ with metrics/scores.json and hold it against the champion.

    A champion that only versions of the code or more real images keep from being compared is scored anew
    first, by its own weights. Where that fails it is told, and the gate finds the two not comparable.
    DiffctlError as of `register`.
    """
    from diffusion.choice.document_slices import best_model_scores
    from diffusion.protocol.scores_document import read_scores

    _bring_up_to_date(best_model_scores(read_scores(SCORES)), override, progress)
    return register(override=override)


def promote_version(
    name: str, number: int, override: Override = NO_OVERRIDE, progress: ProgressOf = unseen
) -> Decision:
    """Hold a version that is registered against the champion by its own scores.

    The champion is scored anew first where `register_model` would do it. UsageError when there is no such
    version.
    """
    _bring_up_to_date(version_scores(name, number), override, progress)
    return promote(name, number, override)


def _bring_up_to_date(document: "ScoresDocument", override: Override, progress: ProgressOf) -> None:
    """Score an outdated champion anew, unless a person decides alone or only looks."""
    if override.force or override.dry_run:
        return
    champion = outdated_champion(document)
    if champion is None:
        return
    number = champion.version.version
    try:
        anew = rescore(champion, document, progress)
        echo(f"champion: {register_rescored(champion, anew)}\n")
    except (MlflowError, TemporaryError):
        raise
    except DiffctlError as error:
        echo(f"the champion, version {number}, could not be scored anew: {reason(error)}\n")


def rescore(champion: OutdatedChampion, document: "ScoresDocument", progress: ProgressOf) -> "ScoresDocument":
    """The scores of the champion's best cell by today's code, under the protocol of `document`.

    DiffctlError when the code here is not the one that scored `document`, or does not give its protocol.
    """
    from diffusion.choice.gate import card_diff
    from diffusion.config import load
    from diffusion.evaluate.sweep_scores import evaluate
    from diffusion.protocol.grid import Cell
    from diffusion.sample.cell_images import make_cell

    cell, config = Cell(**champion.cell.axes), load()
    theirs = document.cells[cell.name]
    _refuse_other_code(theirs)
    echo(
        f"==> champion: version {champion.version.version}, scored with another "
        f"{', '.join(card_diff(champion.cell, theirs))}: its {cell.name} is scored anew\n"
    )
    section = _settings(champion.cell, config.sample.batch_size)
    MODEL_RUNS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MODEL_RUNS, prefix=".anew-") as folder:
        with progress("sample") as show:
            store = make_cell(section, cell, champion.weights, Path(folder) / cell.name, show)
        with progress("evaluate") as show:
            anew = evaluate({cell: store}, config.evaluate, REFERENCE, show, PREPARED)
    if fields := card_diff(anew.cells[cell.name], theirs):
        raise DiffctlError(f"its scores would differ from these in {', '.join(fields)}")
    return anew


def _settings(cell: "CellScores", batch_size: int) -> Any:
    """The section `sample` that gives a cell's images again."""
    from diffusion.protocol.sample_sections import SampleConfig
    from diffusion.protocol.settings import SamplerConfig
    from diffusion.system.section import validate

    known = {field: cell.card[field] for field in SamplerConfig.model_fields if field in cell.card}
    return validate(
        SampleConfig,
        {**known, "num_images": cell.num_images, "batch_size": batch_size},
        "the card of the champion's best cell does not fit",
    )


def _refuse_other_code(cell: "CellScores") -> None:
    from diffusion.code_digest import torch_version
    from diffusion.protocol.extractors import EVALUATION_VERSION
    from diffusion.protocol.grid import SAMPLING_VERSION

    today = {
        "sampling_version": SAMPLING_VERSION,
        "sampling_torch": torch_version(),
        "evaluation": EVALUATION_VERSION,
        "torch": version("torch"),
        "torch_fidelity": version("torch-fidelity"),
    }
    if other := [field for field, value in today.items() if cell.card.get(field) != value]:
        raise DiffctlError(
            f"the scores that it is held against are not of the code here, by {', '.join(other)}: "
            "`diffctl run` makes new ones of models/"
        )
