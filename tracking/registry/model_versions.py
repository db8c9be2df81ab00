"""Versions of a registered model: how they are created, found and downloaded.

Downloaded models are cached by content: a file is used only if its SHA-256 is the one in the tag.
"""

import hashlib
import os
import re
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import diffusion
from diffusion.choice.ranking import best_cell
from diffusion.choice.selection import describe_selection
from diffusion.images.store import TAG_LENGTH, contained_share, prepared_meta
from diffusion.layout import MODEL_RUNS, PREPARED, SCORES
from diffusion.protocol.scores_document import ScoresDocument, read_scores, write_scores_document
from diffusion.system.errors import DiffctlError
from diffusion.system.files import sha256_file
from diffusion.system.registry import plugins_folder
from diffusion.system.section import brief, fingerprint
from tracking import keys
from tracking.experiments import log_folder
from tracking.mlflow_pages import MONTAGE, describe_version, samples_montage
from tracking.registry.champion_log import ensure_model
from tracking.store import find, readable

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from diffusion.sample.network_files import NetworkFiles

DVC_LOCK = Path("dvc.lock")
WEIGHTS = "model.safetensors"
VERSION_FORMAT = 4  # 3: in a folder that versions may share; 4: in a folder of its own
READABLE_FORMATS = ("3", "4")
UPLOAD_LENGTH = 8  # hex digits
CODE_ARCHIVE = "diffusion.zip"  # pyfunc_model.py reads it
GROWN = 0.9  # share of the images of an earlier state of growing data that are still there
# Packages that a registered model imports, apart from its copy of diffusion/.
REQUIREMENTS = ("mlflow", "torch", "numpy", "pydantic", "pyyaml", "safetensors", "pillow", "filelock")


def protocol_fingerprint(document: ScoresDocument) -> str:
    """Return the fingerprint of the cards of all cells."""
    return fingerprint({name: cell.card for name, cell in document.cells.items()})


def find_version(
    client: "MlflowClient", name: str, sha256: str, document: ScoresDocument
) -> "ModelVersion | None":
    """Return the version of these weights under the protocol of these scores, or None.

    One without confidence intervals, which no card has, is not the version of scores with them. Nor is one
    whose scores cannot be read, since its files may be lost.
    """
    card = protocol_fingerprint(document)
    query = f"name = '{name}' AND tags.`{keys.MODEL_SHA256}` = '{sha256}' AND tags.`{keys.CARD}` = '{card}'"
    versions = client.search_model_versions(query)
    for found in versions:
        scores = readable(fetch_version_scores, client, found)[0]
        if scores is not None and (_has_intervals(scores) or not _has_intervals(document)):
            return found
    return None


def _has_intervals(document: ScoresDocument) -> bool:
    return any(cell.errors for cell in document.cells.values())


def get_version(client: "MlflowClient", name: str, number: int) -> "ModelVersion | None":
    """Return the version of that number; None if it does not exist or was deleted."""
    return find(client.get_model_version, name, str(number))


def create_version(
    client: "MlflowClient", name: str, run_id: str, files: "NetworkFiles", document: ScoresDocument
) -> "ModelVersion":
    """Register a model, what guides it in the best cell, and its scores, as artifacts of its training's run.

    Each call logs to a folder of its own, and removes it if it fails: another version of the same scores, or
    another process, has its own. If it is killed, no version exists, and the folder stays.
    """
    from diffusion.model.model_file import read_artefact  # torch

    protocol = protocol_fingerprint(document)
    upload, montage = uuid.uuid4().hex[:UPLOAD_LENGTH], samples_montage(document)
    folder = f"{keys.REGISTERED_FOLDER}/{protocol}-{upload}"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model"
        _save_pyfunc(path, files, document, Path(scratch))
        if montage is not None:
            (path / MONTAGE).write_bytes(montage)
        log_folder(client, run_id, path, folder)
    ensure_model(client, name)
    artefact = read_artefact(files.model)
    tags = {
        keys.FORMAT: str(VERSION_FORMAT),
        keys.UPLOAD: upload,
        keys.MODEL_SHA256: artefact.model_sha256,
        keys.FILE_SHA256: sha256_file(files.model),
        keys.CARD: protocol,
        keys.KEY: client.get_run(run_id).data.tags[keys.KEY],
        keys.BEST: describe_selection(document.best),
        **({keys.SETTING: artefact.training["setting"]} if artefact.training else {}),
        **({keys.EMA_SIGMA_REL: f"{artefact.ema_sigma_rel:g}"} if artefact.ema_sigma_rel else {}),
        **{tag: sha256_file(file) for kind, tag in keys.GUIDE_TAGS.items() if (file := getattr(files, kind))},
        **_dvc_tags(files.model),
        **_data_tags(client, name, artefact.data.digest),
        **keys.git_tags(),
    }
    text = describe_version(artefact, document, run_id, folder, with_montage=montage is not None)
    return client.create_model_version(name, f"runs:/{run_id}/{folder}", run_id, tags, description=text)


