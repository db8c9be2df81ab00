"""From a configuration and the prepared data to the description of the model that they give."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import ValidationError

from diffusion.code_digest import CodeSince, ModuleDigests, code_since, module_digests
from diffusion.images.store_meta import Ancestor
from diffusion.layout import STARTS
from diffusion.model.model_config import ModelConfig, NetworkSpec
from diffusion.model.model_file import Artefact, DataCard, ModelDescription
from diffusion.model.network_registry import MODELS
from diffusion.process.process_config import ProcessConfig
from diffusion.process.process_registry import PROCESSES
from diffusion.system.errors import UsageError
from diffusion.system.references import load_reference, reference_module
from diffusion.system.section import explain, fingerprint
from diffusion.train.precision import resolve_precision
from diffusion.train.pretrained import check_pretrained
from diffusion.train.train_config import (
    AugmentConfig,
    OptimisationConfig,
    PretrainedConfig,
    TrainConfig,
    TrainSections,
)

if TYPE_CHECKING:
    from diffusion.train.objective import Objective

# Fields of `train` that say when to look and how to fit the machine: a training goes on when they change. The
# last four change sums by rounding.
OBSERVATION_FIELDS = {
    "log_every",
    "save_every",
    "val_every",
    "val_images",
    "preview_every",
    "eval_every",
}
OBSERVATION_FIELDS |= {"eval_images", "eval_steps", "keep"}
TRACKED_FIELDS = {
    "ema_profiles"
}  # what is tracked from the first step on: another training, of the same model
HARDWARE_FIELDS = {"devices", "shard", "microbatch", "compile"}


class TrainPlan(ModelDescription):
    """What is still to be trained: what its file will say, and the section `train` as a class.

    `OBJECTIVE` is what its network learns, a "module:name" that is loaded when the training begins.
    """

    OBJECTIVE: ClassVar[str]

    train: OptimisationConfig

    @property
    def p_uncond(self) -> float:
        """How often a label is dropped, where the network knows that none is given."""
        return 0.0

    @property
    def augment(self) -> AugmentConfig | None:
        """How its images are transformed; None where they are not."""
        return None

    @property
    def init_from(self) -> PretrainedConfig | None:
        """The model that it begins with; None where the weights are drawn."""
        return None


class DenoiserPlan(TrainPlan):
    """A diffusion model that is still to be trained."""

    OBJECTIVE = "diffusion.train.denoiser_objective:DENOISER"

    train: TrainConfig

    @property
    def p_uncond(self) -> float:
        """How often a label is dropped for guidance (CFG alg. 1)."""
        return self.train.p_uncond

    @property
    def augment(self) -> AugmentConfig | None:
        """How its images are transformed, of which the network is told."""
        return self.train.augment

    @property
    def init_from(self) -> PretrainedConfig | None:
        """The model that it begins with; None where the weights are drawn."""
        return self.train.init_from


def build_objective(plan: TrainPlan) -> "Objective":
    """What the network of this plan learns."""
    objective: Objective = load_reference(plan.OBJECTIVE)
    return objective


def plan_training(
    config: TrainSections, meta: dict[str, Any], device: torch.device, starts: Path = STARTS
) -> DenoiserPlan:
    """What the training will give, from the training split's meta; UsageError where they do not fit.

    StartRefused where the model that it begins with, in the folder `starts`, does not.
    """
    classes = meta["classes"] if config.model.class_cond else []
    if config.model.class_cond and not classes:
        raise UsageError(
            f"model.class_cond: {meta['name']} has no labels, so set it to false (and p_uncond to 0)"
        )
    spec = load_reference(MODELS[config.model.name].spec)
    if config.train.augment and "augmented" not in spec.model_fields:
        raise UsageError(f"train.augment: a {config.model.name} cannot be told of it, so leave it out")
    channels = meta["channels"]
    told = {"augmented": True} if config.train.augment else {}
    try:
        network = NetworkSpec.model_validate(
            {
                **config.model.model_dump(),
                "image_size": meta["image_size"],
                "in_channels": channels,
                "out_channels": 2 * channels if config.process.variance == "learned" else channels,
                "num_classes": len(classes),
                "null_class": config.train.p_uncond > 0,
                **told,
            }
        )
    except ValidationError as error:
        raise UsageError(explain(error, "params.yaml with this data: model", NetworkSpec)) from None
    data = make_data_card(meta, config.data.flip, labelled=config.model.class_cond)
    return DenoiserPlan(
        network=network,
        process=config.process,
        train=config.train,
        data=data,
        step=config.train.steps,
        precision=resolve_precision(config.train.precision, device),
        code=(code_since(0, training_code(DenoiserPlan, config.process, network)),),
        lineage=_lineage(config, network, data, starts),
    )


def _lineage(
    config: TrainSections, network: NetworkSpec, data: DataCard, starts: Path
) -> tuple[Ancestor, ...]:
    """The models that it comes from; none where the weights are drawn."""
    if config.train.init_from is None:
        return ()
    return check_pretrained(config.train.init_from, network, config.process, data.classes, starts).lineage


def make_data_card(meta: dict[str, Any], flip: bool, *, labelled: bool) -> DataCard:
    """What the network will see, from the training split's meta; its classes where they are learned."""
    return DataCard(
        name=meta["name"],
        classes=tuple(meta["classes"]) if labelled else (),
        counts=tuple(meta["counts"]) if labelled else (),
        digest=meta["digest"],
        flip=flip,
    )


