"""The snapshots of a training's further averages: in its folder, and as what it gives.

In the folder lies every one up to the newest saved state, for each is written before that state is.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from diffusion.model.model_file import Artefact, read_artefact, read_weights, save_artefact
from diffusion.model.posthoc_ema import snapshot_files, snapshot_path, snapshot_step
from diffusion.system.errors import DiffctlError
from diffusion.system.files import atomic_folder, copy_file
from diffusion.train.train_config import OptimisationConfig

FOLDER = "ema"  # in a training's folder


def save_snapshots(
    folder: Path, averages: nn.ModuleList, widths: Sequence[float], artefact: Artefact
) -> None:
    """Keep each average in a training's folder; DiffctlError where there is no room."""
    for average, width in zip(averages, widths, strict=True):
        said = artefact.model_copy(update={"ema_sigma_rel": width})
        try:
            save_artefact(snapshot_path(folder / FOLDER, width, artefact.step), average.state_dict(), said)
        except OSError as error:
            raise DiffctlError(
                f"cannot save the averages of step {artefact.step:,} in {folder / FOLDER} "
                f"({error.strerror}): make room and run it again; it goes on from the state before"
            ) from error


def copy_snapshots(source: Path, folder: Path, step: int) -> None:
    """Bring those of another training's folder, up to a step, into a training's folder."""
    for kept in snapshot_files(source / FOLDER):
        if snapshot_step(kept) <= step:
            copy_file(kept, folder / FOLDER / kept.name)


def publish_snapshots(folder: Path, out: Path, config: OptimisationConfig, result: Artefact) -> None:
    """Make `out` the snapshots of a finished training, of a `result`; an empty folder where it kept none.

    One that another training made, from which this has gone on, is this one's now. DiffctlError for one that
    is missing or damaged.
    """
    with atomic_folder(out) as made:
        for width in config.sigma_rels:
            for step in config.snapshot_steps():
                kept = snapshot_path(folder / FOLDER, width, step)
                if not kept.is_file():
                    raise DiffctlError(
                        f"{kept} is gone: `diffctl run --fresh` trains anew, with all averages"
                    )
                said = result.model_copy(update={"step": step, "ema_sigma_rel": width})
                save_artefact(snapshot_path(made, width, step), read_weights(kept, read_artefact(kept)), said)
