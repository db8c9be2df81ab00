"""params.yaml as frozen pydantic models: loading, validation, fingerprints.

A section of params.yaml is a stage's parameters and a class here. Unknown keys and impossible
combinations are refused with the field's name and what is allowed. No torch below this module's import,
so that the command line can validate in milliseconds.
"""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from diffusion.errors import UsageError
from diffusion.section import PositiveInt, Probability, Section
from diffusion.settings import Noise, SampleConfig, SampleSettings, SweepConfig
from diffusion.shape import ModelConfig, level_sizes

Precision = Literal["fp32", "bf16"]


class DataConfig(Section):
    """Which images, from where, at which size.

    `path` is the folder with the raw files; None looks in the cache and downloads what is public.
    `image_size` and `channels` None keep the data set's own; photographs of many sizes (imagenet,
    image-folder) need a size and become RGB. `labels`: fine or coarse for cifar100; for image-folder
    `folders` (a class a sub-folder), `none`, or the name of a CSV file in `path`; None takes the sub-folders
    where there are any. `test_fraction` is held out of an image-folder that has no test split of its own.
    `on_bad` says whether images that cannot be used stop the work or are left out and listed. `flip` mirrors
    half of the training images: opt-in, since digits and text have a direction.
    """

    name: Literal[
        "digits",
        "fashion-mnist",
        "cifar10",
        "cifar100",
        "imagenet",
        "imagenet64",
        "imagenet32",
        "mini-imagenet",
        "image-folder",
    ]
    path: Path | None = None
    image_size: PositiveInt | None = None
    channels: Literal[1, 3] | None = None
    labels: str | None = None
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    on_bad: Literal["stop", "skip"] = "stop"
    flip: bool = False

    @model_validator(mode="after")
    def _options_fit_the_set(self) -> Self:
        if self.name in ("imagenet", "image-folder") and self.image_size is None:
            raise ValueError(f"image_size: {self.name} has images of many sizes, so give one, such as 64")
        if self.name == "image-folder" and self.path is None:
            raise ValueError("path: image-folder needs the folder with the images")
        if self.name == "digits" and self.path is not None:
            raise ValueError("path: digits come with scikit-learn, so there is no folder to give")
        if self.test_fraction is not None and self.name != "image-folder":
            raise ValueError(
                f"test_fraction: {self.name} has a test split of its own; this is for image-folder"
            )
        self._labels_fit()
        return self

    def _labels_fit(self) -> None:
        if self.labels is None:
            return
        if self.name == "cifar100":
            if self.labels not in ("fine", "coarse"):
                raise ValueError(f"labels: cifar100 has fine and coarse labels (got {self.labels!r})")
        elif self.name != "image-folder":
            raise ValueError(
                f"labels: {self.name} has one kind of labels; this is for cifar100 and image-folder"
            )
        elif self.labels not in ("folders", "none") and not self.labels.endswith(".csv"):
            raise ValueError(f"labels: folders, none or the name of a .csv file (got {self.labels!r})")


class DiffusionConfig(Section):
    """The process: T timesteps, the schedule of betas, what the network predicts and how it learns.

    `prediction` is ε (DDPM) or the velocity v = √ᾱ·ε − √(1−ᾱ)·x_0 (Salimans & Ho 2022, 2202.00512); a
    sampler sees ε either way. `weighting` min-snr evens out what the timesteps ask of the network (Hang et
    al. 2023, 2303.09556).
    """

    timesteps: Annotated[int, Field(ge=2)] = 1000
    schedule: Literal["linear", "cosine"] = "cosine"
    variance: Noise = "learned"
    loss: Literal["simple", "hybrid", "vlb"] = "hybrid"
    t_sampler: Literal["uniform", "loss-aware"] = "uniform"
    prediction: Literal["eps", "velocity"] = "eps"
    weighting: Literal["none", "min-snr"] = "none"

    @model_validator(mode="after")
    def _loss_fits_variance(self) -> Self:
        if self.variance == "learned" and self.loss == "simple":
            raise ValueError(
                "loss simple never trains a learned variance: use hybrid, or variance small or large"
            )
        if self.variance != "learned" and self.loss != "simple":
            raise ValueError(
                f"loss {self.loss} needs variance learned; with a fixed variance use loss simple"
            )
        if self.t_sampler == "loss-aware" and self.loss == "simple":
            raise ValueError("t_sampler loss-aware is for losses with the bound: use loss vlb or hybrid")
        if self.weighting != "none" and self.loss == "vlb":
            raise ValueError("weighting is for loss simple or hybrid: loss vlb has the bound's own weights")
        return self


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


class EvaluateConfig(Section):
    """Scores against a split of the prepared data, by features of `extractor`.

    `weights` is a file with Inception's weights; None looks in torch's hub cache and downloads them.
    `batch_size` images are seen at a time, None as suits the device.
    `bootstrap` resamples make the confidence intervals (0: none). At most `prc_images` images of each set are
    held against each other for precision, recall and memorisation.
    """

    extractor: Literal["effnet-lite0-64", "effnet-lite0-96", "inception-v3-compat"] = "effnet-lite0-64"
    reference: Literal["train", "test"] = "train"
    weights: Path | None = None
    batch_size: PositiveInt | None = None
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    prc_images: PositiveInt = 10_000


