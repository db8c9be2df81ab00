"""A model file says all of itself under a seal: what changed in it, wherever, is refused in a sentence."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusion.model.classifier import Classifier, ClassifierArtefact, load_classifier
from diffusion.model.model_file import (
    METADATA_KEY,
    LoadedModel,
    load_model,
    read_artefact,
    read_verified_artefact,
    save_artefact,
)
from diffusion.system.errors import DiffctlError
from tests.helpers.damaged_bytes import Damage, damages
from tests.helpers.networks import artefact_of, network_of, spec_of

SMALL = {"channels": 4, "channel_mult": (1,), "attention_resolutions": (), "head_channels": 4}


@pytest.fixture(scope="module")
def model() -> bytes:
    spec = spec_of(**SMALL)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        save_artefact(path, network_of(spec).state_dict(), artefact_of(spec))
        return path.read_bytes()


def same(one: LoadedModel, other: LoadedModel) -> bool:
    weights = one.network.state_dict(), other.network.state_dict()
    return one.artefact == other.artefact and all(
        torch.equal(weights[0][key], weights[1][key]) for key in weights[1]
    )


def refused_or_the_same(data: bytes, changed: bytes) -> None:
    """Load what became of the file: as it was, or refused in one sentence that names it."""
    with tempfile.TemporaryDirectory() as folder:
        whole, path = Path(folder) / "whole.safetensors", Path(folder) / "changed.safetensors"
        whole.write_bytes(data)
        path.write_bytes(changed)
        try:
            loaded = load_model(path)
        except DiffctlError as error:
            said = str(error)
        else:
            assert same(loaded, load_model(whole))
            assert read_verified_artefact(path) == loaded.artefact
            return
        assert str(path) in said
        assert "\n" not in said


@given(damage=damages())
@settings(deadline=None, max_examples=150)
def test_whatever_happens_to_a_byte_it_is_refused_or_loads_the_same(model: bytes, damage: Damage) -> None:
    refused_or_the_same(model, damage(model))


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=250)
def test_so_is_whatever_happens_to_a_bit_of_its_header(model: bytes, where: float, bit: int) -> None:
    at = int(where * (8 + int.from_bytes(model[:8], "little")))
    refused_or_the_same(model, model[:at] + bytes([model[at] ^ (1 << bit)]) + model[at + 1 :])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (rb"\"step\":1", rb"\"step\":9"),
        (b"class3", b"class8"),
        (rb"\"timesteps\":100", rb"\"timesteps\":900"),
        (b'"F32"', b'"I32"'),
    ],
)
def test_edits_of_what_it_says_are_refused(model: bytes, tmp_path: Path, old: bytes, new: bytes) -> None:
    assert old in model
    path = tmp_path / "m.safetensors"
    path.write_bytes(model.replace(old, new, 1))
    with pytest.raises(DiffctlError, match=r"m.safetensors.* (damaged|do not fit)") as caught:
        read_verified_artefact(path) if new == b'"I32"' else read_artefact(path)
    assert "\n" not in str(caught.value)


def test_a_description_without_a_seal_is_refused(model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(model)
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()[METADATA_KEY])
    del said["sha256"]
    save_file(load_file(path), path, {METADATA_KEY: json.dumps(said)})
    with pytest.raises(DiffctlError, match=r"is damaged or edited \(it has no checksum\): get"):
        read_artefact(path)


def test_a_classifiers_file_is_sealed_too(tmp_path: Path) -> None:
    spec = spec_of(**SMALL, out_channels=10, null_class=False)
    says = ClassifierArtefact(**{**dict(artefact_of(spec_of(**SMALL))), "network": spec}, kind="classifier")
    path = tmp_path / "c.safetensors"
    save_artefact(path, Classifier(spec).state_dict(), says)
    load_classifier(path)
    path.write_bytes(path.read_bytes().replace(b"class3", b"class8"))
    with pytest.raises(DiffctlError, match=r"c\.safetensors is damaged or edited"):
        load_classifier(path)


def test_what_came_later_is_in_no_description_that_does_not_need_it():
    said = artefact_of(spec_of()).model_dump(mode="json")
    assert "lineage" not in said
    assert not {"downsample_padding", "frequency_shift", "norm_eps"} & said["network"].keys()
    other = artefact_of(spec_of(norm_eps=1e-6)).model_dump(mode="json")
    assert other["network"]["norm_eps"] == 1e-6
