"""The sections `train` and `classifier` of params.yaml."""

import math
import operator
from collections.abc import Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from diffusion.data.data_config import DataConfig
from diffusion.model.model_config import ModelConfig
from diffusion.model.power_ema import SigmaRel
from diffusion.model.unet_config import UNetConfig
from diffusion.process.process_config import ProcessConfig
from diffusion.system.limits import MAX_COUNT, MAX_HELD
from diffusion.system.section import (
    BatchSize,
    NotBool,
    PositiveInt,
    Probability,
    Section,
    Seed,
    ShortText,
    Steps,
    Unique,
)
from diffusion.train.lr_schedule import LRSchedule, Rate, parse_lr

MAX_FROZEN_PARTS = 100  # parts that are named
MAX_EMA_PROFILES = 4  # each takes as much memory as the weights
MAX_SNAPSHOTS = 256  # of a width, in a training
CURVE_ROWS = 2000  # a curve has no more points than a picture of it can show
Augmentation = Literal["x-flip", "y-flip", "scaling", "rotation", "anisotropy", "translation"]
AUGMENTATIONS: tuple[Augmentation, ...] = get_args(Augmentation)
VALIDATION_SHARE = 0.015  # of a training's work, that validation losses take by default


class OptimisationConfig(Section):
    """How any network is trained. `steps` is the whole training.

    A step takes `batch_size` images, of all processes together. Everything random comes from `seed` and the
    step. `optimizer` adamw moves every weight by its own gradient, muon a layer's matrix as a whole, which
    learns more in a step, at up to twice the rate. `weight_decay` is either's. `precision` auto is bf16
    where the processor or GPU has it, else fp32.

    `lr` is a rate or a learning-rate schedule. Gradients are clipped to the norm `grad_clip`; None: never,
    as iDDPM and ADM train. The model file holds the average of the weights by `ema_decay`, at step k at most
    (1+k)/(10+k), so that a short training forgets its start; 0 keeps the weights themselves.
    `devices` is the number of processes that share every batch; auto is one for each GPU of this machine.
    With `shard` each process holds a part of the weights, averages and moments, otherwise all of them.
    `microbatch` is how many images a process takes at a time; auto halves its share of the batch until it
    fits, None takes the share whole. `compile` uses torch.compile; auto: on a GPU, for long trainings without
    shards. These four change a result only by rounding. `tf32` rounds a GPU's float32 products to 10 bits.
    `log_every` is the number of steps between entries in the log. `save_every` is the number of steps between
    saved states. Every `val_every` steps the loss over images of the test split is measured; None: never;
    auto: as often as about 1.5% of a training's work allows. `val_images` is how many images that loss is
    over. None of the last four changes a result.
    """

    PREFIX: ClassVar[str] = ""  # what stands before this section, and its model's, in params.yaml

    steps: PositiveInt
    batch_size: BatchSize
    lr: Annotated[
        SerializeAsAny[LRSchedule], BeforeValidator(parse_lr, json_schema_input_type=Rate | LRSchedule)
    ]
    optimizer: Literal["adamw", "muon"] = Field(default="adamw", exclude_if=partial(operator.eq, "adamw"))
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

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if isinstance(self.microbatch, int) and self.microbatch > self.batch_size:
            raise ValueError(f"microbatch {self.microbatch} is more than batch_size {self.batch_size}")
        if self.shard and self.compile is True:
            raise ValueError("shard computes without torch.compile: set compile to auto")
        if self.shard and self.optimizer == "muon":
            raise ValueError("shard leaves no matrix whole, which muon needs: set optimizer to adamw")
        if find_problem := self.lr.find_problem(self.steps, self.PREFIX):
            raise ValueError(find_problem)
        return self

    def is_logged(self, step: int) -> bool:
        """Whether the means since the last time are told after `step` steps."""
        return step % self.log_every == 0 or step == self.steps

    def is_in_curve(self, step: int) -> bool:
        """Whether what is told after `step` steps joins the curve: evenly spread, CURVE_ROWS and the last.

        Every saved state holds the curve, which therefore does not grow with the steps.
        """
        every = -(-self.steps // (self.log_every * CURVE_ROWS))
        return step % (self.log_every * every) == 0 or step == self.steps

    def is_saved(self, step: int) -> bool:
        """Whether the state is saved after `step` steps."""
        return step % self.save_every == 0 or step == self.steps

    def is_validated(self, step: int) -> bool:
        """Return whether the validation loss is computed after `step` steps.

        It is computed at most CURVE_ROWS times, and at the end.

        An image takes one pass by each of two networks, in training three: forward, and twice that back.
        """
        if self.val_every is None:
            return False
        affordable = math.ceil(2 * self.val_images / 3 / self.batch_size / VALIDATION_SHARE)
        wanted = affordable if self.val_every == "auto" else self.val_every
        every = max(wanted, -(-self.steps // CURVE_ROWS))
        return step % every == 0 or step == self.steps

    def is_previewed(self, step: int) -> bool:
        """Whether pictures are made after `step` steps: never, where a section does not say so."""
        return False

    def is_scored(self, step: int) -> bool:
        """Whether the EMA is scored after `step` steps: never, where a section does not say so."""
        return False

    @property
    def sigma_rels(self) -> tuple[float, ...]:
        """The widths of further averages: none, where a section does not say so."""
        return ()

    def snapshot_steps(self) -> Sequence[int]:
        """After which steps those averages are kept, the last step among them; never where there are none."""
        return ()

    def is_snapshot(self, step: int) -> bool:
        """Whether those averages are kept after `step` steps."""
        return False


class PretrainedConfig(Section):
    """The model that a training starts from, by the SHA-256 that cards know it by.

    `diffctl use --init-from` fetches the model and writes its `sha256` here. `freeze` names parts of the
    network, such as `encoder` or `time.0`, that stay as they are. What was taken from the start learns at
    `lr_scale` times the rate, what begins anew at the full rate.
    """

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    freeze: Annotated[tuple[ShortText, ...], Field(max_length=MAX_FROZEN_PARTS), Unique] = ()
    lr_scale: Annotated[float, Field(gt=0, le=1), NotBool] = 1.0


class EmaProfilesConfig(Section):
    """Power-function EMAs of the weights, tracked with the EMA (Karras et al. 2024, 2312.02696).

    `sigma_rel` lists their σ_rel. A snapshot of each is kept every `every` steps and after the last.
    From these `diffctl ema` makes an EMA of any other σ_rel after training.
    """

    sigma_rel: Annotated[tuple[SigmaRel, ...], Field(min_length=1, max_length=MAX_EMA_PROFILES), Unique] = (
        0.05,
        0.1,
    )
    every: PositiveInt


class AugmentConfig(Section):
    """Transforms of training images that the network is told of (Karras et al. 2022, 2206.00364, app. F.2).

    Each of `kinds` is applied independently of the others. An image gets each kind with `probability`; of all
    images half are mirrored by x-flip.
    """

    probability: Annotated[float, Field(gt=0, le=1), NotBool] = 0.12
    kinds: Annotated[tuple[Augmentation, ...], Field(min_length=1, max_length=len(AUGMENTATIONS)), Unique] = (
        AUGMENTATIONS
    )


class TrainConfig(OptimisationConfig):
    """The training of the model. `p_uncond` drops labels for guidance (CFG alg. 1).

    `augment` transforms images, of which the network is told; None leaves them as they are.

    The training begins with the weights of `init_from`; None: with random ones.

    Every `preview_every` steps pictures are made. Every `eval_every` steps the EMA is scored; None: never.
    `eval_images` is how many images each such score is of. `eval_steps` is the number of DDIM steps that make
    them. `keep` says which of the scored weights stay: the best, the last, or one every K steps. None of that
    changes a result. Nor do the power-function EMAs of `ema_profiles`, which are tracked from the first step:
    with others a training starts from scratch.
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
    def _kept_are_scored(self) -> Self:
        if self.eval_every and isinstance(self.keep, int) and self.keep % self.eval_every:
            raise ValueError(f"keep {self.keep} is not a multiple of eval_every {self.eval_every}")
        return self

    @model_validator(mode="after")
    def _snapshots_are_few(self) -> Self:
        count = -(-self.steps // self.ema_profiles.every) if self.ema_profiles else 0
        if count > MAX_SNAPSHOTS:
            raise ValueError(
                f"ema_profiles.every makes {count:,} snapshots of a width in {self.steps:,} steps, and "
                f"{MAX_SNAPSHOTS} are the most: raise it to {-(-self.steps // MAX_SNAPSHOTS):,}"
            )
        return self

    @property
    def sigma_rels(self) -> tuple[float, ...]:
        """The widths of the power-function averages."""
        return self.ema_profiles.sigma_rel if self.ema_profiles else ()

    def snapshot_steps(self) -> Sequence[int]:
        """After which steps the power-function averages are kept, the last step among them."""
        if self.ema_profiles is None:
            return ()
        every = self.ema_profiles.every
        return (*range(every, self.steps, every), self.steps)

    def is_snapshot(self, step: int) -> bool:
        """Whether the power-function averages are kept after `step` steps."""
        return self.ema_profiles is not None and (step % self.ema_profiles.every == 0 or step == self.steps)

    def is_previewed(self, step: int) -> bool:
        """Whether pictures are made after `step` steps."""
        return step % self.preview_every == 0 or step == self.steps

    def is_scored(self, step: int) -> bool:
        """Whether the EMA is scored after `step` steps."""
        return self.eval_every is not None and (step % self.eval_every == 0 or step == self.steps)


class TrainSections(Section):
    """The sections that decide a model, which the whole of params.yaml has too."""

    data: SerializeAsAny[DataConfig]
    model: SerializeAsAny[ModelConfig]
    process: SerializeAsAny[ProcessConfig]
    train: TrainConfig

    @model_validator(mode="after")
    def _model_fits(self) -> Self:
        if self.train.p_uncond and not self.model.class_cond:
            raise ValueError("train.p_uncond > 0 drops labels, so it needs model.class_cond: true")
        if self.data.image_size is not None:
            try:
                self.model.check_size(self.data.image_size)
            except ValueError as error:
                size = self.data.image_size
                raise ValueError(f"model for images of {size}×{size} pixels: {error}") from None
        return self


class ClassifierTrainConfig(OptimisationConfig):
    """The training of a classifier, by uniform t and with every label."""

    PREFIX: ClassVar[str] = "classifier."


class ClassifierConfig(Section):
    """A classifier of noised images for guidance (ADM sec. 4), trained by `diffctl stage classifier`.

    `model` is the shape of its encoder, the first half of such a U-Net. `train` is how it is trained.
    """

    model: UNetConfig
    train: ClassifierTrainConfig


class ClassifierSections(Section):
    """The sections that decide a classifier; `classifier` itself is opt-in."""

    data: DataConfig
    process: SerializeAsAny[ProcessConfig]
    classifier: ClassifierConfig | None = None
