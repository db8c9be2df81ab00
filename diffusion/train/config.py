"""The sections `train` and `classifier` of params.yaml."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from diffusion.data.config import DataConfig
from diffusion.model.config import ModelConfig
from diffusion.model.unet_config import UNetConfig
from diffusion.process.config import ProcessConfig
from diffusion.system.limits import MOST_COUNT
from diffusion.system.section import BatchSize, NotBool, PositiveInt, Probability, Section, Seed, Steps

CURVE_ROWS = 2000  # a curve has no more points than a picture of it can show


class OptimisationConfig(Section):
    """How any network is trained. `steps` is the whole training.

    The rate warms up linearly over `warmup` steps, then stays or decays to 0 by a half cosine. A gradient
    whose norm is more than `grad_clip` is scaled down to it; None never, as iDDPM and ADM train. The model
    file holds the average of the weights by `ema_decay`, at step k by no more than (1+k)/(10+k): a short
    training has a short one, and 0 makes it the weights themselves. `devices` processes, auto one for each
    GPU of this machine, share every batch. `microbatch` images at a time make a process's part of the
    gradient: auto halved to fit, None all. `compile` by torch.compile: auto on a GPU. These three change a
    result by rounding alone. `tf32` rounds a GPU's float32 products to 10 bits. `log_every` and `save_every`
    count steps and change no result.
    """

    PREFIX: ClassVar[str] = ""  # what stands before this section, and its model's, in params.yaml

    steps: PositiveInt
    batch_size: BatchSize
    lr: Annotated[float, Field(gt=0, le=10), NotBool]
    weight_decay: Annotated[float, Field(ge=0, le=10), NotBool] = 0.0
    warmup: Annotated[int, Field(ge=0, le=MOST_COUNT), NotBool] = 0
    lr_decay: Literal["none", "cosine"] = "none"
    devices: Annotated[int, Field(gt=0, le=4096), NotBool] | Literal["auto"] = "auto"
    microbatch: BatchSize | Literal["auto"] | None = "auto"
    compile: bool | Literal["auto"] = "auto"
    tf32: bool = True
    grad_clip: Annotated[float, Field(gt=0, le=1e6), NotBool] | None = 1.0
    ema_decay: Probability = 0.9999
    seed: Seed = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: PositiveInt = 50
    save_every: PositiveInt = 500

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if isinstance(self.microbatch, int) and self.microbatch > self.batch_size:
            raise ValueError(f"microbatch {self.microbatch} is more than batch_size {self.batch_size}")
        if self.warmup > self.steps:
            raise ValueError(
                f"warmup {self.warmup} is more than steps {self.steps}: "
                f"set {self.PREFIX}train.warmup to {self.steps} or less, too"
            )
        return self

    def is_logged(self, step: int) -> bool:
        """Whether the means since the last time are told after `step` steps."""
        return step % self.log_every == 0 or step == self.steps

    def is_charted(self, step: int) -> bool:
        """Whether what is told after `step` steps joins the curve: evenly spread, CURVE_ROWS and the last.

        Every saved state holds the curve, which therefore does not grow with the steps.
        """
        every = -(-self.steps // (self.log_every * CURVE_ROWS))
        return step % (self.log_every * every) == 0 or step == self.steps

    def is_saved(self, step: int) -> bool:
        """Whether the state is saved after `step` steps."""
        return step % self.save_every == 0 or step == self.steps

    def is_previewed(self, step: int) -> bool:
        """Whether pictures are made after `step` steps: never, where a section does not say so."""
        return False

    def is_scored(self, step: int) -> bool:
        """Whether the EMA is scored after `step` steps: never, where a section does not say so."""
        return False


class TrainConfig(OptimisationConfig):
    """The training of the model. `p_uncond` drops labels for guidance (CFG alg. 1).

    Every `preview_every` steps there are pictures, and every `eval_every`, None for never, `eval_images`
    images of the EMA, in `eval_steps` steps each, are scored; `keep` says which of the scored weights stay:
    the best, the last, or one every K steps. None of that changes a result.
    """

    p_uncond: Probability = 0.0
    preview_every: PositiveInt = 1000
    eval_every: PositiveInt | None = None
    eval_images: Annotated[int, Field(ge=2, le=MOST_COUNT), NotBool] = 500
    eval_steps: Steps = 50
    keep: PositiveInt | Literal["best", "last"] = "best"

    @model_validator(mode="after")
    def _kept_are_scored(self) -> Self:
        if self.eval_every and isinstance(self.keep, int) and self.keep % self.eval_every:
            raise ValueError(f"keep {self.keep} is not a multiple of eval_every {self.eval_every}")
        return self

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

    `model` is the shape of its encoder, the first half of such a U-Net.
    """

    model: UNetConfig
    train: ClassifierTrainConfig


class ClassifierSections(Section):
    """The sections that decide a classifier; `classifier` itself is opt-in."""

    data: DataConfig
    process: SerializeAsAny[ProcessConfig]
    classifier: ClassifierConfig | None = None
