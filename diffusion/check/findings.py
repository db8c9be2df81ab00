"""Findings of checks, and the project that is checked."""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal, NamedTuple

from diffusion.config import Config
from diffusion.data.data_config import build_source, preparation_changes
from diffusion.data.prepare import shape_of
from diffusion.data.source import DatasetInfo
from diffusion.images.image_size import written_size
from diffusion.images.store import ImageStore, open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import AVERAGES, MODEL, PREPARED
from diffusion.model.model_file import Artefact, read_artefact
from diffusion.model.posthoc_ema import snapshot_path
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.grid import Cell, cell_settings, grid
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.base_file import base_file
from diffusion.sample.network_files import check_base_settings
from diffusion.system.devices import default_device
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.train.classifier_training import ClassifierPlan, plan_classifier
from diffusion.train.plan import DenoiserPlan, plan_artefact, plan_training, resolve_process
from diffusion.train.train_config import ClassifierSections

SPLITS = ("train", "test")

Level = Literal["ok", "warning", "error"]


class Finding(NamedTuple):
    """The result of a check. An error would make a stage fail; `remedy` is what to do.

    `values` are the message's numbers for JSON.
    """

    level: Level
    subject: str
    message: str
    remedy: str = ""
    values: dict[str, Any] | None = None


@dataclass(frozen=True)
class Project:
    """A configuration in the working directory, the root of its project."""

    config: Config

    @cached_property
    def info(self) -> DatasetInfo:
        """What preparing the data would take."""
        return build_source(self.config.data).info()

    @cached_property
    def stores(self) -> dict[str, ImageStore]:
        """The prepared splits, images unread; DiffctlError if one is missing or damaged."""
        return {split: open_store(PREPARED / split, PreparedMeta, unverified=True) for split in SPLITS}

    @cached_property
    def preparation_changes(self) -> list[str]:
        """The options of `data` that differ from those of the prepared data, with both values."""
        return preparation_changes(self.config.data, self.stores["train"].meta)

    @cached_property
    def is_ready(self) -> bool:
        """Whether the prepared data are complete and fit the configuration."""
        try:
            return PREPARED.is_dir() and not self.preparation_changes
        except DiffctlError:
            return False

    @cached_property
    def raw_files_changed(self) -> bool:
        """Whether raw files differ in name or size from those that were prepared, or cannot be read."""
        if not self.is_ready:
            return False
        before = self.stores["train"].meta["sources"]
        return self.info.is_unreadable or not self.info.sources.items() <= before.items()

    @cached_property
    def is_trained(self) -> bool:
        """Whether model file and EMA snapshots are the result of this configuration on this machine."""
        train = self.config.train
        profiles = product(train.sigma_rels, train.snapshot_steps())
        files = [MODEL, *(snapshot_path(AVERAGES, *profile) for profile in profiles)]
        if self.plan is None or not all(path.is_file() for path in files):
            return False
        try:
            artefact = read_artefact(MODEL)
        except DiffctlError:
            return False
        wanted = plan_artefact(self.plan).model_copy(update={"weights_sha256": artefact.weights_sha256})
        return artefact.model_sha256 == wanted.model_sha256

    @cached_property
    def is_training_due(self) -> bool:
        """Whether the model is not trained, or by other code: the training will make another."""
        if self.plan is None or not self.is_trained:
            return True
        code = read_artefact(MODEL).code
        return bool(code) and code[-1].digest != self.plan.code[-1].digest

    @cached_property
    def _grid(self) -> tuple[dict[Cell, SampleSettings], list[str]]:
        cells, problems = {}, []
        for cell in grid(self.config.sample, self.config.sweep):
            try:
                cells[cell] = cell_settings(self.config.sample, cell)
            except UsageError as error:
                problems.append(str(error))
        return cells, problems

    @property
    def cells(self) -> dict[Cell, SampleSettings]:
        """The settings of every valid cell."""
        return self._grid[0]

    @property
    def cell_problems(self) -> list[str]:
        """Why the settings of the other cells are invalid."""
        return self._grid[1]

    @cached_property
    def base(self) -> Artefact | None:
        """The base of a cascade with fitting settings; None without one, and if it is not here."""
        base = self.config.sample.base
        if base is None:
            return None
        try:
            artefact = read_artefact(base_file(base))
            check_base_settings(self.config.sample, artefact)
        except DiffctlError:
            return None  # `check_base` reports it
        return artefact

    @cached_property
    def process(self) -> ProcessConfig:
        """The section `process` with all that depends on the images; as it is if they are unknown."""
        try:
            return resolve_process(self.config.process, self.train_meta())
        except DiffctlError:  # a further check reports it
            return self.config.process

    @cached_property
    def plan(self) -> DenoiserPlan | None:
        """The training plan on this machine; None if the configuration does not fit."""
        try:
            return plan_training(self.config, self.train_meta(), default_device())
        except DiffctlError:
            return None

    @cached_property
    def classifier_plan(self) -> ClassifierPlan | None:
        """The plan of the classifier's training, None without one; UsageError if it does not fit the data."""
        config = self.config
        if config.classifier is None:
            return None
        sections = ClassifierSections(data=config.data, process=config.process, classifier=config.classifier)
        return plan_classifier(sections, self.train_meta(), default_device())

    def train_meta(self) -> dict[str, Any]:
        """Return the training split's metadata, as prepared or as expected, then with placeholder classes."""
        if self.is_ready:
            return self.stores["train"].meta
        height, width, channels = shape_of(self.config.data, self.info.shape)
        return {
            "name": self.config.data.name,
            "image_size": written_size((height, width)),
            "channels": channels,
            "classes": [str(number) for number in range(self.info.classes)],
            "counts": [1] * self.info.classes,
            "pixel_std": 0.5,
            "digest": "",
        }
