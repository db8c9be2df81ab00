"""Edits of images by a model: the trajectories, the images, and the NFE of an image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion.code_digest import Chosen, code_of, plugin_card
from diffusion.edit.method import build_method
from diffusion.edit.operators import Measurement
from diffusion.images.store import array_digest
from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Condition, Prediction
from diffusion.process.noise_process import NoiseProcess, build_process
from diffusion.protocol.edits import METHODS, OPERATORS, EditSettings, parse_operator
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.generate import OnStep, generate
from diffusion.sample.guidance import guidance_weight
from diffusion.sample.guides import NO_GUIDES, Guides
from diffusion.sample.network_files import NetworkArtefacts
from diffusion.sample.sampler import CustomTrajectory, SamplerDriver
from diffusion.sample.sampling_card import sampling_card
from diffusion.sample.sampling_steps import sampling_grid
from diffusion.system.errors import UsageError
from diffusion.system.section import fingerprint


@dataclass(frozen=True)
class Editor:
    """A model with the settings of an edit, on the device of its networks.

    A forward pass has `batch_size` images or tiles.
    """

    loaded: LoadedModel
    settings: SampleSettings
    edit: EditSettings
    device: torch.device
    guides: Guides = NO_GUIDES
    batch_size: int = 64

    def images(
        self,
        measurement: Measurement,
        indices: Sequence[int],
        condition: Condition,
        callback: OnStep | None = None,
    ) -> Tensor:
        """Return the edited images at `indices`, uint8 (B, C, H, W) on the CPU; a row of all inputs for each.

        Images larger than the model's are denoised in tiles. UsageError as `build_method` and `generate`.
        """
        spec, size = self.loaded.artefact.network, measurement.image_shape[1:]
        process = build_process(self.loaded.artefact.process)
        return generate(
            self.loaded,
            self.settings,
            indices,
            condition,
            self.device,
            callback,
            self.guides,
            custom=edit_trajectory(self.edit, self.settings, measurement.to(self.device), process),
            size=None if size == spec.size else size,
            tile_batch=self.batch_size,
        )

    def results(
        self,
        measurement: Measurement,
        condition: Condition,
        count: int,
        on_progress: Callable[[int, int], None],
    ) -> Tensor:
        """Return `count` results of each picture in turn, uint8 (K·count, C, H, W), in batches.

        Measurement and condition have a row for each of K pictures. Result j of picture k has the index
        k·count + j.
        """
        source = torch.arange(len(measurement)).repeat_interleave(count)
        parts = []
        for start in range(0, len(source), self.batch_size):
            on_progress(start, len(source))
            rows = source[start : start + self.batch_size]
            indices = range(start, start + len(rows))
            parts.append(self.images(measurement.rows(rows), indices, condition.rows(rows)))
        on_progress(len(source), len(source))
        return torch.cat(parts)


def edit_trajectory(
    edit: EditSettings,
    settings: SampleSettings,
    measurement: Measurement,
    process: NoiseProcess,
    nfe: int | None = None,
) -> CustomTrajectory:
    """Return the trajectories of edited images; the measurement is on the device of the networks.

    Image i depends on (seed, i), the measurement's row and the model alone.
    """
    return CustomTrajectory(
        lambda rows: build_method(edit, settings, measurement.rows(rows), process), nfe=nfe
    )


@torch.no_grad()
def count_edit_nfe(
    edit: EditSettings,
    settings: SampleSettings,
    measurement: Measurement,
    process: NoiseProcess,
    max_nfe: int | None = None,
) -> int:
    """Return the NFE of an edited image, from a run without a network; UsageError if it exceeds `max_nfe`.

    A call has that of the guidance where it applies, twice that with a gradient.
    """
    x = torch.zeros(1, *measurement.image_shape)
    sampler = build_method(edit, settings, measurement.rows(slice(1)).to(x.device), process)
    driver = SamplerDriver(sampler(sampling_grid(settings, process), x, lambda: x))
    nfe = 0
    while driver.call is not None:
        guided = guidance_weight(settings, process, driver.call.t)
        nfe += driver.call.nfe * (settings.guided_nfe if guided else 1)
        if max_nfe is not None and nfe > max_nfe:
            raise UsageError(
                f"method {edit.method} takes more than {max_nfe} network evaluations per image with these "
                "settings: give fewer steps, or other method_options"
            )
        driver.advance(Prediction(x, x, x, gradient=x))
    return nfe


def edit_card(
    edit: EditSettings,
    settings: SampleSettings,
    measurement: Measurement,
    condition: Condition,
    results: int,
    networks: NetworkArtefacts,
) -> dict[str, Any]:
    """Return the protocol card of edited images: that of sampling with the edit's own fields.

    Measurement and condition have a row per picture, and each picture has `results` images. A mask that is a
    picture is in the operator's text by its digest.
    """
    process = build_process(networks.model.process)
    entries: list[Chosen] = [(METHODS, edit.method)]
    if edit.operator is not None:
        entries += [(OPERATORS, name) for name, _ in parse_operator(edit.operator)]
    sampling, labels = sampling_card(settings, networks), condition.labels
    del sampling["classes"]  # the labels are those of the condition
    return {
        **sampling,
        "method": edit.method,
        **{f"method_{name}": value for name, value in edit.options.model_dump(mode="json").items()},
        "operator": None if measurement.operator is None else measurement.operator.text,
        "sigma_y": edit.sigma_y,
        "inputs_sha256": array_digest(measurement.y.cpu().numpy()),
        "labels_sha256": None if labels is None else array_digest(labels.cpu().numpy()),
        "pictures": len(measurement),
        "results": results,
        "nfe": count_edit_nfe(edit, settings, measurement, process),
        **plugin_card("edit_plugins", code_of([__name__], entries)),
    }


def edit_protocol(card: Mapping[str, Any]) -> str:
    """Return a digest of a card without the number of steps: equal for the points of a curve over NFE."""
    return fingerprint({key: value for key, value in card.items() if key not in ("steps", "nfe")})[:8]
