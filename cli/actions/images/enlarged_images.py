"""Pictures that `diffctl sample` enlarges, and the picture that shows them next to the results."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from diffusion.images.pictures import SUFFIXES, enlarge, grid, read_picture
from diffusion.images.pixels import to_model, to_nchw, to_nhwc, to_uint8
from diffusion.images.store import Images
from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Condition
from diffusion.system.errors import UsageError

COLUMNS = 10


def with_pictures(
    folder: Path, loaded: LoadedModel, condition: Condition, indices: Sequence[int]
) -> Condition:
    """Return the condition with the pictures of a folder as low-resolution images: index i has file i mod N.

    UsageError if the model enlarges none, or for pictures of another size.
    """
    spec = loaded.artefact.network
    if spec.low_res_size is None:
        raise UsageError("--low-res is for a model that enlarges images (model.low_res): leave it out")
    found = folder.iterdir() if folder.is_dir() else ()
    files = sorted(path for path in found if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UsageError(f"--low-res {folder} is no folder with pictures: give one ({', '.join(SUFFIXES)})")
    chosen = [files[index % len(files)] for index in indices]
    pictures = {file: read_picture(file, spec.low_res_size, spec.in_channels) for file in set(chosen)}
    return replace(condition, low_res=to_model(to_nchw(np.stack([pictures[file] for file in chosen]))))


def side_by_side(low_res: Tensor, images: Images, originals: Images | None, factor: int | None) -> Images:
    """Return a picture with rows of low resolutions, of the images (N, H, W, C), and of their originals."""
    scale = images.shape[1] // low_res.shape[2]
    small = to_nhwc(to_uint8(low_res)).repeat(scale, axis=1).repeat(scale, axis=2)
    kinds = [small, images] if originals is None else [small, images, originals]
    columns, white = min(COLUMNS, len(images)), np.full_like(images[:1], 255)
    rows = []
    for start in range(0, len(images), columns):
        for kind in kinds:
            part = kind[start : start + columns]
            rows += [part, np.repeat(white, columns - len(part), axis=0)]
    return enlarge(grid(np.concatenate(rows), columns), images.shape[1:3], factor)
