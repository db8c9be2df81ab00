"""Where things lie, relative to the project's root (the folder with params.yaml)."""

from pathlib import Path

PARAMS = Path("params.yaml")

PREPARED = Path("data/prepared")  # {train,test}/ image stores
REFERENCE = Path("data/reference")  # the reference's features and the real-against-real floor
MODEL = Path("models/unet.safetensors")  # the self-describing artefact
RUN = Path("models/run.json")  # the MLflow run that the artefact came from; no stage depends on it
LOSS_CURVE = Path("plots/loss.csv")
CLASSIFIER = Path("models/classifier.safetensors")  # of noised images, for guidance; no part of the pipeline
CLASSIFIER_CURVE = Path("plots/classifier.csv")
SAMPLES = Path("samples")  # one image store a cell
SCORES = Path("metrics/scores.json")
SCORE_CURVES = Path("plots/scores.csv")
REPORT = Path("report")

# Resumable work, addressed by content. Ignored by Git and DVC.
PREPARE_RUNS = Path("runs/prepare")
TRAIN_RUNS = Path("runs/train")
CLASSIFIER_RUNS = Path("runs/classifier")
CELL_RUNS = Path("runs/cells")
VERIFIED_RUNS = Path("runs/verified")  # what large stores were when they were found right
MODEL_RUNS = Path("runs/models")  # models fetched from MLflow, by their file's SHA-256
