"""Model files, checkpoints of OpenAI and diffusers, image stores."""

import json
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file

from diffusion.images import store
from diffusion.images.store_meta import CellMeta, PreparedMeta, StoreMeta
from diffusion.interop.from_diffusers import import_diffusers
from diffusion.interop.from_openai import import_openai, weight_names
from diffusion.interop.to_diffusers import scheduler_config, translate, unet_config
from diffusion.model.classifier import Classifier, ClassifierArtefact, load_classifier
from diffusion.model.model_file import METADATA_KEY, load_model, read_verified_artefact, save_artefact
from diffusion.model.presets import PRESETS
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec
from diffusion.system.checksums import add_checksum
from diffusion.system.errors import DiffctlError
from tests.fuzz.mutators import Parser, as_json, correct_checksum, correct_metadata_checksum, saved
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
SMALL_PRESET = replace(
    PRESETS["adm-64"], model={**SHAPE, "channels": 8, "head_channels": 8}, image_size=8, parameters=0
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


COUNT, IMAGE = 4, (2, 2, 1)

# Image stores: folders of one meta.json and arrays; the input is one of the files
STORED = {"count": COUNT, "digest": "d" * 64, "name": "digits", "classes": ["0", "1"]}
STORES = [
    {**STORED, "card": {"steps": 3, "eta": 0.5, "clip": True, "noise": "small", "none": None}},
    {
        **STORED, "split": "train", "counts": [2, 2], "image_size": 2, "channels": 1, "options": {},
        "sources": {"a": "b"},
    },
]  # fmt: skip


@cache
def store_seeds() -> list[bytes]:
    """Return meta.json of a cell and of a split, images and labels."""
    arrays = np.zeros((COUNT, *IMAGE), np.uint8), np.array([0, 0, 1, 1])
    return [*as_json(*map(add_checksum, STORES)), *(saved(np.save, array) for array in arrays)]


def read_store(path: Path) -> None:
    """Open an image store with the input as one of its files, as any store and as the kind of meta.json."""
    data, folder = path.read_bytes(), path.parent / "store"
    meta, _, images, labels = store_seeds()
    place = "meta.json" if data[:1] != b"\x93" else "labels.npy" if b"<i8" in data[:128] else "images.npy"
    folder.mkdir()
    for name, content in {"meta.json": meta, "images.npy": images, "labels.npy": labels, place: data}.items():
        (folder / name).write_bytes(content)
    with patch.object(store, "verify"):  # the digest is not what is tried here
        opened = store.open_store(folder, StoreMeta)
        if place == "meta.json":
            try:
                store.open_store(folder, CellMeta)
            except DiffctlError:
                store.open_store(folder, PreparedMeta)
    assert len(np.array(opened.images)) == COUNT


PARSERS = {
    "model": Parser(
        model_seeds, read_model, repair=lambda data: correct_metadata_checksum(data, METADATA_KEY)
    ),
    "openai": Parser(openai_seeds, read_openai, "a.pt"),
    "diffusers": Parser(diffusers_seeds, read_diffusers, "config.json"),
    "store": Parser(store_seeds, read_store, repair=correct_checksum),
}
