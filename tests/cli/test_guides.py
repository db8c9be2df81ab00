"""Guides by the command line: an early snapshot of the same training."""

import json

import numpy as np
import pytest

from diffusion.images.store import open_store
from diffusion.model.model_file import read_artefact
from diffusion.model.posthoc_ema import snapshot_path
from tests.conftest import write_params
from tests.helpers.invoke import assert_refused

EARLY = "ema:0.1@4"


@pytest.mark.slow
def test_an_early_snapshot_guides_cells_images_and_the_registered_model(project, invoke) -> None:
    def run(*arguments: str) -> str:
        done = invoke(*arguments)
        assert done.code == 0, done.err
        return done.out

    def guided_by(guide: str) -> np.ndarray:
        run("sample", "--num", "3", "--steps", "4", "--guidance", "1", "--guide", guide, "--out", "a.npz")
        return np.load("a.npz")["arr_0"].astype(int)

    changes = {
        "train": {"ema_profiles": {"sigma_rel": [0.1], "every": 4}},
        "sample": {"guidance": 1.0},
        "sweep": {"steps": [2], "eta": [0.0], "guide": [None, EARLY]},
    }
    write_params(project, **changes)
    for stage in ("data", "reference", "train", "sample", "evaluate"):
        run("stage", stage)
    early = read_artefact(snapshot_path(project / "models/ema", 0.1, 4))
    free, guided = "steps2-eta0", "steps2-eta0-guide_ema_0.1_4"
    cards = {name: open_store(project / "samples" / name).meta["card"] for name in (free, guided)}
    assert (cards[free].get("guide"), cards[free]["nfe"]) == (None, 4)
    assert cards[guided]["guide_sha256"] == early.model_sha256
    assert (cards[guided]["guide"], cards[guided]["guidance_rule"]) == (EARLY, "autoguidance")
    scores = json.loads((project / "metrics/scores.json").read_text())
    assert {name: cell.get("guide") for name, cell in scores["cells"].items()} == {free: None, guided: EARLY}

    tracked = str(snapshot_path(project / "models/ema", 0.1, 4))
    assert np.abs(guided_by(tracked) - guided_by(EARLY)).max() <= 1
    out = run("sweep", "--guide", f"{EARLY},{tracked}", "--guidance", "0,2", "--json")
    assert len(json.loads(out)["cells"]) == 3, "without guidance no guide has an effect"
    write_params(project, **{**changes, "sweep": {**changes["sweep"], "guide": ["ema:0.1@5"]}})
    assert_refused(invoke("stage", "sample"), "keeps one every 4 steps")
