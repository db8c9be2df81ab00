"""The forward passes of a step: micro-batches that fit the memory, sums over the ranks, dropout masks.

The masks follow from (seed, step, row of the batch), independent of ranks and micro-batches. For each layer
and step one tape of random bits is drawn, longer than a row's mask. A row's mask is a window of the tape, at
an offset that is drawn for the row. So the bits of one row are independent, and so are those of two rows at
each position, unless their offsets are equal. A step draws about as many bits as two rows have.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm as total_norm

from diffusion.model.layers import Dropout, example_pass
from diffusion.model.network_registry import NetworkSpec
from diffusion.model.precision import autocast
from diffusion.process.denoiser import Network
from diffusion.process.noise import counter_generator
from diffusion.process.objective import Batch, FeatureHooks, Objective, TrainedNetwork
from diffusion.system.devices import is_out_of_memory, to_device
from diffusion.system.errors import DiffctlWarning, UsageError, first_line
from diffusion.train.distributed.process_group import ProcessGroup, translate_dist_errors
from diffusion.train.distributed.sharding import Shards, meta_copy
from diffusion.train.plan import TrainPlan, build_task
from diffusion.train.step_memory import OutOfMemory, device_memory, initial_microbatch, oom_hint

MIN_COMPILED_STEPS = 2000  # for `auto`, since compilation takes a minute or two
MIN_OFFSETS = 2**14  # possible offsets of a row: in a batch of 128 rows two seldom coincide

Losses = dict[str, Tensor]


class ForwardPasses:
    """The forward passes of steps: a network within its process, micro-batches that fit, sums over ranks.

    `train.microbatch` is the size of a micro-batch. With `auto` it is the number of this rank's images that
    the total memory suggests, twice that on a GPU, and it is halved whenever memory runs out: the step is
    retried with the same random numbers. An objective of the whole batch has one micro-batch.

    With `shards` every forward pass is a collective. So all ranks make equally many, no step can be retried,
    and `auto` is the estimate.

    The first step checks that it changed no buffer: a retried or non-finite step would, and no average of the
    weights would have it.
    """

    def __init__(
        self,
        plan: TrainPlan,
        network: nn.Module,
        objective: Objective,
        group: ProcessGroup,
        shards: Shards | None = None,
    ) -> None:
        train = plan.train
        self.objective, self.batch_size = objective, train.batch_size
        self._plan, self._module, self._group, self._shards = plan, network, group, shards
        self.share = group.share(train.batch_size, train.PREFIX)
        self.microbatch = self._initial_microbatch(self.share.stop - self.share.start)
        if shards:
            self.microbatch = group.reduce_number(self.microbatch, dist.ReduceOp.MIN)
        purpose, template = build_task(plan).dropout_purpose, shards.meta if shards else network
        has_dropout = any(layer.p > 0 for layer in _layers(template))
        self._masks = DropoutMasks(network, plan, purpose, template) if has_dropout else None
        is_worth_it = group.device.type == "cuda" and train.steps >= MIN_COMPILED_STEPS
        self._is_compiling = not shards and (is_worth_it if train.compile == "auto" else train.compile)
        self._hooks = FeatureHooks(network, objective.features)
        self._latest = self._hooks.latest
        self._network: TrainedNetwork | None = None
        self._buffers = {name: buffer.clone() for name, buffer in self._named_buffers()}

    @property
    def network(self) -> TrainedNetwork:
        """The network under autocast, compiled if that is worth it."""
        if self._network is None:  # within a step, where a failure of torch.compile is caught
            network: Network = self._module
            if self._is_compiling:
                network = torch.compile(self._module, dynamic=False)
            forward = autocast(network, self._plan.precision)
            self._network = TrainedNetwork(forward, self.objective.process, self._latest)
        return self._network

    def close(self) -> None:
        """Remove the hooks from the network."""
        self._hooks.remove()

    def micro_batches(self, batch: Batch, step: int) -> Iterator[Batch]:
        """Divide this rank's share of a batch, and set the dropout masks of each part.

        With shards there are as many parts as on every other rank.
        """
        least, largest = len(batch.t), len(batch.t)
        if self._shards:
            least, rest = divmod(self.batch_size, self._group.world_size)
            largest = least + bool(rest)
        if self._masks:
            self._masks.draw(step, self._group.device)
        row = self.share.start
        for part in self.objective.divide(batch, min(least, -(-largest // self.microbatch))):
            if self._masks:
                self._masks.select_rows(slice(row, row + len(part.t)))
            yield part
            row += len(part.t)

    def retried(self, compute: Callable[[], Losses]) -> Losses:
        """Run the passes of a step, again after a failure that can be handled; OutOfMemory for no memory."""
        while True:
            try:
                with translate_dist_errors():  # with shards a pass is a collective
                    losses = compute()
            except RuntimeError as error:
                self._handle_failure(error)
            else:
                self._is_compiling = False  # compilation has succeeded: later errors have other causes
                self._check_buffers()
                return losses
            # Here, where the error no longer refers to the attempt's tensors.
            self._latest.clear()
            for module in (self._module, self.objective):
                module.zero_grad(set_to_none=True)
            if self._group.device.type == "cuda":
                torch.cuda.empty_cache()

    def reduce_gradients(self) -> None:
        """Sum the gradients over the ranks."""
        if self._shards:
            self._shards.take_gradients()
        modules = [self.objective] if self._shards else [self._module, self.objective]
        self._group.all_reduce([one for module in modules for one in _gradients(module.parameters())])

    def gather(self, losses: Losses, batch: Batch) -> tuple[Losses, Tensor, Tensor, Tensor]:
        """Return losses, weights, times and λ = log α/σ of the whole batch, (B,) float32, on every rank."""
        numbers = [batch.t, self.objective.process.log_snr(batch.t)]
        times = [to_device(one.float(), batch.weights.device) for one in numbers]
        values = torch.stack([*losses.values(), batch.weights, *times])
        padded = values.new_zeros(len(values), self.batch_size)
        padded[:, self.share] = values
        self._group.all_reduce([padded])
        *of_losses, weights, t, log_snr = padded.unbind()
        return dict(zip(losses, of_losses, strict=True)), weights, t, log_snr

    def clip(self, network: nn.Module, max_norm: float) -> dict[str, Tensor]:
        """Scale the gradients down to `max_norm` if their norm is larger; return their norms before.

        Those of the objective's parameters, if it has any, are a norm of their own.
        """
        norms = {"grad_norm": _clip(network, max_norm, self._shards.norm if self._shards else total_norm)}
        if _gradients(self.objective.parameters()):
            norms["objective_grad_norm"] = _clip(self.objective, max_norm, total_norm)
        return norms

    def _handle_failure(self, error: RuntimeError) -> None:
        """Halve the micro-batch or disable compilation; raise if neither applies."""
        if is_out_of_memory(error):
            is_fixed = self._plan.train.microbatch != "auto" or self.objective.whole_batch
            if is_fixed or self.microbatch == 1 or self._shards:
                hint = oom_hint(self._plan.train.PREFIX, whole_batch=self.objective.whole_batch)
                message = f"a step of {self.microbatch} images does not fit the memory: {hint}"
                raise OutOfMemory(message) from None
            self.microbatch = -(-self.microbatch // 2)
            message = f"out of memory: continuing with micro-batches of {self.microbatch} images"
        elif self._is_compiling:
            self._is_compiling, self._network = False, None
            why = first_line(error)
            message = f"the network cannot be compiled ({why}): training continues without compilation"
        else:
            raise error
        warnings.warn(message, DiffctlWarning, stacklevel=2)

    def _named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return chain(self._module.named_buffers(), self.objective.named_buffers("objective"))

    def _check_buffers(self) -> None:
        """Raise UsageError if the first step has changed a buffer."""
        before, self._buffers = self._buffers, {}
        for name, buffer in self._named_buffers() if before else ():
            if not torch.equal(buffer, before.get(name, buffer)):
                what = (
                    f"a training step changes the buffer {name}, which no average of the weights would have"
                )
                raise UsageError(f"{what}: use a norm without running statistics, such as GroupNorm")

    def _initial_microbatch(self, images: int) -> int:
        whole_batch, ranks = self.objective.whole_batch, self._group.world_size
        if whole_batch and ranks > 1:
            name = self._plan.process.loss
            raise UsageError(f"process.loss {name} needs the whole batch: set train.devices to 1")
        budget, _ = device_memory(self._group.device)
        if self._group.device.type != "cuda":
            budget //= ranks  # the ranks share the machine's memory
        elif not self._shards:
            budget *= 2  # in bf16 a step takes about half the estimate
        shards = ranks if self._shards else 1
        return initial_microbatch(self._plan, images, budget, shards, whole_batch=whole_batch)


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _clip(module: nn.Module, max_norm: float, norm_of: Callable[[list[Tensor]], Tensor]) -> Tensor:
    """Scale a module's gradients down to `max_norm` if their norm is larger; return their norm before."""
    learned = [parameter for parameter in module.parameters() if parameter.grad is not None]
    norm = norm_of(_gradients(learned))
    torch.nn.utils.clip_grads_with_norm_(learned, max_norm, norm)
    return norm


