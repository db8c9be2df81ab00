"""Folders in runs/ that nothing needs: not the configuration, champion, searches, verdicts or named runs.

runs/ grows with every change of configuration or code. Trainings that run, or are not delivered to MLflow
completely, are never leftovers.
"""

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion.config import Config
from diffusion.layout import CELL_RUNS, CLASSIFIER_RUNS, EMA_RUNS, MODEL, MODEL_RUNS, TRAIN_RUNS
from diffusion.protocol.grid import Cell, cell_settings, grid
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.ema_files import existing_ema_models
from diffusion.sample.network_files import NetworkFiles, existing_files
from diffusion.sample.sampling_card import cells_folder, shards_folder
from diffusion.system.files import disk_usage
from diffusion.system.locks import LockBusy, file_lock, is_held
from diffusion.train.checkpoint.resume import find_kept_run, find_resume_point
from diffusion.train.checkpoint.run_dir import run_dir_of
from diffusion.train.checkpoint.state_files import newest_step
from diffusion.train.plan import TrainPlan
from diffusion.trials.trial_runs import known_searches
from tracking.keys import FILE_SHA256, GUIDE_TAGS, KEY, MODEL_SHA256, SEARCH_KEY, VERDICT
from tracking.registry.registered_models import find_champion, project_model
from tracking.runs.run_lookup import find_run
from tracking.spool.event_log import EVENTS, read_events
from tracking.spool.events import Tags
from tracking.spool.spool_status import DeliveryState, read_status
from tracking.store import mlflow_client, store_exists, tracking_uri

NEEDED = (KEY, MODEL_SHA256, FILE_SHA256, *GUIDE_TAGS.values())  # tags with what a run or a version needs
TRAININGS = (TRAIN_RUNS, CLASSIFIER_RUNS)
ROOTS = (*TRAININGS, CELL_RUNS, EMA_RUNS, MODEL_RUNS)
ScoredCell = tuple[SampleSettings, NetworkFiles]


@dataclass(frozen=True)
class Leftover:
    """A folder that nothing needs, with its size on the disk in bytes and its description."""

    path: Path
    size: int
    what: str


def find_leftovers(config: Config, plans: Sequence[TrainPlan], names: Sequence[str] = ()) -> list[Leftover]:
    """Return the leftovers, the largest first; `plans` are the present trainings, `names` runs to keep.

    Also keep the trainings that a present one, or `diffctl run --keep`, would resume from, and those of each
    search and verdict that exists. UsageError for an unknown name; DiffctlError if a search is damaged, or
    MLflow, which names the champion, does not answer.
    """
    searches = known_searches()
    needed = _needed_by_mlflow(names).union(*({one.key, *one.bases.values()} for one in searches))
    is_trained = False
    for plan, root in itertools.product(plans, TRAININGS):
        folder, settings, code = run_dir_of(plan, root)
        needed.add(folder.name)
        is_trained |= root == TRAIN_RUNS and newest_step(folder) > 0
        if other := find_kept_run(folder, settings):
            needed.add(other.name)
        if not newest_step(folder) and (point := find_resume_point(folder, settings, code)):
            needed.add(point.folder.name)
    found = list(_trainings(needed))
    if MODEL.is_file() or not is_trained:  # else the next run makes the model again, for images that are here
        found += _samples_and_models(config, needed)
    return sorted(found, key=lambda leftover: leftover.size, reverse=True)


def remove_leftovers(found: Sequence[Leftover]) -> list[Leftover]:
    """Remove the folders; return those that stay because a process uses them now."""
    busy = []
    for leftover in found:
        holder = leftover.path if leftover.path.parent in TRAININGS else CELL_RUNS  # which sweeps hold
        try:
            with file_lock(holder / "lock", timeout=0):
                shutil.rmtree(leftover.path)
        except LockBusy:
            busy.append(leftover)
    return busy


def _needed_by_mlflow(names: Sequence[str]) -> set[str]:
    """Return the keys and digests in the tags of the champion and the named runs."""
    if not names and not store_exists():
        return set()
    tags = [find_run(name).data.tags for name in names]
    name = project_model()
    with mlflow_client() as client:
        champion = find_champion(client, name)
    tags += [champion.tags] if champion else []
    return {values[tag] for values in tags for tag in NEEDED if tag in values}