def _dvc_tags(model: Path) -> dict[str, str]:
    """Return the file's MD5 if dvc.lock contains it."""
    md5 = hashlib.md5(model.read_bytes(), usedforsecurity=False).hexdigest()
    known = DVC_LOCK.is_file() and f"md5: {md5}\n" in DVC_LOCK.read_text(encoding="utf-8")
    return {keys.DVC_MD5: md5} if known else {}


def _data_tags(client: "MlflowClient", name: str, digest: str) -> dict[str, str]:
    """Return the digest of the training images, and a sample of them: the prepared one's or a version's."""
    meta = prepared_meta() or {}
    if meta.get("digest") == digest:
        samples = [meta.get("sample")]
    else:
        query = f"name = '{name}' AND tags.`{keys.DATA_DIGEST}` = '{digest}'"
        samples = [one.tags.get(keys.DATA_SAMPLE) for one in client.search_model_versions(query)]
    known = next(filter(None, samples), None)
    return {keys.DATA_DIGEST: digest, **({keys.DATA_SAMPLE: known[:TAG_LENGTH]} if known else {})}


def other_images(version: "ModelVersion") -> str:
    """Return that a version was trained on other images than data/prepared; empty if that is not known.

    The images of an earlier state of growing data are not others.
    """
    meta, tags = prepared_meta() or {}, version.tags
    sample, prepared = tags.get(keys.DATA_SAMPLE), meta.get("sample")
    if not sample or not prepared or tags.get(keys.DATA_DIGEST) == meta["digest"]:
        return ""
    share = contained_share(sample, prepared)
    which = f"version {version.version} of {version.name} was trained on other images"
    return "" if share is None or share >= GROWN else f"{which}, {share:.0%} of which are in {PREPARED}"


def _save_pyfunc(path: Path, files: "NetworkFiles", document: ScoresDocument, scratch: Path) -> None:
    """Write the registered model's folder: code, weights and scores, without pickles."""
    import mlflow.pyfunc

    copies = {  # MLflow refuses links, as into DVC's cache
        kind: str(shutil.copyfile(file, scratch / f"{kind}.safetensors"))
        for kind, file in files.networks().items()
    }
    write_scores_document(scratch / SCORES.name, document)
    mlflow.pyfunc.save_model(
        path,
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        artifacts={"weights": copies.pop("model"), **copies, "scores": str(scratch / SCORES.name)},
        code_paths=[str(_archive(scratch))],
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
        model_config={"best_cell": best_cell(document.cells)[0]},
    )


def _archive(scratch: Path) -> Path:
    """Write the library and the plugins into one file: a server authenticates each file of an upload."""
    path = scratch / CODE_ARCHIVE
    library = Path(diffusion.__file__).parent
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for package in filter(None, (library, plugins_folder())):
            for file in sorted(package.rglob("*")):
                if file.is_file() and "__pycache__" not in file.parts:
                    archive.write(file, file.relative_to(package.parent))
    return path


def unreadable_reason(registered: "ModelVersion") -> str:
    """Return why weights and scores of a version cannot be read; empty if they can."""
    tags = registered.tags
    if not {keys.MODEL_SHA256, keys.CARD} <= tags.keys():
        return "was not registered by diffctl"
    number = tags.get(keys.FORMAT, "below 3")
    if number not in READABLE_FORMATS:
        known = " or ".join(READABLE_FORMATS)
        return f"was registered by diffctl format {brief(number, str)}, not {known}: `diffctl docs upgrading`"
    return ""


