"""From a configuration and prepared data to a training plan: the description of the resulting model."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import ValidationError

from diffusion.code_digest import CodeSince, ModuleDigests, code_since
from diffusion.entry_code import Chosen, code_of
from diffusion.model.model_file import Artefact, DataCard, ModelDescription
from diffusion.model.network_registry import MODELS, ModelConfig, NetworkSpec
from diffusion.model.precision import Precision
from diffusion.process.loss_registry import LOSS_WEIGHTS, OBJECTIVES, TIME_DISTRIBUTIONS
from diffusion.process.parameterization import PREDICTIONS
from diffusion.process.process_registry import PROCESSES, ProcessConfig
from diffusion.system.errors import UsageError
from diffusion.system.registry import load_reference, reference_module
from diffusion.system.section import explain, fingerprint
from diffusion.train.lr_schedule import LR_SCHEDULES
from diffusion.train.objective import Objective
from diffusion.train.pretrained import check_pretrained
from diffusion.train.train_config import (
    AugmentConfig,
    ClassifierSections,
    OptimisationConfig,
    PretrainedConfig,
    TrainConfig,
    TrainSections,
)

IN_CODE_DIGEST = False  # diffusion/code_digest.py

# Fields of `train` that are not part of the fingerprint: when to observe, and how to fit the machine. The
# latter change sums by rounding.
OBSERVATION_FIELDS = {"log_every", "save_every", "val_every", "val_images", "preview_every"}
OBSERVATION_FIELDS |= {"eval_every", "eval_images", "eval_steps", "keep"}
HARDWARE_FIELDS = {"devices", "shard", "microbatch", "compile"}
TRACKED_FIELDS = {"ema_profiles"}  # part of the fingerprint, but of no effect on the model


class TrainPlan(ModelDescription):
    """The resulting model's description with `train` as an object; `OBJECTIVE` refers to its Objective."""

    OBJECTIVE: ClassVar[str]

    train: OptimisationConfig

    @property
    def p_uncond(self) -> float:
        """The probability of a dropped label, for guidance (CFG alg. 1)."""
        return getattr(self.train, "p_uncond", 0.0)

    @property
    def augment(self) -> AugmentConfig | None:
        """The augmentation of the images, with which the network is conditioned."""
        return getattr(self.train, "augment", None)

    @property
    def init_from(self) -> PretrainedConfig | None:
        """The pretrained model, if any."""
        return getattr(self.train, "init_from", None)


Plan = TypeVar("Plan", bound=TrainPlan)


class DenoiserPlan(TrainPlan):
    """The plan of a diffusion model."""

    OBJECTIVE = "diffusion.train.denoiser_objective:DENOISER"

    train: TrainConfig


def build_objective(plan: TrainPlan) -> Objective:
    """Return the plan's objective."""
    objective: Objective = load_reference(plan.OBJECTIVE)
    return objective


def plan_training(config: TrainSections, meta: dict[str, Any], device: torch.device) -> DenoiserPlan:
    """Plan the training on a split with this `meta`; UsageError, or PretrainedRefused, if they do not fit."""
    classes = meta["classes"] if config.model.class_cond else []
    if config.model.class_cond and not classes:
        raise UsageError(f"model.class_cond: {meta['name']} has no labels: set it to false, p_uncond to 0")
    spec = load_reference(MODELS[config.model.name].spec)
    if config.train.augment and "augmented" not in spec.model_fields:
        raise UsageError(f"train.augment: a {config.model.name} cannot be conditioned with it: remove it")
    channels = meta["channels"]
    try:
        network = NetworkSpec.model_validate(
            {
                **config.model.model_dump(),
                "image_size": meta["image_size"],
                "in_channels": channels,
                "out_channels": 2 * channels if config.process.learned_variance else channels,
                "num_classes": len(classes),
                "null_class": config.train.p_uncond > 0,
                **({"augmented": True} if config.train.augment else {}),
            }
        )
    except ValidationError as error:
        raise UsageError(explain(error, "params.yaml with this data: model", NetworkSpec)) from None
    plan = make_plan(DenoiserPlan, config, network, config.train, meta, device)
    if config.train.init_from is None:
        return plan
    start = check_pretrained(config.train.init_from, plan)
    return plan.model_copy(update={"lineage": start.lineage})


