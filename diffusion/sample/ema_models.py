"""The models of a sweep: the one that a training gives, and other averages of its weights, each made once."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from diffusion.code_digest import code_digest, module_digests
from diffusion.layout import AVERAGES, EMA_RUNS, MODEL
from diffusion.model.model_file import Artefact, read_artefact, read_verified_artefact, save_artefact
from diffusion.model.posthoc_ema import SNAPSHOT_FIELDS, Snapshots
from diffusion.protocol.grid import Cell
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.section import fingerprint


class EMAModelFiles:
    """The model file of every cell: `model` itself, or the average of the cell's width.

    UsageError where a cell has a width and `averages` has no snapshots of the training that gave `model`.
    """

    def __init__(self, model: Path, cells: Iterable[Cell], averages: Path = AVERAGES) -> None:
        self.model = model
        has_widths = any(cell.ema is not None for cell in cells)
        self._snapshots = matching_snapshots(model, averages) if has_widths else None

    def file(self, cell: Cell) -> Path:
        """The file that the cell's images are by, made where it is not there yet."""
        if cell.ema is None or self._snapshots is None:
            return self.model
        return ema_model_file(self._snapshots, cell.ema)

    def average_of(self, cell: Cell) -> Path | None:
        """`model` where the cell is by another average of its training; None where it is by itself."""
        return None if cell.ema is None else self.model


def matching_snapshots(model: Path, averages: Path = AVERAGES) -> Snapshots:
    """The snapshots of the training that gave `model`; UsageError where those that lie there are others."""
    snapshots, own = Snapshots.of(averages), read_artefact(model)
    if not _is_of(snapshots, own):
        raise UsageError(
            f"{averages} has snapshots of another training than {model}: bring both by `dvc checkout` or "
            "`dvc pull`, or train"
        )
    return snapshots


def ema_model_file(snapshots: Snapshots, width: float) -> Path:
    """The model file of a width, byte for byte as `diffctl ema` writes it; made once."""
    path = _place(snapshots, width)
    if path.is_file():
        with suppress(DiffctlError):  # it is damaged, and made again
            read_verified_artefact(path)
            return path
    save_artefact(path, *snapshots.reconstruct(width))
    return path


def existing_ema_models(
    model: Path, widths: Iterable[float], averages: Path = AVERAGES, root: Path = EMA_RUNS
) -> dict[float | None, Path]:
    """Those of a model's averages that have been made, by their widths; snapshots are not read whole."""
    try:
        snapshots, own = Snapshots.of(averages, unverified=True), read_artefact(model)
    except DiffctlError:
        return {}
    if not _is_of(snapshots, own):
        return {}
    places = {width: _place(snapshots, width, root) for width in widths}
    return {width: path for width, path in places.items() if path.is_file()}


def _is_of(snapshots: Snapshots, own: Artefact) -> bool:
    last = snapshots.last
    return last.step == own.step and last.model_dump(exclude=SNAPSHOT_FIELDS) == own.model_dump(
        exclude=SNAPSHOT_FIELDS
    )


def _place(snapshots: Snapshots, width: float, root: Path = EMA_RUNS) -> Path:
    """Where a width's model lies: by all that it is made of, and by the code that makes it."""
    made_of = {
        "width": width,
        "snapshots": [artefact.model_dump(mode="json") for artefact in snapshots.artefacts],
        "code": code_digest(module_digests("diffusion.model.posthoc_ema")),
    }
    return root / fingerprint(made_of) / MODEL.name
