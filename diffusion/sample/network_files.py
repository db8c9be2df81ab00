"""The files of the networks that sample a cell: its model, and what guides it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from diffusion.layout import AVERAGES
from diffusion.model.classifier import ClassifierArtefact, load_classifier
from diffusion.model.model_file import (
    Artefact,
    ModelDescription,
    load_model,
    read_artefact,
    read_description,
)
from diffusion.protocol.grid import Cell, cell_settings
from diffusion.protocol.guidance_rules import ema_guide
from diffusion.protocol.settings import SamplerConfig, SampleSettings
from diffusion.sample.ema_models import (
    ema_model_file,
    existing_ema_guide,
    guide_snapshots,
    matching_snapshots,
)
from diffusion.sample.guides import Guides, check_fit
from diffusion.system.errors import UsageError


class NetworkArtefacts(NamedTuple):
    """The metadata of a model, its guide and its classifier, as far as the settings use them."""

    model: Artefact
    guide: Artefact | None = None
    classifier: ClassifierArtefact | None = None

    @property
    def labelled(self) -> ModelDescription:
        """The model, or the classifier of a model without classes: what the labels are of."""
        return self.model if self.model.network.num_classes else self.classifier or self.model

    def find_difference(self, card: Mapping[str, object]) -> str | None:
        """Return which network is not the one of a card: model, guide or classifier; None if all are."""
        for name, one in self._asdict().items():
            if card.get(f"{name}_sha256") != (None if one is None else one.model_sha256):
                return str(name)
        return None

    def check(self) -> None:
        """Raise UsageError if the guide or the classifier does not fit the model."""
        if self.guide is not None:
            check_fit(self.model, self.guide, "guide")
        if self.classifier is not None:
            check_fit(self.model, self.classifier, "classifier")


class NetworkFiles(NamedTuple):
    """The files of a model, its guide and its classifier, as far as the settings use them."""

    model: Path
    guide: Path | None = None
    classifier: Path | None = None

    def read(self) -> NetworkArtefacts:
        """Read the metadata of all; DiffctlError for a file of another kind."""
        return NetworkArtefacts(
            read_artefact(self.model),
            None if self.guide is None else read_artefact(self.guide),
            None if self.classifier is None else read_description(self.classifier, ClassifierArtefact),
        )

    def lacks_guide(self, settings: SampleSettings) -> bool:
        """Return whether the settings use a guide or a classifier that is not among the files."""
        pairs = zip(_named_networks(settings), (self.guide, self.classifier), strict=True)
        return any(name is not None and path is None for name, path in pairs)


def guide_file(guide: str, model: Path, averages: Path = AVERAGES) -> Path:
    """Return the model file of a guide. An EMA profile is one of the training of `model`, made if missing.

    UsageError if there is no such file, or `averages` has no such snapshots of that training.
    """
    profile = ema_guide(guide)
    if profile is None:
        return _existing(Path(guide), "guide")
    return ema_model_file(guide_snapshots(profile, model, averages), profile.sigma_rel)


def network_files(settings: SampleSettings, model: Path, averages: Path = AVERAGES) -> NetworkFiles:
    """Return the files for these settings; UsageError if one is missing."""
    guide, classifier = _named_networks(settings)
    return NetworkFiles(
        model,
        None if guide is None else guide_file(guide, model, averages),
        None if classifier is None else _existing(Path(classifier), "classifier"),
    )


def existing_files(settings: SampleSettings, model: Path, averages: Path = AVERAGES) -> NetworkFiles:
    """Return the files for these settings that exist: None for another one. No EMA profile is made."""
    guide, classifier = _named_networks(settings)
    profile = None if guide is None else ema_guide(guide)
    paths = [None if name is None else Path(name) for name in (guide, classifier)]
    found = [path if path is not None and path.is_file() else None for path in paths]
    if profile is not None:
        found[0] = existing_ema_guide(profile, model, averages)
    return NetworkFiles(model, *found)


def check_networks(settings: SampleSettings, model: Path, averages: Path = AVERAGES) -> None:
    """Raise UsageError if a guide or a classifier is missing or does not fit.

    Of an EMA profile only the snapshots are verified: it is not made.
    """
    guide, _ = _named_networks(settings)
    profile = None if guide is None else ema_guide(guide)
    if profile is not None:
        guide_snapshots(profile, model, averages)
        settings = settings.model_copy(update={"guide": None})
    network_files(settings, model, averages).read().check()


def load_guides(files: NetworkFiles, device: torch.device) -> Guides:
    """Load what guides the model."""
    return Guides(
        None if files.guide is None else load_model(files.guide, device),
        None if files.classifier is None else load_classifier(files.classifier, device),
    )


def card_files(
    settings: SampleSettings, card: Mapping[str, object], model: Path, own: Path | None = None
) -> NetworkFiles:
    """Return the files for the settings of a card, as `network_files`; UsageError if one is another one.

    `own` is the training's own model if `model` is another average of its weights.
    """
    files = network_files(settings, own or model)._replace(model=model)
    if wrong := files.read().find_difference(card):
        raise UsageError(f"the {wrong} {getattr(files, wrong)} is not the one of the scores")
    return files


class CellFiles:
    """The files of every cell of a grid; the cell's `ema` selects an average of the training of `model`.

    UsageError if a guide or a classifier is missing or does not fit, or if a cell or a guide is an EMA
    profile and `averages` has no snapshots of the training of `model`.
    """

    def __init__(
        self, model: Path, sample: SamplerConfig, cells: Iterable[Cell], averages: Path = AVERAGES
    ) -> None:
        self.model, self._sample = model, sample
        cells = list(cells)
        has_widths = any(cell.ema is not None for cell in cells)
        self._snapshots = matching_snapshots(model, averages) if has_widths else None
        self._files: dict[tuple[str | None, ...], NetworkFiles] = {}  # by guide and classifier
        for settings in (cell_settings(sample, cell) for cell in cells):
            key = _named_networks(settings)
            if key not in self._files:
                self._files[key] = network_files(settings, model, averages)
                self._files[key].read().check()

    def of(self, cell: Cell) -> NetworkFiles:
        """Return the files of the cell's images; EMA profiles are reconstructed if they are missing."""
        files = self._files[_named_networks(cell_settings(self._sample, cell))]
        if cell.ema is None or self._snapshots is None:
            return files
        return files._replace(model=ema_model_file(self._snapshots, cell.ema))

    def average_of(self, cell: Cell) -> Path | None:
        """Return `model` if the cell uses another average of its training, else None."""
        return None if cell.ema is None else self.model


def _named_networks(settings: SampleSettings) -> tuple[str | None, ...]:
    return (
        settings.guide if settings.needs_guide else None,
        settings.classifier if settings.has_classifier else None,
    )


def _existing(path: Path, name: str) -> Path:
    if not path.is_file():
        raise UsageError(f"there is no {name} {path}: give the path of a {name}'s file")
    return path
