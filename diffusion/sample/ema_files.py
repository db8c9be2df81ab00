"""The model files of EMA profiles, made from the snapshots of a training."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from diffusion.code_digest import code_digest, module_digests
from diffusion.layout import AVERAGES, EMA_RUNS, MODEL
from diffusion.model.model_file import read_artefact, read_verified_artefact, save_artefact
from diffusion.model.posthoc_ema import SNAPSHOT_FIELDS, Snapshots
from diffusion.protocol.guidance_rules import EmaGuide
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.section import fingerprint


def matching_snapshots(model: Path, averages: Path = AVERAGES, *, unverified: bool = False) -> Snapshots:
    """Return the snapshots of the training of `model`; UsageError if they are of another training.

    With `unverified` only their metadata is read.
    """
    snapshots, own = Snapshots.of(averages, unverified=unverified), read_artefact(model)
    compared = [one.model_dump(exclude=SNAPSHOT_FIELDS - {"step"}) for one in (snapshots.last, own)]
    if compared[0] != compared[1]:
        remedy = "restore both by `dvc checkout` or `dvc pull`, or train again"
        raise UsageError(f"{averages} has snapshots of another training than {model}: {remedy}")
    return snapshots


def guide_snapshots(
    guide: EmaGuide, model: Path, averages: Path = AVERAGES, *, unverified: bool = False
) -> Snapshots:
    """Return the snapshots that a guide is made from, as `matching_snapshots`.

    UsageError if there is none of its step.
    """
    snapshots = matching_snapshots(model, averages, unverified=unverified)
    return snapshots if guide.step is None else snapshots.until(guide.step)


def ema_model_file(snapshots: Snapshots, sigma_rel: float) -> Path:
    """Return the model file of an EMA profile, byte for byte as `diffctl ema` writes it; it is made once."""
    path = ema_path(snapshots, sigma_rel)
    if path.is_file():
        with suppress(DiffctlError):  # it is damaged, and made again
            read_verified_artefact(path)
            return path
    save_artefact(path, *snapshots.reconstruct(sigma_rel))
    return path


def existing_ema_models(model: Path, sigma_rels: Iterable[float]) -> dict[float | None, Path]:
    """Return the existing model files of EMA profiles, without reading the snapshots' weights."""
    try:
        snapshots = matching_snapshots(model, unverified=True)
    except DiffctlError:
        return {}
    paths = {sigma_rel: ema_path(snapshots, sigma_rel) for sigma_rel in sigma_rels}
    return {sigma_rel: path for sigma_rel, path in paths.items() if path.is_file()}


def ema_path(snapshots: Snapshots, sigma_rel: float) -> Path:
    """Return the path of a profile's model file, named by its inputs and the code."""
    made_of = {
        "width": sigma_rel,
        "snapshots": [artefact.model_dump(mode="json") for artefact in snapshots.artefacts],
        "code": code_digest(module_digests("diffusion.model.posthoc_ema")),
    }
    return EMA_RUNS / fingerprint(made_of) / MODEL.name
