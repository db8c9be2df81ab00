"""A model file: safetensors with a description."""

from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from diffusion.interop.to_diffusers import scheduler_config, unet_config
from diffusion.model.classifier import Classifier, ClassifierArtefact, load_classifier
from diffusion.model.model_file import METADATA_KEY, load_model, read_verified_artefact, save_artefact
from diffusion.system.errors import DiffctlError
from tests.fuzz.repairs import correct_metadata_checksum
from tests.helpers.networks import artefact_of, network_of, spec_of


@cache
def seeds() -> list[bytes]:
    """Return a conditional model, an unconditional one with fixed variance, and a classifier."""
    small = {"channels": 4, "channel_mult": (1,), "attention_resolutions": (), "head_channels": 4}
    whole = spec_of(**small)
    plain = spec_of(**small, num_classes=0, null_class=False, out_channels=1, class_cond=False)
    classifier = spec_of(**small, out_channels=10, null_class=False)
    description = ClassifierArtefact(**{**dict(artefact_of(whole)), "network": classifier}, kind="classifier")
    torch.manual_seed(0)
    made = [(network_of(spec), artefact_of(spec)) for spec in (whole, plain)]
    return [_file(*one) for one in [*made, (Classifier(classifier), description)]]


def _file(network, artefact) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_artefact(path, network.state_dict(), artefact)
        return path.read_bytes()


def repair(data: bytes) -> bytes:
    """Correct the description's checksum."""
    return correct_metadata_checksum(data, METADATA_KEY)


def parse(path: Path) -> None:
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
