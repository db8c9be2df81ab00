"""Paths relative to the project's root (the folder with params.yaml), its checks, and package data."""

import re
from pathlib import Path
from typing import Any

from diffusion.system.errors import UsageError, printable
from diffusion.system.output_paths import check_output
from diffusion.system.registry import PLUGINS

MARK = Path(".diffctl/project.yaml")  # a project has it; Git tracks it
PARAMS = Path("params.yaml")
GRAPH, LOCK = Path("dvc.yaml"), Path("dvc.lock")
CODE = Path("code.yaml")  # a digest of each stage's code, an input of the stages for DVC

PACKAGE_DATA = Path(__file__).parents[1] / "diffctl"  # the files that diffctl is installed with
PROFILES = PACKAGE_DATA / "profiles"

PREPARED = Path("data/prepared")  # {train,test}/ image stores
HELD_OUT = PREPARED / "test"
REFERENCE = Path("data/reference")  # the reference's features and the real-against-real floor
STARTS = Path("start")  # pretrained models, by their SHA-256
MODEL = Path("models/model.safetensors")  # the self-describing artefact
AVERAGES = Path("models/ema")  # snapshots of EMA profiles, from which any sigma_rel is made
GRIDS = Path("grids.json")  # the learned times of a model
RUN = Path("models/run.json")  # the MLflow run and facts of the training; only the report depends on it
LOSS_CURVE = Path("plots/loss.csv")
CLASSIFIER = Path("models/classifier.safetensors")  # of noised images, for guidance; no part of the pipeline
CLASSIFIER_CURVE = Path("plots/classifier.csv")
SAMPLES = Path("samples")  # one image store per cell
SCORES = Path("metrics/scores.json")
SUMMARY = Path("metrics/summary.json")  # of the scores: what DVC shows as metrics
SCORE_CURVES = Path("plots/scores.csv")
REPORT = Path("report")

# Resumable work, addressed by content. Ignored by Git and DVC.
RUNS = Path("runs")
PREPARE_RUNS = Path("runs/prepare")
TRAIN_RUNS = Path("runs/train")
FORCED = Path("runs/forced")  # during `run --fresh`: the stages that DVC has yet to run again
CLASSIFIER_RUNS = Path("runs/classifier")
SEARCH_RUNS = Path("runs/search")  # a folder per search, with its journal and a folder per trial
VERDICT_RUNS = Path("runs/verdict")  # a folder per verdict, by the digest of its settings
CELL_RUNS = Path("runs/cells")
VERIFIED_RUNS = Path("runs/verified")  # the state of large stores' files when they were verified
EMA_RUNS = Path("runs/ema")  # model files of EMA profiles, by the fingerprint of their inputs
SWEEP_RUN = Path("runs/sweep")  # samples/ and scores.json of the last `diffctl sweep`
EVALUATE_RUN = Path("runs/evaluate/scores.json")  # the scores of the flow `evaluate`
BASE_RUNS = Path("runs/bases")  # which models fetched from MLflow the names of base models mean
MODEL_RUNS = Path("runs/models")  # models fetched from MLflow, by their file's SHA-256

# What commands read: no output of a command replaces a file of these.
READ: tuple[Path, ...] = (PARAMS, GRAPH, LOCK, CODE, Path(PLUGINS), RUNS)
READ += (MARK.parent, Path(".git"), Path(".dvc"))
READ += (PREPARED, REFERENCE, STARTS, MODEL, AVERAGES, RUN, LOSS_CURVE, CLASSIFIER, CLASSIFIER_CURVE)
READ += (SAMPLES, SCORES, SUMMARY, SCORE_CURVES)

CONFLICT = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)


def home(folder: Path) -> Path:
    """Return the checkout of an absolute folder: itself, or the one that runs a DVC experiment there.

    `dvc exp run --temp` and `--queue` work in .dvc/tmp/exps/<name>/ of a checkout. DVC removes it afterwards.
    """
    for parent in folder.parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            return parent.parents[2]
    return folder


def check_raw_folder(folder: Path, project: Path, option: str) -> None:
    """Raise UsageError if the prepared images of a project are inside a folder of raw images."""
    for output in (PREPARED, REFERENCE):
        places = (project.resolve() / output, (project / output).resolve())  # a link, and what it leads to
        if any(place.is_relative_to(folder.resolve()) for place in places):
            found = f"{option} {printable(folder)} contains {output}, which diffctl writes"
            raise UsageError(f"{found}: move the pictures into a folder of their own, such as data/images")


def check_output_file(path: Path, flag: str, kind: str = "") -> None:
    """Raise as `check_output`, and UsageError for an existing file of the project that commands read."""
    places = (path.resolve(), path.parent.resolve() / path.name)  # a link, and what it leads to
    for kept in READ if PARAMS.exists() and path.is_file() else ():
        file = Path.cwd() / kept
        if any(place.is_relative_to(one) for place in places for one in (file, file.resolve())):
            raise UsageError(f"{flag} {printable(path)} is a file that diffctl reads: name another file")
    check_output(path, flag, kind)


def repository_problem() -> tuple[str, str] | None:
    """Return what keeps DVC from running the stages of a project, and the remedy; None for other folders."""
    if not GRAPH.is_file():
        return None
    config, root = Path(".dvc/config"), Path.cwd()
    for file in (MARK, GRAPH, LOCK, config):
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        if found := CONFLICT.search(text):
            line = text.count("\n", 0, found.start()) + 1
            problem = f"{file} has conflict markers from line {line} on"
            return problem, f"resolve them, such as by `git checkout --ours {file}`"
    if not config.is_file():
        return "DVC is not set up here (no .dvc/config)", "`git checkout .dvc`, or `dvc init`"
    has_git = any((folder / ".git").exists() for folder in (root, *root.parents))
    if not has_git and "no_scm" not in config.read_text(encoding="utf-8"):
        return "this is no Git repository, which DVC needs", "`git init`"
    return None


def dvc_stages() -> dict[str, dict[str, Any]]:
    """Return the stages of dvc.yaml by name; empty without the file, or if it is invalid."""
    import yaml  # every command imports this module

    try:
        stages = yaml.safe_load(GRAPH.read_text(encoding="utf-8"))["stages"]
        return {name: dict(stage) for name, stage in stages.items()}
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError):
        return {}
