"""Pictures to edit: read from files, fitted to the model, masked, measured, and shown with results."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from diffusion.analysis.image_inputs import known_labels
from diffusion.data.readers.image_files import as_text, list_images
from diffusion.edit.operators import LinearOperator, Measurement, Shape, build_operator
from diffusion.evaluate.adhoc import check_usable, open_images
from diffusion.images.image_size import Size
from diffusion.images.pictures import fit, flatten, read_picture, to_pil
from diffusion.images.pixels import to_model, to_nchw, to_nhwc, to_uint8
from diffusion.images.store import Images
from diffusion.model.model_file import ModelDescription
from diffusion.process.noise import counter_generator
from diffusion.protocol.edits import PRODUCT
from diffusion.system.errors import UsageError, printable

HIDDEN = 128  # the level of a mask from which a pixel is to be filled
MIN_SHARE = 0.1  # of a resized pixel's weights; with less it is that of the whole picture
SPREAD = 4  # the factor of deviations in a picture: 64 levels are white


def fit_input(pixels: Images, size: Size, operator: LinearOperator | None, *, degrade: bool) -> Images:
    """Return `fit` of a picture for `measure`; what a mask hides has no weight in the other pixels."""
    fitted = fit(pixels, size)
    if operator is None or degrade or fitted is pixels:
        return fitted
    ones = torch.ones(1, *operator.shape)
    is_known = (operator.apply(operator.pseudo_inverse(ones))[0].amin(0) > 0.5).numpy()
    weights = is_known[_cells(pixels.shape[:2], size)].astype(np.float32)

    def resized(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(ImageOps.fit(Image.fromarray(values), size[::-1]))[:, :, None]

    share = resized(weights)
    means = [resized(weights * channel) for channel in np.moveaxis(pixels, 2, 0)]
    known = np.concatenate(means, 2) / np.maximum(share, MIN_SHARE)
    return np.where(share > MIN_SHARE, known.round().clip(0, 255).astype(np.uint8), fitted)


def _cells(shape: Size, size: Size) -> tuple[NDArray[np.intp], ...]:
    """Return the index of the pixel of the fitted picture that has the centre of each pixel of a picture."""
    scale = min(length / side for length, side in zip(shape, size, strict=True))
    places = (
        ((np.arange(length) + 0.5 - (length - side * scale) / 2) / scale).astype(int).clip(0, side - 1)
        for length, side in zip(shape, size, strict=True)
    )
    return np.ix_(*places)


def middle(pixels: Images, size: Size) -> Images:
    """Return the middle of a picture (H, W, C) that is at least of this size, not resized."""
    top, left = ((length - side) // 2 for length, side in zip(pixels.shape[:2], size, strict=True))
    return pixels[top : top + size[0], left : left + size[1]]


def in_channels(pixels: Images, channels: int) -> Images:
    """Return a picture (H, W, C) in grey or in colours."""
    if pixels.shape[2] == channels:
        return pixels
    return np.asarray(flatten(to_pil(pixels), channels), dtype=np.uint8).reshape(*pixels.shape[:2], channels)


def kept_pixels(mask: Images, size: Size) -> Tensor:
    """Return which pixels of a fitted picture a mask (H, W, 1) keeps: those without any that it hides."""
    hidden = Image.fromarray((mask[:, :, 0] >= HIDDEN).astype(np.float32))
    return torch.from_numpy(np.asarray(ImageOps.fit(hidden, size[::-1], Image.Resampling.BOX)) == 0)


def masked_operator(text: str, image_shape: Shape, mask: Images) -> LinearOperator:
    """Return the operator of a text form; its last factor is `mask`, a picture (H, W, 1), resized to fit.

    UsageError as `build_operator`, and for a text without such a factor.
    """
    *before, last = text.split(PRODUCT)
    if last != "mask":
        raise UsageError(
            f"operator {text:.120} takes no mask: end it with {PRODUCT}mask, or leave out the mask"
        )
    measured = build_operator(PRODUCT.join(before), image_shape).shape if before else image_shape
    return build_operator(text, image_shape, kept_pixels(mask, measured[1:]))


def measure(
    operator: LinearOperator | None,
    pictures: Sequence[Images],
    sigma_y: float,
    *,
    degrade: bool,
    seed: int = 0,
) -> Measurement:
    """Return the measurement of pictures (H, W, C).

    With `degrade` they are originals, and y = A·x + σ_y·n, where n follows from the seed and the place.
    Otherwise they are measurements, of the operator's shape: y is the part of them that A can make.
    """
    x = to_model(to_nchw(np.stack(pictures)))
    if operator is None:
        return Measurement(None, x, sigma_y)
    if not degrade:
        return Measurement(operator, operator.apply(operator.pseudo_inverse(x)), sigma_y)
    y = operator.apply(x)
    for row, clean in enumerate(y if sigma_y else ()):
        noise = torch.randn(clean.shape, generator=counter_generator("measurement", seed, row))
        clean += sigma_y * operator.apply(operator.pseudo_inverse(noise[None]))[0]
    return Measurement(operator, y, sigma_y)


def picture_shape(operator: LinearOperator | None, image_shape: Shape, *, degrade: bool) -> Shape:
    """Return the shape that input pictures must have: of an image, or of a measurement."""
    return image_shape if degrade or operator is None else operator.shape


def show_measurement(measurement: Measurement) -> Images:
    """Return measurements as pictures (B, H, W, C) of the image's shape; pixels are repeated."""
    channels, height, width = measurement.image_shape
    y = measurement.y
    if height % y.shape[2] or width % y.shape[3] or channels % y.shape[1]:
        assert measurement.operator is not None, "pictures have the shape of images"
        return to_nhwc(to_uint8(measurement.operator.pseudo_inverse(y)))
    y = y.repeat_interleave(height // y.shape[2], 2).repeat_interleave(width // y.shape[3], 3)
    return to_nhwc(to_uint8(y.repeat(1, channels // y.shape[1], 1, 1)))


def show_spread(results: Images) -> Images:
    """Return the deviation of each pixel over results (N, H, W, C), times 4: white is 64 levels."""
    spread = np.round(SPREAD * results.astype(np.float32).std(0))
    return np.asarray(spread.clip(0, 255), dtype=np.uint8)


def show_edits(
    pictures: Sequence[Images], measurement: Measurement, results: Images, count: int
) -> tuple[Images, int]:
    """Return a row of images for each picture, and the length of a row.

    `results` (N, H, W, C) has `count` for each picture. A row has the picture, its measurement if there is an
    operator, the results, and the spread of several ones.
    """
    shown, size, rows = show_measurement(measurement), results.shape[1:3], list[Images]()
    for number, picture in enumerate(pictures):
        own = results[number * count : (number + 1) * count]
        rows.append(in_channels(fit(picture, size), results.shape[3]))
        rows += [shown[number]] * (measurement.operator is not None)
        rows += [*own, *[show_spread(own)] * (count > 1)]
    return np.stack(rows), len(rows) // len(pictures)


class InputPicture(NamedTuple):
    """A picture (H, W, C) uint8 with its name, and its label where it is known in the model's classes."""

    name: str
    pixels: Images
    label: int | None = None


def read_pictures(
    source: Path, channels: int, labelled: ModelDescription, first: int | None = None
) -> list[InputPicture]:
    """Return the pictures, at most the `first` ones; a folder within a folder may name a class.

    UsageError if there is none, or one cannot be read. Other errors as `check_usable`.
    """
    if source.is_file() and source.suffix != ".npz":
        return [InputPicture(source.name, read_picture(source, None, channels))]
    if source.is_dir() and not (source / "images.npy").is_file():
        listing, classes = list_images(source), labelled.data.classes
        check_usable(source, listing.problems)
        names = as_text(listing.paths)[:first]
        if not names:
            raise UsageError(
                f"{printable(source)} has no pictures: give a picture, a folder, an npz or a store"
            )
        folders = [name.partition("/")[0] for name in names]
        labels = [classes.index(folder) if folder in classes else None for folder in folders]
        pixels = [read_picture(source / name, None, channels) for name in names]
        return [InputPicture(*one) for one in zip(names, pixels, labels, strict=True)]
    store = open_images(source)
    rows = range(min(first or len(store), len(store)))
    return [
        InputPicture(f"{source.name}[{row}]", in_channels(np.asarray(store.images[row]), channels), label)
        for row, label in zip(rows, known_labels(store, labelled, rows), strict=True)
    ]
