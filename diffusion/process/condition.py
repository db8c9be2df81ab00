"""Conditions of images, one per row: the inputs of a network apart from image and time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.system.devices import to_device
from diffusion.system.errors import UsageError


@dataclass(frozen=True, eq=False)
class Condition:
    """Of `count` images: their `labels` (B,) int64, None for an unconditional network.

    `null_label` is the label that means none, where the network was trained with one.
    """

    count: int
    labels: Tensor | None = None
    null_label: int | None = None

    def __len__(self) -> int:
        return self.count

    def null(self) -> "Condition":
        """Return the images without their condition (CFG's ∅); UsageError for a network trained without ∅."""
        if self.labels is None:
            raise UsageError("guidance needs class labels: the model is unconditional, so use guidance 0")
        if self.null_label is None:
            raise UsageError("guidance needs a model trained with train.p_uncond > 0; use guidance 0")
        return replace(self, labels=torch.full_like(self.labels, self.null_label))

    def unlabelled(self) -> "Condition":
        """Return the same images for an unconditional network."""
        return replace(self, labels=None)

    def rows(self, index: slice | Tensor) -> "Condition":
        """Return the condition of some of the images; `index` is a slice or row numbers."""
        count = len(range(self.count)[index]) if isinstance(index, slice) else len(index)
        return replace(self, count=count, labels=None if self.labels is None else self.labels[index])

    def to(self, device: torch.device) -> "Condition":
        """Return the same on a device; nothing waits for it to be there."""
        return self if self.labels is None else replace(self, labels=to_device(self.labels, device))

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        """Return one condition of all the parts' images in order; all have labels or none has."""
        labels = [part.labels for part in parts if part.labels is not None]
        count = sum(map(len, parts))
        return Condition(count, torch.cat(labels) if labels else None, parts[0].null_label)
