"""The cost of a configuration by counting: FLOPs, network evaluations, images and bytes."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from diffusion.check.disk_space import MODEL_BYTES, STATE_BYTES
from diffusion.check.findings import Finding, Project
from diffusion.config import Config
from diffusion.model.network_registry import NetworkSpec
from diffusion.protocol.extractors import extractor_spec
from diffusion.protocol.grid import cell_settings, grid
from diffusion.sample.sampling_steps import count_nfe
from diffusion.show.figure import format_quantity
from diffusion.system.devices import default_device
from diffusion.system.memory import format_bytes
from diffusion.train.plan import DenoiserPlan
from diffusion.train.step_memory import (
    count_parameters,
    device_memory,
    exceeds_memory,
    forward_flops,
    profile_bytes,
)

FLOAT_BYTES = 4
BACKWARD = 2  # a backward pass counts as two: gradients of inputs and of weights


def estimate_cost(project: Project) -> dict[str, Any] | None:
    """Return the total cost from scratch; None if the model fits neither data nor machine.

    FLOPs are of matrix products and convolutions, as `show model` counts them: `evaluation_flops` for one
    image, `step_flops` for a training step. `evaluations` counts images through the network in the sweep,
    `scored` images through each extractor. `sizes` are bytes by kind.
    """
    config, plan = project.config, project.plan
    if plan is None or exceeds_memory(plan.network, device_memory(default_device())[0]):
        return None
    evaluations = network_evaluations(config)
    flops = forward_flops(plan.network)
    step = flops * passes(plan.network) * config.train.batch_size
    return {
        "evaluation_flops": flops,
        "step_flops": step,
        "training_flops": step * config.train.steps,
        "evaluations": evaluations,
        "sweep_flops": flops * evaluations,
        "scored": scored_images(project),
        "sizes": _sizes(project, plan),
    }


def network_evaluations(config: Config) -> int:
    """Return how many images the network sees in the sweep, over all of its calls."""
    settings = (cell_settings(config.sample, cell) for cell in grid(config.sample, config.sweep))
    return config.sample.num_images * sum(count_nfe(one, config.process) for one in settings)


def passes(network: NetworkSpec) -> int:
    """Return the passes of a training step per image: forward, backward, and recomputed forward."""
    return 1 + BACKWARD + bool(getattr(network, "gradient_checkpointing", False))


def scored_images(project: Project) -> int:
    """Return the number of images through an extractor: all cells and both real splits."""
    config = project.config
    real = real_images(project)
    if limit := config.evaluate.reference_images:
        real = min(real, 2 * limit)
    return len(grid(config.sample, config.sweep)) * config.sample.num_images + real


def real_images(project: Project) -> int:
    """Return the number of prepared images, or those to be prepared; 0 if unknown."""
    if project.is_ready:
        return sum(len(store) for store in project.stores.values())
    return project.info.images


def _sizes(project: Project, plan: DenoiserPlan) -> dict[str, int]:
    """Return the bytes of each kind of result, without DVC's copies."""
    config, parameters = project.config, count_parameters(plan.network)
    averages = profile_bytes(plan.network, len(plan.train.sigma_rels))
    widths = len(config.sweep.sigma_rels)
    side, images = plan.network.image_size, real_images(project)
    pixels = side * side * plan.network.in_channels
    numbers = sum(extractor_spec(space.extractor).features for space in config.evaluate.spaces)
    sizes = {
        "data": images * pixels,
        "state": STATE_BYTES * parameters + averages,
        "model": MODEL_BYTES * parameters,
        "averages": averages * len(plan.train.snapshot_steps()) + widths * MODEL_BYTES * parameters,
        "samples": len(grid(config.sample, config.sweep)) * config.sample.num_images * pixels,
        "features": FLOAT_BYTES * images * numbers,
    }
    return {name: size for name, size in sizes.items() if size}


def check_cost(project: Project) -> Iterator[Finding]:
    """Yield the cost of training, sweep and scoring, and the sizes of the results."""
    cost = estimate_cost(project)
    if cost is None:
        return
    config, finding = project.config, partial(Finding, "ok", "cost", values=cost)
    cells, flops = len(grid(config.sample, config.sweep)), format_quantity
    yield finding(
        f"the network takes {flops(cost['evaluation_flops'])} FLOPs an image and a training step "
        f"{flops(cost['step_flops'])}, so {config.train.steps:,} steps {flops(cost['training_flops'])}; "
        f"{cells:,} {'cell is' if cells == 1 else 'cells are'} {cost['evaluations']:,} images through the "
        f"network, {flops(cost['sweep_flops'])} FLOPs; {cost['scored']:,} images are scored"
    )
    listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in cost["sizes"].items())
    yield Finding("ok", "sizes", listed)
