"""Images that are not square: sections and files, orientation in networks, pictures, and the whole path."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from cli.images.sampled_images import side_by_side
from diffusion.data.data_config import DataConfig
from diffusion.images.pictures import contact_sheet, montage
from diffusion.images.pixels import to_model, to_nchw
from diffusion.images.store import open_store, write_store
from diffusion.layout import MODEL, PREPARED, SAMPLES, SCORES, TRAIN_RUNS
from diffusion.model.blocks import Attention
from diffusion.model.model_file import read_artefact
from diffusion.model.unet import UNet
from diffusion.protocol.scores_document import read_scores
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.network_files import NetworkFiles
from diffusion.system.errors import DiffctlError
from diffusion.system.section import fingerprint
from flows.registration import register_model
from serving.app import create_app
from serving.model_source import PublishedModel
from tests.conftest import write_params
from tests.helpers.digits_sweep import real_digits
from tests.helpers.invoke import Invoke
from tests.helpers.mlflow_server import empty_database
from tests.helpers.networks import loaded_classifier, network_of, small_model, spec_of
from tests.helpers.raw_data import random_images
from tests.helpers.served_images import HERE, assert_offline, pixels
from tests.helpers.server_process import service_of
from tests.helpers.training_process import signal_at
from tests.model.test_dit import spec_of as dit_spec_of

WIDE = (8, 16)


@pytest.mark.parametrize(("given", "written"), [(8, 8), ([8, 8], 8), ([8, 16], [8, 16])])
def test_a_square_is_written_as_its_side(tmp_path: Path, given: Any, written: Any) -> None:
    values = DataConfig(name="digits", image_size=given).model_dump(mode="json")
    assert values["image_size"] == written
    square = DataConfig(name="digits", image_size=8).model_dump(mode="json")
    assert (fingerprint(values) == fingerprint(square)) == (written == 8)
    spec = read_artefact(small_model(tmp_path / "m.safetensors", image_size=given)).network
    assert json.loads(spec.model_dump_json())["image_size"] == written
    assert spec == spec_of(image_size=given)
    meta, images = {"image_size": written}, np.zeros((2, *spec.pixel_shape), np.uint8)
    assert write_store(tmp_path / "store", images, None, meta).meta["image_size"] == written
    with pytest.raises(DiffctlError, match=r"unlike in meta\.json"):
        write_store(tmp_path / "longer", images.repeat(2, axis=2), None, meta)


def test_a_unet_with_turned_kernels_turns_images_that_are_not_square() -> None:
    """Attention included, which both have at the feature maps with a shorter side of 4."""
    network = network_of(spec_of(image_size=WIDE, channel_mult=(1, 2, 2)))
    turned = UNet(spec_of(image_size=WIDE[::-1], channel_mult=(1, 2, 2))).eval()
    weights = network.state_dict()
    turned.load_state_dict({key: one.mT if one.ndim == 4 else one for key, one in weights.items()})
    tokens = list[int]()
    for module in network.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(lambda _, given, made: tokens.append(made[0, 0].numel()))
    x, t, labels = torch.randn(2, 1, *WIDE), torch.tensor([3, 50]), torch.tensor([0, 5])
    with torch.no_grad():
        assert torch.allclose(turned(x.mT, t, labels).mT, network(x, t, labels), atol=1e-4)
        assert loaded_classifier(image_size=WIDE).network(x, t).shape == (2, 10)
    assert sorted(set(tokens)) == [8, 32]  # the middle's 2×4, and 4×8


def test_a_token_of_a_dit_is_a_patch_of_an_image_that_is_not_square() -> None:
    """Without its blocks the network computes each patch alone."""
    network = network_of(dit_spec_of(image_size=WIDE))
    for block in network.blocks:
        torch.nn.init.zeros_(block.modulation.weight)
        torch.nn.init.zeros_(block.modulation.bias)
    x, t, labels = torch.randn(1, 1, *WIDE), torch.tensor([3]), torch.tensor([5])
    other = x.clone()
    other[0, 0, 5, 13] += 1
    changed = (network(other, t, labels) - network(x, t, labels)).abs().sum((0, 1)) > 0
    expected = torch.zeros(WIDE, dtype=torch.bool)
    expected[4:6, 12:14] = True
    assert torch.equal(changed, expected)


def test_pictures_keep_the_shape_of_their_images() -> None:
    images = random_images(0, 23, 16, 1)[:, :8]
    assert contact_sheet(images[:20]).shape == (4 * (2 * 8 + 1), 4 * (10 * 16 + 9), 1)
    assert montage(images).shape == (3 * 32 + 2 * 2, 10 * 64 + 9 * 2, 1)
    assert np.array_equal(montage(images)[:32:4, 66:130:4], images[1])
    low_res = to_model(to_nchw(images[:2, ::2, ::2]))
    assert side_by_side(low_res, images[:2], None, None).shape == (4 * 17, 4 * 33, 1)


def pairs_of_digits(folder: Path, count: int) -> Path:
    """Write PNG files of 8×16 pixels, each two digits side by side, in folders named by the first one."""
    images, labels = real_digits()  # type: ignore[no-untyped-call]
    for number in range(count):
        path = folder / str(labels[number]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pair = images[[number, -1 - number], ..., 0]
        Image.fromarray(np.hstack([*pair])).save(path)
    return folder


@pytest.mark.slow
def test_pairs_of_digits_are_trained_swept_scored_registered_and_served(
    project: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_database(project / "mlflow.db"))
    folder = pairs_of_digits(project / "pairs", 200)
    data = {"name": "image-folder", "path": str(folder), "image_size": [8, 16], "channels": 1}
    train = {"steps": 16, "save_every": 4, "log_every": 1}
    write_params(project, data=data, train=train, sweep={"eta": [0.0]})
    for stage in ("data", "reference"):
        assert invoke("stage", stage).code == 0
    store = open_store(PREPARED / "train")
    assert (store.images.shape[1:], store.meta["image_size"]) == ((8, 16, 1), [8, 16])
    assert store.meta["transforms"][1] == "scaled to cover 8×16: halved by box, then bicubic"
    real, raw = store.images[0], [np.asarray(Image.open(path)) for path in folder.rglob("*.png")]
    assert any(np.array_equal(real[..., 0], one) for one in raw)

    assert invoke("stage", "train").code == 0
    wanted = MODEL.read_bytes()
    TRAIN_RUNS.rename("uninterrupted")
    MODEL.unlink()
    assert signal_at(project, 6, signal.SIGKILL).returncode == -signal.SIGKILL
    assert invoke("stage", "train").code == 0
    assert MODEL.read_bytes() == wanted
    assert read_artefact(MODEL).network.image_size == WIDE

    for stage in ("sample", "evaluate"):
        done = invoke("stage", stage)
        assert done.code == 0, done.err
    document = read_scores(SCORES)
    assert document.reference.image_size == WIDE
    assert {cell.card["image_size"] for cell in document.cells.values()} == {"8×16"}
    assert all(open_store(SAMPLES / name).images.shape == (20, 8, 16, 1) for name in document.cells)

    assert register_model().promoted
    done = invoke("sample", "--champion", "--num", "3", "--out", "x.npz")
    assert done.code == 0, done.err
    assert np.load("x.npz")["arr_0"].shape == (3, 8, 16, 1)
    model = PublishedModel("pairs", 1, NetworkFiles(MODEL), document)
    with TestClient(create_app(service_of(model)), HERE) as client:
        answer = client.post("/v1/images", json={"num": 2, "steps": 3, "eta": 0})
        assert answer.status_code == 200, answer.text
        assert_offline(pixels(answer.json()), MODEL, SampleSettings(steps=3), [0, 1])
        assert client.get("/v1/models").json()["models"][0]["card"]["network"]["image_size"] == [8, 16]
