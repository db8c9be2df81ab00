"""Model files: checksummed metadata that fits the weights, and one-line errors for damaged files."""

import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from diffusion.config import parse
from diffusion.model.classifier import load_classifier
from diffusion.model.model_file import METADATA_KEY, load_model, read_verified_artefact
from diffusion.model.network_registry import MODELS, ModelConfig, ModelEntry, NetworkSpec
from diffusion.model.weights_header import build_matching
from diffusion.system.errors import DiffctlError, UsageError
from tests.conftest import ROOT, environment, params
from tests.fuzz.mutators import correct_metadata_checksum
from tests.helpers.damaged_bytes import Damage, damages
from tests.helpers.networks import network_of, small_model, spec_of

SMALL = {"channels": 4, "channel_mult": (1,), "attention_resolutions": (), "head_channels": 4}
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def model() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return small_model(Path(folder) / "m.safetensors", **SMALL).read_bytes()


@given(damage=damages())
@settings(max_examples=150)
def test_damaged_bytes_are_refused_or_load_unchanged(model: bytes, damage: Damage) -> None:
    with tempfile.TemporaryDirectory() as folder:
        original, path = Path(folder) / "whole.safetensors", Path(folder) / "changed.safetensors"
        original.write_bytes(model)
        path.write_bytes(damage(model))
        try:
            loaded = load_model(path)
        except DiffctlError as error:
            message = str(error)
        else:
            expected = load_model(original)
            assert loaded.artefact == expected.artefact == read_verified_artefact(path)
            weights, wanted = (one.network.state_dict() for one in (loaded, expected))
            assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
            return
        assert str(path) in message
        assert "\n" not in message


def with_header(data: bytes, edit: Edit) -> bytes:
    """Return the file with an edited header and the same weights."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    edit(header)
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data[8 + length :]


def with_edited_metadata(data: bytes, edit: Edit) -> bytes:
    """Return the file with edited metadata and a matching checksum."""

    def edit_header(header: dict[str, Any]) -> None:
        values = json.loads(header["__metadata__"][METADATA_KEY])
        edit(values)
        header["__metadata__"][METADATA_KEY] = json.dumps(values)

    return correct_metadata_checksum(with_header(data, edit_header), METADATA_KEY)


def load_error(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(DiffctlError) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800
    return str(caught.value)


def test_file_of_another_format_is_refused_with_what_to_give(tmp_path: Path) -> None:
    message = load_error(tmp_path, b"# a file of settings\ndata:\n  name: digits\n")
    assert "m.safetensors is not a safetensors file: give a file of weights that diffctl wrote" in message


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, '{"step":' + "9" * 5000 + "}", '{"kind": 5}', "{}"]
)
def test_invalid_metadata_is_refused(tmp_path: Path, model: bytes, text: str) -> None:
    edit = lambda header: header["__metadata__"].update({METADATA_KEY: text})  # noqa: E731
    load_error(tmp_path, with_header(model, edit))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v["network"].update(channels=3 * 10**8), ""),
        (lambda v: v["network"].update(num_res_blocks=10**7), ""),
        (lambda v: v["network"].update(num_res_blocks=400), ""),
        (lambda v: v["network"].update(channels=8), "classes.weight is F32 [11, 16], and the network has"),
        (lambda v: v["network"].update(num_classes=9), "data.classes names 10 classes"),
        (lambda v: v["network"].update(block="convnext"), "and the network has"),
        (lambda v: v["data"]["classes"].pop(), "counts"),
        (lambda v: v["data"].update(classes=[], counts=[]), "data.classes names 0 classes"),
        (lambda v: v["data"].update(counts=[0] * 10), "counts"),
        (lambda v: v["process"].update(variance="small", loss="simple"), "network.out_channels must be 1"),
        (lambda v: v.update(train={"lr": float("nan")}), "it is not JSON"),
    ],
)
def test_inconsistent_metadata_is_refused(tmp_path: Path, model: bytes, edit: Edit, message: str) -> None:
    assert message in load_error(tmp_path, with_edited_metadata(model, edit))


def add_tensors(header: dict[str, Any]) -> None:
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
    header.update({f"x{index}": empty for index in range(10_001)})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda header: header["time.0.weight"].update(dtype="I32"), ""),
        (lambda header: header["time.0.weight"].update(shape=[4, 16]), ""),
        (lambda header: header.update(more=header.pop("time.0.weight")), ""),
        (lambda header: header["time.0.weight"].update(header["time.2.weight"]), ""),
        (lambda header: header.pop("time.0.weight"), ""),
        (add_tensors, "no network has more than 10,000"),
    ],
)
def test_header_that_does_not_match_weights_is_refused(tmp_path, model, edit, message) -> None:
    assert message in load_error(tmp_path, with_header(model, edit))


@pytest.mark.parametrize("length", [0, 99_000_000, 2**64 - 1])
def test_wrong_header_length_is_refused(tmp_path: Path, model: bytes, length: int) -> None:
    load_error(tmp_path, struct.pack("<Q", length) + model[8:])


def test_classifier_requires_one_logit_per_class(tmp_path: Path, model: bytes) -> None:
    (tmp_path / "m").write_bytes(with_edited_metadata(model, lambda values: values.update(kind="classifier")))
    with pytest.raises(DiffctlError, match=r"network\.out_channels 2 is not num_classes"):
        load_classifier(tmp_path / "m")


def test_build_matching_keeps_random_state(tmp_path: Path, model: bytes) -> None:
    (tmp_path / "m").write_bytes(model)
    states, before = [], torch.get_rng_state()
    build = lambda spec: states.append(torch.get_rng_state()) or network_of(spec)  # noqa: E731
    build_matching(build, spec_of(**SMALL), tmp_path / "m")
    assert len(states) == 2
    assert torch.equal(states[1], before)


class PlainConfig(ModelConfig):
    """A network without options of its own."""


class PlainSpec(PlainConfig, NetworkSpec):
    """With what the data decides."""


class Plain(torch.nn.Conv2d):
    def __init__(self, spec: PlainSpec) -> None:
        super().__init__(spec.in_channels, spec.out_channels, 3)


ENTRY = ModelEntry(*(f"{__name__}:{kind}" for kind in ("Plain", "PlainConfig", "PlainSpec")))


@pytest.mark.parametrize("option", ["dropout", "gradient_checkpointing"])
def test_options_that_a_network_ignores_are_refused(monkeypatch, option):
    monkeypatch.setitem(MODELS.data, "plain", ENTRY)
    with pytest.raises(UsageError, match=f"{option}: plain has no such option; it belongs to unet"):
        parse({**params(), "model": {"name": "plain", option: 0.1}}, "test")


@pytest.mark.slow
def test_loading_a_model_does_not_import_the_compiler(tmp_path: Path) -> None:
    """torch._dynamo takes more than a second, and torch imports it to fill parameters on the meta device."""
    small_model(tmp_path / "m.safetensors")
    code = (
        "import sys\nfrom pathlib import Path\nfrom diffusion.model.model_file import load_model\n"
        "load_model(Path('m.safetensors'))\nassert 'torch._dynamo' not in sys.modules"
    )
    env = environment({"PYTHONPATH": str(ROOT)})
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)
