"""Snapshots of a training's power-function averages: in its run directory, and as a stage's output.

Each snapshot is written before the state of its step, so that the run directory always has every snapshot up
to the newest saved state.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from diffusion.model.model_file import Artefact, read_artefact, read_weights, save_artefact
from diffusion.model.posthoc_ema import snapshot_files, snapshot_path, snapshot_step
from diffusion.system.errors import DiffctlError
from diffusion.system.files import atomic_folder, copy_file
from diffusion.train.train_config import OptimisationConfig

FOLDER = "ema"  # in a run directory


def save_snapshots(
    folder: Path, profiles: nn.ModuleList, sigma_rels: Sequence[float], artefact: Artefact
) -> None:
    """Save each average in a run directory; DiffctlError if the disk is full."""
    for average, sigma_rel in zip(profiles, sigma_rels, strict=True):
        path = snapshot_path(folder / FOLDER, sigma_rel, artefact.step)
        try:
            save_artefact(
                path, average.state_dict(), artefact.model_copy(update={"ema_sigma_rel": sigma_rel})
            )
        except OSError as error:
            raise DiffctlError(
                f"cannot save the averages of step {artefact.step:,} in {folder / FOLDER} "
                f"({error.strerror}): make room and run it again; it resumes from the state before"
            ) from error


def copy_snapshots(source: Path, folder: Path, step: int) -> None:
    """Copy the snapshots up to a step from another run directory."""
    for path in snapshot_files(source / FOLDER):
        if snapshot_step(path) <= step:
            copy_file(path, folder / FOLDER / path.name)


def publish_snapshots(folder: Path, out: Path, config: OptimisationConfig, artefact: Artefact) -> None:
    """Write the snapshots of a finished training to `out`, an empty folder if it has none.

    Their metadata is that of `artefact`, also for snapshots that were copied from another training.
    DiffctlError for a missing or damaged one.
    """
    with atomic_folder(out) as made:
        for sigma_rel in config.sigma_rels:
            for step in config.snapshot_steps():
                path = snapshot_path(folder / FOLDER, sigma_rel, step)
                if not path.is_file():
                    raise DiffctlError(
                        f"{path} is missing: `diffctl run --fresh` trains from scratch, with all averages"
                    )
                metadata = artefact.model_copy(update={"step": step, "ema_sigma_rel": sigma_rel})
                weights = read_weights(path, read_artefact(path))
                save_artefact(snapshot_path(made, sigma_rel, step), weights, metadata)
