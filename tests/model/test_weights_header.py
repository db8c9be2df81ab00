"""Metadata of a model file against its weights: one-line errors, before a network is built."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.model.classifier import load_classifier
from diffusion.model.model_file import METADATA_KEY, load_model, save_artefact
from diffusion.model.weights_header import build_matching
from diffusion.system.errors import DiffctlError
from tests.fuzz.parser import correct_metadata_checksum
from tests.helpers.networks import artefact_of, network_of, spec_of

SPEC = spec_of()
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "whole.safetensors"
    save_artefact(path, network_of(SPEC).state_dict(), artefact_of(SPEC))
    return path.read_bytes()


def with_header(data: bytes, edit: Edit) -> bytes:
    """Return the file with an edited header and the same weights."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    edit(header)
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data[8 + length :]


def with_metadata(data: bytes, text: str) -> bytes:
    """Return the file with `text` as its metadata."""
    return with_header(data, lambda header: header["__metadata__"].update({METADATA_KEY: text}))


def with_edited_metadata(data: bytes, edit: Edit) -> bytes:
    """Return the file with edited metadata and a matching checksum."""
    (length,) = struct.unpack("<Q", data[:8])
    values = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][METADATA_KEY])
    edit(values)
    return correct_metadata_checksum(with_metadata(data, json.dumps(values)), METADATA_KEY)


def load_error(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(DiffctlError) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800
    return str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, '{"step":' + "9" * 5000 + "}", '{"kind": 5}', "{}"]
)
def test_invalid_metadata_is_refused(tmp_path: Path, model_bytes: bytes, text: str) -> None:
    load_error(tmp_path, with_metadata(model_bytes, text))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v["network"].update(channels=3 * 10**8), ""),
        (lambda v: v["network"].update(num_res_blocks=10**7), ""),
        (lambda v: v["network"].update(num_res_blocks=400), ""),
        (lambda v: v["network"].update(channels=16), "classes.weight is F32 [11, 32], and the network has"),
        (lambda v: v["network"].update(num_classes=9), "data.classes names 10 classes"),
        (lambda v: v["network"].update(block="convnext"), "and the network has"),
        (lambda v: v["data"]["classes"].pop(), "counts"),
        (lambda v: v["data"].update(classes=[], counts=[]), "data.classes names 0 classes"),
        (lambda v: v["data"].update(counts=[0] * 10), "counts"),
        (lambda v: v["process"].update(variance="small", loss="simple"), "network.out_channels must be 1"),
        (lambda v: v.update(train={"lr": float("nan")}), "it is not JSON"),
    ],
)
def test_inconsistent_metadata_is_refused(
    tmp_path: Path, model_bytes: bytes, edit: Edit, message: str
) -> None:
    assert message in load_error(tmp_path, with_edited_metadata(model_bytes, edit))


def _lengthen(header: dict[str, Any]) -> None:
    header["time.0.weight"]["data_offsets"][1] += 4


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header["time.0.weight"].update(dtype="I32"),
        lambda header: header["time.0.weight"].update(shape=[8, 32]),
        lambda header: header.update(more=header.pop("time.0.weight")),
        lambda header: header["time.0.weight"].update(header["time.2.weight"]),
        lambda header: header.pop("time.0.weight"),
        _lengthen,
    ],
)
def test_header_that_does_not_match_weights_is_refused(
    tmp_path: Path, model_bytes: bytes, edit: Edit
) -> None:
    load_error(tmp_path, with_header(model_bytes, edit))


@pytest.mark.parametrize("length", [0, 99_000_000, 2**64 - 1])
def test_wrong_header_length_is_refused(tmp_path: Path, model_bytes: bytes, length: int) -> None:
    load_error(tmp_path, struct.pack("<Q", length) + model_bytes[8:])


def test_too_many_tensors_are_refused(tmp_path: Path, model_bytes: bytes) -> None:
    def add_tensors(header: dict[str, Any]) -> None:
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
        header.update({f"x{index}": empty for index in range(10_001)})

    assert "no network has more than 10,000" in load_error(tmp_path, with_header(model_bytes, add_tensors))


def test_fifo_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.safetensors")
    with pytest.raises(DiffctlError, match="no model file at"):
        load_model(tmp_path / "m.safetensors")


def test_classifier_requires_one_logit_per_class(tmp_path: Path, model_bytes: bytes) -> None:
    (tmp_path / "m").write_bytes(
        with_edited_metadata(model_bytes, lambda values: values.update(kind="classifier"))
    )
    with pytest.raises(DiffctlError, match=r"network\.out_channels 2 is not num_classes"):
        load_classifier(tmp_path / "m")


def test_build_matching_keeps_random_state(tmp_path: Path, model_bytes: bytes) -> None:
    (tmp_path / "m").write_bytes(model_bytes)
    states = []
    before = torch.get_rng_state()
    build_matching(
        lambda spec: states.append(torch.get_rng_state()) or network_of(spec), SPEC, tmp_path / "m"
    )
    assert len(states) == 2
    assert torch.equal(states[1], before)
