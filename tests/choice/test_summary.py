import json

from diffusion.choice.summary import write_summary
from tests.helpers.scores_document import document


def test_a_summary_is_the_best_cell_in_a_few_numbers(tmp_path):
    path = tmp_path / "summary.json"
    write_summary(path, document())
    assert json.loads(path.read_text()) == {
        "best": {
            "steps": 10,
            "eta": 0.0,
            "evaluations": 10,
            "fd_effnet_lite0_64": 200.0,
            "kd_effnet_lite0_64": 0.2,
            "is_effnet_lite0_64": 2.0,
            "floor": 25.0,
            "excess": 175.0,
        },
        "num_images": 500,
        "cells": 4,
    }
