"""The files of the networks that sample a cell: its model, what guides it, and its base."""

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diffusion.layout import CLASSIFIER, HELD_OUT, MODEL
from diffusion.model.classifier import ClassifierArtefact, load_classifier
from diffusion.model.model_file import (
    Artefact,
    LoadedModel,
    ModelDescription,
    load_model,
    read_artefact,
    read_description,
)
from diffusion.protocol.card import NETWORKS
from diffusion.protocol.grid import Cell, cell_settings
from diffusion.protocol.guidance_rules import EmaGuide, ema_guide
from diffusion.protocol.settings import CommonSettings, SampleSettings, base_settings
from diffusion.sample.base_file import base_file, base_path
from diffusion.sample.ema_files import ema_model_file, ema_path, guide_snapshots, matching_snapshots
from diffusion.sample.generate import check_settings
from diffusion.sample.guides import Guides, check_base, check_fit, labelled_model
from diffusion.sample.low_res import RealImages, open_real_images
from diffusion.sample.sampling_steps import check_learned_times
from diffusion.system.errors import DiffctlError, UsageError

CPU = torch.device("cpu")


class NetworkArtefacts(NamedTuple):
    """The metadata of a model, and of further networks and images that the settings use."""

    model: Artefact
    guide: Artefact | None = None
    classifier: ClassifierArtefact | None = None
    base: Artefact | None = None
    real: RealImages | None = None

    @property
    def labelled(self) -> ModelDescription:
        """What the labels are of: the model, or the base or classifier of a model without classes."""
        return labelled_model([one for one in (self.model, self.base, self.classifier) if one is not None])

    @property
    def digests(self) -> dict[str, str]:
        """The digests of all but the model, by their fields in cards."""
        _, *others = self._asdict().items()
        return {f"{name}_sha256": one.model_sha256 for name, one in others if one is not None}

    def find_difference(self, card: Mapping[str, object], kinds: Collection[str] = NETWORKS) -> str | None:
        """Return which network of these kinds is not the one of a card; None if all are.

        The real images that a model enlarges are no part of it.
        """
        for name, one in self._asdict().items():
            if name in kinds and card.get(f"{name}_sha256") != (None if one is None else one.model_sha256):
                return str(name)
        return None

    def check_loaded(self, loaded: Iterable[LoadedModel | RealImages | None]) -> None:
        """Raise DiffctlError if the loaded networks are others, since a file was replaced meanwhile."""
        names = (f"{name}_sha256" for name in self._fields)
        found = [one and one.model_sha256 for one in loaded]
        if wrong := self.find_difference(dict(zip(names, found, strict=True))):
            raise DiffctlError(f"the file of the {wrong} was replaced meanwhile: run the same command again")

    def check(self, settings: SampleSettings) -> None:
        """Raise UsageError if one of them does not fit the model, or the base's settings not the base."""
        for name, one in (("guide", self.guide), ("classifier", self.classifier)):
            if one is not None:
                check_fit(self.model, one, name)
        if self.base is not None:
            check_base(self.model, self.base, self.classifier)
            check_base_settings(settings, self.base)
        if self.real is not None:
            self.real.check(self.model, self.labelled)


class NetworkFiles(NamedTuple):
    """The files of a model, and of further networks and images that the settings use.

    `real` is the folder of the images that a model without a base enlarges.
    """

    model: Path
    guide: Path | None = None
    classifier: Path | None = None
    base: Path | None = None
    real: Path | None = None

    def read(self, model: Artefact | None = None) -> NetworkArtefacts:
        """Read the metadata of all, or of all but the `model`; DiffctlError for a file of another kind."""
        return NetworkArtefacts(
            model or read_artefact(self.model),
            None if self.guide is None else read_artefact(self.guide),
            None if self.classifier is None else read_description(self.classifier, ClassifierArtefact),
            None if self.base is None else read_artefact(self.base),
            None if self.real is None else open_real_images(self.real),
        )

    def load(self, device: torch.device) -> tuple[LoadedModel, Guides]:
        """Load the model, and what it is sampled with."""
        loaded: list[Any] = [
            None if file is None else load_network(kind, file, device)
            for kind, file in self._asdict().items()
        ]
        return loaded[0], Guides(*loaded[1:])

    def networks(self) -> dict[str, Path]:
        """Return the files of networks by name."""
        return {name: file for name, file in self._asdict().items() if file is not None and name in NETWORKS}

    def lacks_guide(self, settings: SampleSettings) -> bool:
        """Return whether the settings use another network that is not among the files."""
        pairs = zip(_named_networks(settings), (self.guide, self.classifier, self.base), strict=True)
        return any(name is not None and path is None for name, path in pairs)


