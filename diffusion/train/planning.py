"""From a configuration and prepared data to a training plan, and whether the losses of two plans compare."""

from typing import Any, Literal, TypeVar

import torch
from pydantic import ValidationError

from diffusion.code_digest import code_since
from diffusion.images.image_size import height_and_width
from diffusion.model.model_file import DataCard
from diffusion.model.network_registry import MODELS, NetworkSpec
from diffusion.model.precision import Precision
from diffusion.process.loss_registry import OBJECTIVES
from diffusion.process.process_registry import ProcessConfig
from diffusion.system.errors import UsageError
from diffusion.system.fields import changed_fields
from diffusion.system.registry import load_reference
from diffusion.system.section import explain
from diffusion.train.classifier_config import ClassifierSections
from diffusion.train.plan import DenoiserPlan, TrainPlan, training_code
from diffusion.train.pretrained import check_pretrained
from diffusion.train.train_config import OptimisationConfig, TrainSections

IN_CODE_DIGEST = False  # diffusion/code_digest.py

# Fields of `process` that do not change a validation loss, whose times are fixed.
DRAWN_TIMES = {"t_sampler", "t_sampler_options", "stratified"}
# Fields of `model` for the conditions of a network, which change its validation loss.
CONDITIONS = ("class_cond", "low_res", "cond_noise")

Plan = TypeVar("Plan", bound=TrainPlan)


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
