"""The runs and files that a comparison is made of: their scores, pictures, and MLflow's own page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.images.pictures import MONTAGE, montage
from diffusion.images.store import Images, open_store
from diffusion.images.store_meta import CellMeta, PreparedMeta
from diffusion.layout import PREPARED, SAMPLES
from diffusion.protocol.card import differing_fields
from diffusion.protocol.scores_document import ScoresDocument, read_scores
from diffusion.report.sample_pictures import real_images
from diffusion.system.errors import UsageError
from tracking.mlflow_pages import comparison_link
from tracking.runs.run_lookup import find_run
from tracking.runs.scored_runs import fetch_samples, fetch_scores

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class ScoredRun:
    """A scores document with its label in the comparison, and its run or its file."""

    label: str
    document: ScoresDocument
    run: "Run | None" = None
    path: Path | None = None


def load_scored(name: str) -> ScoredRun:
    """Return the scores of a scores.json file, or of a training's run (see `find_run`)."""
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        return ScoredRun(name, read_scores(path), path=path)
    run = find_run(name)
    return ScoredRun(f"{run.info.run_name} ({run.info.run_id[:8]})", fetch_scores(run), run)


def load_pictures(one: ScoredRun) -> Mapping[str, Images]:
    """Return the first images of each cell as one picture (H, W, C), by cell; cells without are left out.

    Those of a file are in `samples/` next to it, or in the folder above. DiffctlError if they are damaged.
    """
    if one.run is not None:
        return fetch_samples(one.run, one.document)
    found: dict[str, Images] = {}
    for parent in one.path.resolve().parents[:2] if one.path else ():
        for name, cell in one.document.cells.items():
            folder = parent / SAMPLES / name
            if name not in found and folder.is_dir():
                store = open_store(folder, CellMeta)
                sampled = dict(store.meta["card"])
                if not differing_fields([{field: cell.card.get(field) for field in sampled}, sampled]):
                    found[name] = montage(store.images)
    return found


def load_real_picture(document: ScoresDocument, prepared: Path = PREPARED) -> Images | None:
    """Return held-out real images, of all classes in turn, as one picture; None for other data."""
    reference = document.reference
    folder = prepared / str(reference.heldout_split)
    if not folder.is_dir():
        return None
    store = open_store(folder, PreparedMeta)
    if store.digest != reference.heldout_digest:
        return None
    classes = len(store.meta["classes"])
    labels = [index % classes for index in range(MONTAGE)] if classes else None
    return montage(real_images(store, labels, MONTAGE))


def mlflow_comparison_link(scored: Sequence[ScoredRun], address: str) -> str:
    """Return the page at `address` on which MLflow compares these runs; UsageError if one is a file."""
    runs = [one.run for one in scored if one.run is not None]
    if len(runs) < len(scored):
        files = ", ".join(one.label for one in scored if one.run is None)
        raise UsageError(f"--open shows runs of MLflow, and {files} is a file: give a run's id or name")
    return comparison_link(
        address, [run.info.experiment_id for run in runs], [run.info.run_id for run in runs]
    )
