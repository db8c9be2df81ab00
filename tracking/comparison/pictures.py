"""The pictures that belong to scores: those that MLflow has of a run, or the samples beside a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion.images.pictures import montage
from diffusion.images.store import Images, open_store
from diffusion.images.store_meta import CellMeta
from diffusion.protocol.card import differing_fields
from diffusion.protocol.scores import CellScores
from tracking.comparison.score_rows import ScoredRun
from tracking.runs.cell_runs import fetch_samples

FOLDER = "samples"


def load_pictures(one: ScoredRun) -> Mapping[str, Images]:
    """The first images of each cell as one picture (H, W, C), by the cell's name; cells without are left out.

    A file's are those in `samples/` beside it or beside its folder, as a project has them. DiffctlError where
    images are damaged, or MLflow does not answer.
    """
    if one.run is not None:
        return fetch_samples(one.run, one.document)
    return _beside(one.path, one.document.cells) if one.path else {}


def _beside(path: Path, cells: Mapping[str, CellScores]) -> dict[str, Images]:
    found: dict[str, Images] = {}
    for folder in (path.resolve().parent / FOLDER, path.resolve().parent.parent / FOLDER):
        for name, cell in cells.items():
            if name not in found and (folder / name).is_dir():
                store = open_store(folder / name, CellMeta)
                if _is_of(cell, store.meta["card"]):
                    found[name] = montage(store.images)
    return found


def _is_of(cell: CellScores, sampled: Mapping[str, Any]) -> bool:
    """Whether the scores are of these samples: what the samples' card says, theirs says too."""
    return not differing_fields([{field: cell.card.get(field) for field in sampled}, dict(sampled)])
