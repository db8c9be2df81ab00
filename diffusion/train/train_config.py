"""The sections `train` and `classifier` of params.yaml."""

import math
import operator
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)

from diffusion.data.data_config import DataConfig
from diffusion.images.image_size import format_pixels, height_and_width
from diffusion.model.network_registry import ModelConfig
from diffusion.model.unet_config import UNetConfig
from diffusion.process.loss_registry import OBJECTIVES
from diffusion.process.process_registry import ProcessConfig
from diffusion.system.limits import MAX_COUNT, MAX_HELD
from diffusion.system.registry import check_name
from diffusion.system.section import (
    BatchSize,
    NotBool,
    PositiveInt,
    Probability,
    Section,
    Seed,
    ShortText,
    SigmaRel,
    Steps,
    Unique,
    own_options,
)
from diffusion.train.optimizers.lr_schedule import LRSchedule, Rate, parse_lr
from diffusion.train.optimizers.optimizer_registry import OPTIMIZERS

IN_CODE_DIGEST = False  # diffusion/code_digest.py

MAX_FROZEN_PARTS = 100  # named parts of the network
MAX_EMA_PROFILES = 4  # each takes as much memory as the weights
MAX_SNAPSHOTS = 256  # per profile, in a training
CURVE_ROWS = 2000  # more points than a plot can show are useless
# The bands of the log-SNR, log α²/σ², by which all trainings report losses, from images to noise.
BAND_EDGES = (3.0, 0.0, -3.0)  # noise levels σ/α of 0.22, 1 and 4.5
BAND_NAMES = ("loss_log_snr_above_3", "loss_log_snr_0_to_3", "loss_log_snr_-3_to_0", "loss_log_snr_below_-3")
Augmentation = Literal["x-flip", "y-flip", "scaling", "rotation", "anisotropy", "translation"]
AUGMENTATIONS: tuple[Augmentation, ...] = get_args(Augmentation)
VALIDATION_SHARE = 0.015  # of a training's work, taken by validation losses by default


