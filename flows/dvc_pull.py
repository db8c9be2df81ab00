"""Pull the weights that a training and its sampling name and that DVC tracks by files of their own."""

import subprocess
from pathlib import Path

from diffusion.config import Config
from diffusion.layout import RUNS
from diffusion.system.errors import DiffctlError
from diffusion.system.locks import file_lock
from diffusion.train.train_config import PretrainedConfig
from flows.dvc_stage import DVC

PULL_LOCK = RUNS / "start.lock"  # all processes of a training need the weights, and DVC does not wait


def fetch_pretrained(config: PretrainedConfig | None) -> None:
    """Pull the initial weights, as `fetch_networks` does."""
    from diffusion.train.pretrained import pretrained_path

    if config is not None:
        _pull(pretrained_path(config.sha256), "train.init_from")


def fetch_networks(config: Config) -> None:
    """Pull initial weights, guides, classifiers and bases, unless they exist or DVC does not track them.

    They are no dependency of the stage `train`: `dvc repro` would pull them for a training that does not run.
    A stage may call DVC, which holds no lock of the folder while a command runs. Raise DiffctlError if DVC
    fails; what uses an untracked file that is missing reports it.
    """
    from diffusion.protocol.grid import cell_settings, grid
    from diffusion.sample.network_files import named_files

    fetch_pretrained(config.train.init_from)
    for cell in grid(config.sample, config.sweep):
        for file in named_files(cell_settings(config.sample, cell)):
            _pull(Path(file), "sample")


def _pull(path: Path, subject: str) -> None:
    """Pull a file that is missing, which DVC tracks itself or in a folder."""
    from diffusion.train.pretrained import dvc_file

    tracked = next((file for file in map(dvc_file, (path, *path.parents[:-1])) if file.is_file()), None)
    if path.exists() or tracked is None:
        return
    RUNS.mkdir(exist_ok=True)
    with file_lock(PULL_LOCK):
        if path.exists():
            return
        command = [*DVC, "pull", str(tracked)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode or not path.exists():
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        why = " ".join(errors).removeprefix("ERROR: ") or "no reason given"
        raise DiffctlError(f"{subject}: {path} is missing, and `dvc pull {tracked}` failed ({why})")
