"""Versions of the registered model: what one is made of, how it is found again, and what it holds."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.choice.ranking import best_cell
from diffusion.choice.selection import describe_selection
from diffusion.layout import SCORES
from diffusion.protocol.scores import ScoresDocument, read_scores
from diffusion.system.errors import DiffctlError
from diffusion.system.files import sha256_file
from diffusion.system.section import fingerprint
from tracking.keys import (
    BEST,
    CARD,
    DVC_MD5,
    EMA_WIDTH,
    FILE_SHA256,
    KEY,
    MODEL_SHA256,
    REGISTERED_FOLDER,
    SETTING,
    git_tags,
)
from tracking.registry.model_cache import WEIGHTS, cached_model, check_digest
from tracking.registry.moves import ensure_model
from tracking.store import log_folder, tracking_uri, translate_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

DVC_LOCK = Path("dvc.lock")
CARD_DIGITS = 16  # of a fingerprint
# What the registered model imports beside a copy of diffusion/.
REQUIREMENTS = ("mlflow", "torch", "numpy", "pydantic", "pyyaml", "safetensors", "pillow")


def protocol_fingerprint(document: ScoresDocument) -> str:
    """The fingerprint of the cards of all cells."""
    return fingerprint({name: cell.card for name, cell in document.cells.items()})


def find_version(
    client: "MlflowClient", name: str, sha256: str, document: ScoresDocument
) -> "ModelVersion | None":
    """The version of these weights under the protocol of these scores; None when there is none."""
    protocol = protocol_fingerprint(document)
    query = f"name = '{name}' AND tags.`{MODEL_SHA256}` = '{sha256}' AND tags.`{CARD}` = '{protocol}'"
    versions = client.search_model_versions(query)
    return versions[0] if versions else None


def get_version(client: "MlflowClient", name: str, number: int) -> "ModelVersion | None":
    """The version of that number; None when there is none, as after it was deleted in MLflow."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def create_version(
    client: "MlflowClient", name: str, run_id: str, model: Path, document: ScoresDocument
) -> "ModelVersion":
    """Register the model's file with its scores, as artifacts of the run that made it.

    Killed before its end it leaves no version, and what it logged is written again the next time.
    """
    from diffusion.model.model_file import read_artefact  # torch and matplotlib, for this alone
    from tracking.pages.description import MONTAGE, describe_version, samples_montage

    protocol = protocol_fingerprint(document)
    folder, picture = f"{REGISTERED_FOLDER}/{protocol}", samples_montage(document)
    with tempfile.TemporaryDirectory() as scratch, _plain_file(model) as weights:
        path = Path(scratch) / "model"
        _save(path, weights, document, Path(scratch))
        if picture is not None:
            (path / MONTAGE).write_bytes(picture)
        log_folder(client, run_id, path, folder)
    ensure_model(client, name)
    artefact = read_artefact(model)
    tags = {
        MODEL_SHA256: artefact.model_sha256,
        FILE_SHA256: sha256_file(model),
        CARD: protocol,
        KEY: client.get_run(run_id).data.tags[KEY],
        BEST: describe_selection(document.best),
        **({SETTING: artefact.training["setting"]} if artefact.training else {}),
        **({EMA_WIDTH: f"{artefact.ema_width:g}"} if artefact.ema_width else {}),
        **_dvc_tags(model),
        **git_tags(Path.cwd()),
    }
    text = describe_version(artefact, document, run_id, folder, with_montage=picture is not None)
    return client.create_model_version(name, f"runs:/{run_id}/{folder}", run_id, tags, description=text)


def _dvc_tags(model: Path) -> dict[str, str]:
    """The MD5 by which DVC knows the file, if dvc.lock names it."""
    md5 = hashlib.md5(model.read_bytes(), usedforsecurity=False).hexdigest()
    known = DVC_LOCK.is_file() and f"md5: {md5}\n" in DVC_LOCK.read_text(encoding="utf-8")
    return {DVC_MD5: md5} if known else {}


@contextmanager
def _plain_file(path: Path) -> Iterator[Path]:
    """The file; a copy of it where DVC has put a link in its place, which MLflow does not take."""
    if not path.is_symlink():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copyfile(path, Path(folder) / path.name))


def _save(path: Path, weights: Path, document: ScoresDocument, scratch: Path) -> None:
    """Write the model's folder: code, weights and scores, nothing pickled."""
    import mlflow.pyfunc

    import diffusion
    from diffusion.protocol.scores import write_scores_document

    write_scores_document(scratch / SCORES.name, document)
    mlflow.pyfunc.save_model(
        path,
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        artifacts={"weights": str(weights), "scores": str(scratch / SCORES.name)},
        code_paths=[str(Path(diffusion.__file__).parent)],
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
        model_config={"best_cell": best_cell(document.cells)[0]},
    )


def is_diffctl_version(registered: "ModelVersion") -> bool:
    """Whether diffctl has registered this version, so that it holds weights and scores."""
    return {MODEL_SHA256, FILE_SHA256, CARD} <= registered.tags.keys()


def fetch_version_weights(client: "MlflowClient", registered: "ModelVersion") -> Path:
    """A version's model file, from a cache addressed by content.

    DiffctlError when it is not ours, or its file's SHA-256 is not the one in its tag.
    """
    _refuse_foreign(registered)

    def download(folder: Path) -> Path:
        with translate_errors(tracking_uri()):
            return _download(client, registered, WEIGHTS, folder)

    return cached_model(registered.tags[FILE_SHA256], download)


def fetch_version_scores(client: "MlflowClient", registered: "ModelVersion") -> ScoresDocument:
    """The scores that a version was registered with; DiffctlError when it is not ours."""
    _refuse_foreign(registered)
    with translate_errors(tracking_uri()), tempfile.TemporaryDirectory() as scratch:
        return read_scores(_download(client, registered, SCORES.name, Path(scratch)))


def _refuse_foreign(registered: "ModelVersion") -> None:
    if not is_diffctl_version(registered):
        raise DiffctlError(
            f"{registered.name} version {registered.version} was registered by something else than diffctl"
        )


def _download(client: "MlflowClient", registered: "ModelVersion", file: str, folder: Path) -> Path:
    of = f"{registered.name} version {registered.version}"
    card = check_digest(registered.tags[CARD], CARD_DIGITS, f"{of}, tag {CARD}")
    path = f"{REGISTERED_FOLDER}/{card}/artifacts/{file}"
    return Path(client.download_artifacts(str(registered.run_id), path, str(folder)))
