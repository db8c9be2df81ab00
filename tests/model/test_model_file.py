"""Model files: checksummed metadata, and one-line errors for damaged files."""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusion.config import parse
from diffusion.model.classifier import load_classifier
from diffusion.model.model_file import (
    METADATA_KEY,
    LoadedModel,
    load_model,
    read_artefact,
    read_verified_artefact,
    save_artefact,
)
from diffusion.model.network_registry import MODELS, ModelConfig, ModelEntry, NetworkSpec
from diffusion.system.checksums import add_checksum
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.section import canonical_json
from tests.conftest import ROOT, environment, params
from tests.helpers.damaged_bytes import Damage, damages
from tests.helpers.networks import artefact_of, loaded_classifier, network_of, spec_of

SMALL = {"channels": 4, "channel_mult": (1,), "attention_resolutions": (), "head_channels": 4}


@pytest.fixture(scope="module")
def model() -> bytes:
    spec = spec_of(**SMALL)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        save_artefact(path, network_of(spec).state_dict(), artefact_of(spec))
        return path.read_bytes()


def is_equal(one: LoadedModel, other: LoadedModel) -> bool:
    weights = one.network.state_dict(), other.network.state_dict()
    return one.artefact == other.artefact and all(
        torch.equal(weights[0][key], weights[1][key]) for key in weights[1]
    )


def check_refused_or_unchanged(data: bytes, changed: bytes) -> None:
    """Load the changed file. Assert that it is unchanged, or that the one-line error names it."""
    with tempfile.TemporaryDirectory() as folder:
        original, path = Path(folder) / "whole.safetensors", Path(folder) / "changed.safetensors"
        original.write_bytes(data)
        path.write_bytes(changed)
        try:
            loaded = load_model(path)
        except DiffctlError as error:
            message = str(error)
        else:
            assert is_equal(loaded, load_model(original))
            assert read_verified_artefact(path) == loaded.artefact
            return
        assert str(path) in message
        assert "\n" not in message


@given(damage=damages())
@settings(max_examples=150)
def test_damaged_bytes_are_refused_or_load_unchanged(model: bytes, damage: Damage) -> None:
    check_refused_or_unchanged(model, damage(model))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (rb"\"step\":1", rb"\"step\":9"),
        (b"class3", b"class8"),
        (rb"\"timesteps\":100", rb"\"timesteps\":900"),
        (b'"F32"', b'"I32"'),
    ],
)
def test_edited_metadata_is_refused(model: bytes, tmp_path: Path, old: bytes, new: bytes) -> None:
    assert old in model
    path = tmp_path / "m.safetensors"
    path.write_bytes(model.replace(old, new, 1))
    with pytest.raises(DiffctlError, match=r"m.safetensors.* (damaged|do not fit)") as caught:
        read_verified_artefact(path) if new == b'"I32"' else read_artefact(path)
    assert "\n" not in str(caught.value)


def test_metadata_without_checksum_is_refused(model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(model)
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()[METADATA_KEY])
    del metadata["sha256"]
    save_file(load_file(path), path, {METADATA_KEY: json.dumps(metadata)})
    with pytest.raises(DiffctlError, match=r"is damaged or edited \(it has no checksum\): get"):
        read_artefact(path)


def test_classifier_file_is_checksummed(tmp_path: Path) -> None:
    classifier, path = loaded_classifier(), tmp_path / "c.safetensors"
    save_artefact(path, classifier.network.state_dict(), classifier.artefact)
    path.write_bytes(path.read_bytes().replace(b"class3", b"class8"))
    with pytest.raises(DiffctlError, match=r"c\.safetensors is damaged or edited"):
        load_classifier(path)


def test_newer_fields_with_default_values_are_omitted():
    metadata = artefact_of(spec_of()).model_dump(mode="json")
    assert "lineage" not in metadata
    assert not {"downsample_padding", "frequency_shift", "norm_eps"} & metadata["network"].keys()
    changed = artefact_of(spec_of(norm_eps=1e-6)).model_dump(mode="json")
    assert changed["network"]["norm_eps"] == 1e-6


class PlainConfig(ModelConfig):
    """A network without options of its own."""


class PlainSpec(PlainConfig, NetworkSpec):
    """With what the data decides."""


class Plain(torch.nn.Conv2d):
    def __init__(self, spec: PlainSpec) -> None:
        super().__init__(spec.in_channels, spec.out_channels, 3)


ENTRY = ModelEntry(*(f"{__name__}:{kind}" for kind in ("Plain", "PlainConfig", "PlainSpec")))


def saved_plain(path: Path) -> tuple[PlainSpec, dict[str, Any]]:
    """Save a network of the registered entry; return its spec and the stored metadata."""
    spec = PlainSpec(name="plain", image_size=8, in_channels=1, out_channels=2, num_classes=10)
    return spec, save_artefact(path, Plain(spec).state_dict(), artefact_of(spec)).stored()


def test_options_that_a_network_ignores_are_refused_and_left_out_of_older_files(monkeypatch, tmp_path):
    monkeypatch.setitem(MODELS.data, "plain", ENTRY)
    older = {"dropout": 0.1, "gradient_checkpointing": True}
    for option in older:
        model = {"name": "plain", option: older[option]}
        with pytest.raises(UsageError, match=f"{option}: plain has no such option; it belongs to unet"):
            parse({**params(), "model": model}, "test")
    path = tmp_path / "m.safetensors"
    spec, today = saved_plain(path)
    assert not older.keys() & today["network"].keys()
    stored = {**today, "network": {**today["network"], **older}}
    save_file(load_file(path), path, {METADATA_KEY: canonical_json(add_checksum(stored))})
    artefact = load_model(path).artefact
    assert artefact.network == spec
    del stored["code"]
    assert artefact.model_sha256 == hashlib.sha256(canonical_json(stored).encode()).hexdigest()


def test_file_of_a_missing_plugin_names_it(monkeypatch, tmp_path):
    path = tmp_path / "m.safetensors"
    with monkeypatch.context() as context:
        context.setitem(MODELS.data, "plain", ENTRY)
        saved_plain(path)
    with pytest.raises(DiffctlError, match=r"m.safetensors needs a plugin .*\(network.name plain\)"):
        read_artefact(path)


@pytest.mark.slow
def test_loading_a_model_does_not_import_the_compiler(tmp_path: Path) -> None:
    """torch._dynamo takes more than a second, and torch imports it to fill parameters on the meta device."""
    spec = spec_of()
    save_artefact(tmp_path / "m.safetensors", network_of(spec).state_dict(), artefact_of(spec))
    code = (
        "import sys\nfrom pathlib import Path\nfrom diffusion.model.model_file import load_model\n"
        "load_model(Path('m.safetensors'))\nassert 'torch._dynamo' not in sys.modules"
    )
    env = environment({"PYTHONPATH": str(ROOT)})
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)
