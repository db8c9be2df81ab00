"""Model files of other averages of a training's weights."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from diffusion.code_digest import code_digest, module_digests
from diffusion.layout import AVERAGES, EMA_RUNS, MODEL
from diffusion.model.model_file import Artefact, read_artefact, read_verified_artefact, save_artefact
from diffusion.model.posthoc_ema import SNAPSHOT_FIELDS, Snapshots
from diffusion.protocol.guidance_rules import EmaGuide
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.section import fingerprint


def matching_snapshots(model: Path, averages: Path = AVERAGES, *, unverified: bool = False) -> Snapshots:
    """Return the snapshots of the training of `model`; UsageError if they are of another training.

    With `unverified` only their metadata is read.
    """
    snapshots, own = Snapshots.of(averages, unverified=unverified), read_artefact(model)
    if not _is_of(snapshots, own):
        raise UsageError(
            f"{averages} has snapshots of another training than {model}: bring both by `dvc checkout` or "
            "`dvc pull`, or train"
        )
    return snapshots


def guide_snapshots(
    guide: EmaGuide, model: Path, averages: Path = AVERAGES, *, unverified: bool = False
) -> Snapshots:
    """Return the snapshots that a guide is made from, as `matching_snapshots`.

    UsageError if there is none of its step.
    """
    snapshots = matching_snapshots(model, averages, unverified=unverified)
    return snapshots if guide.step is None else snapshots.until(guide.step)


def ema_model_file(snapshots: Snapshots, width: float) -> Path:
    """Return the model file of a width, byte for byte as `diffctl ema` writes it; it is made once."""
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
    """Return the existing model files of averages by their widths, without reading the snapshots."""
    try:
        snapshots = matching_snapshots(model, averages, unverified=True)
    except DiffctlError:
        return {}
    places = {width: _place(snapshots, width, root) for width in widths}
    return {width: path for width, path in places.items() if path.is_file()}


def existing_ema_guide(
    guide: EmaGuide, model: Path, averages: Path = AVERAGES, root: Path = EMA_RUNS
) -> Path | None:
    """Return the model file of a guide if it was made, without reading the snapshots."""
    try:
        path = _place(guide_snapshots(guide, model, averages, unverified=True), guide.sigma_rel, root)
    except DiffctlError:
        return None
    return path if path.is_file() else None


def _is_of(snapshots: Snapshots, own: Artefact) -> bool:
    last = snapshots.last
    return last.step == own.step and last.model_dump(exclude=SNAPSHOT_FIELDS) == own.model_dump(
        exclude=SNAPSHOT_FIELDS
    )


def _place(snapshots: Snapshots, width: float, root: Path = EMA_RUNS) -> Path:
    """Return the path of a width's model file, named by its inputs and the code."""
    made_of = {
        "width": width,
        "snapshots": [artefact.model_dump(mode="json") for artefact in snapshots.artefacts],
        "code": code_digest(module_digests("diffusion.model.posthoc_ema")),
    }
    return root / fingerprint(made_of) / MODEL.name
