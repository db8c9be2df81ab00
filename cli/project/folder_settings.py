"""A folder of pictures: what it has, and settings of params.yaml that fit it and this machine."""

from collections.abc import Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

from cli.project.generated_files import ProjectChoices, generated_files
from diffusion.check.data_checks import is_uneven
from diffusion.check.findings import Project
from diffusion.check.timing import time_steps
from diffusion.config import parse
from diffusion.data.readers.image_files import read_content
from diffusion.data.source import ImageProblem, RawData, summarize
from diffusion.data.sources.image_folder import ImageFolder, ImageFolderConfig
from diffusion.images.image_size import Size, height_and_width
from diffusion.images.pictures import BadImage, load_pixels, open_image
from diffusion.layout import PARAMS
from diffusion.system.devices import default_device
from diffusion.system.params import parse_yaml

SAMPLED = 200  # pictures that are decoded, evenly over the folder
SIDES = (64, 32, 16)  # shorter sides of the images of a model, which halves them two or three times
STRIDE, MAX_RATIO = 8, 4  # of the longer side: its divisor, and its limit in shorter sides
MEASURED_SECONDS = 10.0
MAX_STEPS, MIN_STEPS = 100_000, 1000
MIN_PER_CLASS = 20  # images, for a network with labels
LABELS = "labels.csv"


class Budget(NamedTuple):
    """A profile for a kind of device: the largest shorter side, and the time to train."""

    profile: str
    max_side: int
    minutes: int


CPU, GPU = Budget("image-folder-cpu", 32, 10), Budget("image-folder", 64, 60)


class Pictures(NamedTuple):
    """What a folder of pictures has: `sizes` are those of the decoded pictures.

    `unreadable` counts decoded files that are no picture, `problems` are files that cannot be used at all.
    `labels` is the file with the classes, None without one.
    """

    total: int
    train: int
    classes: dict[str, int]
    sizes: list[Size]
    is_grey: bool
    unreadable: int
    problems: Sequence[ImageProblem]
    labels: str | None

    @property
    def colour(self) -> str:
        """Whether the pictures are grey or in colour."""
        return "grey" if self.is_grey else "in colour"

    def describe(self) -> str:
        """Return the facts in one line."""
        least, most = min(map(min, self.sizes)), max(map(min, self.sizes))
        sides = f"{least} pixels" if least == most else f"{least} to {most} pixels"
        classes = f"{len(self.classes)} classes" if self.classes else "no classes"
        return f"{self.total:,}, {self.colour}, {sides} at the shorter side, {classes}"


def look_at(folder: Path) -> Pictures:
    """Count the pictures of a folder and decode some; DiffctlError without any."""
    listed = LABELS if (folder / LABELS).is_file() else None
    config = ImageFolderConfig(name="image-folder", path=folder, image_size=SIDES[0], labels=listed)
    with TemporaryDirectory() as empty, chdir(empty):  # this folder may be the working directory
        raw = ImageFolder(config).open()
    labels = [split.labels for split in raw.splits.values() if split.labels is not None]
    classes: dict[str, int] = {}
    if labels and len(raw.classes) > 1:
        counts = np.bincount(np.concatenate(labels), minlength=len(raw.classes))
        classes = dict(zip(raw.classes, counts.tolist(), strict=True))
    train, test = len(raw.train.reader), len(raw.test.reader)
    decoded = list(_decode_some(folder, raw))
    pictures = [one for one in decoded if one is not None]
    return Pictures(
        total=train + test,
        train=train,
        classes=classes,
        sizes=[size for size, _ in pictures] or [(SIDES[-1], SIDES[-1])],
        is_grey=all(is_grey for _, is_grey in pictures),
        unreadable=len(decoded) - len(pictures),
        problems=raw.problems,
        labels=listed,
    )


