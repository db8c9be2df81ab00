"""The names under which MLflow knows things: experiments, models, tags, artifact folders."""

import subprocess
from pathlib import Path

KEY = "diffctl.key"  # one training, wherever it is tracked: the parent run
FINGERPRINT = "diffctl.fingerprint"  # the training's folder in runs/train/
DATA_DIGEST = "diffctl.data_digest"
CODE = "diffctl.code"  # the digest of the code that a training runs by
MODEL_SHA256 = "diffctl.model_sha256"  # a model by its weights and settings, as cards have it
FILE_SHA256 = "diffctl.file_sha256"  # a model's file, byte for byte, as it was logged
CELL = "diffctl.cell"  # one cell of a sweep: a child run
CARD = "diffctl.card"  # the fingerprint of the protocol card of a cell, or of all of a model's scores
BEST = "diffctl.best"  # a training's best score and its cell, to be read by people
DECISION = "diffctl.decision"  # of a model version: what the gate decided, and why
GIT_DIRTY = "diffctl.git_dirty"
GIT_COMMIT = "mlflow.source.git.commit"  # MLflow's own name: its UI shows it
PARENT = "mlflow.parentRunId"

MODEL_FOLDER = "weights"  # the model artefact of a training
EVALUATION_FOLDER = "evaluation"  # scores.json
REPORT_FOLDER = "report"
REGISTERED_FOLDER = "registered"  # the registered form of a model, a folder a protocol

CHAMPION = "champion"


def experiment_name(data_name: str) -> str:
    """The experiment of all trainings on a data set."""
    return f"diffctl-{data_name}"


def model_name(data_name: str) -> str:
    """The registered model that the trainings on a data set compete for."""
    return f"diffctl-{data_name}"


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
