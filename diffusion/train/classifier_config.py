"""The section `classifier` of params.yaml."""

from typing import ClassVar, Self

from pydantic import SerializeAsAny, model_validator

from diffusion.data.data_config import DataConfig
from diffusion.model.unet_config import UNetConfig
from diffusion.process.process_registry import ProcessConfig
from diffusion.system.section import Section
from diffusion.train.train_config import OptimisationConfig

IN_CODE_DIGEST = False  # diffusion/code_digest.py


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
