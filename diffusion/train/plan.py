"""The plan of a training, which describes the resulting model, and the training's identity."""

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from diffusion.code_digest import CodeSince, ModuleDigests
from diffusion.entry_code import Chosen, code_of
from diffusion.model.model_file import Artefact, ModelDescription
from diffusion.model.network_registry import MODELS, ModelConfig
from diffusion.process.loss_registry import LOSS_WEIGHTS, OBJECTIVES, TIME_DISTRIBUTIONS
from diffusion.process.parameterization import PREDICTIONS
from diffusion.process.process_registry import PROCESSES, ProcessConfig
from diffusion.system.registry import load_reference, reference_module
from diffusion.system.section import fingerprint
from diffusion.train.lr_schedule import LR_SCHEDULES
from diffusion.train.optimizer_registry import OPTIMIZERS
from diffusion.train.task import Task
from diffusion.train.train_config import (
    AugmentConfig,
    OptimisationConfig,
    PretrainedConfig,
    TrainConfig,
)

IN_CODE_DIGEST = False  # diffusion/code_digest.py

# Fields of `train` that are not part of the fingerprint: when to observe, and how to fit the machine. The
# latter change sums by rounding.
OBSERVATION_FIELDS = {"log_every", "save_every", "val_every", "val_images", "preview_every"}
OBSERVATION_FIELDS |= {"eval_every", "eval_images", "eval_steps", "keep"}
HARDWARE_FIELDS = {"devices", "shard", "microbatch", "compile"}
TRACKED_FIELDS = {"ema_profiles"}  # part of the fingerprint, but of no effect on the model


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
