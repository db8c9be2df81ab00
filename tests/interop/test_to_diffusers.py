"""Export to diffusers: the loaded pipeline generates the same images from the same noise."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.images.pixels import to_nhwc
from diffusion.interop.from_diffusers import import_diffusers
from diffusion.interop.to_diffusers import export_diffusers, scheduler_config
from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Condition
from diffusion.process.noise import full_state_generator
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.generate import generate
from diffusion.system.errors import DiffctlError, UsageError
from tests.helpers.networks import artefact_of, loaded_model, spec_of

CPU = torch.device("cpu")
SHAPE = {"channels": 32, "channel_mult": (1, 2), "attention_resolutions": (4,), "head_channels": 16}

SHAPES: dict[str, dict[str, Any]] = {
    "adm": {},
    "three-levels": {"channel_mult": (1, 1, 2), "num_res_blocks": 2, "attention_resolutions": (8, 2)},
    "middle-attention-only": {"attention_resolutions": ()},
    "plain": {"channels": 64, "resample": "plain", "embedding": "additive", "head_channels": None},
    "plain-adagn-heads": {"resample": "plain", "head_channels": None, "heads": 4, "channel_mult": (1, 1)},
    "augmented": {"augmented": True},
    "dropout": {"dropout": 0.1, "attention_resolutions": (8, 4)},
    "unconditional-rgb": {"in_channels": 3, "out_channels": 6, "num_classes": 0, "null_class": False},
    "fixed-variance": {"in_channels": 3, "out_channels": 3, "null_class": False},
    "odd-size": {
        "image_size": (12, 20),
        "attention_resolutions": (6,),
        "num_classes": 0,
        "null_class": False,
    },
}


def model(process: dict[str, Any] | None = None, **changes: Any) -> LoadedModel:
    return loaded_model(process=process, **{**SHAPE, **changes})


def export_and_load(folder: Path, loaded: LoadedModel):
    diffusers = pytest.importorskip("diffusers")
    export_diffusers(loaded, folder)
    pipeline = diffusers.DDIMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def exported(request, tmp_path_factory):
    """Return a model, the folder of its export, and the pipeline in it."""
    loaded, folder = model(**request.param), tmp_path_factory.mktemp("exported") / "out"
    return loaded, folder, export_and_load(folder, loaded)


def pipeline_images(pipeline, labels: torch.Tensor | None, indices: range, seed: int, steps: int, eta: float):
    """Return the uint8 NHWC images of DDIMPipeline. A wrapper passes the labels to its UNet."""
    generators = [full_state_generator("image", seed, index) for index in indices]
    forward = pipeline.unet.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.unet, "forward", lambda x, t: forward(x, t, class_labels=labels))
        images = pipeline(
            batch_size=len(indices),
            generator=generators,
            eta=eta,
            num_inference_steps=steps,
            use_clipped_model_output=True,
            output_type="np",
        ).images
    return np.round(images * 255).astype(np.uint8)


def test_exported_pipeline_generates_same_images(exported):
    loaded, _, pipeline = exported
    compare_images(loaded, pipeline, 0.0)


@pytest.mark.parametrize(("prediction", "eta"), [("eps", 1.0), ("velocity", 0.5)])
def test_exported_predictions_generate_same_images_with_noise(tmp_path, prediction, eta):
    loaded = model({"prediction": prediction})
    compare_images(loaded, export_and_load(tmp_path / "out", loaded), eta)


def compare_images(loaded: LoadedModel, pipeline: Any, eta: float) -> None:
    indices, steps = range(2, 5), 10
    labels = torch.tensor([1, 0, 7]) if loaded.artefact.network.num_classes else None
    settings = SampleSettings(steps=steps, eta=eta, seed=6, spacing="trailing")
    ours = to_nhwc(generate(loaded, settings, indices, Condition(3, labels), CPU))
    theirs = pipeline_images(pipeline, labels, indices, 6, steps, eta)
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 2
    assert difference.mean() < 0.02
    assert ours.std() > 20


def test_exported_model_is_reimported_bitwise_equal(exported):
    loaded, folder, _ = exported
    weights, artefact = import_diffusers(folder)
    before, channels = loaded.network.state_dict(), loaded.artefact.network.in_channels
    before.pop("augmentation.weight", None)  # not exported
    assert before.keys() == weights.keys()
    for name, weight in before.items():
        expected = weight[:channels] if name.startswith("head.") else weight  # of ε alone
        assert torch.equal(weights[name], expected), name
    assert artefact.data.classes == loaded.artefact.data.classes
    for name in ("null_class", "norm_eps", "frequency_shift", "downsample_padding", "resample", "embedding"):
        assert getattr(artefact.network, name) == getattr(loaded.artefact.network, name), name


def test_exported_readme_describes_model(tmp_path):
    pytest.importorskip("diffusers")
    export_diffusers(model(), tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert "class_labels` 0 … 9" in text
    assert "Label 10 is the empty one" in text
    assert "learned variance was left out" in text
    assert json.loads((tmp_path / "out/class_names.json").read_text()) == [f"class{i}" for i in range(10)]
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "convnext"}, "no model.block convnext"),
        ({"channel_mult": (2, 2)}, "starts with 2, not 1"),
        ({"time_scale": 0.25}, "no model.time_scale 0.25"),
        ({"patch_size": 2}, "no model.patch_size 2"),
        ({"channels": 16}, "GroupNorm with 16, 32 groups"),
        ({"group_channels": 16}, "set model.group_channels 1"),
        ({"head_channels": None, "heads": 2, "attention_resolutions": (8, 4)}, "no model.heads"),
    ],
)
def test_unsupported_model_is_refused_before_writing(tmp_path, changes, message):
    with pytest.raises(UsageError, match=f"{message}.*this model cannot be exported"):
        export_diffusers(model(**changes), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nonempty_folder_is_not_changed(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="is not empty"):
        export_diffusers(model(), tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        export_diffusers(model(), tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_unsupported_processes_are_refused():
    """diffusers has x0, ε and velocity predictions of discrete processes, but no flow."""
    plain = ProcessConfig(variance="small", loss="simple", prediction="flow")
    for process, field in (
        (plain, "prediction flow"),
        *((ProcessConfig(schedule=name), f"schedule {name}") for name in ("edm", "flow")),
        (ProcessConfig(variance="small", loss="consistency", prediction="velocity"), "loss consistency"),
    ):
        artefact = artefact_of(spec_of(out_channels=1), process=process)
        with pytest.raises(UsageError, match=rf"have no process\.{field}: this model cannot be exported"):
            scheduler_config(artefact)
    artefact = artefact_of(spec_of(), process=ProcessConfig(prediction="x0"))
    assert scheduler_config(artefact)["prediction_type"] == "sample"


def test_missing_diffusers_error_names_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(DiffctlError, match=r"pip install 'diffctl\[interop\]'"):
        export_diffusers(model(), tmp_path / "out")
    assert not list(tmp_path.iterdir())
