"""Paths relative to the project's root (the folder with params.yaml)."""

from pathlib import Path

PARAMS = Path("params.yaml")

PREPARED = Path("data/prepared")  # {train,test}/ image stores
REFERENCE = Path("data/reference")  # the reference's features and the real-against-real floor
STARTS = Path("start")  # models that trainings start from, by their SHA-256
MODEL = Path("models/model.safetensors")  # the self-describing artefact
AVERAGES = Path("models/ema")  # snapshots of EMA profiles, from which any sigma_rel is made
RUN = Path("models/run.json")  # the MLflow run and facts of the training; only the report depends on it
LOSS_CURVE = Path("plots/loss.csv")
CLASSIFIER = Path("models/classifier.safetensors")  # of noised images, for guidance; no part of the pipeline
CLASSIFIER_CURVE = Path("plots/classifier.csv")
SAMPLES = Path("samples")  # one image store a cell
SCORES = Path("metrics/scores.json")
SUMMARY = Path("metrics/summary.json")  # of the scores: what DVC shows as metrics
SCORE_CURVES = Path("plots/scores.csv")
REPORT = Path("report")

# Resumable work, addressed by content. Ignored by Git and DVC.
RUNS = Path("runs")
PREPARE_RUNS = Path("runs/prepare")
TRAIN_RUNS = Path("runs/train")
CLASSIFIER_RUNS = Path("runs/classifier")
SEARCH_RUNS = Path("runs/search")  # by the search's name: its ledger, and a folder a trial
CELL_RUNS = Path("runs/cells")
VERIFIED_RUNS = Path("runs/verified")  # what large stores were when they were found right
EMA_RUNS = Path("runs/ema")  # models of widths, by what they are made of
SWEEP_RUN = Path("runs/sweep")  # samples/ and scores.json of the last `diffctl sweep`
EVALUATE_RUN = Path("runs/evaluate/scores.json")  # the scores of the flow `evaluate`
MODEL_RUNS = Path("runs/models")  # models fetched from MLflow, by their file's SHA-256

_EXPERIMENTS = (".dvc", "tmp", "exps")


def home(folder: Path) -> Path:
    """Return the checkout of an absolute folder: itself, or the one that runs a DVC experiment there.

    `dvc exp run --temp` and `--queue` work in .dvc/tmp/exps/<name>/ of a checkout, which goes with all in it.
    """
    for parent in folder.parents:
        if parent.parts[-3:] == _EXPERIMENTS:
            return parent.parents[2]
    return folder
