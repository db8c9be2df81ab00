"""The plan of a training: made of a configuration and prepared data, it describes the resulting model.

Also the training's identity, and whether the validation losses of two plans compare.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import ValidationError

from diffusion.code_digest import Chosen, CodeSince, ModuleDigests, code_of, code_since
from diffusion.images.image_size import height_and_width
from diffusion.model.model_file import Artefact, DataCard, ModelDescription
from diffusion.model.network_registry import MODELS, ModelConfig, NetworkSpec
from diffusion.model.precision import Precision
from diffusion.process.loss_registry import LOSS_WEIGHTS, OBJECTIVES, TIME_DISTRIBUTIONS
from diffusion.process.parameterization import PREDICTIONS
from diffusion.process.process_registry import PROCESSES, ProcessConfig
from diffusion.system.errors import UsageError
from diffusion.system.params import changed_fields
from diffusion.system.registry import load_reference, reference_module
from diffusion.system.section import explain, fingerprint
from diffusion.train.optimizers.lr_schedule import LR_SCHEDULES
from diffusion.train.optimizers.optimizer_registry import OPTIMIZERS
from diffusion.train.pretrained import check_pretrained
from diffusion.train.task import Task
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
# Fields of `process` that do not change a validation loss, whose times are fixed.
DRAWN_TIMES = {"t_sampler", "t_sampler_options", "stratified"}
# Fields of `model` for the conditions of a network, which change its validation loss.
CONDITIONS = ("class_cond", "low_res", "cond_noise")


class TrainPlan(ModelDescription):
    """The resulting model's description with `train` as an object; `TASK` refers to its Task."""

    TASK: ClassVar[str]

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

    TASK = "diffusion.train.task:DENOISER"

    train: TrainConfig


def build_task(plan: TrainPlan) -> Task:
    """Return the plan's task."""
    task: Task = load_reference(plan.TASK)
    return task


def training_code(
    kind: type[TrainPlan],
    process: ProcessConfig,
    model: ModelConfig,
    schedule: str = "constant",
    optimizer: str = "adamw",
) -> ModuleDigests:
    """Return the digests of what computes such a training; `schedule` is that of the rate."""
    entries: list[Chosen] = [
        (MODELS, model.name),
        (PROCESSES, process.schedule),
        (PREDICTIONS, process.prediction),
        (OPTIMIZERS, optimizer),
    ]
    if schedule in LR_SCHEDULES.plugins:  # a training by one schedule of the library resumes another's
        entries.append((LR_SCHEDULES, schedule))
    if issubclass(kind, DenoiserPlan):  # a classifier has a loss and times of its own
        entries.append((TIME_DISTRIBUTIONS, process.t_sampler))
        entries.append((LOSS_WEIGHTS, process.weighting))
        entries.append((OBJECTIVES, process.loss))
    roots = ["diffusion.train.loop", "diffusion.train.initial_state", reference_module(kind.TASK)]
    return code_of([*roots, LR_SCHEDULES.module(schedule)], entries)


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
    return build_task(plan).artefact.model_validate(values)


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
    code = training_code(kind, config.process, network, train.lr.schedule, train.optimizer)
    return kind(
        network=network,
        process=resolve_process(config.process, meta),
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


def changed_loss(plan: DenoiserPlan, other: DenoiserPlan) -> str | None:
    """Return the first changed field after which validation losses cannot be compared; None without one.

    A loss of the whole batch depends on the size of the batch, one with stages on the number of steps.
    """
    of_train = {"val_images"}
    if OBJECTIVES[plan.process.loss].whole_batch:
        of_train.add("batch_size")
    if plan.process.loss_options.get("stage_steps"):
        of_train.add("steps")
    values = [
        {
            "process": one.process.model_dump(exclude=DRAWN_TIMES),
            "model": {name: getattr(one.network, name) for name in CONDITIONS},
            "train": one.train.model_dump(include=of_train),
        }
        for one in (plan, other)
    ]
    return next(iter(changed_fields(*values)), None)


def resolve_process(process: ProcessConfig, meta: dict[str, Any]) -> ProcessConfig:
    """Return the section with all that depends on a split with this `meta`; UsageError as `resolve`."""
    shape = (meta["channels"], *height_and_width(meta["image_size"]))
    return process.resolve(shape, meta.get("pixel_std"))


def resolve_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """Return the precision; auto is bf16 on CPUs with AVX-512 BF16 and NVIDIA GPUs from Ampere on."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if device.type == "mps":
        return "fp32"  # not all have bf16, and none was measured
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
