"""Dropout with masks from the caller, which decides the random bits of each row."""

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Dropout whose masks are windows of a tape of random bits, each row with its own start.

    `tape` (n,) bool, true with probability 1 − p, and `starts` (B,) int64 are set before each pass of a batch
    in training. Without a tape it is torch's own; those masks depend on how the batch is split.
    """

    tape: Tensor | None = None
    starts: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape: kept numbers divided by 1 − p, the others 0; all of `x` in eval."""
        if self.tape is None or self.starts is None or not self.training:
            return super().forward(x)
        return torch.where(_tape_windows(self.tape, self.starts, x), x / (1 - self.p), 0.0)


def _tape_windows(tape: Tensor, starts: Tensor, x: Tensor) -> Tensor:
    """The tape from each start on, as (B, C, H, W) in `x`'s layout; the layout does not change a mask."""
    channels, height, width = x.shape[1:]
    pixels = height * width
    count = len(tape) - channels * pixels + 1
    if x.is_contiguous():
        windows = tape.as_strided((count, channels, height, width), (1, pixels, width, 1))
        return windows.index_select(0, starts)
    windows = tape.as_strided((count, height, width, channels), (1, width, 1, pixels))
    return windows.index_select(0, starts).permute(0, 3, 1, 2)
