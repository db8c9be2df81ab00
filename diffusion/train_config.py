"""The sections `train` and `classifier` of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from diffusion.data.config import DataConfig
from diffusion.model_config import ModelConfig
from diffusion.process_config import ProcessConfig
from diffusion.section import PositiveInt, Probability, Section
from diffusion.shape import UNetConfig


class TrainConfig(Section):
    """The optimisation. `steps` is the whole training; `p_uncond` drops labels for guidance (CFG alg. 1).

    The rate warms up linearly over `warmup` steps, then stays or decays to 0 by a half cosine. A gradient
    whose norm is more than `grad_clip` is scaled down to it; None never, as iDDPM and ADM train. `devices`
    processes, auto one for each GPU of this machine, share every batch. `microbatch` images at a time make a
    process's part of the gradient: auto halved to fit, None all. `compile` by torch.compile: auto on a GPU.
    These three change a result by rounding alone. `tf32` rounds a GPU's float32 products to 10 bits.
    `log_every`, `save_every` and `preview_every` count steps and change no result; nor does
    `eval_every`, None for never: so often `eval_images` images of the EMA, in `eval_steps` steps each,
    are scored, and `keep` says which of the scored weights stay: the best, the last, or one every K steps.
    """

    steps: PositiveInt
    batch_size: PositiveInt
    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup: Annotated[int, Field(ge=0)] = 0
    lr_decay: Literal["none", "cosine"] = "none"
    devices: PositiveInt | Literal["auto"] = "auto"
    microbatch: PositiveInt | Literal["auto"] | None = "auto"
    compile: bool | Literal["auto"] = "auto"
    tf32: bool = True
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    ema_decay: Probability = 0.9999
    p_uncond: Probability = 0.0
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: PositiveInt = 50
    save_every: PositiveInt = 500
    preview_every: PositiveInt = 1000
    eval_every: PositiveInt | None = None
    eval_images: Annotated[int, Field(ge=2)] = 500
    eval_steps: PositiveInt = 50
    keep: PositiveInt | Literal["best", "last"] = "best"

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if isinstance(self.microbatch, int) and self.microbatch > self.batch_size:
            raise ValueError(f"microbatch {self.microbatch} is more than batch_size {self.batch_size}")
        if self.warmup > self.steps:
            raise ValueError(f"warmup {self.warmup} is more than steps {self.steps}")
        if self.eval_every and isinstance(self.keep, int) and self.keep % self.eval_every:
            raise ValueError(f"keep {self.keep} is not a multiple of eval_every {self.eval_every}")
        return self

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


class ClassifierConfig(Section):
    """A classifier of noised images for guidance (ADM sec. 4), trained by `diffctl stage classifier`.

    `model` is the shape of its encoder, the first half of such a U-Net. Of `train`, devices, microbatch,
    compile, tf32, ema_decay, p_uncond, preview_every, keep and all of eval_ mean nothing here.
    """

    model: UNetConfig
    train: TrainConfig
