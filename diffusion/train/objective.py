"""What a network is trained for, and the batch that its losses are computed of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from diffusion.model.model_file import Artefact
from diffusion.process.denoiser import Network
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.time_samplers import TimeSampler


class Batch(NamedTuple):
    """A step's images in [−1, 1], labels with some dropped, t, weights, noise, augmentation (B, 9)."""

    x_0: Tensor
    labels: Tensor | None
    t: Tensor
    weights: Tensor
    noise: Tensor
    augmentation: Tensor | None = None

    def divide(self, count: int) -> Iterator["Batch"]:
        """Divide the batch into `count` parts, in order, whose sizes differ by at most one image."""
        size = len(self.t)
        for number in range(count):
            rows = slice(number * size // count, (number + 1) * size // count)
            yield Batch(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Objective:
    """What a network is trained for.

    `network` builds it from the plan's spec, with weights from the global generator. `losses` returns the
    losses of a micro-batch by name, (B,) each, with `loss` first, which is minimised. `time_sampler` makes
    the sampler of t. `artefact` is the class of the model file's metadata. The purposes name random
    generators, so that trainings of two objectives share no draw.
    """

    network: Callable[[Any], nn.Module]
    losses: Callable[[Network, NoiseProcess, Batch], dict[str, Tensor]]
    time_sampler: Callable[[NoiseProcess], TimeSampler]
    artefact: type[Artefact]
    steps_purpose: str
    weights_purpose: str
    dropout_purpose: str
