"""Checks of the data: raw files, prepared splits, and whether they fit the configuration."""

from collections.abc import Collection, Iterator

import numpy as np
import torch

from diffusion.check.findings import Finding, Project
from diffusion.data.source import summarize
from diffusion.images.store import ImageStore, is_verified, verify
from diffusion.layout import PREPARED
from diffusion.system.errors import DiffctlError
from diffusion.system.memory import format_bytes
from diffusion.train.plan import DenoiserPlan, plan_training
from diffusion.train.pretrained import PretrainedMissing, PretrainedRefused, find_pretrained

HASHED = 2**30  # bytes that are hashed in a second or two
SAMPLED = 4096  # images used for pixel statistics
UNEVEN = 2  # times the images of the smallest class: scores of samples with equal classes are worse


def check_raw(project: Project) -> Iterator[Finding]:
    """Check whether the data can be prepared: raw files, downloads, problems in a listing."""
    data, info = project.config.data, project.info
    if info.is_unreadable:
        yield Finding("error", "raw data", f"{data.name} cannot be read", info.blocked)
        return
    if info.blocked and project.is_ready:
        yield Finding("ok", "raw data", f"{data.name} is not here, and not needed: it is prepared")
        return
    if info.blocked:
        yield Finding("error", "raw data", f"{data.name} is not here", info.blocked)
        return
    if info.problems:
        message = f"{len(info.problems):,} raw files cannot be used: {summarize(info.problems)}"
        if data.on_bad == "skip":
            yield Finding("warning", "raw data", message, "they are left out")
        else:
            remedy = "repair or remove them, or set data.on_bad: skip"
            yield Finding("error", "raw data", message, remedy)
    if info.download:
        message = f"{data.name}: {format_bytes(info.download)} are downloaded when the data stage runs"
        yield Finding("ok", "raw data", message)
    elif not info.problems:
        yield Finding("ok", "raw data", f"{data.name}: {info.images:,} images are here")


def check_prepared(project: Project) -> Iterator[Finding]:
    """Check counts, sizes, channel statistics, duplicates and skipped files of the prepared splits."""
    if not PREPARED.is_dir():
        yield Finding("ok", "prepared data", "not yet prepared; `diffctl stage data` does it")
        return
    try:
        stores = project.stores
    except DiffctlError as error:
        yield Finding("error", "prepared data", str(error), f"remove {PREPARED} and run `diffctl stage data`")
        return
    if changes := project.preparation_changes:
        message = f"{PREPARED} was made with other options ({', '.join(changes[:3])})"
        yield Finding("warning", "prepared data", message, "`diffctl stage data` prepares it again")
        return
    if project.raw_files_changed and not project.info.is_unreadable:
        message = f"the files in {project.config.data.path} have changed since they were prepared"
        remedy = "`diffctl run` prepares them again, as does `dvc repro --force data`"
        yield Finding("warning", "prepared data", message, remedy)
    for split, store in stores.items():
        yield from _edits(split, store)
        yield from _counts(split, store)
        yield from _statistics(split, store)
    if skipped := stores["train"].meta.get("skipped"):
        listed = ", ".join(f"{count:,} {why}" for why, count in skipped.items())
        yield Finding("warning", "left out", listed, f"{PREPARED}/skipped.csv names them")


def check_fit(project: Project) -> Iterator[Finding]:
    """Check whether batch, model and evaluation fit the number and shape of the images."""
    config = project.config
    if project.info.blocked and not project.is_ready:
        return  # the data are unknown
    count = len(project.stores["train"]) if project.is_ready else project.info.images
    if count and config.train.batch_size > count:
        message = f"train.batch_size {config.train.batch_size} is more than the {count:,} training images"
        yield Finding("error", "batch", message, f"set train.batch_size to {count} or less")
    reference, cell = config.evaluate.reference, config.sample.num_images
    limit = config.evaluate.reference_images
    yield from _scored(project)
    if project.is_ready and (there := len(project.stores[reference].images[:limit])) < cell:
        message = f"a cell has {cell:,} images and its reference, the {reference} split, {there:,}"
        yield Finding("warning", "evaluation", message, "scores are noisy: lower sample.num_images")
    try:
        plan = plan_training(config, project.train_meta(), torch.device("cpu"))
    except PretrainedMissing as error:
        yield Finding("warning", "start", str(error), "the stage `train` fetches it by DVC")
    except PretrainedRefused as error:
        yield Finding("error", "start", str(error))
    except DiffctlError as error:
        yield Finding("error", "model", str(error), "change the model or the data section")
    else:
        yield from _start(plan)