def _trainings(needed: set[str]) -> Iterator[Leftover]:
    uri = tracking_uri()
    for folder in [folder for root in TRAININGS for folder in _folders(root)]:
        training = read_status(folder) if (folder / EVENTS).exists() else None
        identities, steps = {folder.name}, "nothing"
        if training is not None:
            tags = [event.values for event in read_events(folder) if isinstance(event, Tags)]
            named = (values.get(tag) for values in tags for tag in (SEARCH_KEY, VERDICT))
            searches = {key for key in named if key}  # MLflow has the last
            identities |= {training.key, *searches}
            steps = f"{training.step:,} steps"
        delivered = training is None or DeliveryState.load(folder, uri).complete
        if delivered and not identities & needed and not is_held(folder / "lock"):
            yield Leftover(folder, disk_usage(folder), f"training, {steps}")


def _samples_and_models(config: Config, needed: set[str]) -> Iterator[Leftover]:
    """Yield images, EMA profiles and fetched models that the grid of the present model does not need."""
    cells = grid(config.sample, config.sweep) if MODEL.is_file() else []
    scored = list(_scored_cells(config, cells))
    yield from _cells(needed, scored, is_complete=len(scored) == len(cells))
    yield from _ema_models(scored)
    needed = needed | {files.base.parent.name for _, files in scored if files.base is not None}
    for folder in _folders(MODEL_RUNS):
        if folder.name not in needed:
            yield Leftover(folder, disk_usage(folder), "model fetched from MLflow")


def _cells(needed: set[str], scored: Sequence[ScoredCell], *, is_complete: bool) -> Iterator[Leftover]:
    """Yield the images of other models, and those of the present one that are not in the grid or outdated.

    The networks of a cell determine its folder. So while one of them is missing, such as a guide that was
    removed, all images that may be of that cell stay; unless `is_complete`, those of other models too.
    """
    kept = {cells_folder(digest) for digest in needed}
    own, present, unclear = set[Path](), set[Path](), set[Path]()
    for settings, files in scored:
        networks = files.read()
        folder = cells_folder(networks.model.model_sha256)
        own.add(folder)
        present.add(shards_folder(settings, networks))
        if files.lacks_guide(settings):
            unclear.add(folder)
    for folder in _folders(CELL_RUNS):
        if folder in own - unclear:
            what = "images of a cell that is not in the grid, or of other code"
            unused = [cell for cell in _folders(folder) if cell not in present]
            yield from (Leftover(cell, disk_usage(cell), what) for cell in unused)
        elif folder not in kept | unclear and is_complete:
            yield Leftover(folder, disk_usage(folder), "images of another model")


def _scored_cells(config: Config, cells: Sequence[Cell]) -> Iterator[ScoredCell]:
    """Yield the settings and the existing files of each cell with an existing model."""
    models = {None: MODEL, **existing_ema_models(MODEL, config.sweep.sigma_rels)}
    found: dict[tuple[str | None, ...], NetworkFiles] = {}  # a guide may be made from hundreds of snapshots
    for cell in cells:
        settings = cell_settings(config.sample, cell)
        key = settings.guide, settings.classifier if settings.has_classifier else None, str(settings.base)
        if cell.ema in models:
            found[key] = found.get(key) or existing_files(settings, MODEL)
            yield settings, found[key]._replace(model=models[cell.ema])


def _ema_models(scored: Sequence[ScoredCell]) -> Iterator[Leftover]:
    """Yield EMA profiles that are not in the grid, or of other snapshots; they are quickly made again."""
    kept = {path.parent for _, files in scored for path in (files.model, files.guide) if path is not None}
    for folder in _folders(EMA_RUNS):
        if folder not in kept:
            yield Leftover(folder, disk_usage(folder), "model of an EMA profile that is not in the grid")


def _folders(root: Path) -> list[Path]:
    """Return the folders in `root`; hidden ones are of a process that uses them now."""
    return sorted(path for path in root.glob("[!.]*") if path.is_dir())
