"""The low-resolution images of samples: real ones by index, those of a base model, and noise."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.images.image_size import Size, format_pixels, format_size
from diffusion.images.pixels import to_model, to_nchw, to_nhwc, to_uint8
from diffusion.images.store import Images, ImageStore, open_store
from diffusion.model.network_registry import NetworkSpec
from diffusion.process.denoiser import Condition, add_noise, shrink
from diffusion.process.noise import ImageNoise, full_state_generator
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.settings import SampleSettings
from diffusion.system.errors import UsageError

if TYPE_CHECKING:  # images do not depend on the format of model files
    from diffusion.model.model_file import ModelDescription


IMAGES_PER_PART = 512  # limits the memory of float32 copies


class RealImages(NamedTuple):
    """Held-out images by index: a model enlarges their low resolutions, for image i that of row i mod N."""

    store: ImageStore

    @property
    def model_sha256(self) -> str:
        """The digest of the images, as that of a network in cards."""
        return str(self.store.meta["digest"])

    def rows(self, indices: Sequence[int], label: int | None = None) -> list[int]:
        """Return the row of each index, of the images with a label if one is given."""
        count = range(len(self.store))
        labels = self.store.labels
        rows = count if label is None or labels is None else np.flatnonzero(labels == label).tolist()
        if not rows:
            raise UsageError(f"{self.store.path} has no image of class {label}: give another class")
        return [rows[index % len(rows)] for index in indices]

    def images(self, indices: Sequence[int], condition: Condition, klass: object = None) -> Images:
        """Return the originals (B, H, W, C) of the indices, of the condition's class if `klass` is given."""
        label = None if klass is None or condition.labels is None else int(condition.labels[0])
        originals: Images = self.store.images[self.rows(indices, label)]
        return originals

    def labels(self, rows: Sequence[int]) -> Tensor | None:
        """Return the labels of rows, int64; None without labels."""
        labels = self.store.labels
        return None if labels is None else torch.from_numpy(labels[list(rows)]).long()

    def check(self, model: "ModelDescription", labelled: "ModelDescription") -> None:
        """Raise UsageError if the images are not of the model's size and of the classes of the labels."""
        spec, found = model.network, self.store.images.shape[1:]
        if found != spec.pixel_shape:
            shown = f"{self.store.path} has images of {format_size(found)}"
            raise UsageError(f"{shown}, and the model makes {format_size(spec.pixel_shape)}")
        classes = tuple(self.store.meta.get("classes", ()))
        if labelled.network.num_classes and classes != labelled.data.classes:
            raise UsageError(
                f"{self.store.path} has images of other classes than the model or its classifier"
            )


def open_real_images(path: Path) -> RealImages:
    """Open a store; DiffctlError if it is damaged. The images stay in the file, whatever the device."""
    return RealImages(open_store(path))


def low_res_of(images: Images, size: Size) -> Tensor:
    """Return the low resolutions (B, C, *size) in [−1, 1] of images (B, H, W, C)."""
    parts = (images[start : start + IMAGES_PER_PART] for start in range(0, len(images), IMAGES_PER_PART))
    return torch.cat([shrink(to_model(to_nchw(part)), size) for part in parts])


def pixelated(images: Images, size: Size) -> Images:
    """Return the low resolutions of images (B, H, W, C), their pixels repeated to the same size."""
    small, factor = to_nhwc(to_uint8(low_res_of(images, size))), images.shape[1] // size[0]
    return small.repeat(factor, axis=1).repeat(factor, axis=2)


def check_cond_noise(settings: SampleSettings, spec: NetworkSpec) -> None:
    """Raise UsageError for more noise on low-resolution images than the model was trained with."""
    if settings.cond_noise > spec.cond_noise:
        trained = f"up to {spec.cond_noise:g}" if spec.cond_noise else "without such noise"
        found = f"cond_noise {settings.cond_noise:g}: the model was trained {trained} (model.cond_noise)"
        raise UsageError(f"{found}: give {spec.cond_noise:g} or less")


def noised_condition(
    spec: NetworkSpec, settings: SampleSettings, indices: Sequence[int], condition: Condition
) -> Condition:
    """Return the condition with the noise of the settings on its clean low-resolution images.

    That of image i depends on (seed, i) alone. UsageError if the network needs such images and there are
    none, or if they are of another size.
    """
    if spec.low_res_size is None:
        return condition
    size, found = spec.low_res_size, condition.low_res
    if found is None:
        raise UsageError(
            f"the model enlarges images of {format_pixels(size)}: give some (low_res, --low-res FOLDER), or "
            "a base model that makes them (sample.base, --base)"
        )
    if (shape := tuple(found.shape[1:])) != (spec.in_channels, *size):
        shown, wanted = (format_size((*one[1:], one[0])) for one in (shape, (spec.in_channels, *size)))
        raise UsageError(f"the low-resolution images are {shown}, and the model enlarges {wanted}")
    if not spec.cond_noise or condition.noise_level is not None:  # it has its noise
        return condition
    level = torch.full((len(condition),), settings.cond_noise)
    if settings.cond_noise:
        sources = [full_state_generator("low resolution", settings.seed, index) for index in indices]
        noise = torch.stack([torch.randn(shape, generator=source) for source in sources])
        found = add_noise(found, level, noise.to(found.device))
    return replace(condition, low_res=found, noise_level=level)


def image_noise(
    spec: NetworkSpec,
    settings: SampleSettings,
    indices: Sequence[int],
    grid: TimeGrid,
    size: Size | None = None,
) -> ImageNoise:
    """Return the noise of a model's images, of another size (H, W) if one is given.

    A model that enlarges images has noise of its own: its condition is a function of its base's noise.
    """
    shape, purpose = (spec.in_channels, *(size or spec.size)), "enlarged image" if spec.low_res else "image"
    return ImageNoise(settings.seed, indices, shape, grid.initial_noise_scale, purpose)
