"""Other seeds of a training's setting in MLflow, and their spread in the gate's reason.

The gate chooses between two models by their images. Another seed of the same setting gives another model, so
the better model does not need to have the better setting.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from diffusion.choice.confidence import cells_by_seed, deviation_of, group_gap, mean_of
from diffusion.choice.ranking import best_cell
from diffusion.protocol.scores_document import CellScores, ScoresDocument
from diffusion.system.errors import UsageError
from tracking.comparison.score_comparison import format_spread
from tracking.experiments import search_runs
from tracking.keys import SETTING, experiment_name
from tracking.registry.model_versions import fetch_version_scores
from tracking.runs.scored_runs import data_name, fetch_scores
from tracking.store import mlflow_client, store_exists

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MAX_FOUND = 50  # runs of a setting that are read, the newest
MAX_AT_GATE = 10  # versions of a setting that the gate reads, the newest


def other_seeds(document: ScoresDocument) -> list[ScoresDocument]:
    """Return the scores of the setting's other seeds, the newest first; UsageError if it is unknown."""
    training = document.training
    if training is None:
        raise UsageError("these scores do not name the training of their model, so other seeds are unknown")
    if not store_exists():
        return []
    found = []
    with mlflow_client() as client:
        experiment = client.get_experiment_by_name(experiment_name(data_name(document)))
        ids, query = (
            [experiment.experiment_id] if experiment else [],
            f"tags.`{SETTING}` = '{training.setting}'",
        )
        for run in search_runs(client, ids, query, MAX_FOUND) if ids else []:
            with suppress(UsageError):  # its scores were deleted
                found.append(fetch_scores(run))
    return [one for one in found if one.training is not None and one.training.seed != training.seed]


def describe_seeds(
    client: "MlflowClient", name: str, candidate: ScoresDocument, champion: ScoresDocument
) -> str:
    """Return the end of the gate's sentence, on the champion's best cell; empty without several seeds."""
    ours, theirs = candidate.training, champion.training
    cell, metric, _ = best_cell(champion.cells)
    if ours is None or theirs is None or cell not in candidate.cells:
        return ""

    def by_seed(setting: str, own: ScoresDocument) -> list[CellScores]:
        query, order = f"name = '{name}' AND tags.`{SETTING}` = '{setting}'", ["version_number DESC"]
        versions = client.search_model_versions(query, max_results=MAX_AT_GATE, order_by=order)
        documents = [own, *(fetch_version_scores(client, version) for version in versions)]
        return list(cells_by_seed(documents, cell, champion.cells[cell]).values())

    mine = by_seed(ours.setting, candidate)
    if len(mine) < 2:
        return ""
    if ours.setting == theirs.setting:
        return f"; {len(mine)} seeds of their common setting have {_mean_text(mine, metric)}"
    held = by_seed(theirs.setting, champion)
    if len(held) < 2:
        return ""
    gap = group_gap(mine, held, metric)
    significant = "a significant gap" if gap is not None and gap.is_significant else "no significant gap"
    return (
        f"; its setting has {_mean_text(mine, metric)} over {len(mine)} seeds and the champion's "
        f"{_mean_text(held, metric)} over {len(held)}, {significant}"
    )


def _mean_text(cells: Sequence[CellScores], metric: str) -> str:
    return f"{metric} {mean_of(cells, metric):.4g} ± {format_spread(deviation_of(cells, metric) or 0.0)}"
