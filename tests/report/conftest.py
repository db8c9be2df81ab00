"""A scored sweep of three numbers of steps and two η, and its report, alone and with other seeds."""

import shutil
from dataclasses import replace

import pytest

from diffusion.evaluate.references import make_reference
from diffusion.evaluate.sweep_scores import write_scores
from diffusion.layout import LOSS_CURVE, PREPARED, REFERENCE, RUN, SAMPLES, SCORE_CURVES, SCORES
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.report.write import page_with_seeds
from diffusion.system.checksums import add_checksum
from diffusion.system.files import write_json
from tests.helpers.digits_sweep import make_config, score_sweep, write_prepared, write_sweep
from tests.helpers.report_page import inputs_of, report

FACTS = {
    "ended": 1e9, "seconds": 754.2, "first_step": 1, "parameters": 831_234, "hardware": "a CPU, 2 threads",
    "commit": "0123456ab+",
}  # fmt: skip


@pytest.fixture(scope="session")
def sweep(tmp_path_factory):
    """Return (config, folder) with all inputs of a report."""
    root, config = tmp_path_factory.mktemp("sweep"), make_config()
    write_prepared(root / PREPARED)
    make_reference(config.evaluate, root / PREPARED, root / REFERENCE)
    write_sweep(root / SAMPLES, config)
    scores = score_sweep(config, root / SAMPLES, root / REFERENCE)
    write_scores(scores, root / SCORES, root / SCORE_CURVES)
    rows = (f"{step},{1 / step + 0.05},{1 / step + 0.05},0.1,0.5,0.002\n" for step in range(1, 101))
    (root / LOSS_CURVE).write_text("step,loss,mse,vlb,grad_norm,lr\n" + "".join(rows))
    write_json(root / RUN, add_checksum({"key": "k", "fingerprint": "f", "facts": FACTS}))
    return config, root


@pytest.fixture
def own(sweep, tmp_path):
    """Return the sweep with a folder that a test may change."""
    config, root = sweep
    return config, shutil.copytree(root, tmp_path / "sweep")


@pytest.fixture(scope="session")
def written(sweep, tmp_path_factory):
    """Return the page of the report."""
    return report(sweep, tmp_path_factory.mktemp("out") / "report")


@pytest.fixture(scope="session")
def with_seeds(sweep, tmp_path_factory):
    """Return the page of the report with two other seeds in it."""
    inputs = inputs_of(*sweep)
    trainings = ({"training": {"setting": "a" * 16, "seed": seed}} for seed in range(3))
    own, *others = (ScoresDocument(**{**dict(inputs.document), **training}) for training in trainings)
    path = tmp_path_factory.mktemp("with_seeds") / "page.html"
    path.write_text(page_with_seeds(replace(inputs, document=own), others), encoding="utf-8")
    return path
