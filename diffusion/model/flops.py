"""What a pass through a network computes, counted while it is made, by torch's own formulas.

A floating-point operation is a multiplication or an addition of a matrix product or a convolution, as the
papers write the network; norms and other work on single numbers are not counted. The meta device would do as
well, but has torch load its compiler for it, which takes seconds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which torch has no formula for
DOUBLING = 9 * 4 / 16  # nine taps at each of four pixels, where the CPU takes sixteen products


class FlopCounter(TorchDispatchMode):
    """A context that counts the operations of the passes within it: `total`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """As torch asks each such class: to keep its compiler from this one it would load it."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        kind = func._overloadpacket
        if kind is FUSED:
            self.total += sdpa_flop_count(*(part.shape for part in args[:3]))  # type: ignore[no-untyped-call]
        elif kind in flop_registry:
            counted = flop_registry[kind](*args, **(kwargs or {}), out_val=made)
            self.total += round(counted * DOUBLING) if _doubles(kind, args) else counted
        return made


def _doubles(kind: Any, args: Sequence[Any]) -> bool:
    """Whether a convolution is `cpu_kernels.upsampled_conv`: transposed, by a kernel that no layer learns."""
    if kind is not torch.ops.aten.convolution or not args[6]:
        return False
    weight: Tensor = args[1]
    return not isinstance(weight, nn.Parameter)
