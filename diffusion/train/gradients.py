"""A batch's gradient: in micro-batches that fit the memory, summed over the processes of the training."""

import warnings

import torch
from torch import Tensor, nn

from diffusion.model.precision import autocast
from diffusion.process.prediction import Network
from diffusion.process.registry import build_process
from diffusion.system.errors import DiffctlError, DiffctlWarning
from diffusion.train.batch import Batch
from diffusion.train.distributed import ProcessGroup
from diffusion.train.identity import TrainPlan, build_objective
from diffusion.train.masks import masks_of
from diffusion.train.memory import device_memory, fitting_microbatch, is_shortage, remedy
from diffusion.train.objective import Losses
from diffusion.train.precision import compiles


class GradientAccumulator:
    """Fills in the gradient of one batch after another, equal to the whole batch's but for rounding.

    A micro-batch is what `train.microbatch` says. With `auto` it is as many of this process's images as the
    memory's size suggests, on a GPU twice that, and half as many whenever the memory does not suffice: the
    same step is tried again, of which nothing was kept, by the same draws.
    """

    def __init__(self, plan: TrainPlan, network: nn.Module, group: ProcessGroup) -> None:
        train = plan.train
        self._plan, self._network, self._group = plan, network, group
        self._objective, self._process = build_objective(plan), build_process(plan.process)
        self.share = group.share(train.batch_size, train.PREFIX)
        self.microbatch = self._first_microbatch(self.share.stop - self.share.start)
        self._masks = masks_of(network, plan, self._objective.purposes.dropout)
        self._compiling = compiles(train, group.device)
        self._forward: Network | None = None

    def __call__(self, batch: Batch, step: int) -> tuple[Losses, Tensor, Tensor]:
        """Add step `step`'s gradient to the parameters' own.

        Returns of the whole batch, whatever this process's share, the losses by name and the timesteps and
        weights, (B,) each. DiffctlError when the memory does not suffice.
        """
        losses = self._own_losses(batch, step)
        known = torch.stack([*losses.values(), batch.weights, batch.index.float()])
        known = self._group.gather(known, self.share, self._plan.train.batch_size)
        gradients = [parameter.grad for parameter in self._network.parameters() if parameter.grad is not None]
        self._group.all_reduce([*gradients, known])
        *values, weights, index = known.unbind()
        return dict(zip(losses, values, strict=True)), index.long(), weights

    def _own_losses(self, batch: Batch, step: int) -> Losses:
        while True:
            try:
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
        parts, row = [], self.share.start
        for part in batch.split(self.microbatch):
            if self._masks:
                self._masks.take(slice(row, row + len(part.index)))
            parts.append(self._backward(self._forward, part))
            row += len(part.index)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _backward(self, forward: Network, part: Batch) -> Losses:
        """Add the part's share of the batch's gradient; returns its losses, each (B,)."""
        losses = self._objective.losses(forward, self._process, part)
        mean = (losses["loss"] * part.weights).sum() / self._plan.train.batch_size
        mean.backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in losses.items()}

    def _make_do(self, error: RuntimeError) -> None:
        """Change what made the attempt fail; raise when there is nothing to change."""
        if is_shortage(error):
            if self._plan.train.microbatch != "auto" or self.microbatch == 1:
                advice = remedy(self._plan.train.PREFIX)
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
        # In bf16 a step takes about half the estimate; a machine's memory is for all its processes.
        guess = 2 * total if device.type == "cuda" else total // self._group.world_size
        return fitting_microbatch(self._plan.network, images, guess, self._objective.network)


def _warn(sentence: str) -> None:
    warnings.warn(sentence, DiffctlWarning, stacklevel=2)