def _scored(project: Project) -> Iterator[Finding]:
    """Report splits that are too small for scores, and samples with another mix of classes than the data."""
    if not project.is_ready:
        return
    for split, store in project.stores.items():
        if len(store) < 2:
            message = f"the {split} split has one image, and scores need at least 2"
            yield Finding("error", "evaluation", message, "add images")
    counts, config = project.stores["train"].meta.get("counts") or [], project.config
    if config.model.class_cond and config.sample.classes == "balanced" and is_uneven(counts):
        each = f"{min(counts):,} to {max(counts):,} training images"
        message = f"classes have {each}, and as many samples each: scores include this difference"
        remedy = "sample.classes: data draws them as often as in the data"
        yield Finding("warning", "classes", message, remedy)


def is_uneven(counts: Collection[int]) -> bool:
    """Return whether the largest class has more than UNEVEN times the images of the smallest."""
    return bool(counts) and max(counts) > UNEVEN * min(counts)


def _start(plan: DenoiserPlan) -> Iterator[Finding]:
    """Report the pretrained model, and a model that was trained on grey images."""
    if plan.init_from is None:
        return
    start = find_pretrained(plan.init_from)
    nearest = start.lineage[0]
    message = f"from {nearest.sha256[:16]}, {nearest.step:,} steps of {nearest.data}"
    ours = plan.data.classes
    if ours and plan.data.digest:  # else the classes are placeholders
        known = len({*ours} & {*start.class_names(ours)})
        message += f"; {known:,} of {len(ours):,} classes start from its class of the same name"
    yield Finding("ok", "start", message)
    if start.artefact.network.in_channels < plan.network.in_channels:
        message = "it was trained on grey images, so that at first it sees only a third of the noise"
        remedy = "set data.channels: 1 if these images are grey; else a start in RGB, or none, is better"
        yield Finding("warning", "start", message, remedy)


def _edits(split: str, store: ImageStore) -> Iterator[Finding]:
    """Check whether the images are unchanged; a very large store is hashed by the stages alone."""
    if store.images.nbytes <= HASHED or is_verified(store):
        try:
            verify(store)
        except DiffctlError as error:
            yield Finding("error", split, str(error), "`dvc repro --force data` prepares them again")


def _counts(split: str, store: ImageStore) -> Iterator[Finding]:
    """Report images and classes, and warn of empty classes and copies."""
    _, height, width, channels = store.images.shape
    counts = store.meta.get("counts") or []
    labels = "without labels"
    if counts:
        low, high = min(counts), max(counts)
        each = f"{low:,} each" if low == high else f"{low:,} to {high:,} each"
        labels = f"{len(counts)} classes with {each}"
    yield Finding("ok", split, f"{len(store):,} images of {height}×{width}×{channels}, {labels}")
    empty = [name for name, count in zip(store.meta["classes"], counts, strict=False) if count == 0]
    if empty:
        message = f"{len(empty)} classes without an image: {', '.join(empty[:5])}"
        yield Finding("warning", split, message, "add images, or take these classes out of the data set")
    copies = store.meta.get("duplicates", {})
    if within := copies.get("within"):
        message = f"{within:,} images are exact copies of others of the split"
        yield Finding("warning", split, message, f"{PREPARED}/duplicates.csv names them")
    if across := copies.get("of_train"):
        message = f"{across:,} images are in the training split too"
        remedy = f"held-out scores reward memorising: remove them, {PREPARED}/duplicates.csv names them"
        yield Finding("warning", split, message, remedy)


def _statistics(split: str, store: ImageStore) -> Iterator[Finding]:
    """Report mean and standard deviation of each channel, and suspicious pixels."""
    rows = np.unique(np.linspace(0, len(store) - 1, min(len(store), SAMPLED)).astype(int))
    pixels = np.asarray(store.images[rows])
    mean, std = pixels.mean(axis=(0, 1, 2)), pixels.std(axis=(0, 1, 2))
    values = " ".join(f"{m:.0f}±{s:.0f}" for m, s in zip(mean, std, strict=True))
    yield Finding("ok", split, f"channels {values} of 255")
    if not std.any():
        yield Finding("warning", split, "every pixel has the same value", "look at the raw images")
    elif pixels.shape[3] == 3 and (pixels[..., :1] == pixels).all():
        yield Finding("warning", split, "all images are grey but stored as RGB", "set data.channels: 1")
