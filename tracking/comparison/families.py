"""What other seeds of the same settings say beside the gate's verdict on two models.

The gate moves a title between models, and their images tell which of two is better. Another seed of the same
setting would have given another model, so that the better model need not be of the better setting.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffusion.choice.groups import cells_by_seed, deviation_of, group_gap, mean_of
from diffusion.choice.ranking import best_cell
from diffusion.protocol.scores import CellScores, ScoresDocument
from tracking.comparison.score_rows import format_spread
from tracking.comparison.seed_groups import versions_of_setting
from tracking.registry.model_versions import fetch_version_scores

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MOST = 10  # registered versions of a setting that are looked at, the newest


def describe_seeds(
    client: "MlflowClient", name: str, candidate: ScoresDocument, champion: ScoresDocument
) -> str:
    """The end of the sentence on a candidate and the champion; empty where no setting has several seeds.

    It speaks of the champion's best cell and its score, of versions that were scored by its protocol.
    """
    ours, theirs = candidate.training, champion.training
    bar, metric, _ = best_cell(champion.cells)
    if ours is None or theirs is None or bar not in candidate.cells:
        return ""
    mine = _cells(client, name, ours.setting, candidate, champion.cells[bar], bar)
    if len(mine) < 2:
        return ""
    if ours.setting == theirs.setting:
        return f"; both are of one setting, of which {len(mine)} seeds have {_told(mine, metric)}"
    held = _cells(client, name, theirs.setting, champion, champion.cells[bar], bar)
    if len(held) < 2:
        return ""
    found = group_gap(mine, held, metric)
    apart = "told apart" if found is not None and found.is_significant else "not told apart"
    return (
        f"; its setting has {_told(mine, metric)} over {len(mine)} seeds and the champion's "
        f"{_told(held, metric)} over {len(held)}, {apart}"
    )


def _cells(
    client: "MlflowClient", name: str, setting: str, own: ScoresDocument, bar: CellScores, cell: str
) -> list[CellScores]:
    """That cell of the versions of a setting, one a seed, `own` among them, where it is of one protocol."""
    versions = versions_of_setting(client, name, setting, MOST)
    documents = [own, *(fetch_version_scores(client, version) for version in versions)]
    return list(cells_by_seed(documents, cell, bar).values())


def _told(cells: Sequence[CellScores], metric: str) -> str:
    return f"{metric} {mean_of(cells, metric):.4g} ± {format_spread(deviation_of(cells, metric) or 0.0)}"
