"""A trial of the selected entries on two random images: it finds in a second what would fail hours later."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch

from diffusion.check.findings import Finding, Project
from diffusion.check.machine_checks import weights_finding
from diffusion.check.trial_steps import (
    IMAGES,
    StandIn,
    few_steps,
    trial_plan,
    try_extractor,
    try_sampling,
    try_training,
)
from diffusion.model import counted_passes
from diffusion.model.network_registry import MODELS, NetworkSpec, build_network
from diffusion.process.noise_process import build_process
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.grid import describe_cell, effective_axes
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampler import NonFiniteError
from diffusion.sample.sampling_steps import count_nfe
from diffusion.system.devices import default_device
from diffusion.system.errors import DiffctlError, UsageError, reason
from diffusion.system.registry import ARCHIVE, find_plugin_line, function_place, is_plugin, load_reference
from diffusion.system.threads import single_thread
from diffusion.train import step_memory
from diffusion.train.plan import TrainPlan

STEPS = 2
TRAIN_PASSES = 4  # forward, backward, and recomputed forward
MAX_FLOPS = 10**11  # of all passes: about a second
MAX_PARAMETERS = 10**8  # their initialisation takes about a second
REMEDY = "correct the code, or select another entry in params.yaml"


def check_trial(project: Project) -> Iterator[Finding]:
    """Try the network, its loss, the samplers, spacings and guidance rules, and plugins' extractors.

    Of a network that is too large for that, only the output's shape is computed, and a `StandIn` is trained
    and sampled in its place.
    """
    total, _ = step_memory.device_memory(default_device())
    if project.plan is None or step_memory.exceeds_memory(project.plan.network, total):
        return  # reported by check_fit or check_memory
    plan, settings = trial_plan(project.plan), distinct_settings(project)
    try:
        with _trial_errors(f"the network {plan.network.name} failed"):
            _check_output(plan.network)
            is_small = _is_affordable(plan, sum(count_nfe(one, plan.process) for one in settings))
            network = build_network(plan.network) if is_small else StandIn(plan.network)
    except UsageError as error:
        yield Finding("error", "model", str(error), REMEDY)
        return
    attempts = {"a training step": partial(try_training, plan, network)}
    for one in settings:
        what = f"sampling by {describe_cell(effective_axes(one))} ({SAMPLERS.module(one.sampler)})"
        attempts[what] = partial(try_sampling, plan, network, one)
    failed = False
    for what, attempt in (attempts | _further_attempts(project)).items():
        try:
            with _trial_errors(f"{what} failed"):
                attempt()
        except UsageError as error:
            failed = True
            yield Finding("error", "trial", str(error), REMEDY)
    if not failed:
        message = f"a training step and sampling by {len(settings)} settings work"
        large = "; the network is too large to try, but its output has the right shape"
        yield Finding("ok", "trial", message + ("" if is_small else large))


def distinct_settings(project: Project) -> list[SampleSettings]:
    """Return settings that have every sampler, spacing, guidance rule and noise of the grid, in few steps."""
    seen, chosen = set[object](), list[SampleSettings]()
    process = build_process(project.process)
    for one in project.cells.values():
        entries = {("sampler", one.sampler), ("spacing", one.spacing)}
        entries |= {("guidance_rule", one.rule)} if one.guidance else set()
        entries |= {("noise", one.noise)} if one.eta else set()
        if not entries <= seen:
            seen |= entries
            few = few_steps(one, STEPS, process)  # None is reported by check_spacing and check_rules
            chosen += [few] if few else []
    return chosen


def _further_attempts(project: Project) -> dict[str, Callable[[], None]]:
    """Return the classifier's training step, unless it is too large, and plugins' extractors."""
    attempts: dict[str, Callable[[], None]] = {}
    with suppress(DiffctlError):  # reported by check_start
        if project.classifier_plan and _is_affordable(plan := trial_plan(project.classifier_plan)):
            attempts["a training step of the classifier"] = partial(try_training, plan)
    for space in project.config.evaluate.spaces:
        if is_plugin(EXTRACTORS.module(space.extractor)) and weights_finding(space).level == "ok":
            attempts[f"extractor {space.extractor}"] = partial(try_extractor, space)
    return attempts


def _is_affordable(plan: TrainPlan, calls: int = 0) -> bool:
    """Return whether a training step and these calls of the network take about a second."""
    flops = counted_passes.forward_flops(plan.network) * IMAGES * (TRAIN_PASSES + calls)
    return flops <= MAX_FLOPS and counted_passes.count_parameters(plan.network) <= MAX_PARAMETERS


def _check_output(spec: NetworkSpec) -> None:
    """Raise UsageError unless the network's output has the shape that training and sampling need."""
    wanted = (1, spec.out_channels, *spec.size)
    if (shape := counted_passes.output_shape(spec)) != wanted:
        place = function_place(load_reference(MODELS[spec.name].builder).forward)
        raise UsageError(f"{place}: the network {spec.name} returns {shape}, and its output must be {wanted}")


@contextmanager
def _trial_errors(what: str) -> Iterator[None]:
    """Run in one thread with torch's generator restored; UsageError with file and line for any error."""
    try:
        with single_thread(), torch.random.fork_rng(devices=[]):
            yield
    except UsageError:
        raise
    except NonFiniteError as error:  # its remedy is one for trained models
        raise UsageError(f"{what}: {str(error).partition(': ')[0]}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = next(frame for frame in reversed(frames) if Path(frame.filename).is_relative_to(ARCHIVE))
        place = find_plugin_line(error) or f"{Path(own.filename).relative_to(ARCHIVE)}, line {own.lineno}"
        raise UsageError(f"{what}: {place}: {reason(error)}") from error
