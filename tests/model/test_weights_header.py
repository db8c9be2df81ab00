"""A model file's description against its weights: refused in one sentence before anything is built."""

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
from tests.fuzz.repairs import correct_metadata_checksum
from tests.helpers.networks import artefact_of, network_of, spec_of

SPEC = spec_of()
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "whole.safetensors"
    save_artefact(path, network_of(SPEC).state_dict(), artefact_of(SPEC))
    return path.read_bytes()


def with_header(data: bytes, edit: Edit) -> bytes:
    """The file with another header before the same weights."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    edit(header)
    made = json.dumps(header).encode()
    return struct.pack("<Q", len(made)) + made + data[8 + length :]


def saying(data: bytes, said: str) -> bytes:
    """The file with that text in place of what it says of itself."""
    return with_header(data, lambda header: header["__metadata__"].update({METADATA_KEY: said}))


def described(data: bytes, edit: Edit) -> bytes:
    """The file with another description of itself, its seal included."""
    (length,) = struct.unpack("<Q", data[:8])
    values = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][METADATA_KEY])
    edit(values)
    return correct_metadata_checksum(saying(data, json.dumps(values)), METADATA_KEY)


def refusal(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(DiffctlError) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800
    return str(caught.value)


@pytest.mark.parametrize(
    "said", ["", "{", "5", "null", "[]", "[" * 100_000, '{"step":' + "9" * 5000 + "}", '{"kind": 5}', "{}"]
)
def test_what_is_no_description_is_refused(tmp_path: Path, whole: bytes, said: str) -> None:
    refusal(tmp_path, saying(whole, said))


@pytest.mark.parametrize(
    ("edit", "says"),
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
        (lambda v: v["data"].update(counts=[-1] + [1] * 9), "data.counts.0"),
        (lambda v: v["process"].update(variance="small", loss="simple"), "network.out_channels must be 1"),
        (lambda v: v.update(step=-1), "step"),
        (lambda v: v.update(train={"lr": float("nan")}), "it is not JSON"),
        (lambda v: v.update(train={"lr": 1e999}), "it is not JSON"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    tmp_path: Path, whole: bytes, edit: Edit, says: str
) -> None:
    assert says in refusal(tmp_path, described(whole, edit))


def _longer(header: dict[str, Any]) -> None:
    header["time.0.weight"]["data_offsets"][1] += 4


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header["time.0.weight"].update(dtype="I32"),
        lambda header: header["time.0.weight"].update(shape=[8, 32]),
        lambda header: header.update(more=header.pop("time.0.weight")),
        lambda header: header["time.0.weight"].update(header["time.2.weight"]),
        lambda header: header.pop("time.0.weight"),
        _longer,
    ],
)
def test_a_header_of_other_weights_is_refused(tmp_path: Path, whole: bytes, edit: Edit) -> None:
    refusal(tmp_path, with_header(whole, edit))


@pytest.mark.parametrize("length", [0, 99_000_000, 2**63, 2**64 - 1])
def test_a_header_of_another_length_is_refused(tmp_path: Path, whole: bytes, length: int) -> None:
    refusal(tmp_path, struct.pack("<Q", length) + whole[8:])


def test_more_tensors_than_any_network_has_are_refused(tmp_path: Path, whole: bytes) -> None:
    def many(header: dict[str, Any]) -> None:
        end = max(one["data_offsets"][1] for name, one in header.items() if name != "__metadata__")
        none = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
        header.update({f"x{index}": none for index in range(10_001)})

    assert "no network has more than 10,000" in refusal(tmp_path, with_header(whole, many))


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.safetensors")
    with pytest.raises(DiffctlError, match="no regular file"):
        load_model(tmp_path / "m.safetensors")


def test_a_classifier_gives_a_logit_a_class(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "m").write_bytes(described(whole, lambda values: values.update(kind="classifier")))
    with pytest.raises(DiffctlError, match=r"network\.out_channels 2 is not num_classes"):
        load_classifier(tmp_path / "m")


def test_looking_at_a_description_draws_nothing(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "m").write_bytes(whole)
    drawn = []
    before = torch.get_rng_state()
    build_matching(lambda spec: drawn.append(torch.get_rng_state()) or network_of(spec), SPEC, tmp_path / "m")
    assert len(drawn) == 2
    assert torch.equal(drawn[1], before)