class OptimisationConfig(Section):
    """The training of any network. `steps` is the number of optimiser steps.

    A step takes `batch_size` images, over all processes. All random numbers come from `seed` and the step.
    `optimizer` is a name of OPTIMIZERS; muon orthogonalises the updates of matrices and learns more per step,
    at up to twice the learning rate. `optimizer_options` are those that only this one has. `weight_decay`
    applies to all. `precision` auto is bf16 if the processor or GPU has it, else fp32.

    `lr` is a learning rate or a schedule. A gradient with a norm above `grad_clip` is scaled down to it; None
    disables clipping, as in iDDPM and ADM. The model file holds the EMA of the weights with `ema_decay`, at
    step k at most (1+k)/(10+k), so that a short training forgets its initialisation; 0 keeps the weights.
    `devices` is the number of processes that share every batch; auto is one for each GPU of this machine.
    With `shard` each process holds a part of the weights, averages and moments, otherwise all of them.
    `microbatch` is the number of images in a forward pass; auto halves a process's share of the batch until
    it fits, None takes the full share. `compile` uses torch.compile; auto does so on a GPU, for long
    trainings without shards. These four change a result only by rounding. `tf32` rounds a GPU's float32
    products to 10 bits. `log_every` is the number of steps between log entries. `save_every` is the number of
    steps between saved states. Every `val_every` steps the validation loss is computed on the test split;
    None disables it; auto limits it to about 1.5% of a training's work. `val_images` is the number of
    images of that loss. None of the last four changes a result.
    """

    PREFIX: ClassVar[str] = ""  # of this section and its model's in params.yaml

    steps: PositiveInt
    batch_size: BatchSize
    lr: Annotated[
        SerializeAsAny[LRSchedule], BeforeValidator(parse_lr, json_schema_input_type=Rate | LRSchedule)
    ]
    optimizer: Annotated[str, AfterValidator(partial(check_name, registry=OPTIMIZERS))] = Field(
        default="adamw", exclude_if=partial(operator.eq, "adamw")
    )
    optimizer_options: dict[str, Any] = Field(default_factory=dict, exclude_if=operator.not_)
    weight_decay: Annotated[float, Field(ge=0, le=10), NotBool] = 0.0
    devices: Annotated[int, Field(gt=0, le=4096), NotBool] | Literal["auto"] = "auto"
    shard: bool = Field(default=False, exclude_if=operator.not_)
    microbatch: BatchSize | Literal["auto"] | None = "auto"
    compile: bool | Literal["auto"] = "auto"
    tf32: bool = True
    grad_clip: Annotated[float, Field(gt=0, le=1e6), NotBool] | None = 1.0
    ema_decay: Probability = 0.9999
    seed: Seed = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: PositiveInt = 50
    save_every: PositiveInt = 500
    val_every: PositiveInt | Literal["auto"] | None = "auto"
    val_images: Annotated[int, Field(ge=4, le=MAX_HELD), NotBool] = 256

    @field_validator("optimizer_options")
    @classmethod
    def _known_options(cls, values: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Return the options that differ from their default; ValueError for an invalid one."""
        name = info.data.get("optimizer")
        return own_options(OPTIMIZERS[name], values, f"optimizer_options of {name}") if name else values

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if isinstance(self.microbatch, int) and self.microbatch > self.batch_size:
            raise ValueError(f"microbatch {self.microbatch} is more than batch_size {self.batch_size}")
        if self.shard and self.compile is True:
            raise ValueError("shard excludes torch.compile: set compile to auto")
        if self.shard and not OPTIMIZERS[self.optimizer].is_elementwise:
            name = self.optimizer
            raise ValueError(f"shard splits matrices, which {name} needs whole: set optimizer to adamw")
        self.lr.check_length(self.steps, self.PREFIX)
        return self

    def is_in_curve(self, step: int) -> bool:
        """Whether the log entry after `step` steps is added to the curve: every n-th, and the last.

        The curve has at most CURVE_ROWS entries, since every saved state contains it.
        """
        every = -(-self.steps // (self.log_every * CURVE_ROWS))
        return step % (self.log_every * every) == 0 or step == self.steps

    def is_due(self, step: int, *intervals: str) -> bool:
        """Whether `step` is the last, or a multiple of one of these intervals, such as `save_every`."""
        lengths = (getattr(self, name, None) for name in intervals)
        return any(every is not None and (step % every == 0 or step == self.steps) for every in lengths)

    def is_validated(self, step: int) -> bool:
        """Whether the validation loss is computed after `step` steps: at most CURVE_ROWS times, and last.

        An image takes a forward pass of two networks, and the equivalent of three in a training step.
        """
        if self.val_every is None:
            return False
        affordable = math.ceil(2 * self.val_images / 3 / self.batch_size / VALIDATION_SHARE)
        wanted = affordable if self.val_every == "auto" else self.val_every
        every = max(wanted, -(-self.steps // CURVE_ROWS))
        return step % every == 0 or step == self.steps

    @property
    def sigma_rels(self) -> tuple[float, ...]:
        """The σ_rel of the EMA profiles, if there are any."""
        profiles: EmaProfilesConfig | None = getattr(self, "ema_profiles", None)
        return profiles.sigma_rel if profiles else ()

    def snapshot_steps(self) -> Sequence[int]:
        """Return the steps with a snapshot of these profiles, including the last step."""
        profiles: EmaProfilesConfig | None = getattr(self, "ema_profiles", None)
        return (*range(profiles.every, self.steps, profiles.every), self.steps) if profiles else ()


class PretrainedConfig(Section):
    """The pretrained model of a training, pinned by its SHA-256 as in cards.

    `diffctl use --init-from` fetches the model and writes its `sha256` here. `freeze` names parts of the
    network, such as `encoder` or `time.0`, that are not trained. Pretrained weights are trained with
    `lr_scale` times the learning rate, new ones with the full rate.
    """

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    freeze: Annotated[tuple[ShortText, ...], Field(max_length=MAX_FROZEN_PARTS), Unique] = ()
    lr_scale: Annotated[float, Field(gt=0, le=1), NotBool] = 1.0


class EmaProfilesConfig(Section):
    """EMA profiles: power-function averages of the weights, in addition to the EMA (EDM2, 2312.02696).

    `sigma_rel` lists their σ_rel. A snapshot of each is saved every `every` steps and after the last. From
    these `diffctl ema` reconstructs any other σ_rel.
    """

    sigma_rel: Annotated[tuple[SigmaRel, ...], Field(min_length=1, max_length=MAX_EMA_PROFILES), Unique] = (
        0.05,
        0.1,
    )
    every: PositiveInt


class AugmentConfig(Section):
    """Non-leaky augmentation: transforms with which the network is conditioned (EDM, 2206.00364, app. F.2).

    Each of `kinds` is applied independently of the others. An image gets each kind with `probability`; x-flip
    mirrors half of all images.
    """

    probability: Annotated[float, Field(gt=0, le=1), NotBool] = 0.12
    kinds: Annotated[tuple[Augmentation, ...], Field(min_length=1, max_length=len(AUGMENTATIONS)), Unique] = (
        AUGMENTATIONS
    )


class TrainConfig(OptimisationConfig):
    """The training of the model. `p_uncond` is the probability of a dropped label, for guidance (CFG alg. 1).

    `augment` transforms images and conditions the network with the transform; None disables it.

    The training starts from the weights of `init_from`; None uses random ones.

    Every `preview_every` steps preview images are made. Every `eval_every` steps the EMA is scored; None
    disables it. `eval_images` is the number of images of each score, and `eval_steps` that of their sampling
    steps, by `sample.sampler` with η = 0. `keep` selects the scored weights that are kept: the best, the
    last, or one every K steps. None of these changes a result, nor do the power-function averages of
    `ema_profiles`. These are tracked from the first step on, so that a change of them starts a new training.
    """

    init_from: PretrainedConfig | None = Field(default=None, exclude_if=operator.not_)
    p_uncond: Probability = 0.0
    augment: AugmentConfig | None = Field(default=None, exclude_if=operator.not_)
    ema_profiles: EmaProfilesConfig | None = Field(default=None, exclude_if=operator.not_)
    preview_every: PositiveInt = 1000
    eval_every: PositiveInt | None = None
    eval_images: Annotated[int, Field(ge=2, le=MAX_COUNT), NotBool] = 500
    eval_steps: Steps = 50
    keep: PositiveInt | Literal["best", "last"] = "best"

    @model_validator(mode="after")
    def _intervals_fit(self) -> Self:
        if self.eval_every and isinstance(self.keep, int) and self.keep % self.eval_every:
            raise ValueError(f"keep {self.keep} is not a multiple of eval_every {self.eval_every}")
        count = -(-self.steps // self.ema_profiles.every) if self.ema_profiles else 0
        if count > MAX_SNAPSHOTS:
            raise ValueError(
                f"ema_profiles.every makes {count:,} snapshots per profile in {self.steps:,} steps, and "
                f"at most {MAX_SNAPSHOTS} are allowed: raise it to {-(-self.steps // MAX_SNAPSHOTS):,}"
            )
        return self


def check_whole_batch(loss: str, train: TrainConfig) -> None:
    """Raise ValueError if a loss that needs the whole batch gets parts of it."""
    if not OBJECTIVES[loss].whole_batch:
        return
    whole = f"process.loss {loss} needs the whole batch"
    if isinstance(train.microbatch, int) and train.microbatch < train.batch_size:
        raise ValueError(f"{whole}: set train.microbatch to auto")
    if train.devices not in ("auto", 1):
        raise ValueError(f"{whole}: set train.devices to 1")


class TrainSections(Section):
    """The sections of params.yaml that determine a model."""

    data: SerializeAsAny[DataConfig]
    model: SerializeAsAny[ModelConfig]
    process: SerializeAsAny[ProcessConfig]
    train: TrainConfig

    @model_validator(mode="after")
    def _model_fits(self) -> Self:
        if self.train.p_uncond and not self.model.class_cond:
            raise ValueError("train.p_uncond > 0 drops labels, so it needs model.class_cond: true")
        check_whole_batch(self.process.loss, self.train)
        if self.data.image_size is not None:
            size = height_and_width(self.data.image_size)
            try:
                self.model.check_image_size(size)
            except ValueError as error:
                raise ValueError(f"model for images of {format_pixels(size)}: {error}") from None
        return self


class ClassifierTrainConfig(OptimisationConfig):
    """The training of a classifier, with all labels and the process's default distribution of t."""

    PREFIX: ClassVar[str] = "classifier."


class ClassifierConfig(Section):
    """A classifier of noised images for guidance (ADM sec. 4), trained by `diffctl stage classifier`.

    `model` is the architecture of its encoder, the first half of such a U-Net. `train` is its training.
    """

    model: UNetConfig
    train: ClassifierTrainConfig

    @model_validator(mode="after")
    def _takes_no_image(self) -> Self:
        if self.model.low_res is not None:
            raise ValueError("model.low_res: a classifier takes no low-resolution image: leave it out")
        return self


class ClassifierSections(Section):
    """The sections of params.yaml that determine a classifier; `classifier` is optional."""

    data: DataConfig
    process: SerializeAsAny[ProcessConfig]
    classifier: ClassifierConfig | None = None
