"""metrics/summary.json: a sweep in a few numbers, of which `dvc metrics` and `dvc exp show` make columns."""

from pathlib import Path
from typing import Any

from diffusion.choice.ranking import is_auxiliary
from diffusion.protocol.scores import ScoresDocument
from diffusion.system.files import write_json


def summary(document: ScoresDocument) -> dict[str, Any]:
    """The best cell: its scores, what it is and costs; of how many images and of how many cells."""
    best = document.cells[document.best.cell]
    scores = {name: value for name, value in best.scores.items() if not is_auxiliary(name)}
    return {
        "best": {**best.axes, "evaluations": best.evaluations, **scores},
        "num_images": best.num_images,
        "cells": len(document.cells),
    }


def write_summary(path: Path, document: ScoresDocument) -> None:
    """Write it: equal scores give equal bytes."""
    write_json(path, summary(document))
