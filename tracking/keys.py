"""The names of MLflow's experiments, models, tags and artifact folders, and the title of the images."""

import getpass
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from diffusion.config import TrackingConfig
from diffusion.data.data_config import default_title
from diffusion.system.limits import MAX_NAME
from diffusion.system.params import PARAMS, read_params
from diffusion.system.section import Section, validate

if TYPE_CHECKING:
    from diffusion.images.store_meta import Ancestor

# Tags of a training's run.
KEY = "diffctl.key"  # identifies the training in every store
FINGERPRINT = "diffctl.fingerprint"  # the training's folder in runs/train/
DATA_DIGEST = "diffctl.data_digest"
CODE = "diffctl.code"  # digest of the code that trains
RESUMED_FROM = "diffctl.resumed_from"  # the training and the step that this one resumed from
PRETRAINED = "diffctl.init_from"  # the model that the initial weights came from; further fields below it
LINEAGE = "diffctl.lineage"  # all models that the weights descend from, the nearest first
SETTING = "diffctl.setting"  # digest of everything that decides the training but its seed
BEST = "diffctl.best"  # the best score and its cell, as text
SEARCH, SEARCH_KEY = "diffctl.search", "diffctl.search_key"  # the search that the training is a trial of
VERDICT = "diffctl.verdict"  # the key of a verdict: on its trainings, on its own run, and on those of pairs
TRIAL = "diffctl.trial"  # its number in the search
PRUNED = "diffctl.pruned"  # the step after which the trial was pruned
SEARCH_ROOT = "diffctl.search_root"  # tag of a search's own run, the parent of its trials
GIT_DIRTY = "diffctl.git_dirty"
GIT_COMMIT = "mlflow.source.git.commit"  # MLflow's own name, shown by its UI
PARENT = "mlflow.parentRunId"

# Tags of a model or a cell.
MODEL_SHA256 = "diffctl.model_sha256"  # digest of weights and settings, as on protocol cards
FILE_SHA256 = "diffctl.file_sha256"  # digest of the model's file
GUIDE_TAGS = {  # digests of the files of what guides the model, by their names in NetworkFiles
    "guide": "diffctl.guide_file_sha256",
    "classifier": "diffctl.classifier_file_sha256",
    "base": "diffctl.base_file_sha256",
}
CELL = "diffctl.cell"  # name of a sweep's cell: a child run
CARD = "diffctl.card"  # fingerprint of a cell's protocol card, or of the cards of all cells

# Tags of a model version or a registered model.
DECISION = "diffctl.decision"  # the gate's first decision; later ones have a number appended
UPLOAD = "diffctl.upload"  # what the name of the version's artifact folder ends in; none before format 4
FORMAT = "diffctl.format"  # of the registered files and tags
DVC_MD5 = "diffctl.dvc_md5"  # the file's MD5 in dvc.lock
DATA_SAMPLE = "diffctl.data_sample"  # of its images, diffusion/images/store.py; also DATA_DIGEST
EMA_SIGMA_REL = "diffctl.ema_sigma_rel"  # σ_rel, if the version is an EMA profile
HISTORY_RUN = "diffctl.history_run"  # a run with a param for each move of the champion

# Artifact folders of a run.
MODEL_FOLDER = "weights"  # the training's model file
EVALUATION_FOLDER = "evaluation"  # scores.json
REPORT_FOLDER = "report"
REGISTERED_FOLDER = "registered"  # registered models, a folder per version

REGISTRY_EXPERIMENT = "diffctl.registry"  # contains a HISTORY_RUN per registered model

# Aliases of a registered model.
CHAMPION = "champion"
PREVIOUS = "previous"  # the version that a rollback restores


def experiment_name(title: str) -> str:
    """Return the experiment of all trainings on the images with a title."""
    return f"diffctl-{title}"


def model_name(title: str) -> str:
    """Return the registered model of the images with a title."""
    return f"diffctl-{title}"


def source_tags(command: str) -> dict[str, str]:
    """Return the user and the command, as MLflow's UI shows them."""
    return {"mlflow.user": user_name(), "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}


def user_name() -> str:
    """Return the user's name, or `unknown`: a user in a container may have none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def pretrained_tags(lineage: "Sequence[Ancestor]") -> dict[str, str]:
    """Return the tags of a training with pretrained weights; empty for random initial weights."""
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


def git_tags() -> dict[str, str]:
    """Return the commit and whether there are uncommitted changes; empty outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {GIT_COMMIT: commit, GIT_DIRTY: str(bool(changes)).lower()}


class _Data(Section, extra="ignore"):
    name: Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=MAX_NAME)]
    path: Any = None


class Project(Section, extra="ignore"):
    """The sections that name the images; of `data` only the name has to be valid."""

    data: _Data
    tracking: TrackingConfig = TrackingConfig()

    @property
    def title(self) -> str:
        """The title of the images."""
        return self.tracking.title or default_title(self.data.name, self.data.path)


def read_project() -> Project:
    """Read params.yaml; UsageError if it is missing or does not name the data."""
    return validate(Project, read_params(), PARAMS)


def title_of(data: str) -> str:
    """Return the project's title if it has this data set, else the name of the data set."""
    if not Path(PARAMS).exists():
        return data
    project = read_project()
    return project.title if project.data.name == data else data
