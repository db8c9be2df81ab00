"""The cells of a sweep as the stages behind it find them: their images."""

from pathlib import Path

from diffusion.images.store import ImageStore, open_store
from diffusion.images.store_meta import CellMeta
from diffusion.protocol.card import differing_fields
from diffusion.protocol.grid import DERIVED_FIELDS, Cell, cell_settings, grid, settings_card
from diffusion.protocol.settings import CellConfig, SampleSettings
from diffusion.protocol.sweep_config import SweepConfig
from diffusion.system.errors import DiffctlError, UsageError


def open_cells(sample: CellConfig, sweep: SweepConfig, samples: Path) -> dict[Cell, ImageStore]:
    """Every cell of the grid with its images; DiffctlError when one is missing or not what is asked for."""
    return {cell: _open_cell(sample, samples, cell) for cell in grid(sample, sweep)}


def _open_cell(sample: CellConfig, samples: Path, cell: Cell) -> ImageStore:
    path = samples / cell.name
    again = "make it with `diffctl stage sample`"
    if not path.is_dir():
        raise UsageError(f"cell {cell.name} is not in {samples}: {again}")
    store = open_store(path, CellMeta)
    card = store.meta["card"]
    wanted = {
        **settings_card(cell_settings(sample, cell)),
        "num_images": sample.num_images,
        **({"ema": cell.ema} if cell.ema is not None else {}),
    }
    decides = {*wanted, *SampleSettings.model_fields}  # also what is not wanted, where the card has it
    if wrong := differing_fields([{field: card.get(field) for field in decides}, wanted], DERIVED_FIELDS):
        field, (has, wants) = next(iter(wrong.items()))
        raise DiffctlError(f"cell {cell.name} was sampled with {field} {has}, not {wants}: {again} again")
    if len(store) != sample.num_images:
        raise DiffctlError(
            f"cell {cell.name} holds {len(store)} images, not {sample.num_images}: {again} again"
        )
    return store
