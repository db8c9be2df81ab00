"""What a training minimises: the base of all objectives, and what they receive."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from diffusion.process.denoiser import Condition
from diffusion.process.loss_registry import OBJECTIVES
from diffusion.process.noise_process import NetworkDenoiser, NoiseProcess
from diffusion.system.errors import UsageError
from diffusion.system.registry import load_reference


class Batch(NamedTuple):
    """A step's images in [−1, 1], labels with some dropped, t, weights, noise, and further conditions."""

    x_0: Tensor
    labels: Tensor | None
    t: Tensor
    weights: Tensor
    noise: Tensor
    augmentation: Tensor | None = None
    low_res: Tensor | None = None
    noise_level: Tensor | None = None

    @property
    def condition(self) -> Condition:
        """The network's inputs apart from image and time."""
        return Condition(len(self.t), self.labels, None, *self[5:])

    def divide(self, count: int) -> Iterator["Batch"]:
        """Divide the batch into `count` parts, in order; their sizes differ by at most one image."""
        size = len(self.t)
        for number in range(count):
            rows = slice(number * size // count, (number + 1) * size // count)
            yield Batch(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class TrainedNetwork(NetworkDenoiser):
    """The network of a training step; `latest` has the outputs of its modules in the latest forward pass."""

    latest: dict[str, Tensor] = field(default_factory=dict)

    def with_features(self, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the output, and by name those of the modules in the objective's `features`."""
        output = self.output(x, t, condition)
        return output, dict(self.latest)


class Objective(nn.Module):
    """The losses of a training, and the parameters that they learn in addition to the network's.

    Its parameters are trained with the network's optimiser and rate, saved and resumed. `is_averaged`: a
    validation loss of the EMA uses the EMA of these parameters too. `features` names modules of the network,
    such as "middle" or "encoder.2": it needs their outputs. `whole_batch` is that of its entry.
    """

    features: Sequence[str] = ()
    is_averaged = False
    whole_batch = False

    def __init__(self, process: NoiseProcess, options: Any = None) -> None:
        super().__init__()
        self.process, self.options = process, options

    def forward(self, network: TrainedNetwork, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return losses of a micro-batch by name, (B,) each, float32: `loss` is minimised, all are logged.

        `network.output(x_t, t, batch.condition)` is what the network predicts, `network(...)` its prediction
        of x_0 and ε. Each call has the same dropout masks. `step` counts from 0. A repeated call must return
        the same: a step is retried if memory runs out.
        """
        raise NotImplementedError

    def divide(self, batch: Batch, count: int) -> Iterator[Batch]:
        """Divide a batch into micro-batches of consecutive rows; override it if some rows belong together."""
        return batch.divide(count)


def build_objective(process: NoiseProcess) -> Objective:
    """Return the objective of the process's `loss`."""
    config = process.config
    entry = OBJECTIVES[config.loss]
    objective: Objective = load_reference(entry.builder)(process, entry.parse(config.loss_options))
    objective.whole_batch = entry.whole_batch
    return objective


class FeatureHooks:
    """Hooks that keep the latest outputs of a network's modules by name; UsageError for an unknown name."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        modules = dict(network.named_modules())
        self.latest: dict[str, Tensor] = {}
        self._handles = []
        for name in names:
            if name not in modules:
                first = ", ".join(list(modules)[1:9])
                raise UsageError(f"process.loss needs the module {name!r} of the network: it has {first} …")
            self._handles.append(modules[name].register_forward_hook(self._keep(name)))

    def _keep(self, name: str) -> Any:
        latest = self.latest

        def keep(module: nn.Module, given: object, output: Tensor) -> None:
            latest[name] = output

        return keep

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
