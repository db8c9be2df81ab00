"""The section `data` of params.yaml."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from diffusion.section import PositiveInt, Section


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
