"""Pull the weights that a training and its sampling name and that DVC tracks by files of their own."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def update_tracked_files(clone: Path) -> None:
    """Replace files that differ from the .dvc files of a clone; missing ones are pulled by what needs them.

    Raise DiffctlError if DVC fails.
    """
    if not (clone / ".dvc").is_dir():
        return
    done = _dvc("status", "--json", cwd=clone)
    if done.returncode:
        raise DiffctlError(f"`dvc status` failed in {clone} ({_reason(done)})")
    status: dict[str, Any] = json.loads(done.stdout)
    changed = [
        name
        for name, problems in status.items()
        if name.endswith(".dvc") and any(_is_changed(clone, one.get("changed outs", {})) for one in problems)
    ]
    if changed and _dvc("checkout", "--force", *changed, cwd=clone).returncode:
        done = _dvc("pull", "--force", *changed, cwd=clone)
        if done.returncode:
            raise DiffctlError(f"`dvc pull {' '.join(changed)}` failed in {clone} ({_reason(done)})")


def _is_changed(clone: Path, outputs: Mapping[str, str]) -> bool:
    """Return whether an output exists with other content; "not in cache" may be the same content."""
    return any(
        state in ("modified", "not in cache") and (clone / name).exists() for name, state in outputs.items()
    )


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
        done = _dvc("pull", str(tracked))
    if done.returncode or not path.exists():
        raise DiffctlError(f"{subject}: {path} is missing, and `dvc pull {tracked}` failed ({_reason(done)})")


def _dvc(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DVC, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=cwd
    )


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    return " ".join(errors).removeprefix("ERROR: ") or "no reason given"
