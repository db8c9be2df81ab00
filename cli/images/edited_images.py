"""Pictures that are restored from measurements or sampled again, and written as a picture, npz or store."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cli.actions.project.params_file import parse_assignments
from cli.images.image_commands import Edit
from cli.models.model_choice import given_options, selected_source
from cli.shared.console import progress
from diffusion.analysis.image_inputs import edit_condition
from diffusion.edit.editor import Editor, edit_card
from diffusion.edit.inputs import (
    InputPicture,
    fit_input,
    masked_operator,
    measure,
    middle,
    picture_shape,
    read_pictures,
    show_edits,
)
from diffusion.edit.operators import LinearOperator, Measurement, Shape, build_operator
from diffusion.images.image_size import format_pixels, format_size
from diffusion.images.pictures import MAX_PIXELS, enlarge, grid, png_bytes, read_picture
from diffusion.images.pixels import to_nhwc
from diffusion.images.store import Images, Labels, save_npz, write_store
from diffusion.model.model_file import ModelDescription
from diffusion.protocol.edits import PRODUCT, EditSettings, chosen_edit, parse_operator
from diffusion.system.devices import default_device
from diffusion.system.errors import UsageError, printable
from diffusion.system.output_paths import write_output
from tracking.recipes import find_settings, recipe_of


class Inputs(NamedTuple):
    """Pictures at their measured size, and their measurement; `resized` describes resized ones."""

    pictures: list[InputPicture]
    measurement: Measurement
    resized: list[str]


def edit(options: Edit) -> None:
    source, given, device = selected_source(options), given_options(options.sampling), default_device()
    settings = find_settings(source, given, best_cell=False).settings
    edit_settings = _edit_settings(options)
    recipe = recipe_of(source, settings, given)
    loaded, guides = recipe.load(device)
    labelled = guides.labelled(loaded)
    inputs = _read_inputs(options, edit_settings, loaded.artefact.network.shape, labelled, settings.seed)
    count, labels = options.num, [one.label for one in inputs.pictures]
    condition = edit_condition(loaded, guides, settings, labels, options.klass)
    repeated = condition.rows(torch.arange(len(labels)).repeat_interleave(count))
    card = edit_card(edit_settings, settings, inputs.measurement, condition, count, recipe.networks)
    editor = Editor(loaded, settings, edit_settings, device, guides, options.batch_size)
    with progress("edit") as show:
        images = to_nhwc(editor.results(inputs.measurement, condition, count, show))
    known = None if repeated.labels is None else repeated.labels.numpy()
    unknown = 0 if known is None else np.count_nonzero(known == labelled.network.num_classes) // count
    _write(options, inputs, images, None if unknown else known, labelled, card)
    own = ", ".join(f"{name} {value}" for name, value in edit_settings.options.model_dump().items())
    described = edit_settings.operator or own or "a picture"
    text = [
        f"{len(images)} image(s) from {len(labels)} picture(s) by {edit_settings.method} ({described}, "
        f"{card['nfe']} NFE each): {options.out}",
        *inputs.resized,
    ]
    if options.out.suffix == ".png":
        columns = ["the picture", *["its measurement"] * (inputs.measurement.operator is not None)]
        spread = ["their spread (white is a deviation of 64 levels)"] * (count > 1)
        results = f"{count} results" if count > 1 else "the result"
        text.append(f"columns: {', '.join([*columns, results, *spread])}")
    elif unknown:
        text.append(f"without labels: the class of {unknown} picture(s) is unknown, so give --class")
    answer = {
        "out": options.out,
        "pictures": len(labels),
        "num": count,
        "resized": inputs.resized,
        "card": card,
    }
    options.answer(answer, "\n".join(text))


def _edit_settings(options: Edit) -> EditSettings:
    """Return the method and the text of the operator; the factors are in the order of their application."""
    factors = [
        "gray" if options.colorize else "",
        f"downsample:{options.upscale}" if options.upscale else "",
        f"blur:{options.deblur:g}" if options.deblur is not None else "",
        _mask_text(options.mask) if options.mask is not None else "",
    ]
    operator = options.operator or PRODUCT.join(filter(None, factors)) or None
    own = parse_assignments(options.method_option or [], "--method-option")
    return chosen_edit(
        options.method, own, operator, options.strength, options.sigma_y, "these options do not fit"
    )


def _mask_text(mask: str) -> str:
    is_box = mask.count(",") == 3 and mask.replace(",", "").isdecimal()
    return f"mask:{mask}" if is_box else "mask"


def _read_inputs(
    options: Edit, edit_settings: EditSettings, image_shape: Shape, labelled: ModelDescription, seed: int
) -> Inputs:
    """Return the pictures and their measurement; UsageError if they do not fit the model."""
    if options.tile:
        image_shape = _tiled_shape(options, edit_settings, image_shape)
    operator = None
    if edit_settings.operator is not None:
        operator = _operator(options, edit_settings.operator, image_shape)
    channels, height, width = picture_shape(operator, image_shape, degrade=options.degrade)
    pictures = read_pictures(options.source, channels, labelled, options.first)

    def fitted_pixels(pixels: Images) -> Images:
        if options.tile:
            return middle(pixels, (height, width))
        return fit_input(pixels, (height, width), operator, degrade=options.degrade)

    fitted = [one._replace(pixels=fitted_pixels(one.pixels)) for one in pictures]
    resized = [
        f"{one.name}: the middle of {format_pixels(one.pixels.shape[:2])} at {format_size((height, width))}"
        for one in pictures
        if one.pixels.shape[:2] != (height, width)
    ]
    pixels = [one.pixels for one in fitted]
    measurement = measure(operator, pixels, edit_settings.sigma_y, degrade=options.degrade, seed=seed)
    return Inputs(fitted, measurement, resized)


def _tiled_shape(options: Edit, edit_settings: EditSettings, model_shape: Shape) -> Shape:
    """Return the shape of the edited image of a picture that keeps its size, cropped to whole blocks."""
    channels, *tile = model_shape
    if not options.source.is_file() or options.source.suffix == ".npz":
        raise UsageError(f"--tile takes one picture (got {printable(options.source)}): give a file")
    height, width = read_picture(options.source, None, channels).shape[:2]
    factors = [] if edit_settings.operator is None else parse_operator(edit_settings.operator)
    factor = math.prod(values["factor"] for name, values in factors if name == "downsample")
    height, width = (
        (side // factor * factor if options.degrade else side * factor) for side in (height, width)
    )
    pixels = format_pixels((height, width))
    if height < tile[0] or width < tile[1]:
        raise UsageError(f"--tile makes {pixels}, less than a tile's {format_size(tile)}: leave it out")
    if height * width > MAX_PIXELS:
        raise UsageError(f"--tile makes {pixels}: give a smaller picture")
    return channels, height, width


def _operator(options: Edit, text: str, image_shape: Shape) -> LinearOperator:
    """Return the operator, with a mask from a file or from the picture's transparency."""
    if "mask" not in text.split(PRODUCT) or options.mask is None:
        return build_operator(text, image_shape)
    file = options.source if options.mask == "alpha" else Path(options.mask)
    if options.mask == "alpha":
        if not file.is_file():
            raise UsageError("--mask alpha takes one picture with transparent pixels: give --mask FILE")
        mask = 255 - read_picture(file, None, 4)[:, :, 3:]
    else:
        mask = read_picture(file, None, 1)
    return masked_operator(text, image_shape, mask)


def _write(
    options: Edit,
    inputs: Inputs,
    images: Images,
    labels: Labels | None,
    labelled: ModelDescription,
    card: dict[str, Any],
) -> None:
    """Write the results as npz or store, or a picture with the inputs and the spread."""
    if options.out.suffix == ".npz":
        return write_output(
            options.out, lambda file: save_npz(file, images, None if labels is None else labels.tolist())
        )
    if not options.out.suffix:
        classes = list(labelled.data.classes)
        meta = {"name": labelled.data.name, "classes": classes, "card": card}
        write_store(options.out, images, labels, meta)
        return None
    pictures = [picture.pixels for picture in inputs.pictures]
    rows, columns = show_edits(pictures, inputs.measurement, images, options.num)
    sheet = enlarge(grid(rows, columns), images.shape[1:3], options.scale)
    return write_output(options.out, lambda file: file.write(png_bytes(sheet)))