def make_plan(
    kind: type[Plan],
    config: TrainSections | ClassifierSections,
    network: NetworkSpec,
    train: OptimisationConfig,
    meta: dict[str, Any],
    device: torch.device,
) -> Plan:
    """Return the plan of a network on a split with this `meta`; labels are unused without `num_classes`."""
    shape = (meta["channels"], meta["image_size"], meta["image_size"])
    code = training_code(kind, config.process, network, train.lr.schedule)
    return kind(
        network=network,
        process=config.process.resolve(shape, meta.get("pixel_std")),
        train=train,
        data=DataCard(
            name=meta["name"],
            classes=tuple(meta["classes"]) if network.num_classes else (),
            counts=tuple(meta["counts"]) if network.num_classes else (),
            digest=meta["digest"],
            flip=config.data.flip,
        ),
        step=train.steps,
        precision=resolve_precision(train.precision, device),
        code=(code_since(0, code),),
    )


def resolve_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """Return the precision; auto is bf16 on CPUs with AVX-512 BF16 and NVIDIA GPUs from Ampere on."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if device.type == "mps":
        return "fp32"  # not all have bf16, and none was measured
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def training_code(
    kind: type[TrainPlan], process: ProcessConfig, model: ModelConfig, schedule: str = "constant"
) -> ModuleDigests:
    """Return the digests of what computes such a training; `schedule` is that of the rate."""
    entries: list[Chosen] = [
        (MODELS, model.name),
        (PROCESSES, process.schedule),
        (PREDICTIONS, process.prediction),
    ]
    if schedule in LR_SCHEDULES.plugins:  # a training by one schedule of the library resumes another's
        entries.append((LR_SCHEDULES, schedule))
    if issubclass(kind, DenoiserPlan):  # a classifier has a loss and times of its own
        entries.append((TIME_DISTRIBUTIONS, process.t_sampler))
        entries.append((LOSS_WEIGHTS, process.weighting))
        entries.append((OBJECTIVES, process.loss))
    roots = ["diffusion.train.loop", reference_module(kind.OBJECTIVE), LR_SCHEDULES.module(schedule)]
    return code_of(roots, entries)


def training_fingerprint(plan: TrainPlan) -> str:
    """Return the identity of a training: equal if every step would compute the same, except for rounding.

    Other code makes another training; another version of torch does not, and is reported.
    """
    return fingerprint({**_identity(plan), "code": plan.code[-1].digest})


def plan_artefact(plan: TrainPlan, code: Sequence[CodeSince] = ()) -> Artefact:
    """Return the model file's metadata, with defaults where `train` does not affect it; `code` made it."""
    neutral = OBSERVATION_FIELDS | HARDWARE_FIELDS | TRACKED_FIELDS
    fields = type(plan.train).model_fields.items()
    defaults = {name: field.default for name, field in fields if name in neutral}
    train = plan.train.model_copy(update=defaults).model_dump(mode="json")
    values = {**dict(plan), "train": train, "code": tuple(code or plan.code)}
    return build_objective(plan).artefact.model_validate(values)


def training_settings(plan: TrainPlan) -> dict[str, Any]:
    """Return what the fingerprint is computed from, except the code, under the names of params.yaml."""
    values = _identity(plan)
    del values["step"]  # is train.steps
    return {"model": values.pop("network"), **values}


def _identity(plan: TrainPlan) -> dict[str, Any]:
    left_out = {"code", "weights_sha256", "lineage"}  # lineage follows from train.init_from
    values = plan.model_dump(mode="json", exclude=left_out)
    values["network"].pop("gradient_checkpointing", None)  # recomputes the same values
    neutral = OBSERVATION_FIELDS | HARDWARE_FIELDS
    values["train"] = {key: value for key, value in values["train"].items() if key not in neutral}
    return values
