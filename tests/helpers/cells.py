"""A project with a model of random weights, and a comparison of the images of two runs."""

from pathlib import Path
from typing import Any

import numpy as np

from diffusion.config import Config, load
from diffusion.images.store import Images, open_store
from diffusion.layout import MODEL, SAMPLES
from diffusion.model.model_file import save_artefact
from diffusion.protocol.grid import grid
from tests.conftest import write_params
from tests.helpers.networks import artefact_of, network_of, spec_of


def with_model(folder: Path, **sections: dict[str, Any]) -> Config:
    """Write params.yaml and a model into the folder; returns the config."""
    write_params(folder, **sections)
    spec = spec_of()
    save_artefact(folder / MODEL, network_of(spec).state_dict(), artefact_of(spec))
    return load(folder / "params.yaml")


def cell_images(folder: Path) -> dict[str, Images]:
    """Return the images of every cell of the folder's grid."""
    config = load(folder / "params.yaml")
    cells = grid(config.sample, config.sweep)
    return {cell.name: np.array(open_store(folder / SAMPLES / cell.name).images) for cell in cells}


def assert_equal_but_for_rounding(images: Images, wanted: Images) -> None:
    """Assert a difference of at most one grey level on under 0.1% of the pixels."""
    difference = np.abs(images.astype(int) - wanted.astype(int))
    assert images.shape == wanted.shape
    assert difference.max() <= 1
    assert np.count_nonzero(difference) < 0.001 * difference.size
