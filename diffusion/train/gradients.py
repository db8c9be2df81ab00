"""A batch's gradient: in micro-batches that fit the memory, summed over the processes of the training."""

import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from diffusion.model.precision import autocast
from diffusion.process.denoiser_output import Network
from diffusion.process.process_registry import build_process
from diffusion.system.device_transfer import to_device
from diffusion.system.errors import DiffctlError, DiffctlWarning
from diffusion.train.batch import Batch
from diffusion.train.distributed.gradient_buckets import OverlappedSums
from diffusion.train.distributed.process_group import ProcessGroup, translate_dist_errors
from diffusion.train.distributed.sharding import Shards
from diffusion.train.dropout_masks import make_dropout_masks
from diffusion.train.objective import Losses
from diffusion.train.plan import TrainPlan, build_objective
from diffusion.train.precision import compiles
from diffusion.train.step_memory import (
    device_memory,
    fitting_microbatch,
    is_out_of_memory,
    oom_hint,
    profile_bytes,
)


class Sums(Protocol):
    """What sums gradients over the processes: OverlappedSums, or Shards."""

    def sending(self) -> AbstractContextManager[None]:
        """Within it lies the last backward pass of a step."""

    def finish(self) -> None:
        """Let the parameters' gradients be the sums."""

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The Euclidean norm of all gradients, of which this process has those given."""


class GradientAccumulator:
    """Fills in the gradient of one batch after another, equal to the whole batch's but for rounding.

    A micro-batch is what `train.microbatch` says. With `auto` it is as many of this process's images as the
    memory's size suggests, on a GPU twice that, and half as many whenever the memory does not suffice: the
    same step is tried again, of which nothing was kept, by the same draws.

    With `shards` the processes put the network together for every pass. So all make equally many, no step can
    be tried again, and `auto` is what the estimate says.
    """

    def __init__(
        self, plan: TrainPlan, network: nn.Module, group: ProcessGroup, shards: Shards | None = None
    ) -> None:
        train, self._is_sharded = plan.train, shards is not None
        self._sums: Sums = shards or OverlappedSums(network, group)
        self._plan, self._network, self._group = plan, network, group
        self._objective, self._process = build_objective(plan), build_process(plan.process)
        self.share = group.share(train.batch_size, train.PREFIX)
        self.microbatch = self._first_microbatch(self.share.stop - self.share.start)
        if self._is_sharded:
            self.microbatch = group.all_reduce_min(self.microbatch)
        alike = shards.bare if shards else network
        self._masks = make_dropout_masks(network, plan, self._objective.purposes.dropout, alike)
        self._compiling = compiles(train, group.device) and not self._is_sharded
        self._forward: Network | None = None

    def __call__(self, batch: Batch, step: int) -> tuple[Losses, Tensor, Tensor]:
        """Add step `step`'s gradient to the parameters' own.

        Returns of the whole batch, whatever this process's share, the losses by name and the timesteps and
        weights, (B,) each. DiffctlError when the memory does not suffice.
        """
        losses = self._own_losses(batch, step)
        self._sums.finish()
        index = to_device(batch.index, batch.weights.device)
        known = torch.stack([*losses.values(), batch.weights, index.float()])
        known = self._group.gather(known, self.share, self._plan.train.batch_size)
        self._group.all_reduce([known])
        *values, weights, index = known.unbind()
        return dict(zip(losses, values, strict=True)), index.long(), weights

    def clip(self, parameters: Iterable[nn.Parameter], most: float) -> Tensor:
        """Scale the gradients down to a norm of `most`, where it is more; returns what it was."""
        learned = [parameter for parameter in parameters if parameter.grad is not None]
        norm = self._sums.norm([parameter.grad for parameter in learned if parameter.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(learned, most, norm)
        return norm

    def _own_losses(self, batch: Batch, step: int) -> Losses:
        while True:
            try:
                with translate_dist_errors():  # with shards a pass itself waits for the others
                    losses = self._attempt(batch, step)
            except RuntimeError as error:
                self._make_do(error)
            else:
                self._compiling = False  # what compiled once does so again: later errors have other causes
                return losses
            # Only here, where the error no longer holds on to what the attempt had computed.
            self._network.zero_grad(set_to_none=True)
            if self._group.device.type == "cuda":
                torch.cuda.empty_cache()

    def _attempt(self, batch: Batch, step: int) -> Losses:
        if self._masks:
            self._masks.draw(step, self._group.device)
        if self._forward is None:  # only here, where it is caught when torch.compile fails
            fast: Network = torch.compile(self._network, dynamic=False) if self._compiling else self._network
            self._forward = autocast(fast, self._plan.precision)
        found, row, parts = [], self.share.start, self._parts(batch)
        for number, part in enumerate(parts, start=1):
            if self._masks:
                self._masks.take(slice(row, row + len(part.index)))
            with self._sums.sending() if number == len(parts) else nullcontext():
                found.append(self._backward(self._forward, part))
            row += len(part.index)
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}

    def _parts(self, batch: Batch) -> list[Batch]:
        """This process's micro-batches; with shards as many as every other's.

        Shares differ by an image, so that there one may have two where others have one at a time.
        """
        if not self._is_sharded:
            return list(batch.split(self.microbatch))
        least, rest = divmod(self._plan.train.batch_size, self._group.world_size)
        return list(batch.divide(min(least, -(-(least + bool(rest)) // self.microbatch))))

    def _backward(self, forward: Network, part: Batch) -> Losses:
        """Add the part's share of the batch's gradient; returns its losses, each (B,)."""
        losses = self._objective.losses(forward, self._process, part)
        mean = (losses["loss"] * part.weights).sum() / self._plan.train.batch_size
        mean.backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in losses.items()}

    def _make_do(self, error: RuntimeError) -> None:
        """Change what made the attempt fail; raise when there is nothing to change."""
        if is_out_of_memory(error):
            if self._plan.train.microbatch != "auto" or self.microbatch == 1 or self._is_sharded:
                advice = oom_hint(self._plan.train.PREFIX)
                raise DiffctlError(
                    f"a step of {self.microbatch} images does not fit the memory: {advice}"
                ) from None
            self.microbatch = -(-self.microbatch // 2)
            _warn(f"the memory does not suffice: going on with micro-batches of {self.microbatch} images")
        elif self._compiling:
            self._compiling, self._forward = False, None
            reason = str(error).strip().partition("\n")[0]
            _warn(f"the network cannot be compiled ({reason}): training goes on without that")
        else:
            raise error

    def _first_microbatch(self, images: int) -> int:
        wanted, device = self._plan.train.microbatch, self._group.device
        if wanted is None:
            return images
        if wanted != "auto":
            return min(wanted, images)
        total, _ = device_memory(device)
        shards = self._group.world_size if self._is_sharded else 1
        if device.type == "cuda":
            guess = total if self._is_sharded else 2 * total  # in bf16 a step takes about half the estimate
        else:
            guess = total // self._group.world_size  # a machine's memory is for all its processes
        spec, build = self._plan.network, self._objective.network
        guess -= profile_bytes(spec, len(self._plan.train.sigma_rels), build) // shards
        return fitting_microbatch(spec, images, guess, build, shards)


def _warn(sentence: str) -> None:
    warnings.warn(sentence, DiffctlWarning, stacklevel=2)
