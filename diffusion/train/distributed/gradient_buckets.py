"""Sums of gradients over the processes, begun while the backward pass still runs (2006.15704, sec. 3.2.3).

The buckets are the parameters from the last to the first, about as a backward pass comes to them, and are
sent in that order whatever is ready first: every process sends alike, and sums have the same bits each time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.train.buckets import buckets
from diffusion.train.distributed.process_group import ProcessGroup

SENT = 25 * 2**18  # numbers that are sent at a time: 25 MB in float32, as DistributedDataParallel does


class _Bucket(NamedTuple):
    """A bucket under way: `wait` for its sums, which then are in `sums`, one for each of `parameters`."""

    wait: Callable[[], None]
    parameters: list[nn.Parameter]
    sums: list[Tensor]


class OverlappedSums:
    """Sums the network's gradients over the processes: of each bucket as soon as its gradients are there.

    A pass that fails and is tried again sends no bucket twice. What it has sent was its whole gradient, of
    all micro-batches; that of the second try, which differs by rounding alone, is put aside for it. So no
    process need know how another one divides its share.
    """

    def __init__(self, network: nn.Module, group: ProcessGroup, size: int | None = None) -> None:
        self._group = group
        self._buckets: list[list[nn.Parameter]] = []
        self._missing: list[int] = []
        self._under_way: list[_Bucket] = []
        self._is_sending = False
        if group.world_size > 1:
            learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
            self._buckets = list(buckets(learned[::-1], lambda parameter: parameter, size or SENT))
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                hook = partial(self._arrived, number)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Within it a backward pass adds the last there is to the gradients: what is whole is sent."""
        self._missing = [len(bucket) for bucket in self._buckets]
        self._is_sending = True
        try:
            yield
        finally:
            self._is_sending = False

    def finish(self) -> None:
        """Send what is left, and let each gradient be its sum. A parameter without one stays so."""
        for bucket in self._buckets[len(self._under_way) :]:
            self._send(bucket)
        for wait, parameters, sums in self._under_way:
            wait()
            for parameter, summed in zip(parameters, sums, strict=True):
                parameter.grad = summed
        self._under_way = []

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The Euclidean norm of all these sums."""
        return torch.nn.utils.get_total_norm(list(gradients))

    def _arrived(self, number: int, parameter: Tensor) -> None:
        if not self._is_sending:
            return
        self._missing[number] -= 1
        while len(self._under_way) < len(self._buckets) and not self._missing[len(self._under_way)]:
            self._send(self._buckets[len(self._under_way)])

    def _send(self, bucket: list[nn.Parameter]) -> None:
        given = [(parameter, parameter.grad) for parameter in bucket if parameter.grad is not None]
        if not given:
            self._under_way.append(_Bucket(lambda: None, [], []))
            return
        parameters, gradients = [one for one, _ in given], [gradient for _, gradient in given]
        flat = gradients[0].new_empty(sum(gradient.numel() for gradient in gradients))
        sums = _laid_out(flat, parameters)
        torch._foreach_copy_(sums, gradients)
        self._under_way.append(_Bucket(self._group.begin_sum(flat), parameters, sums))
        for parameter, summed in zip(parameters, sums, strict=True):
            parameter.grad = summed  # the gradient by itself takes no memory any more


def _laid_out(flat: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """`flat` in parts, each laid in memory as its parameter, which the fused optimiser asks for."""
    parts, at = [], 0
    for parameter in parameters:
        parts.append(flat.as_strided(parameter.shape, parameter.stride(), at))
        at += parameter.numel()
    return parts