class ClassifierConfig(Section):
    """A classifier of noised images for guidance (ADM sec. 4), trained by `diffctl stage classifier`.

    `model` is the shape of its encoder, the first half of such a U-Net. Of `train`, devices, microbatch,
    compile, tf32, ema_decay, p_uncond, preview_every, keep and all of eval_ mean nothing here.
    """

    model: ModelConfig
    train: TrainConfig


class Config(Section):
    """The whole experiment: params.yaml. A `classifier` is opt-in and no part of the pipeline."""

    data: DataConfig
    model: ModelConfig
    diffusion: DiffusionConfig
    train: TrainConfig
    sample: SampleConfig
    sweep: SweepConfig
    evaluate: EvaluateConfig
    classifier: ClassifierConfig | None = None

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.train.p_uncond and not self.model.class_cond:
            raise ValueError("train.p_uncond > 0 drops labels, so it needs model.class_cond: true")
        if max(self.sweep.steps) > self.diffusion.timesteps:
            raise ValueError(
                f"sweep.steps: {max(self.sweep.steps)} is more than diffusion.timesteps "
                f"({self.diffusion.timesteps})"
            )
        if self.data.image_size is not None:
            sizes = level_sizes(self.data.image_size, len(self.model.channel_mult))
            if missing := sorted(set(self.model.attention) - set(sizes)):
                raise ValueError(
                    f"model.attention: feature maps are {sizes} pixels, so {missing} cannot be used"
                )
        return self

    @model_validator(mode="after")
    def _grid_is_possible(self) -> Self:
        guidance, noise = self._axis("guidance"), self._axis("noise")
        if any(guidance[1]) and not self.train.p_uncond:
            raise ValueError(f"{guidance[0]} > 0 needs a model trained with train.p_uncond > 0")
        if "learned" in noise[1] and self.diffusion.variance != "learned":
            raise ValueError(f"{noise[0]} learned needs diffusion.variance learned")
        sampler = self._axis("sampler")
        if any(self.sweep.eta) and "ddim" not in sampler[1]:
            raise ValueError(f"{sampler[0]} dpm-solver++ is deterministic, so sweep.eta must be [0.0]")
        if self.sweep.noise and not any(self.sweep.eta):
            raise ValueError("sweep.noise: no noise is added at eta 0, so list an eta > 0 too")
        if max(self.sweep.eta) > 1:
            self._refuse_eta()
        return self

    def _axis(self, name: str) -> tuple[str, tuple[Any, ...]]:
        """The field that decides an axis of the grid, and its values."""
        listed = getattr(self.sweep, name)
        return (f"sweep.{name}", listed) if listed else (f"sample.{name}", (getattr(self.sample, name),))

    def _refuse_eta(self) -> None:
        from diffusion.schedule import Schedule, spaced_timesteps  # imports torch: only where it is needed

        schedule = Schedule.named(self.diffusion.schedule, self.diffusion.timesteps)
        for steps, spacing in itertools.product(self.sweep.steps, self._axis("spacing")[1]):
            timesteps = spaced_timesteps(spacing, steps, self.diffusion.timesteps)
            spaced = schedule.spaced(timesteps)
            if max(self.sweep.eta) > spaced.largest_eta():
                raise ValueError(
                    f"sweep.eta: {max(self.sweep.eta)} is too large for {steps} steps, "
                    f"where at most {spaced.eta_limit()} leaves a real direction term"
                )


def parse(values: Any, origin: str) -> Config:
    """The Config of nested plain values; UsageError names `origin`, the field and what is allowed."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UsageError(explain(error, origin)) from None


def parse_settings(optional: dict[str, Any], **values: Any) -> SampleSettings:
    """SampleSettings of a command's options, those in `optional` only if not None; UsageError as `parse`."""
    given = {name: value for name, value in optional.items() if value is not None}
    try:
        return SampleSettings(**given, **values)
    except ValidationError as error:
        raise UsageError(explain(error, "these options do not fit")) from None


def load(path: Path | str = "params.yaml") -> Config:
    """Read and validate a params file; UsageError for a missing, unreadable or impossible one."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{path} is not here: run this in the project's folder, or `diffctl use PROFILE` to start one"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    return parse(values, str(path))


def explain(error: ValidationError, origin: str) -> str:
    """One sentence for the user: where, what is wrong, what is allowed."""
    problems = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            problems.append(f"{field}: unknown key{_allowed_keys(item['loc'])}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = "" if item["type"] in ("value_error", "missing") else f" (got {item['input']!r})"
            problems.append(f"{field + ': ' if field else ''}{message}{given}")
    return f"{origin}: " + "; ".join(problems)


def _allowed_keys(location: tuple[int | str, ...]) -> str:
    section: Any = Config
    for part in location[:-1]:
        section = section.model_fields[str(part)].annotation
    return f", allowed are {', '.join(section.model_fields)}"


def canonical(values: Any) -> str:
    """JSON in one form only: sorted keys, no blanks. Pydantic models are dumped first."""
    if isinstance(values, BaseModel):
        values = values.model_dump(mode="json")
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(values: Any) -> str:
    """16 hex digits of SHA-256 over the canonical JSON: equal exactly when the values are."""
    return hashlib.sha256(canonical(values).encode()).hexdigest()[:16]
