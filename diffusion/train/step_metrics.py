"""The steps' means on their way from the device to the host."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

LAG = 8  # steps that the host may be ahead of a GPU


class AsyncMetrics:
    """Every step's means, in order, as they arrive.

    On a CPU that is at once. A GPU copies them behind the step's own work, and the host takes what has
    arrived, so that it waits for no step but where it is `LAG` steps ahead.
    """

    def __init__(self) -> None:
        self.newest: dict[str, float] = {}
        self._coming: deque[tuple[tuple[str, ...], Tensor, Any]] = deque()

    def add(self, means: dict[str, Tensor]) -> None:
        """Send a step's means, each a number on the device, on their way."""
        values = torch.stack(list(means.values()))
        event = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)
            event = torch.cuda.current_stream().record_event()
        self._coming.append((tuple(means), values, event))

    def arrived(self, *, everything: bool = False) -> Iterator[dict[str, float]]:
        """Take the means that are here, or wait for all of them."""
        while self._coming:
            names, values, event = self._coming[0]
            if event is not None and not event.query():
                if not everything and len(self._coming) <= LAG:
                    return
                event.synchronize()
            self._coming.popleft()
            self.newest = dict(zip(names, values.tolist(), strict=True))
            yield self.newest
