"""A network that torch compiles for the shape of its batches, and from how many passes that pays."""

import copy
import threading
import warnings

import torch
from torch import Tensor, nn

from diffusion.process.denoiser_output import Network
from diffusion.system.errors import DiffctlWarning

MIN_COMPILED_PASSES = (
    6000  # compiling takes a minute or two: the passes of 2,000 steps of training, three each
)

GRAPHS = "reduce-overhead"  # torch.compile's mode that records a CUDA graph and plays it again
# Modes, and how many passes must go well before an error is the network's own: with a graph one warms up, one
# is recorded and one is played; without, the first one compiles.
_PASSES_TO_TRUST: dict[str | None, int] = {GRAPHS: 3, None: 1}

_Shape = tuple[torch.Size, torch.dtype, bool, int]


def is_worth_compiling(passes: int, device: torch.device) -> bool:
    """Whether so many passes of one shape are computed compiled: by rule, never by timing; on a GPU alone."""
    return device.type == "cuda" and passes >= MIN_COMPILED_PASSES


def compile_modes(device: torch.device) -> list[str | None]:
    """torch.compile's modes to try there, one after another; None is its default.

    A pass fits a CUDA graph: its shape is the same each time, the weights stay where they are, and no noise
    is drawn in it. torch keeps graphs by thread, and fails in others than the main one (pytorch#123177).
    """
    graphs = device.type == "cuda" and threading.current_thread() is threading.main_thread()
    return [GRAPHS, None] if graphs else [None]


class CompiledNetwork:
    """The network compiled for the shape of its first call; other shapes run without compilation.

    On a GPU its kernels are launched as one graph, for the thread of the first call. If that fails it is
    compiled without the graph, and if that fails too it is not compiled. Each failure is one DiffctlWarning.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._shape: _Shape | None = None
        self._modes: list[str | None] = []
        self._fast: Network | None = None
        self._passes = 0

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Return the network's output."""
        shape = x.shape, t.dtype, labels is None, threading.get_ident() if x.is_cuda else 0
        if self._shape is None:
            self._shape, self._modes = shape, compile_modes(x.device)
        while self._modes and shape == self._shape:
            try:
                return self._pass(self._modes[0], x, t, labels)
            except (RuntimeError, AssertionError) as error:
                if self._passes >= _PASSES_TO_TRUST[self._modes[0]]:
                    raise
                self._handle_failure(error)
        return self._network(x, t, labels)  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: dict[int, object]) -> "CompiledNetwork":
        """Wrap a copy of the network, not compiled yet."""
        return CompiledNetwork(copy.deepcopy(self._network, memo))

    def _pass(self, mode: str | None, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        if self._fast is None:
            self._fast = torch.compile(self._network, dynamic=False, mode=mode)
        output = self._fast(x, t, labels)
        self._passes += 1
        return output.clone() if mode == GRAPHS else output  # the next pass writes over what a graph gave

    def _handle_failure(self, error: Exception) -> None:
        """Continue in the next mode, or without compiling."""
        failed, self._fast, self._passes = self._modes.pop(0), None, 0
        what = "launched as a CUDA graph" if failed == GRAPHS else "compiled"
        reason = str(error).strip().partition("\n")[0]
        message = f"the network cannot be {what} ({reason}): sampling continues without that"
        warnings.warn(message, DiffctlWarning, stacklevel=3)


def compile_network(network: nn.Module) -> CompiledNetwork:
    """Return the compiled network, compiled once per device.

    It is kept by the network itself, to which it refers: kept anywhere else it would keep it alive.
    """
    device = str(next(network.parameters()).device)
    kept: dict[str, CompiledNetwork] = network.__dict__.setdefault(_KEPT, {})
    if device not in kept:
        kept[device] = CompiledNetwork(network)
    return kept[device]


_KEPT = "_compiled_by_device"
