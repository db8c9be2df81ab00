"""What a configuration takes, by counting alone: operations, the network's evaluations, images, bytes."""

from collections.abc import Iterator
from functools import partial

from pydantic import NonNegativeInt

from diffusion.check.disk_space import MODEL_BYTES, STATE_BYTES
from diffusion.check.findings import Finding, Project, format_bytes
from diffusion.config import Config
from diffusion.model.model_config import NetworkSpec
from diffusion.protocol.extractors import extractor_spec
from diffusion.protocol.grid import cell_settings, grid
from diffusion.sample.nfe import count_nfe
from diffusion.show.network_table import format_quantity
from diffusion.system.devices import default_device
from diffusion.system.section import Section
from diffusion.train.plan import DenoiserPlan
from diffusion.train.step_memory import (
    count_parameters,
    device_memory,
    exceeds_memory,
    forward_flops,
    profile_bytes,
)

FLOAT_BYTES = 4
BACKWARD = 2  # passes that the backward one counts as: the gradients of inputs and of weights


class CostEstimate(Section):
    """Operations are multiplications and additions of products and convolutions, as `show model` counts them.

    `evaluation_flops` are those of the network for one image, `step_flops` those of a training step.
    `evaluations` is how often the network sees an image in the whole sweep, `scored` how many images each
    extractor sees. `sizes` are bytes by what they are of.
    """

    evaluation_flops: NonNegativeInt
    step_flops: NonNegativeInt
    training_flops: NonNegativeInt
    evaluations: NonNegativeInt
    sweep_flops: NonNegativeInt
    scored: NonNegativeInt
    sizes: dict[str, NonNegativeInt]


def estimate_cost(project: Project) -> CostEstimate | None:
    """The whole cost, from the beginning; None where the model fits neither the data nor this machine."""
    config, plan = project.config, project.plan
    if plan is None or exceeds_memory(plan.network, device_memory(default_device())[0]):
        return None
    flops, evaluations = forward_flops(plan.network), sweep_evaluations(config)
    step = flops * passes(plan.network) * config.train.batch_size
    return CostEstimate(
        evaluation_flops=flops,
        step_flops=step,
        training_flops=step * config.train.steps,
        evaluations=evaluations,
        sweep_flops=flops * evaluations,
        scored=scored_images(project),
        sizes=_sizes(project, plan),
    )


def passes(network: NetworkSpec) -> int:
    """How many passes a step takes for an image: forward, back, and forward again where it is recomputed."""
    return 1 + BACKWARD + network.gradient_checkpointing


def sweep_evaluations(config: Config) -> int:
    """How often the network sees an image in the sweep, twice at each step under guidance."""
    settings = (cell_settings(config.sample, cell) for cell in grid(config.sample, config.sweep))
    return config.sample.num_images * sum(count_nfe(one, config.process) for one in settings)


def scored_images(project: Project) -> int:
    """How many images an extractor sees: those of every cell, and the real ones, both splits."""
    config = project.config
    return len(grid(config.sample, config.sweep)) * config.sample.num_images + real_images(project)


def real_images(project: Project) -> int:
    """How many images are prepared, or will be; 0 where nothing is known of them."""
    if project.is_ready:
        return sum(len(store) for store in project.stores.values())
    return project.info.images


def _sizes(project: Project, plan: DenoiserPlan) -> dict[str, int]:
    """Bytes of each kind of result; of DVC's copies of them the disk's finding speaks."""
    config, parameters = project.config, count_parameters(plan.network)
    averages = profile_bytes(plan.network, len(plan.train.widths))
    widths = len(config.sweep.widths)
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
    """What training, sweep and scoring take, and what they leave; nothing of an impossible model."""
    cost = estimate_cost(project)
    if cost is None:
        return
    config, tell = project.config, partial(Finding, "ok", "cost", values=cost.model_dump())
    cells, flops = len(grid(config.sample, config.sweep)), format_quantity
    yield tell(
        f"the network takes {flops(cost.evaluation_flops)} FLOPs an image and a training step "
        f"{flops(cost.step_flops)}, so {config.train.steps:,} steps {flops(cost.training_flops)}; "
        f"{cells:,} {'cell is' if cells == 1 else 'cells are'} {cost.evaluations:,} images through the "
        f"network, {flops(cost.sweep_flops)} FLOPs; {cost.scored:,} images are scored"
    )
    listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in cost.sizes.items())
    yield Finding("ok", "sizes", listed)