def load_network(kind: str, file: Path, device: torch.device = CPU) -> Any:
    """Load a file of NetworkFiles, by its field: a LoadedModel, or the images that are enlarged."""
    if kind == "real":
        return open_real_images(file)
    return load_classifier(file, device) if kind == "classifier" else load_model(file, device)


def network_files(
    settings: SampleSettings, model: Path, base: Path | None = None, known: Mapping[str, Path] = {}
) -> NetworkFiles:
    """Return the files for these settings; UsageError if one is missing.

    A guide is a file, or an EMA profile of the training of `model`, which is made if it is missing. `base` is
    the file of the settings' base, by default the one that was fetched last. `known` has the files of guides
    and classifiers by their names in the settings; others are files of the project.
    """
    guide, classifier, _ = _named_networks(settings)
    profile = None if guide in known else _guide_profile(settings)
    made = None if profile is None else ema_model_file(guide_snapshots(profile, model), profile.sigma_rel)
    return NetworkFiles(
        model,
        made or known.get(guide or "") or _existing(guide, "guide"),
        known.get(classifier or "") or _existing(classifier, "classifier"),
        None if settings.base is None else base or base_file(settings.base),
        real_images(settings, model),
    )


def real_images(settings: CommonSettings, model: Path) -> Path | None:
    """Return the folder of the held-out images if they are here and the model enlarges some, not a base's."""
    return None if settings.base is not None else held_out_images(model)


def held_out_images(model: Path, folder: Path = HELD_OUT) -> Path | None:
    """Return the folder of the held-out images if the model enlarges some and they are here."""
    return folder if read_artefact(model).network.low_res is not None and folder.is_dir() else None


def named_files(settings: SampleSettings) -> list[str]:
    """Return the files that the settings name, without EMA profiles and models in MLflow."""
    guide, classifier, _ = _named_networks(settings)
    base = None if settings.base is None else settings.base.file
    names = (None if _guide_profile(settings) else guide, classifier, base)
    return [name for name in names if name is not None]


def existing_files(settings: SampleSettings, model: Path) -> NetworkFiles:
    """Return the files for these settings: None for a missing one. No EMA profile is made."""
    paths = [None if name is None else Path(name) for name in _named_networks(settings)[:2]]
    paths.append(None if settings.base is None else base_path(settings.base))
    if profile := _guide_profile(settings):
        paths[0] = None
        with suppress(DiffctlError):
            paths[0] = ema_path(guide_snapshots(profile, model, unverified=True), profile.sigma_rel)
    guide, classifier, base = (path if path is not None and path.is_file() else None for path in paths)
    return NetworkFiles(model, guide, classifier, base, real_images(settings, model))


def check_networks(settings: SampleSettings, model: Path, averages: Path) -> None:
    """Raise UsageError if a guide or a classifier is missing or does not fit.

    Of an EMA profile only the snapshots in `averages` are verified: it is not made.
    """
    if profile := _guide_profile(settings):
        guide_snapshots(profile, model, averages)
        settings = settings.model_copy(update={"guide": None})
    network_files(settings, model).read().check(settings)