def _decode_some(folder: Path, raw: RawData) -> Iterator[tuple[Size, bool] | None]:
    """Yield size and greyness of evenly chosen pictures, None for one that cannot be decoded."""
    for split in raw.splits.values():
        rows = np.unique(np.linspace(0, len(split.reader) - 1, SAMPLED // 2).astype(int))
        for name in split.reader.names(rows):
            try:
                with open_image(read_content(bytes(folder / name))) as image:
                    pixels = np.asarray(load_pixels(image, 3))
                yield height_and_width(pixels.shape[:2]), bool((pixels == pixels[:, :, :1]).all())
            except BadImage:
                yield None


def choose_settings(folder: Path, path: str, choices: ProjectChoices) -> tuple[ProjectChoices, list[str]]:
    """Return choices with profile and values for a folder of pictures, and a line of reason for each.

    `path` is the folder for params.yaml. A few training steps are timed.
    """
    pictures, device = look_at(folder), default_device()
    budget = CPU if device.type == "cpu" else GPU
    typical = int(median(map(min, pictures.sizes)))
    side = next((one for one in SIDES if one <= min(typical, budget.max_side)), SIDES[-1])
    size, shape = _size(side, pictures.sizes)
    channels = 1 if pictures.is_grey else 3
    values: dict[str, Any] = {"data.path": str(folder), "data.image_size": size, "data.channels": channels}
    reasons = [
        f"pictures: {pictures.describe()}",
        f"profile: {budget.profile}, since this machine computes on {_name(device)}",
        f"data.image_size: {size}, {_reason_of_side(typical, budget, device)}{shape}",
        f"data.channels: {channels}, since the pictures are {pictures.colour}",
    ]
    if pictures.unreadable or pictures.problems:
        values["data.on_bad"] = "skip"
        reasons.append(f"data.on_bad: skip, since these cannot be used: {_unusable(pictures)}")
    if pictures.labels:
        values["data.labels"] = pictures.labels
        reasons.append(f"data.labels: {pictures.labels}, which is in the folder")
    _choose_classes(pictures.classes, values, reasons)
    choices = choices.model_copy(update={"profile": budget.profile, "values": values})
    train = _section(choices, "train")
    if (usable := max(1, pictures.train - pictures.unreadable)) < train["batch_size"]:
        values["train.batch_size"] = usable
        reasons.append(f"train.batch_size: {usable}, since there are no more training images")
    values["train.steps"], reason = _steps(choices, device, budget)
    reasons.append(reason)
    if (tenth := values["train.steps"] // 10) < train["lr"]["warmup"]:
        values["train.lr.warmup"] = tenth
        reasons.append(f"train.lr.warmup: {tenth:,}, a tenth of the steps")
    values["data.path"] = path
    return choices, reasons


def _choose_classes(classes: dict[str, int], values: dict[str, Any], reasons: list[str]) -> None:
    """Add the settings for these classes, by name with the number of images, and their reasons."""
    if not classes:
        return
    name = min(classes, key=lambda one: classes[one])
    if classes[name] < MIN_PER_CLASS:
        why = f"since class {name} has {classes[name]} images and a class needs {MIN_PER_CLASS}"
        reasons.append(f"model.class_cond: false, {why}")
        return
    values |= {"model.class_cond": True, "train.p_uncond": 0.1}
    reasons.append(f"model.class_cond: true, for images by class: {_listed(classes)}")
    if is_uneven(classes.values()):
        values["sample.classes"] = "data"
        reasons.append("sample.classes: data, since the classes have unequal numbers of images")


def _unusable(pictures: Pictures) -> str:
    unreadable = f"at least {pictures.unreadable} unreadable" if pictures.unreadable else ""
    return "; ".join(filter(None, (unreadable, summarize(pictures.problems))))


def _size(side: int, sizes: Sequence[Size]) -> tuple[int | list[int], str]:
    """Return the size for images with this shorter side, and a reason: of the one shape, else a square."""
    fitted = set()
    for height, width in sizes:
        longer = round(side * max(height, width) / min(height, width) / STRIDE) * STRIDE
        fitted.add((side, longer) if height < width else (longer, side))
    if len(fitted) > 1:
        return side, "; squares, since the pictures have several shapes: their middle is taken"
    height, width = fitted.pop()
    if height == width or max(height, width) > MAX_RATIO * side:
        is_cropped = any(one != other for one, other in sizes)
        return side, "; squares: the middle of each picture is taken" if is_cropped else ""
    return [height, width], "; [height, width], since all pictures have about this shape"


def _reason_of_side(typical: int, budget: Budget, device: torch.device) -> str:
    if typical < SIDES[-1]:
        return f"the least of the profile: half of the pictures have at most {typical} pixels"
    has = f"since half of the pictures have at least {typical} pixels"
    return f"{has} and more takes long on {_name(device)}" if typical > budget.max_side else has


def _steps(choices: ProjectChoices, device: torch.device, budget: Budget) -> tuple[int, str]:
    """Return the number of training steps that this machine takes in the budget, with the reason."""
    config = parse(parse_yaml(generated_files(choices)[str(PARAMS)]), str(PARAMS))
    with TemporaryDirectory() as empty, chdir(empty):  # without prepared data
        project = Project(config)
        assert project.plan is not None, "the chosen settings fit the pictures"
        batch = config.train.batch_size
        seconds = batch * time_steps(project, project.plan, batch, MEASURED_SECONDS, device).median
    steps = min(MAX_STEPS, round(60 * budget.minutes / seconds / 100) * 100)
    measured = f"with {1000 * seconds:,.0f} ms a step"
    if steps < MIN_STEPS:  # a network learns little in fewer
        minutes = round(config.train.steps * seconds / 60)
        why = f"as in the profile: about {minutes:,} minutes here {measured}, less if nothing else runs"
        return config.train.steps, f"train.steps: {config.train.steps:,}, {why}"
    minutes = max(1, round(steps * seconds / 60))
    return steps, f"train.steps: {steps:,}, about {minutes} minutes here {measured}"


def _section(choices: ProjectChoices, name: str) -> dict[str, Any]:
    values: dict[str, Any] = parse_yaml(generated_files(choices)[str(PARAMS)])[name]
    return values


def _name(device: torch.device) -> str:
    return "a CPU" if device.type == "cpu" else "a GPU"


def _listed(classes: dict[str, int]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in list(classes.items())[:5])
    return f"{shown}, …" if len(classes) > 5 else shown
