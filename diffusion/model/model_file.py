"""The self-describing model artefact: one safetensors file with EMA weights and all that they need.

The configuration is stored as canonical JSON under one metadata key (safetensors keeps several keys in no
fixed order). It is checksummed, and has the weights' digest: a change anywhere in the file is refused. On one
CPU the file is a function of config, data and code, byte for byte.
"""

import hashlib
import operator
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

import torch
from pydantic import Field, PrivateAttr, SerializeAsAny, ValidationError, model_validator
from safetensors.torch import save

from diffusion.code_digest import CodeSince, changed_modules, code_of
from diffusion.images.store_meta import MAX_ANCESTORS, Ancestor
from diffusion.model.network_registry import MODELS, NetworkSpec, build_network
from diffusion.model.precision import Precision, freeze
from diffusion.model.weights_header import build_matching, open_weights
from diffusion.process.parameterization import PREDICTIONS
from diffusion.process.process_registry import PROCESSES, ProcessConfig
from diffusion.system.checksums import Corrupted, JsonObject, add_checksum, parse_json, strip_checksum
from diffusion.system.errors import DiffctlError, DiffctlWarning, printable
from diffusion.system.files import Write, write_atomic
from diffusion.system.memory import keep_freed_memory
from diffusion.system.registry import ARCHIVE, UnknownName
from diffusion.system.section import Section, SigmaRel, brief, canonical_json, explain, fingerprint

IN_CODE_DIGEST = False  # diffusion/code_digest.py

METADATA_KEY = "diffctl"

Text = Annotated[str, Field(max_length=1000)]
Count = Annotated[int, Field(ge=0, le=10**12)]

Description = TypeVar("Description", bound="Artefact")


class DataCard(Section):
    """The training data: the set's name, its classes and their counts in label order, the split's digest."""

    name: Text
    classes: tuple[Text, ...] = ()
    counts: tuple[Count, ...] = ()
    digest: Text
    flip: bool = False

    @model_validator(mode="after")
    def _a_count_a_class(self) -> Self:
        if self.counts and (len(self.counts) != len(self.classes) or not any(self.counts)):
            raise ValueError(f"counts {brief(self.counts)} are not those of {len(self.classes)} classes")
        return self


class ModelDescription(Section):
    """Everything that determines the images of a model, apart from its weights.

    `format` rises when the same config and data would no longer give the same weights.
    `code` lists the code that trained the weights, each with its first step; it is empty for imported ones.
    `weights_sha256` is the digest of the tensors, which is checked when they are loaded.
    `lineage` lists the models that it was trained from, the nearest first; a file without any omits it.
    `ema_sigma_rel` is the σ_rel of an EMA profile; other files have none.
    """

    format: Literal[3] = 3
    network: SerializeAsAny[NetworkSpec]
    process: SerializeAsAny[ProcessConfig]
    data: DataCard
    step: Count
    precision: Precision
    code: tuple[CodeSince, ...] = ()
    weights_sha256: Text = ""
    lineage: tuple[Ancestor, ...] = Field(default=(), max_length=MAX_ANCESTORS, exclude_if=operator.not_)
    ema_sigma_rel: SigmaRel | None = Field(default=None, exclude_if=operator.not_)
    _stored: JsonObject | None = PrivateAttr(default=None)  # a file's values, if they differ from a dump

    @model_validator(mode="after")
    def _a_name_a_class(self) -> Self:
        if len(self.data.classes) != self.network.num_classes:
            names, classes = len(self.data.classes), self.network.num_classes
            raise ValueError(f"data.classes names {names} classes, and the network has {classes}")
        return self

    @classmethod
    def from_stored(cls, values: JsonObject) -> Self:
        """Parse a file's metadata, perhaps of an earlier version; its digests stay those of its values."""
        parsed = cls.model_validate(values)
        if parsed.model_dump(mode="json") != values:
            parsed._stored = values
        return parsed

    def stored(self) -> JsonObject:
        """Return the description as its file stores it, or would store it."""
        return self.model_dump(mode="json") if self._stored is None else self._stored

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy the description; one with other values is no longer that of the file."""
        copy = super().model_copy(update=update, deep=deep)
        if update:
            copy._stored = None
        return copy

    def as_ancestor(self) -> Ancestor:
        """Return the entry of this model in the lineage of models trained from it."""
        return Ancestor(
            sha256=self.model_sha256, data=self.data.name, digest=self.data.digest, step=self.step
        )

    @property
    def model_sha256(self) -> str:
        """The model's identity in cards and registry: a hash of weights and metadata without the code."""
        described = {key: value for key, value in self.stored().items() if key != "code"}
        return hashlib.sha256(canonical_json(described).encode()).hexdigest()


