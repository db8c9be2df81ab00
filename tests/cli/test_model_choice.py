"""Which files sample with a registered model: its own guides, or those that the options name."""

from pathlib import Path

import pytest

from cli.actions import model_choice
from cli.shared.options import ModelOptions
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.network_files import NetworkFiles
from tests.helpers.networks import small_model
from tracking.registry.registered_models import VersionFiles

BEST = {"guidance": 1.0, "guide": "early", "classifier": "first"}
OWN = {"guide": Path("own-guide"), "classifier": Path("own-classifier")}


@pytest.mark.parametrize(
    ("carried", "changes", "guide", "classifier"),
    [
        (OWN, {}, OWN["guide"], OWN["classifier"]),
        (OWN, {"classifier": "second"}, OWN["guide"], "second"),
        (OWN, {"guide": "late"}, "late", OWN["classifier"]),
        (OWN, {"guidance": 0.0}, None, OWN["classifier"]),
        (OWN, {"classifier_scale": 0.0}, OWN["guide"], None),
        ({"guide": OWN["guide"]}, {"classifier": "second"}, OWN["guide"], "second"),
    ],
)
def test_each_guide_is_the_registered_one_only_if_it_is_that_of_the_best_cell(
    tmp_path, monkeypatch, carried, changes, guide, classifier
):
    monkeypatch.chdir(tmp_path)
    model = small_model(tmp_path / "model.safetensors")
    for name in ("late", "second"):
        Path(name).touch()
    best = SampleSettings(**{name: BEST[name] for name in BEST if name != "classifier" or name in carried})
    monkeypatch.setattr(model_choice, "best_settings", lambda scores: best)
    monkeypatch.setattr(
        model_choice, "find_version_files", lambda *_: VersionFiles(1, NetworkFiles(model, **carried), None)
    )
    settings = SampleSettings(**{**BEST, **changes})
    files = model_choice.selected_files(ModelOptions(champion=True), settings, model)
    assert files == NetworkFiles(model, guide and Path(guide), classifier and Path(classifier))
