"""Pretrained initial weights: a model file in the folder STARTS, pinned by the SHA-256 of all of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion.images.store_meta import MAX_ANCESTORS, Ancestor
from diffusion.layout import STARTS
from diffusion.model.model_file import (
    Artefact,
    ModelDescription,
    load_model,
    read_artefact,
    read_verified_artefact,
)
from diffusion.model.network_registry import build_network
from diffusion.model.weight_transfer import Incompatible, Transferred, TransferSource, Weights, transfer
from diffusion.model.weights_header import Unfilled
from diffusion.process.parameterization import PREDICTIONS
from diffusion.process.process_registry import DiscreteConfig, ProcessConfig
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import copy_file
from diffusion.train.train_config import PretrainedConfig

HOW_TO_GET = "`diffctl use --init-from` fetches it, `dvc pull` fetches one that was pushed"
IMPORTED = "file:"  # begins the digest of unknown data, that of an imported model


class PretrainedRefused(UsageError):
    """The pretrained model is missing, has another digest, or does not fit the network."""


class PretrainedMissing(PretrainedRefused):
    """The pretrained model is not here, but DVC tracks it and can pull it."""


@dataclass(frozen=True)
class Pretrained:
    """A pinned pretrained model and its section of the configuration."""

    path: Path
    config: PretrainedConfig
    artefact: Artefact

    @property
    def lineage(self) -> tuple[Ancestor, ...]:
        """The model and its ancestors, the nearest first."""
        return (self.artefact.as_ancestor(), *self.artefact.lineage)[:MAX_ANCESTORS]

    def class_names(self, ours: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names to match with `ours`; none if they are mere numbers and ours are others.

        Other data may count the same classes in another order: ImageNet's is that of the synsets in OpenAI's
        models, and that of the development kit in the downsampled set.
        """
        data = self.artefact.data
        are_numbers = data.classes == tuple(str(label) for label in range(len(data.classes)))
        if data.digest.startswith(IMPORTED) and are_numbers and data.classes != ours:
            return ()
        return data.classes

    def transferred(self, weights: Weights, plan: ModelDescription, initial: Weights) -> Transferred:
        """Transfer `weights`, which may be meta tensors, over `initial` ones; PretrainedRefused if unfit."""
        ours = plan.data.classes
        source = TransferSource(weights, self.artefact.network, self.class_names(ours))
        try:
            return transfer(source, plan.network, ours, initial)
        except Incompatible as error:
            raise PretrainedRefused(f"train.init_from: {error}") from None

    def is_frozen(self, name: str) -> bool:
        """Whether the weight is in a frozen part."""
        return any(f"{name}.".startswith(f"{part}.") for part in self.config.freeze)


def pretrained_path(sha256: str) -> Path:
    """Return the path of the model with this SHA-256."""
    return STARTS / f"{sha256[:16]}.safetensors"


def dvc_file(path: Path) -> Path:
    """Return the path of the file with which DVC tracks `path`."""
    return path.with_name(f"{path.name}.dvc")


def store_pretrained(model: Path) -> tuple[Path, Artefact]:
    """Verify a model file and copy it into STARTS; return path and metadata. DiffctlError if damaged."""
    artefact = read_verified_artefact(model)
    path = pretrained_path(artefact.model_sha256)
    STARTS.mkdir(parents=True, exist_ok=True)
    copy_file(model, path)
    return path, artefact


def find_pretrained(config: PretrainedConfig) -> Pretrained:
    """Return the pinned model, weights unread; PretrainedRefused, or PretrainedMissing if DVC has it."""
    path = pretrained_path(config.sha256)
    if not path.exists():
        kind = PretrainedMissing if dvc_file(path).exists() else PretrainedRefused
        raise kind(f"train.init_from: {path}, with which the training starts, is not here: {HOW_TO_GET}")
    try:
        artefact = read_artefact(path)
    except DiffctlError as error:
        raise PretrainedRefused(f"train.init_from: {error}") from None
    if artefact.model_sha256 != config.sha256:
        found = artefact.model_sha256[:16]
        raise PretrainedRefused(f"train.init_from: {path} is another model ({found}…): {HOW_TO_GET}")
    return Pretrained(path, config, artefact)


def check_pretrained(config: PretrainedConfig, plan: ModelDescription) -> Pretrained:
    """Return the pinned model after a check of its metadata; PretrainedRefused names what does not fit."""
    start = find_pretrained(config)
    _check_process(plan.process, start.artefact.process)
    with torch.device("meta"), Unfilled():
        weights = build_network(start.artefact.network).state_dict()
        network = build_network(plan.network)
        start.transferred(weights, plan, network.state_dict())
    names = [name for name, _ in network.named_parameters()]
    for part in config.freeze:
        if not any(f"{name}.".startswith(f"{part}.") for name in names):
            parts = ", ".join(sorted({name.partition(".")[0] for name in names}))
            raise PretrainedRefused(f"train.init_from.freeze: there is no {part!r}; the parts are {parts}")
    if all(map(start.is_frozen, names)):
        raise PretrainedRefused("train.init_from.freeze leaves nothing to train")
    return start


def _check_process(process: ProcessConfig, theirs: ProcessConfig) -> None:
    """Raise PretrainedRefused for another prediction, or times or images on another scale."""
    for field, wanted in needed_process(process, theirs).items():
        if (ours := getattr(process, field)) != wanted:
            why = f"process.{field} is {ours}, the model's is {wanted}"
            raise PretrainedRefused(f"train.init_from: {why}: set it in the section process")


def needed_process(process: ProcessConfig, theirs: ProcessConfig) -> dict[str, Any]:
    """Return the fields that a process must share with that of a pretrained model, with its values."""
    fields = ["prediction"]
    both_discrete = isinstance(process, DiscreteConfig) and isinstance(theirs, DiscreteConfig)
    fields.append("timesteps" if both_discrete else "schedule")  # the network embeds its times
    if PREDICTIONS[theirs.prediction].uses_sigma_data:
        fields.append("sigma_data")  # else it is measured, and changes with the images
    return {field: getattr(theirs, field) for field in fields}


def init_network(
    network: nn.Module, config: PretrainedConfig | None, plan: ModelDescription
) -> list[dict[str, Any]]:
    """Load the pretrained weights, if any, into a network with random ones; return the optimiser's groups.

    A group's `scale` is a factor of the learning rate, 1 without a pretrained model. A frozen weight takes no
    gradient and is in no group.
    """
    if config is None:
        return [{"params": list(network.parameters()), "scale": 1.0}]
    start = find_pretrained(config)
    weights = load_model(start.path).network.state_dict()
    transferred = start.transferred(weights, plan, network.state_dict())
    network.load_state_dict(transferred.weights)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not start.is_frozen(name))
        if parameter.requires_grad:
            groups.setdefault(1.0 if name in transferred.new else config.lr_scale, []).append(parameter)
    return [{"params": parameters, "scale": scale} for scale, parameters in groups.items()]
