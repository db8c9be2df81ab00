"""The registry: models without pickle, and the gate that decides which one is champion.

Registering is idempotent for the same weights under the same protocol. The alias `champion` moves only to
a model with a better score under the same protocol card; what was decided, and why, stays on the version.
"""

import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.choice.gate import Verdict, judge
from diffusion.choice.ranking import best
from diffusion.layout import MODEL, RUN, SCORES
from diffusion.model.model_file import read_artefact, read_verified
from diffusion.protocol.scores import ScoresDocument, read_scores
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import sha256_file
from diffusion.system.section import fingerprint
from diffusion.system.signals import look
from tracking.fetch import WEIGHTS, cached_model
from tracking.names import (
    CARD,
    CHAMPION,
    DECISION,
    FILE_SHA256,
    KEY,
    MODEL_SHA256,
    REGISTERED_FOLDER,
    model_name,
)
from tracking.runs import data_name, log_scores
from tracking.store import connect, failures, log_folder, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

# What the registered model imports beside a copy of diffusion/.
REQUIREMENTS = ("mlflow", "torch", "numpy", "pydantic", "pyyaml", "safetensors", "pillow")


@dataclass(frozen=True)
class Decision:
    """What became of a model: its version, whether it is champion now, and why."""

    name: str
    version: int
    champion: int
    promoted: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.name} version {self.version}: {self.reason}; champion is version {self.champion}"


def register(
    model: Path = MODEL, run_file: Path = RUN, scores_file: Path = SCORES, force: bool = False
) -> Decision:
    """Register the model with its scores, and make it champion if it is better; `force` makes it so anyway.

    The scores are logged to the model's run too. DiffctlError when they are not this model's, or MLflow does
    not answer.
    """
    document, uri = read_scores(scores_file), tracking_uri()
    sha256 = read_verified(model).model_sha256
    if any(cell.card.get("model_sha256") != sha256 for cell in document.cells.values()):
        raise DiffctlError(f"{scores_file} is of another model than {model}: `diffctl run` makes new scores")
    run_id = log_scores(run_file, document)
    name = model_name(data_name(document))
    with failures(uri):
        client = connect(uri)
        found = _find(client, name, sha256, _protocol(document))
        candidate = found or _create(client, name, run_id, model, scores_file, document)
        return _pass_gate(client, candidate, document, force)


def _protocol(document: ScoresDocument) -> str:
    """The fingerprint of the cards of all cells."""
    return fingerprint({name: cell.card for name, cell in document.cells.items()})


def _find(client: "MlflowClient", name: str, sha256: str, protocol: str) -> "ModelVersion | None":
    query = f"name = '{name}' AND tags.`{MODEL_SHA256}` = '{sha256}' AND tags.`{CARD}` = '{protocol}'"
    versions = client.search_model_versions(query)
    return versions[0] if versions else None


def _create(
    client: "MlflowClient", name: str, run_id: str, model: Path, scores_file: Path, document: ScoresDocument
) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    protocol = _protocol(document)
    folder = f"{REGISTERED_FOLDER}/{protocol}"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model"
        _save(path, _no_link(model, Path(scratch)), _no_link(scores_file, Path(scratch)), document)
        log_folder(client, run_id, path, folder)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {
        MODEL_SHA256: read_artefact(model).model_sha256,
        FILE_SHA256: sha256_file(model),
        CARD: protocol,
        KEY: client.get_run(run_id).data.tags[KEY],
    }
    return client.create_model_version(name, f"runs:/{run_id}/{folder}", run_id, tags)


def _no_link(path: Path, folder: Path) -> Path:
    """The file; its copy in the folder where DVC has put a link in its place, which MLflow does not take."""
    return Path(shutil.copyfile(path, folder / path.name)) if path.is_symlink() else path


def _save(path: Path, model: Path, scores_file: Path, document: ScoresDocument) -> None:
    """Write the model's folder: code, weights and scores, nothing pickled."""
    import mlflow.pyfunc

    import diffusion

    mlflow.pyfunc.save_model(
        path,
        python_model=str(Path(__file__).with_name("served.py")),
        artifacts={"weights": str(model), "scores": str(scores_file)},
        code_paths=[str(Path(diffusion.__file__).parent)],
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
        model_config={"best_cell": best(document.cells)[0]},
    )


def _pass_gate(
    client: "MlflowClient", candidate: "ModelVersion", document: ScoresDocument, force: bool
) -> Decision:
    name, number = candidate.name, int(candidate.version)
    holder = client.get_registered_model(name).aliases.get(CHAMPION)
    if holder is not None and int(holder) == number:
        return Decision(name, number, number, False, "it is champion already")
    if holder is None:
        verdict = Verdict(True, "the first one")
    elif force:
        verdict = Verdict(True, f"put in version {holder}'s place by hand")
    else:
        verdict = _judge(client, client.get_model_version(name, holder), document)
    look()  # nothing is promoted after an interruption that a library has swallowed
    if verdict.better:
        client.set_registered_model_alias(name, CHAMPION, str(number))
    reason = f"{'promoted' if verdict.better else 'kept out'}: {verdict.reason}"
    client.set_model_version_tag(name, str(number), DECISION, reason)
    return Decision(name, number, number if verdict.better else int(holder or number), verdict.better, reason)


def _judge(client: "MlflowClient", champion: "ModelVersion", document: ScoresDocument) -> Verdict:
    number = int(champion.version)
    if CARD not in champion.tags:
        return Verdict(False, f"version {number} was not registered by diffctl: it has no scores")
    with tempfile.TemporaryDirectory() as scratch:
        scores = read_scores(_download(client, champion, SCORES.name, Path(scratch)))
    return judge(document.cells, scores.cells, number)


def _download(client: "MlflowClient", registered: "ModelVersion", file: str, folder: Path) -> Path:
    path = f"{REGISTERED_FOLDER}/{registered.tags[CARD]}/artifacts/{file}"
    return Path(client.download_artifacts(str(registered.run_id), path, str(folder)))


def fetch_champion(name: str) -> Path:
    """The champion's model file, from a cache addressed by content.

    UsageError when there is none; DiffctlError when its file's SHA-256 is not the one in its version's tag.
    """
    client, champion = _champion(name)

    def download(folder: Path) -> Path:
        with failures(tracking_uri()):
            return _download(client, champion, WEIGHTS, folder)

    return cached_model(champion.tags[FILE_SHA256], download)


def fetch_champion_scores(name: str) -> ScoresDocument:
    """The scores that the champion was registered with; UsageError when there is none."""
    client, champion = _champion(name)
    with failures(tracking_uri()), tempfile.TemporaryDirectory() as scratch:
        return read_scores(_download(client, champion, SCORES.name, Path(scratch)))


def find_champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """The version that is champion; None when there is none, or no such model."""
    from mlflow.exceptions import MlflowException

    try:
        number = client.get_registered_model(name).aliases.get(CHAMPION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return client.get_model_version(name, number) if number else None


def _champion(name: str) -> "tuple[MlflowClient, ModelVersion]":
    uri = tracking_uri()
    with failures(uri):
        client = connect(uri)
        champion = find_champion(client, name)
    if champion is None:
        raise UsageError(f"{name} has no champion: `diffctl run` registers a model")
    if not {MODEL_SHA256, FILE_SHA256, CARD} <= champion.tags.keys():
        raise DiffctlError(f"{name} version {champion.version} was registered by something else than diffctl")
    return client, champion
