"""One step of a training: forward and backward passes, the optimiser, and the averages of the weights."""

import copy
import math
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from diffusion.model.posthoc_ema import newest_weight
from diffusion.process.objective import Batch
from diffusion.train.forward_passes import ForwardPasses, Losses
from diffusion.train.optimizers.lr_schedule import learning_rate
from diffusion.train.train_state import TrainState, band_sums

IGNORES_FOUND_INF = ("mps",)  # their fused optimiser ignores found_inf (pytorch#186360)

Module = TypeVar("Module", bound=nn.Module)


def train_step(state: TrainState, passes: ForwardPasses, batch: Batch) -> dict[str, Tensor]:
    """Make one optimiser step in place; return its means as device tensors, without a synchronisation.

    A non-finite loss or gradient changes neither weights nor moments nor EMA: the optimiser skips the step,
    and the means are non-finite.
    """
    train = state.plan.train
    losses, weights, t, log_snr = accumulate_gradients(passes, batch, state.step)
    norms = passes.clip(state.network, train.grad_clip or math.inf)
    means = {name: (value * weights).mean() for name, value in losses.items()} | norms
    finite = torch.stack(list(means.values())).isfinite().all()
    means |= band_sums(losses["loss"], log_snr)
    if state.time_sampler.learns and finite:
        state.time_sampler.update(t, losses["loss"])
    for group in state.optimizer.param_groups:
        group["lr"] = group["scale"] * learning_rate(train.lr, state.step, train.steps)
    if skips_steps(state.optimizer, finite.device):
        state.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # as torch's GradScaler
        state.optimizer.step()
    elif finite:
        state.optimizer.step()
    if project := getattr(state.network, "project_weights", None):
        project(finite)
    # Early averages forget the initialisation.
    decay = min(train.ema_decay, (1 + state.step) / (10 + state.step))
    ema_update(state.ema, state.network, decay, finite)
    if state.objective.is_averaged:
        ema_update(state.ema_objective, state.objective, decay, finite)
    with torch.no_grad():
        # The first step overwrites a profile. A non-finite step counts the previous weights once more.
        for profile, sigma_rel in zip(state.ema_profiles, train.sigma_rels, strict=True):
            part = newest_weight(sigma_rel, state.step + 1)
            torch._foreach_lerp_(list(profile.parameters()), list(state.network.parameters()), part)
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return means


def accumulate_gradients(
    passes: ForwardPasses, batch: Batch, step: int
) -> tuple[Losses, Tensor, Tensor, Tensor]:
    """Accumulate a step's gradient, equal to the whole batch's except for rounding.

    Returns `ForwardPasses.gather`: losses, their weights, times, and λ of the whole batch. DiffctlError if
    memory runs out.
    """
    losses = passes.retried(partial(_backward, passes, batch, step))
    passes.reduce_gradients()
    return passes.gather(losses, batch)


def _backward(passes: ForwardPasses, batch: Batch, step: int) -> Losses:
    """Run forward and backward passes of this rank's share; return its losses."""
    parts = []
    for part in passes.micro_batches(batch, step):
        losses: Losses = passes.objective(passes.network, part, step)
        mean = (losses["loss"] * part.weights).sum() / passes.batch_size
        mean.backward()  # type: ignore[no-untyped-call]
        parts.append({name: value.detach() for name, value in losses.items()})
    return {name: torch.cat([losses[name] for losses in parts]) for name in parts[0]}


def skips_steps(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Whether the optimiser itself skips a non-finite step by `found_inf`, as torch's fused ones do."""
    supports = getattr(optimizer, "_step_supports_amp_scaling", False)  # the flag that GradScaler reads
    return supports and device.type not in IGNORES_FOUND_INF


def ema_copy(module: Module) -> Module:
    """Return a copy in eval mode that takes no gradient."""
    return copy.deepcopy(module).eval().requires_grad_(False)


@torch.no_grad()
def ema_update(ema: nn.Module, network: nn.Module, decay: float, finite: Tensor) -> None:
    """Set ema to decay·ema + (1 − decay)·network in place if `finite`, without a synchronisation."""
    averages: list[Tensor] = list(ema.parameters())
    weights: list[Tensor] = list(network.parameters())
    part = (1 - decay) * finite.to(averages[0].dtype)
    if part.device.type == "cpu":
        torch._foreach_lerp_(averages, weights, [part] * len(averages))
    else:
        lerp_tensors(averages, weights, part)


def lerp_tensors(averages: list[Tensor], weights: list[Tensor], part: Tensor) -> None:
    """Add part·(weights − averages) to `averages` in place, in few kernels; `part` is on their device."""
    differences = torch._foreach_sub(weights, averages)
    torch._foreach_mul_(differences, part)
    torch._foreach_add_(averages, list(differences))
