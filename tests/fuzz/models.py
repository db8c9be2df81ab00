"""Model files, checkpoints of OpenAI and diffusers, training states, shards of cells."""

import json
import warnings
from collections import OrderedDict
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file

from diffusion.config import parse as parse_config
from diffusion.interop.from_diffusers import import_diffusers
from diffusion.interop.from_openai import import_openai, weight_names
from diffusion.interop.to_diffusers import scheduler_config, translate, unet_config
from diffusion.model.classifier import Classifier, ClassifierArtefact, load_classifier
from diffusion.model.model_file import METADATA_KEY, load_model, read_verified_artefact, save_artefact
from diffusion.model.presets import PRESETS, Preset
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec
from diffusion.sample.shards import CellShards
from diffusion.system.checksums import CHECKSUM_BYTES
from diffusion.system.errors import DiffctlError
from diffusion.train.checkpoint.run_dir import restore_state
from diffusion.train.checkpoint.state_files import SavedState, newest_state, save_state
from diffusion.train.plan import plan_training
from diffusion.train.train_step import TrainState, new_state
from tests.conftest import params
from tests.fuzz.parser import Parser, correct_metadata_checksum, saved
from tests.helpers.networks import artefact_of, network_of, spec_of


@cache
def model_seeds() -> list[bytes]:
    """Return a conditional model, an unconditional one with fixed variance, and a classifier."""
    small = {"channels": 4, "channel_mult": (1,), "attention_resolutions": (), "head_channels": 4}
    whole = spec_of(**small)
    plain = spec_of(**small, num_classes=0, null_class=False, out_channels=1, class_cond=False)
    classifier = spec_of(**small, out_channels=10, null_class=False)
    description = ClassifierArtefact(**{**dict(artefact_of(whole)), "network": classifier}, kind="classifier")
    torch.manual_seed(0)
    made = [(network_of(spec), artefact_of(spec)) for spec in (whole, plain)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        files = []
        for network, artefact in [*made, (Classifier(classifier), description)]:
            save_artefact(path, network.state_dict(), artefact)
            files.append(path.read_bytes())
        return files


def read_model(path: Path) -> None:
    """Load it as a model, else as a classifier."""
    with suppress(DiffctlError):
        read_verified_artefact(path)
    try:
        loaded = load_model(path)
    except DiffctlError:
        load_classifier(path)
        return
    assert loaded.artefact.model_sha256
    for export in (lambda: unet_config(loaded.network), lambda: scheduler_config(loaded.artefact)):
        with suppress(DiffctlError):
            export()


SHAPE: dict[str, Any] = {"channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": ()}
FAMILY = PRESETS["adm-64"]
SMALL_PRESET = Preset(
    {**SHAPE, "channels": 8, "head_channels": 8},
    FAMILY.process,
    FAMILY.train,
    FAMILY.data,
    8,
    0,
    0,
    "",
    False,
)


@cache
def openai_seeds() -> list[bytes]:
    """Return one checkpoint in both layouts of torch, with and without classes."""
    made = []
    for classes, new_layout in ((0, True), (3, False)):
        spec = UNetSpec(
            **SMALL_PRESET.model, image_size=8, in_channels=1, out_channels=2, num_classes=classes
        )
        with torch.device("meta"):
            network = UNet(spec)
        shapes = network.state_dict()
        named = {theirs: shapes[ours].shape for ours, (theirs,) in weight_names(network).items()}
        state = OrderedDict((name, torch.zeros(shape, dtype=torch.float16)) for name, shape in named.items())
        made.append(
            saved(lambda file, s=state, n=new_layout: torch.save(s, file, _use_new_zipfile_serialization=n))
        )
    return made


def read_openai(path: Path) -> None:
    """Import it."""
    with patch.dict(PRESETS, small=SMALL_PRESET):
        import_openai(path, "small")


@cache
def _diffusers_network() -> UNet:
    shape = {**SHAPE, "channels": 32, "attention_resolutions": (8,)}
    spec = UNetSpec(**shape, image_size=8, in_channels=1, out_channels=1, num_classes=2, class_cond=True)
    torch.manual_seed(0)
    return UNet(spec)


@cache
def diffusers_seeds() -> list[bytes]:
    """Return the unet/config.json of a pipeline, and one of an older pipeline."""
    own = unet_config(_diffusers_network())
    older = {**own, "_class_name": "UNet2DModel", "flip_sin_to_cos": False, "freq_shift": 1}
    return [json.dumps(values).encode() for values in (own, older)]


def read_diffusers(path: Path) -> None:
    """Import the folder, with valid weights."""
    scheduler = {"num_train_timesteps": 10, "beta_schedule": "squaredcos_cap_v2"}
    (path.parent / "scheduler_config.json").write_text(json.dumps(scheduler))
    weights = {name: tensor.contiguous() for name, tensor in translate(_diffusers_network()).items()}
    save_file(weights, path.parent / "diffusion_pytorch_model.safetensors")
    import_diffusers(path.parent)


STATE_FILE = "state-000000003.sealed"
DATA = {
    "name": "digits",
    "classes": [str(digit) for digit in range(10)],
    "counts": [6] * 10,
    "image_size": 8,
    "channels": 1,
    "digest": "d" * 64,
}


@cache
def training_state() -> TrainState:
    """Return the state of a small training."""
    shape = {**SHAPE, "channels": 8, "channel_mult": [1], "attention_resolutions": [], "head_channels": 8}
    plan = plan_training(parse_config(params(model=shape), "here"), DATA, torch.device("cpu"))
    return new_state(plan, torch.device("cpu"))


@cache
def state_seeds() -> list[bytes]:
    """Return the state after three steps, moments included."""
    state = training_state()
    for weight in state.network.parameters():
        weight.grad = torch.zeros_like(weight)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step, state.window, state.history = 3, {"loss": 0.5, "count": 1.0}, [{"step": 2.0, "loss": 0.5}]
    with TemporaryDirectory() as folder:
        return [save_state(Path(folder), SavedState(state.tensors(), state.values())).read_bytes()]


def read_state(path: Path) -> None:
    """Restore it as the newest state of a training."""
    folder = path.parent / "training"
    folder.mkdir()
    path.rename(folder / STATE_FILE)
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        if (state := newest_state(folder)) is None:
            raise DiffctlError(str(messages[0].message).replace(str(folder), ""))
        restore_state(training_state(), state, f"the state in {folder}")
    training_state().pop_means()


COUNT, IMAGE = 4, (2, 2, 1)
CELL, SHARD_FILE = "cell", "00000000-00000004.npy"


@cache
def shard_seeds() -> list[bytes]:
    """Return the only shard of a cell."""
    with TemporaryDirectory() as folder:
        shards = CellShards(Path(folder) / CELL, COUNT, IMAGE)
        shards.save(range(COUNT), np.arange(16, dtype=np.uint8).reshape(COUNT, *IMAGE))
        return [(shards.folder / SHARD_FILE).read_bytes()]


def read_shard(path: Path) -> None:
    """Read it as a shard of a cell."""
    shards = CellShards(path.parent / CELL, COUNT, IMAGE)
    shards.folder.mkdir()
    path.rename(shards.folder / SHARD_FILE)
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        if shards.missing(COUNT):
            raise DiffctlError(str(messages[0].message).replace(str(path.parent), ""))
    (images,) = shards.images()
    assert images.shape == (COUNT, *IMAGE)


def _correct_file(data: bytes, name: str) -> bytes:
    content = data[:-CHECKSUM_BYTES]
    return content + sha256(f"{name}\n".encode() + content).digest()


PARSERS = {
    "model": Parser(
        model_seeds, read_model, repair=lambda data: correct_metadata_checksum(data, METADATA_KEY)
    ),
    "openai": Parser(openai_seeds, read_openai, "a.pt"),
    "diffusers": Parser(diffusers_seeds, read_diffusers, "config.json"),
    "state": Parser(state_seeds, read_state, repair=lambda data: _correct_file(data, STATE_FILE)),
    "unit": Parser(shard_seeds, read_shard, repair=lambda data: _correct_file(data, f"{CELL}/{SHARD_FILE}")),
}
