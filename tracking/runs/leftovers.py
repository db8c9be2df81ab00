"""What lies in runs/ that neither the present configuration nor the champion, a search or a named run needs.

runs/ grows with every other configuration and every other code. A training that runs, or whose metrics are
not wholly in MLflow, is never among it.
"""

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffusion.config import Config
from diffusion.layout import CELL_RUNS, CLASSIFIER_RUNS, EMA_RUNS, MODEL, MODEL_RUNS, TRAIN_RUNS
from diffusion.model.model_file import read_artefact
from diffusion.protocol.grid import cell_settings, grid
from diffusion.sample.cell_images import shards_folder
from diffusion.sample.ema_models import existing_ema_models
from diffusion.sample.shards import cells_folder
from diffusion.search.search_dir import known_searches
from diffusion.system.files import disk_usage
from diffusion.system.locks import LockBusy, file_lock, is_held
from diffusion.train.checkpoint.resume import find_kept_run, find_resume_point
from diffusion.train.checkpoint.run_dir import run_dir_of
from diffusion.train.checkpoint.state_files import newest_step
from diffusion.train.plan import TrainPlan
from tracking.keys import FILE_SHA256, KEY, MODEL_SHA256, SEARCH_KEY, model_name
from tracking.registry.registered_models import find_champion
from tracking.runs.run_lookup import find_run
from tracking.spool.delivery_state import DeliveryState
from tracking.spool.spool_events import EVENTS, read_events
from tracking.spool.training_status import read_status
from tracking.store import connect, database_file, tracking_uri, translate_errors

TRAININGS = (TRAIN_RUNS, CLASSIFIER_RUNS)


@dataclass(frozen=True)
class Leftover:
    """A folder that nothing needs: `size` bytes on the disk, and what it is."""

    path: Path
    size: int
    what: str


@dataclass
class Needed:
    """Trainings by folder name, by key and by their search's, models as cards and MLflow know them."""

    fingerprints: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    searches: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)


def find_leftovers(config: Config, plans: Sequence[TrainPlan], names: Sequence[str] = ()) -> list[Leftover]:
    """What may go, the largest first, where `plans` are the present trainings; `names` are runs to keep.

    Where a present training has no state yet, what it or `diffctl run --keep` would go on from stays, too,
    and so do the trainings of each search whose folder is there. UsageError for a name that no run has;
    DiffctlError when MLflow does not answer, which knows the champion, and for a search that is damaged.
    """
    needed = _needed_by_mlflow(config.data.name, names)
    needed.searches = {search.key for search in known_searches()}
    for plan, root in itertools.product(plans, TRAININGS):
        needed.fingerprints |= {folder.name for folder in _needed_by(plan, root)}
    found = [*_trainings(needed), *_cells(config, needed), *_averages(config), *_models(needed)]
    return sorted(found, key=lambda leftover: leftover.size, reverse=True)


def remove_leftovers(found: Sequence[Leftover]) -> list[Leftover]:
    """Remove the folders; returns those that a process has begun to use meanwhile, which stay."""
    busy = []
    for leftover in found:
        try:
            with file_lock(leftover.path / "lock", timeout=0):
                shutil.rmtree(leftover.path)
        except LockBusy:
            busy.append(leftover)
    return busy


def _needed_by(plan: TrainPlan, root: Path) -> Iterator[Path]:
    """A training's folder in `root`, and those of others whose states it may go on from."""
    folder, settings, code = run_dir_of(plan, root)
    yield folder
    if not newest_step(folder):
        if other := find_kept_run(folder, settings):
            yield other
        if start := find_resume_point(folder, settings, code):
            yield start.folder


def _needed_by_mlflow(data: str, names: Sequence[str]) -> Needed:
    needed, uri = Needed(), tracking_uri()
    database = database_file(uri)
    if database is not None and not database.exists() and not names:
        return needed
    tags = [find_run(name).data.tags for name in names]
    with translate_errors(uri):
        champion = find_champion(connect(uri), model_name(data))
    tags += [champion.tags] if champion else []
    for of in tags:
        for into, tag in ((needed.keys, KEY), (needed.models, MODEL_SHA256), (needed.files, FILE_SHA256)):
            into.update([of[tag]] if tag in of else [])
    return needed


def _trainings(needed: Needed) -> Iterator[Leftover]:
    uri = tracking_uri()
    for folder in [folder for root in TRAININGS for folder in _folders(root)]:
        training = read_status(folder) if (folder / EVENTS).exists() else None
        undelivered = training is not None and not DeliveryState.load(folder, uri).complete
        key = training.key if training else None
        if folder.name in needed.fingerprints or key in needed.keys or undelivered:
            continue
        if training is not None and needed.searches & _searches_of(folder):
            continue
        if not is_held(folder / "lock"):
            steps = f"{training.step:,} steps" if training else "nothing"
            yield Leftover(folder, disk_usage(folder), f"training, {steps}")


def _searches_of(folder: Path) -> set[str]:
    """The keys of all searches that a training is a trial of: a tag has the last one's alone."""
    tags = (event["values"] for event in read_events(folder) if event["kind"] == "tags")
    return {values[SEARCH_KEY] for values in tags if SEARCH_KEY in values}


def _cells(config: Config, needed: Needed) -> Iterator[Leftover]:
    """Shards of other models; of the present one those of cells not in the grid, or by other code."""
    kept = {cells_folder(sha256) for sha256 in needed.models}
    own, present = set[Path](), set[Path]()
    if MODEL.is_file():
        averages = existing_ema_models(MODEL, config.sweep.sigma_rels)
        models = {width: read_artefact(file) for width, file in averages.items()}
        models[None] = read_artefact(MODEL)
        cells = [cell for cell in grid(config.sample, config.sweep) if cell.ema in models]
        own = {cells_folder(model.model_sha256) for model in models.values()}
        present = {shards_folder(cell_settings(config.sample, cell), models[cell.ema]) for cell in cells}
    for folder in _folders(CELL_RUNS):
        if folder in own:
            what = "images of a cell that is not in the grid, or by other code"
            others = [cell for cell in _folders(folder) if cell not in present]
            yield from (Leftover(cell, disk_usage(cell), what) for cell in others)
        elif folder not in kept:
            yield Leftover(folder, disk_usage(folder), "images of another model")


def _averages(config: Config) -> Iterator[Leftover]:
    """Models of widths that the grid does not have, or of other snapshots: each is made again in a moment."""
    kept = {path.parent for path in existing_ema_models(MODEL, config.sweep.sigma_rels).values()}
    for folder in _folders(EMA_RUNS):
        if folder not in kept:
            yield Leftover(folder, disk_usage(folder), "model of an average that is not in the grid")


def _models(needed: Needed) -> Iterator[Leftover]:
    for folder in _folders(MODEL_RUNS):
        if folder.name not in needed.files:
            yield Leftover(folder, disk_usage(folder), "model fetched from MLflow")


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("*") if path.is_dir())
