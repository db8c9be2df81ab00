"""The suggested `model` section makes a pretrained model fit, and changes nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.check.params_changes import format_sections, needed_changes, sections_of
from diffusion.config import parse
from diffusion.model.network_registry import ModelConfig
from diffusion.system.yaml_text import parse_yaml
from diffusion.train.plan import plan_training
from diffusion.train.pretrained import PretrainedRefused, store_pretrained
from tests.conftest import params
from tests.helpers.networks import artefact_of, small_model, spec_of

SHAPES: list[dict[str, Any]] = [
    {"channels": 16},
    {"channels": 40, "embedding": "additive", "resample": "plain", "downsample_padding": "after"},
    {"channel_mult": (1, 2, 2), "head_channels": None, "heads": 2, "attention_resolutions": (2,)},
    {"norm_eps": 1e-6, "frequency_shift": 1, "num_res_blocks": 2, "attention_resolutions": ()},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [8, 16])
def test_suggested_section_makes_it_fit(tmp_path: Path, shape: dict[str, Any], side: int) -> None:
    path = small_model(tmp_path / "start.safetensors", **shape)
    start = store_pretrained(path, tmp_path / "start")[1]
    meta = {"name": "digits", "image_size": side, "channels": 1, "digest": "0" * 64}
    meta |= {"classes": list("0123456789"), "counts": [9] * 10}
    values = params(
        train={"init_from": {"sha256": start.model_sha256}},
        data={"image_size": side},
        model={"attention_resolutions": [side // 2]},
    )
    config = parse(values, "before")
    with pytest.raises(PretrainedRefused):
        plan_training(config, meta, torch.device("cpu"), tmp_path / "start")
    suggested = parse_yaml(format_sections(needed_changes(config, start, side)))
    config = parse(values | {name: values[name] | suggested[name] for name in suggested}, "after")
    assert needed_changes(config, start, side) == {}
    plan = plan_training(config, meta, torch.device("cpu"), tmp_path / "start")
    assert plan.lineage[0].sha256 == start.model_sha256


@pytest.mark.parametrize("shape", SHAPES)
def test_full_section_describes_the_shape(shape: dict[str, Any]) -> None:
    start = artefact_of(spec_of(**shape))
    suggested = parse_yaml(format_sections(sections_of(start)))
    section = ModelConfig.model_validate(suggested["model"])
    assert section.model_dump(exclude={"class_cond"}).items() <= start.network.model_dump().items()
    assert suggested["process"]["prediction"] == start.process.prediction
