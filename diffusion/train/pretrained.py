"""Trainings that begin with the weights of a model that is there already.

The file lies in the folder `start`, under the SHA-256 that params.yaml pins it by, which is what a card knows
a model by: its weights and all that it says of itself. So one from another start is another training.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion.images.store_meta import MAX_ANCESTORS, Ancestor
from diffusion.layout import STARTS
from diffusion.model.model_config import NetworkSpec
from diffusion.model.model_file import Artefact, load_model, read_artefact, read_verified_artefact
from diffusion.model.network_registry import build_network
from diffusion.model.weight_transfer import Incompatible, Source, Transferred, Weights, transfer
from diffusion.process.process_config import ProcessConfig
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import copy_file
from diffusion.train.train_config import PretrainedConfig

GET = "`diffctl use --init-from` fetches it, `dvc pull` brings one that was pushed"


class PretrainedRefused(UsageError):
    """The start is missing, is another model, or cannot become what is to be trained."""


class PretrainedMissing(PretrainedRefused):
    """The start is not here, but DVC tracks it: the stage that needs it lets DVC bring it."""


@dataclass(frozen=True)
class Pretrained:
    """The model that a training starts from, and what is wanted of it."""

    path: Path
    config: PretrainedConfig
    artefact: Artefact

    @property
    def lineage(self) -> tuple[Ancestor, ...]:
        """It and what it came from, the nearest first."""
        return (self.artefact.as_ancestor(), *self.artefact.lineage)[:MAX_ANCESTORS]

    def taken(
        self, weights: Weights, spec: NetworkSpec, classes: tuple[str, ...], drawn: Weights
    ) -> Transferred:
        """What a network begins with; `weights` are the file's, with or without values. StartRefused."""
        start = Source(weights, self.artefact.network, self.artefact.data.classes)
        try:
            return transfer(start, spec, classes, drawn)
        except Incompatible as error:
            raise PretrainedRefused(f"train.init_from: {error}") from None

    def is_frozen(self, name: str) -> bool:
        """Whether a weight stays as it is."""
        return any(name == part or name.startswith(f"{part}.") for part in self.config.freeze)


def pretrained_path(sha256: str, starts: Path = STARTS) -> Path:
    """Where the model of this SHA-256 lies."""
    return starts / f"{sha256[:16]}.safetensors"


def dvc_file(path: Path) -> Path:
    """The file by which DVC tracks the model at `path`, and a clone knows it."""
    return path.with_name(f"{path.name}.dvc")


def store_pretrained(model: Path, starts: Path = STARTS) -> tuple[Path, Artefact]:
    """Put a model file among the starts, whole and verified; its place there, and what it says of itself.

    DiffctlError where it is no diffusion model, damaged, or of another format.
    """
    artefact = read_verified_artefact(model)
    path = pretrained_path(artefact.model_sha256, starts)
    starts.mkdir(parents=True, exist_ok=True)
    copy_file(model, path)
    return path, artefact


def find_pretrained(config: PretrainedConfig, starts: Path = STARTS) -> Pretrained:
    """The start that is pinned, its weights unread.

    StartRefused where it is another model or not here, StartAway where DVC can bring it.
    """
    path = pretrained_path(config.sha256, starts)
    if not path.exists():
        kind = PretrainedMissing if dvc_file(path).exists() else PretrainedRefused
        raise kind(f"train.init_from: {path}, which the training begins with, is not here: {GET}")
    try:
        artefact = read_artefact(path)
    except DiffctlError as error:
        raise PretrainedRefused(f"train.init_from: {error}") from None
    if artefact.model_sha256 != config.sha256:
        raise PretrainedRefused(
            f"train.init_from: {path} is another model ({artefact.model_sha256[:16]}…) than is pinned: {GET}"
        )
    return Pretrained(path, config, artefact)


def check_pretrained(
    config: PretrainedConfig,
    spec: NetworkSpec,
    process: ProcessConfig,
    classes: tuple[str, ...],
    starts: Path = STARTS,
) -> Pretrained:
    """The start, found to fit the network, its classes and its process, before anything is computed.

    StartRefused says by the first field or weight why it does not.
    """
    start = find_pretrained(config, starts)
    said = start.artefact.process.prediction
    if said != process.prediction:
        raise PretrainedRefused(
            f"train.init_from: process.prediction is {process.prediction}, and the start predicts {said}"
        )
    with torch.device("meta"):  # names and shapes alone
        has = build_network(start.artefact.network).state_dict()
        network = build_network(spec)
        start.taken(has, spec, classes, network.state_dict())
    _refuse_idle_parts(start, [name for name, _ in network.named_parameters()])
    return start


def init_network(
    network: nn.Module,
    config: PretrainedConfig | None,
    spec: NetworkSpec,
    classes: tuple[str, ...],
    starts: Path = STARTS,
) -> list[dict[str, Any]]:
    """Give the network, as it was drawn, the start's weights, in place; returns the optimiser's groups.

    A group's `scale` is of the rate: 1 without a start. A frozen weight takes no gradient and is in no group.
    """
    if config is None:
        return [{"params": list(network.parameters()), "scale": 1.0}]
    start = find_pretrained(config, starts)
    trained = load_model(start.path).network.state_dict()
    taken = start.taken(trained, spec, classes, network.state_dict())
    network.load_state_dict(taken.weights)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not start.is_frozen(name))
        if parameter.requires_grad:
            groups.setdefault(1.0 if name in taken.new else config.lr_scale, []).append(parameter)
    return [{"params": parameters, "scale": scale} for scale, parameters in groups.items()]


def _refuse_idle_parts(start: Pretrained, names: list[str]) -> None:
    """StartRefused for a frozen part that the network does not have, and where nothing is left to learn."""
    for part in start.config.freeze:
        if not any(name == part or name.startswith(f"{part}.") for name in names):
            parts = ", ".join(sorted({name.partition(".")[0] for name in names}))
            raise PretrainedRefused(
                f"train.init_from.freeze: the network has no {part!r}; its parts are {parts}"
            )
    if all(map(start.is_frozen, names)):
        raise PretrainedRefused("train.init_from.freeze leaves nothing to train")
