"""The names under which MLflow knows things: experiments, models, tags, artifact folders."""

import getpass
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion.images.store_meta import Ancestor

KEY = "diffctl.key"  # one training, wherever it is tracked: the parent run
FINGERPRINT = "diffctl.fingerprint"  # the training's folder in runs/train/
DATA_DIGEST = "diffctl.data_digest"
CODE = "diffctl.code"  # the digest of the code that a training runs by
RESUMED_FROM = "diffctl.goes_on"  # the training, and its step, from whose state this one has begun
SEARCH, SEARCH_KEY = "diffctl.search", "diffctl.search_key"  # the search that a training is a trial of
SEARCH_ROOT = "diffctl.search_root"  # a search by its key: the run whose children its trials are
TRIAL = "diffctl.trial"  # its number there
PRUNED = "diffctl.pruned"  # the step after which a trial was ended early
MODEL_SHA256 = "diffctl.model_sha256"  # a model by its weights and settings, as cards have it
FILE_SHA256 = "diffctl.file_sha256"  # a model's file, byte for byte, as it was logged
CELL = "diffctl.cell"  # one cell of a sweep: a child run
CARD = "diffctl.card"  # the fingerprint of the protocol card of a cell, or of all of a model's scores
BEST = "diffctl.best"  # a training's best score and its cell, to be read by people
# Of a model version: what the gate decided first, and why; others have `.ID` behind.
DECISION = "diffctl.decision"
DVC_MD5 = "diffctl.dvc_md5"  # of a model version: the MD5 by which DVC knows its file
EVENT = "diffctl.event"  # of a registered model: a move of its champion, `.NUMBER.ID` behind, as JSON
HISTORY_RUN = "diffctl.history_run"  # of a registered model: the run whose params say which moves count
# Of a training: the model that it started from, as cards have it; below it, what that had seen.
PRETRAINED = "diffctl.start"
LINEAGE = "diffctl.lineage"  # all models that a training comes from, the nearest first
# Of a scored training and a model version: the digest of all that decides the training but its seed.
SETTING = "diffctl.setting"
GIT_DIRTY = "diffctl.git_dirty"
GIT_COMMIT = "mlflow.source.git.commit"  # MLflow's own name: its UI shows it
EMA_WIDTH = "diffctl.ema_width"  # σ_rel of the average that a registered model is, where it is one
PARENT = "mlflow.parentRunId"

MODEL_FOLDER = "weights"  # the model artefact of a training
EVALUATION_FOLDER = "evaluation"  # scores.json
REPORT_FOLDER = "report"
REGISTERED_FOLDER = "registered"  # the registered form of a model, a folder a protocol

REGISTRY_EXPERIMENT = "diffctl.registry"  # the runs that HISTORY_RUN names, one a registered model

CHAMPION = "champion"
PREVIOUS = "previous"  # the holder that a rollback goes back to


def experiment_name(data_name: str) -> str:
    """The experiment of all trainings on a data set."""
    return f"diffctl-{data_name}"


def model_name(data_name: str) -> str:
    """The registered model that the trainings on a data set compete for."""
    return f"diffctl-{data_name}"


def source_tags(command: str) -> dict[str, str]:
    """Who ran which command, as MLflow's UI shows it."""
    return {"mlflow.user": _user(), "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "unknown"


def pretrained_tags(lineage: "Sequence[Ancestor]") -> dict[str, str]:
    """What a training started from: the model, its data and its step; empty where its weights were drawn."""
    if not lineage:
        return {}
    nearest = lineage[0]
    return {
        PRETRAINED: nearest.sha256,
        f"{PRETRAINED}.data": nearest.data,
        f"{PRETRAINED}.data_digest": nearest.digest,
        f"{PRETRAINED}.step": str(nearest.step),
        LINEAGE: " ".join(one.sha256[:16] for one in lineage),
    }


def git_tags(root: Path) -> dict[str, str]:
    """The commit that `root` stands at and whether it has changes; empty outside a repository."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {}
    dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    return {GIT_COMMIT: commit, GIT_DIRTY: str(dirty).lower()}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