class DropoutMasks:
    """The masks of a training's steps, set in the network's dropout layers before each forward pass.

    `template` has the network's layers and can be copied.
    """

    def __init__(self, network: nn.Module, plan: TrainPlan, purpose: str, template: nn.Module) -> None:
        self._layers = _layers(network)
        self._sizes = _row_sizes(template, plan.network)
        self._name, self._rows = (purpose, plan.train.seed), plan.train.batch_size
        self._starts: list[Tensor] = []

    def draw(self, step: int, device: torch.device) -> None:
        """Draw a step's tapes, on the device, and the offsets of all rows."""
        purpose, seed = self._name
        named = counter_generator(f"{purpose} tapes", seed, step).initial_seed()
        source = torch.Generator(device).manual_seed(named)
        for layer, size in zip(self._layers, self._sizes, strict=True):
            tape = torch.empty(size + max(size, MIN_OFFSETS), dtype=torch.bool, device=device)
            layer.tape = tape.bernoulli_(1 - layer.p, generator=source)
        uniforms = torch.empty(len(self._layers), self._rows, dtype=torch.float64)
        uniforms.uniform_(generator=counter_generator(f"{purpose} starts", seed, step))
        starts = uniforms * torch.tensor(self._sizes)[:, None].clamp(min=MIN_OFFSETS)
        self._starts = list(to_device(starts.long(), device))

    def select_rows(self, rows: slice) -> None:
        """Set the masks of these rows of the batch for the next forward pass."""
        for layer, starts in zip(self._layers, self._starts, strict=True):
            layer.starts = starts[rows]


def _layers(network: nn.Module) -> list[Dropout]:
    return [module for module in network.modules() if isinstance(module, Dropout)]


def _row_sizes(network: nn.Module, spec: NetworkSpec) -> list[int]:
    """Return the size of a row's input to each dropout layer, from a forward pass on the meta device."""
    sizes: dict[nn.Module, int] = {}

    def record(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        sizes[layer] = arguments[0].numel()

    template = meta_copy(network).to("meta").eval()  # with its buffers
    layers = _layers(template)
    for layer in layers:
        layer.register_forward_pre_hook(record)
    with torch.device("meta"):
        example_pass(template, spec)
    return [sizes[layer] for layer in layers]  # a network may call them in another order