def training_code(kind: type[TrainPlan], process: ProcessConfig, model: ModelConfig) -> ModuleDigests:
    """The modules that the numbers of such a training of such a model in this process come from."""
    entries, transfer = (PROCESSES[process.schedule], MODELS[model.name]), MODELS[model.name].transfer
    named = (reference_module(reference) for reference in (kind.OBJECTIVE, transfer))
    return module_digests("diffusion.train.loop", *named, *(entry.module for entry in entries))


def training_fingerprint(plan: TrainPlan) -> str:
    """The name of a training: equal exactly when every step would compute the same, but for rounding.

    So by other code it is another training; by another torch it is this one, which goes on and says so.
    """
    return fingerprint({**_identity(plan), "code": plan.code[-1].digest})


def plan_artefact(plan: TrainPlan, code: Sequence[CodeSince] | None = None) -> Artefact:
    """What the model's file says of itself; `code` made the steps where more than the plan's did."""
    return Artefact.model_validate(artefact_values(plan, code))


def artefact_values(plan: TrainPlan, code: Sequence[CodeSince] | None = None) -> dict[str, Any]:
    """As a file of weights tells it: when to look, how to fit, other averages are not its matter."""
    left_out = OBSERVATION_FIELDS | HARDWARE_FIELDS | TRACKED_FIELDS
    fields = type(plan.train).model_fields.items()
    usual = {name: field.default for name, field in fields if name in left_out}
    train = plan.train.model_copy(update=usual).model_dump(mode="json")
    return {**dict(plan), "train": train, "code": tuple(code or plan.code)}


def training_settings(plan: TrainPlan) -> dict[str, Any]:
    """What the fingerprint is made of but for the code, by the names that params.yaml has."""
    values = _identity(plan)
    del values["step"]  # train.steps again
    return {"model": values.pop("network"), **values}


def _identity(plan: TrainPlan) -> dict[str, Any]:
    left_out = {"code", "weights_sha256", "lineage"}  # the last is of the start that `train` pins
    values = plan.model_dump(mode="json", exclude=left_out)
    del values["network"]["gradient_checkpointing"]  # computes the same again
    values["train"] = {
        key: value
        for key, value in values["train"].items()
        if key not in OBSERVATION_FIELDS | HARDWARE_FIELDS
    }
    return values
