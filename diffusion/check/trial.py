"""A trial of the selected entries on two random images: it finds in a second what would fail hours later.

A training step, sampling and feature extraction run by the code of the stages. The optimiser is left out
unless it is a plugin, since its import takes a second.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from diffusion.check.findings import Finding, Project
from diffusion.check.machine_checks import weights_finding
from diffusion.evaluate.evaluate_config import Space
from diffusion.evaluate.features.extractors import extract, load_extractor
from diffusion.images.store import ImageStore
from diffusion.model import counted_passes
from diffusion.model.model_file import LoadedModel
from diffusion.model.network_registry import MODELS, NetworkSpec, build_network
from diffusion.model.precision import freeze
from diffusion.model.weights_header import Unfilled
from diffusion.process.noise_process import NoiseProcess, build_process
from diffusion.process.objective import FeatureHooks
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.grid import describe_cell, effective_axes
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import LEARNED
from diffusion.sample.cell_images import shard_images
from diffusion.sample.guidance import build_guidance
from diffusion.sample.guides import Guides
from diffusion.sample.low_res import RealImages
from diffusion.sample.sampler import NonFiniteError
from diffusion.sample.sampling_steps import count_nfe, sampling_grid
from diffusion.system.devices import default_device
from diffusion.system.errors import DiffctlError, UsageError, reason
from diffusion.system.registry import ARCHIVE, find_plugin_line, function_place, is_plugin, load_reference
from diffusion.system.threads import single_thread
from diffusion.train import step_memory
from diffusion.train.batch import ImageLoader, draw_batch
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.forward_passes import ForwardPasses
from diffusion.train.initial_state import make_optimizer
from diffusion.train.optimizers.lr_schedule import learning_rate
from diffusion.train.optimizers.optimizer_registry import OPTIMIZERS
from diffusion.train.plan import Plan, TrainPlan, build_task, plan_artefact, resolve_precision
from diffusion.train.train_step import accumulate_gradients

STEPS = 2
TRAIN_PASSES = 4  # forward, backward, and recomputed forward
MAX_FLOPS = 10**11  # of all passes: about a second
MAX_PARAMETERS = 10**8  # their initialisation takes about a second
REMEDY = "correct the code, or select another entry in params.yaml"
CPU = torch.device("cpu")
IMAGES = 2


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


class StandIn(nn.Module):
    """A tiny network with the inputs and outputs of one that is too large to try."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.layer = nn.Conv2d(spec.in_channels, spec.out_channels, 1)

    def forward(self, x: Tensor, *conditions: Tensor | None, **further: Tensor) -> Tensor:
        """Return an output of the network's shape."""
        output: Tensor = self.layer(x)
        return output


def random_images(network: NetworkSpec, count: int) -> ImageStore:
    """Return images of uniform noise, with labels if the network takes them."""
    random = np.random.default_rng(0)
    shape = (count, *network.pixel_shape)
    images = random.integers(0, 256, shape, np.uint8)
    labels = random.integers(0, network.num_classes, count) if network.num_classes else None
    return ImageStore(Path("synthetic"), images, labels, {})


def few_steps(settings: SampleSettings, steps: int, process: NoiseProcess) -> SampleSettings | None:
    """Return the settings with this number of steps and guidance at each, for the model alone.

    Learned times, which are of one model, are replaced by uniform ones. If a guidance rule's options do not
    allow so few steps, it has its default ones. If these do not either, or the spacing does not, the steps
    remain. None if none of these settings fit the process.
    """
    changes: dict[str, Any] = {"eta": min(1.0, settings.eta), "classifier": None, "base": None}
    if settings.spacing == LEARNED:
        changes |= {"spacing": "uniform", "spacing_options": {}}
    full = settings.guided_everywhere().model_copy(update=changes)
    few = full.model_copy(update={"steps": steps})
    for one in (few, few.model_copy(update={"guidance_rule_options": {}}), full):
        with suppress(UsageError, ValidationError):  # invalid are the defaults if an option is required
            sampling_grid(one, process)
            build_guidance(one, process)
            return one
    return None


def stand_in_guides(loaded: LoadedModel) -> Guides:
    """Return the model itself as its guide, and random images where it enlarges some."""
    images = random_images(loaded.artefact.network, IMAGES)
    images.meta["classes"] = list(loaded.artefact.data.classes)
    return Guides(loaded, real=RealImages(images))