def check_future_model(settings: SampleSettings, planned: Artefact | None) -> None:
    """Raise UsageError if a guide or a classifier is missing, or does not fit the planned model, if known.

    An EMA profile is made by the training.
    """
    guide, classifier, _ = _named_networks(settings)
    own = None if _guide_profile(settings) else _existing(guide, "guide")
    files = NetworkFiles(MODEL, own, _existing(classifier, "classifier"))
    if planned is not None:
        files.read(planned).check(settings)


def check_base_settings(settings: CommonSettings, base: Artefact) -> None:
    """Raise UsageError if the base does not allow its settings."""
    if (own := base_settings(settings, base.process.schedule)) is not None:
        try:
            check_settings(base, own)
        except UsageError as error:
            raise UsageError(f"sample.base, {settings.base}: {error}") from None


class Recipe(NamedTuple):
    """What samples images: settings, and the files of a model and further networks with their metadata."""

    settings: SampleSettings
    files: NetworkFiles
    networks: NetworkArtefacts

    @classmethod
    def read(cls, settings: SampleSettings, files: NetworkFiles) -> "Recipe":
        """Read the networks; UsageError if one does not fit the model, or a setting does not."""
        networks = files.read()
        check_settings(networks.model, settings)
        networks.check(settings)
        return cls(settings, files, networks)

    def load(self, device: torch.device) -> tuple[LoadedModel, Guides]:
        """Load the model and what it is sampled with; DiffctlError if a file was replaced meanwhile."""
        model, guides = self.files.load(device)
        self.networks.check_loaded([model, guides.model, guides.classifier, guides.base, guides.real])
        return model, guides


def not_of_the_scores(kind: str, path: Path) -> UsageError:
    """Return the error for a file of another network than scores are of."""
    remedy = "restore that file, or make new scores with `diffctl run`"
    return UsageError(f"the {kind} {path} is not the one of the scores: {remedy}")


class CellFiles:
    """The files of every cell of a grid; the cell's `ema` selects an average of the training of `model`.

    `base` and `known` are as in `network_files`. UsageError if a guide or a classifier is missing or does not
    fit, if learned times are of another model, or if a cell or a guide is an EMA profile and there are no
    snapshots of the training of `model`.
    """

    def __init__(
        self,
        model: Path,
        sample: CommonSettings,
        cells: Iterable[Cell],
        base: Path | None = None,
        known: Mapping[str, Path] = {},
    ) -> None:
        self.model, self._sample = model, sample
        cells = list(cells)
        has_widths = any(cell.ema is not None for cell in cells)
        self._snapshots = matching_snapshots(model) if has_widths else None
        self._files: dict[tuple[str | None, ...], NetworkFiles] = {}  # by guide and classifier
        own = read_artefact(model).model_sha256
        for settings in (cell_settings(sample, cell) for cell in cells):
            check_learned_times(settings, own)
            key = _named_networks(settings)
            if key not in self._files:
                self._files[key] = network_files(settings, model, base, known)
                self._files[key].read().check(settings)

    def of(self, cell: Cell) -> NetworkFiles:
        """Return the files of the cell's images; EMA profiles are reconstructed if they are missing."""
        files = self._files[_named_networks(cell_settings(self._sample, cell))]
        if cell.ema is None or self._snapshots is None:
            return files
        return files._replace(model=ema_model_file(self._snapshots, cell.ema))


def _named_networks(settings: SampleSettings) -> tuple[str | None, ...]:
    return (
        settings.guide if settings.needs_guide else None,
        settings.classifier if settings.has_classifier else None,
        None if settings.base is None else str(settings.base),
    )


def _guide_profile(settings: SampleSettings) -> EmaGuide | None:
    """Return the EMA profile that guides; None without a guide or for a file."""
    return ema_guide(settings.guide) if settings.needs_guide and settings.guide is not None else None


def _existing(path: str | None, name: str) -> Path | None:
    if path is not None and not Path(path).is_file():
        make = "`diffctl stage classifier` makes it, or " if path == str(CLASSIFIER) else ""
        raise UsageError(f"there is no {name} {path}: {make}give the path of a {name}'s file")
    return None if path is None else Path(path)
