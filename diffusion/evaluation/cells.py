"""The cells of a sweep as the stages behind it find them: their images, and the document of their scores."""

from pathlib import Path
from typing import Any

from diffusion.config import Config
from diffusion.data.store import ImageStore, open_store
from diffusion.errors import DiffctlError
from diffusion.evaluation.card import differing
from diffusion.grid import Cell, cell_settings, settings_card

Document = dict[str, Any]
"""What metrics/scores.json holds."""


def open_cell(config: Config, samples: Path, cell: Cell) -> ImageStore:
    """A cell's images; DiffctlError when they are missing or not what the config asks for."""
    path = samples / cell.name
    again = "make it with `diffctl stage sample`"
    if not path.is_dir():
        raise DiffctlError(f"cell {cell.name} is not in {samples}: {again}")
    store = open_store(path)
    card = store.meta.get("card")
    if card is None:
        raise DiffctlError(f"the images in {path} have no protocol card: {again}")
    wanted = {
        **settings_card(cell_settings(config, cell)),
        "num_images": config.sample.num_images,
    }
    if wrong := differing([{field: card.get(field) for field in wanted}, wanted]):
        field, (has, wants) = next(iter(wrong.items()))
        raise DiffctlError(f"cell {cell.name} was sampled with {field} {has}, not {wants}: {again} again")
    if len(store) != config.sample.num_images:
        raise DiffctlError(
            f"cell {cell.name} holds {len(store)} images, not {config.sample.num_images}: {again} again"
        )
    return store