def trial_plan(plan: Plan) -> Plan:
    """Return the plan with a batch of two images on the CPU."""
    changes = {"batch_size": IMAGES, "microbatch": None, "compile": False, "devices": 1, "shard": False}
    train = plan.train.model_copy(update=changes)
    return plan.model_copy(update={"train": train, "precision": resolve_precision(train.precision, CPU)})


def try_training(plan: TrainPlan, network: nn.Module | None = None) -> None:
    """Compute the gradients of step 0, and the first and the last learning rate; ValueError for NaN.

    Without `network` the plan's own is built. A plugin's optimiser makes a step. An objective may need
    outputs of modules, which a `StandIn` lacks: then only the names of these modules are checked.
    """
    task, process, steps = build_task(plan), build_process(plan.process), plan.train.steps
    objective = task.objective(process)
    numbers = [torch.tensor([learning_rate(plan.train.lr, step, steps) for step in (0, steps - 1)])]
    if isinstance(network, StandIn) and objective.features:
        with torch.device("meta"), Unfilled():
            FeatureHooks(task.network(plan.network), objective.features)
    else:
        network = network or task.network(plan.network)
        data = ImageLoader(random_images(plan.network, IMAGES), CPU)
        batch = draw_batch(plan, task.time_sampler(process), data, 0)
        passes = ForwardPasses(plan, network, objective, ProcessGroup(CPU))
        objective.register_forward_hook(_refuse_wrong_losses)
        generator = torch.get_rng_state()
        numbers += accumulate_gradients(passes, batch, 0)[0].values()
        if not torch.equal(generator, torch.get_rng_state()):
            raise UsageError(
                "the network or the objective draws from torch's global generator, as torch.nn.Dropout does, "
                "which no training restores: use diffusion.model.layers.Dropout"
            )
        if is_plugin(OPTIMIZERS.module(plan.train.optimizer)):
            _try_optimizer(plan, network, objective)
    if not torch.cat(numbers).isfinite().all():
        raise ValueError("the loss of random images, or the learning rate, is NaN or infinite")


def _refuse_wrong_losses(objective: nn.Module, arguments: tuple[Any, ...], losses: dict[str, Tensor]) -> None:
    """Raise UsageError unless each loss is a number for each image; a hook of the objective."""
    wanted = (len(arguments[1].t),)
    for name, value in losses.items():
        if (shape := tuple(value.shape)) != wanted:
            place = function_place(type(objective).forward)
            what = f"{name} of the objective has the shape {shape}, and it must be {wanted}"
            raise UsageError(f"{place}: {what}: a number for each image")


def _try_optimizer(plan: TrainPlan, *modules: nn.Module) -> None:
    """Make a step with the modules' gradients; UsageError for a state that cannot be saved."""
    weights = [weight for module in modules for weight in module.parameters()]
    optimizer = make_optimizer(plan.train, modules[0], [{"params": weights}])
    before = [_options_of(group) for group in optimizer.param_groups]
    optimizer.step()
    module = OPTIMIZERS.module(plan.train.optimizer)
    after = [_options_of(group) for group in optimizer.param_groups]
    pairs = zip(before, after, strict=True)
    if changed := sorted({name for old, new in pairs for name in new if old.get(name) != new[name]}):
        what = f"a step changes {', '.join(changed)} of a group of parameters, and only its state is saved"
        raise UsageError(f"{module}: {what}: keep it in the state, as a tensor")
    for name, value in (item for moments in optimizer.state.values() for item in moments.items()):
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            what = f"{name} in the optimiser's state is of type {kind}, and only tensors are saved"
            raise UsageError(f"{module}: {what}: make it a tensor")


def _options_of(group: dict[str, Any]) -> dict[str, str]:
    """Return the options of a group of parameters as text."""
    return {name: repr(value) for name, value in group.items() if name != "params"}


def try_sampling(plan: TrainPlan, network: nn.Module, settings: SampleSettings) -> None:
    """Sample two images by the network, which is frozen; ValueError if they have another shape."""
    loaded = LoadedModel(freeze(network), plan_artefact(plan))
    images = shard_images(loaded, settings, range(IMAGES), CPU, stand_in_guides(loaded))
    if images.shape != (wanted := random_images(plan.network, IMAGES).images.shape):
        raise ValueError(f"the images have the shape {images.shape}, not {wanted}")


def try_extractor(space: Space) -> None:
    """Extract the features of two images; ValueError for another number of them than the entry has."""
    extractor = load_extractor(space.extractor, space.weights, CPU, space.weights_sha256)
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
    found = extract(extractor, pixels).features.shape[1]
    if found != extractor.spec.features:
        raise ValueError(f"it has {found} features, and its entry {extractor.spec.features}")
