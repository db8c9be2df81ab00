"""The Python that `make test-newest` selects, and the lines that the demo may print."""

from pathlib import Path

import pytest

from tests.newest import is_expected, newest_python

DEMO = """\
==> data
data 1,797/1,797 · 429,933 images/s · took 0.9 s
data/prepared: 1,297 train, 500 test images of 8×8×1, 10 classes
train: 1,200 steps, state in runs/train/f07ee5a0b2d62aab
train 126/1,200 · 956 images/s · ETA 1:12 · loss 0.2735 · mse 0.2693 · vlb 0.0041 · grad_norm 0.4785
train 126/1,200 · 1.2 s an image
model: models/model.safetensors
steps50-eta0.5 500/500 · 134 images/s · took 3.8 s
report: report/index.html

STEPS  ETA  fd_effnet_lite0_64  excess  kd_effnet_lite0_64   \n\
50     0    138.6               -21.61  0.0767              *
50     0.5  135                 18.07   9.5e-05              \n\
500 images a cell against 1,297 of digits (train), extractor effnet-lite0-64; * the best by kd_effnet_lite0_64
model:  diffctl-digits version 1: promoted: the first one; champion is version 1
runs:   `make ui` (or `diffctl ui`) opens them in MLflow
"""


@pytest.mark.parametrize("line", DEMO.splitlines())
def test_lines_of_the_demo_are_expected(line: str) -> None:
    assert is_expected(line)


@pytest.mark.parametrize(
    "line",
    [
        "nanobind: leaked 4 instances!",
        ' - leaked type "triton._C.libtriton.ir.block"',
        "/usr/lib/python3.13/site-packages/torch/x.py:3: FutureWarning: this will go",
        "Traceback (most recent call last):",
        "diffctl: no preview of step 5 (OSError): the training continues without",
        "2026/11/25 12:00:00 INFO mlflow.store.db.utils: Creating initial MLflow database tables...",
        "Exception ignored in: <function f at 0x7f>",
    ],
)
def test_other_lines_are_not_expected(line: str) -> None:
    assert not is_expected(line)


def test_newest_working_python_is_selected(tmp_path: Path) -> None:
    """Pre-releases, Pythons without venv, files with similar names and old versions are ignored."""
    for name, answer in {
        "python3.99": "exit 1",
        "python3.98": "echo null",
        "python3.97": "echo nothing",
        "python3.96": "echo [3, 13, 2]",
        "python3.95": "echo [3, 13, 10]",
        "python3.10": "echo [3, 10, 20]",
        "python3.95-config": "echo [3, 99, 0]",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    assert newest_python([tmp_path, tmp_path / "none"]) == (tmp_path / "python3.95", (3, 13, 10))
    with pytest.raises(SystemExit, match=r"no Python 3\.11 or newer"):
        newest_python([tmp_path / "none"])