def fetch_version_networks(client: "MlflowClient", registered: "ModelVersion") -> "NetworkFiles":
    """Return the cached files of a version's networks; DiffctlError if it is not diffctl's or was changed."""
    from diffusion.sample.network_files import NetworkFiles  # torch

    run_id, artifacts, tags = str(registered.run_id), _artifacts_of(registered), registered.tags
    model = cached_model(tags[keys.FILE_SHA256], partial(download_weights, client, run_id, artifacts))
    guides = {
        kind: cached_model(tags[tag], partial(_download, client, registered, f"{kind}.safetensors"))
        for kind, tag in keys.GUIDE_TAGS.items()
        if tag in tags
    }
    return NetworkFiles(model, **guides)


def fetch_version_scores(client: "MlflowClient", registered: "ModelVersion") -> ScoresDocument:
    """Return the scores that a version was registered with; DiffctlError if diffctl did not register it."""
    with tempfile.TemporaryDirectory() as scratch:
        path = _download(client, registered, SCORES.name, Path(scratch))
        return read_fetched_scores(path, f"{registered.name} version {registered.version}")


def read_fetched_scores(path: Path, origin: str) -> ScoresDocument:
    """Return the scores in a temporary file; DiffctlError names their origin instead of its folder."""
    try:
        return read_scores(path)
    except DiffctlError as error:
        raise DiffctlError(f"{origin}: {str(error).removeprefix(f'{path.parent}/')}") from None


def _download(client: "MlflowClient", registered: "ModelVersion", file: str, folder: Path) -> Path:
    run_id, artifacts = str(registered.run_id), _artifacts_of(registered)
    path = f"{artifacts}/{file}"
    if path not in [one.path for one in find(client.list_artifacts, run_id, artifacts) or ()]:
        which = f"{registered.name} version {registered.version}"
        raise DiffctlError(f"{which} has no {file}: it or the run {run_id} was deleted in MLflow")
    return Path(client.download_artifacts(run_id, path, str(folder)))


def _artifacts_of(registered: "ModelVersion") -> str:
    """Return the artifact folder of a version's files; DiffctlError if diffctl did not register it."""
    which = f"{registered.name} version {registered.version}"
    if why := unreadable_reason(registered):
        raise DiffctlError(f"{which} {why}")
    name = check_digest(registered.tags[keys.CARD], 16, f"{which}, tag {keys.CARD}")
    if keys.UPLOAD in registered.tags:
        upload = check_digest(registered.tags[keys.UPLOAD], UPLOAD_LENGTH, f"{which}, tag {keys.UPLOAD}")
        name = f"{name}-{upload}"
    return f"{keys.REGISTERED_FOLDER}/{name}/artifacts"


def download_weights(client: "MlflowClient", run_id: str, artifacts: str, folder: Path) -> Path:
    """Download the model file of an artifact folder."""
    return Path(client.download_artifacts(run_id, f"{artifacts}/{WEIGHTS}", str(folder)))


def check_digest(value: str, digits: int, where: str) -> str:
    """Return a tag's value, a part of a path; DiffctlError unless it has only hex digits."""
    if not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
        raise DiffctlError(f"{where}: expected {digits} hex digits (got {brief(value)}): do not use it")
    return value


def cached_model(sha256: str, download: Callable[[Path], Path]) -> Path:
    """Return the cached file with this SHA-256, `download`ed if missing; DiffctlError if it differs."""
    target = MODEL_RUNS / check_digest(sha256, 64, f"MLflow's tag {keys.FILE_SHA256}") / WEIGHTS
    if target.exists() and sha256_file(target) == sha256:
        return target
    MODEL_RUNS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MODEL_RUNS, prefix=".download-") as scratch:
        path = download(Path(scratch))
        if (found := sha256_file(path)) != sha256:
            raise DiffctlError(f"MLflow's model is not the one that was logged: its SHA-256 is {found}")
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
    return target