class Artefact(ModelDescription):
    """The metadata of a model file. `train` is that section as plain values; sampling does not need it."""

    train: Mapping[str, Any]

    @property
    def training(self) -> dict[str, Any] | None:
        """The values of a `Training`: equal settings train alike but for the seed; None from elsewhere."""
        if not self.code or "seed" not in self.train:
            return None
        values = {key: value for key, value in self.stored().items() if key != "weights_sha256"}
        values["code"] = [{key: since[key] for key in since if key != "diffctl"} for since in values["code"]]
        values["train"] = dict(values["train"])
        seed = values["train"].pop("seed")
        return {"setting": fingerprint(values), "seed": seed}

    @model_validator(mode="after")
    def _channels_fit(self) -> Self:
        self.check_channels()
        return self

    def check_channels(self) -> None:
        """Raise ValueError unless the network has C output channels, or 2C for a learned variance."""
        wanted = self.network.in_channels * (1 + self.process.learned_variance)
        given = self.network.out_channels
        if given != wanted:
            raise ValueError(f"network.out_channels must be {wanted} (got {given})")


class LoadedModel(NamedTuple):
    """A network in eval mode and its metadata."""

    network: torch.nn.Module
    artefact: Artefact

    @property
    def model_sha256(self) -> str:
        """The model's identity."""
        return self.artefact.model_sha256


def save_artefact(
    path: Path, weights: dict[str, torch.Tensor], artefact: Description, write: Write = write_atomic
) -> Description:
    """Write the artefact by `write`, equal bytes for equal content; return it with its weights' digest."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    artefact = artefact.model_copy(update={"weights_sha256": tensors_sha256(tensors)})
    metadata = add_checksum(artefact.model_dump(mode="json"))
    data = save(tensors, metadata={METADATA_KEY: canonical_json(metadata)})
    write(path, lambda file: file.write(data))
    return artefact


def tensors_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 in hex over names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_artefact(path: Path) -> Artefact:
    """Read the metadata of a model file, without its weights; DiffctlError if it has none."""
    return read_description(path, Artefact)


def read_description(path: Path, kind: type[Description]) -> Description:
    """Read the metadata of a file of weights as `kind`; DiffctlError if it has none or another kind."""
    with open_weights(path) as file:
        metadata = file.metadata() or {}
    if METADATA_KEY not in metadata:
        raise DiffctlError(f"{path} does not describe itself: it was not written by diffctl")
    try:
        values = strip_checksum(parse_json(metadata[METADATA_KEY], JsonObject, f"the metadata of {path}"))
    except Corrupted as error:
        raise DiffctlError(f"the metadata of {path} is damaged or edited ({error})") from None
    if ("kind" in values) != ("kind" in kind.model_fields):
        found = values.get("kind", "diffusion model")
        raise DiffctlError(f"{path} holds a {found}, which is not the kind needed here")
    try:
        return kind.from_stored(values)
    except ValidationError as error:
        entries = [one for one in error.errors() if isinstance(one.get("ctx", {}).get("error"), UnknownName)]
        if entries:  # of registries, such as network.name tiny
            missing = ", ".join(
                f"{'.'.join(map(str, one['loc']))} {printable(one['input']):.100}" for one in entries
            )
            message = f"{path} needs a plugin that is not here ({missing})"
            raise DiffctlError(f"{message}: copy its code and its entry into plugins/") from None
        raise DiffctlError(explain(error, f"{path} is of another format", kind)) from None


def load_model(path: Path | str, device: torch.device | str = "cpu") -> LoadedModel:
    """Build the network that the file describes and load its weights; DiffctlError when they do not fit."""
    path = Path(path)
    return load_network(path, read_artefact(path), build_network, device)


def load_network(
    path: Path, artefact: Artefact, build: Callable[[Any], torch.nn.Module], device: torch.device | str
) -> LoadedModel:
    """Build the network of a file with this metadata and load its weights, in eval mode on `device`.

    DiffctlError if they are damaged or do not fit.
    """
    warn_of_edited_plugins(path, artefact)
    network = build_matching(build, artefact.network, path)
    network.load_state_dict(read_weights(path, artefact))
    keep_freed_memory(torch.device(device).type)
    return LoadedModel(freeze(network.to(device)), artefact)


def warn_of_edited_plugins(path: Path, artefact: Artefact) -> None:
    """Warn if the plugins that compute the model's outputs are not those that it was trained with."""
    trained = artefact.code[-1].plugins if artefact.code else {}
    if not trained or ARCHIVE.is_file():  # a registered model runs its own plugins
        return
    process, name = artefact.process, artefact.network.name
    now = code_of([], [(MODELS, name), (PROCESSES, process.schedule), (PREDICTIONS, process.prediction)])
    common = trained.keys() & now.keys()
    if changed := changed_modules(*({key: code[key] for key in common} for code in (trained, now))):
        message = f"{', '.join(changed)} changed after {path} was trained: its images may differ from then"
        warnings.warn(message, DiffctlWarning, stacklevel=1)  # once per message


def read_verified_artefact(path: Path) -> Artefact:
    """Read the metadata of a model file; DiffctlError also if the weights have another digest."""
    artefact = read_artefact(path)
    read_weights(path, artefact)
    return artefact


def read_weights(path: Path, artefact: Artefact) -> dict[str, torch.Tensor]:
    """Read the weights of a model file with this metadata; DiffctlError if their digest differs."""
    with open_weights(path) as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if tensors_sha256(weights) != artefact.weights_sha256:
        raise DiffctlError(f"{path} is damaged: its weights are not those that it was written with")
    return weights
