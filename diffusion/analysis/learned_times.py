"""Times learned for a model (GITS: Chen et al. 2024, 2405.11326): where its trajectories bend, more steps.

Trajectories of a teacher with many steps lie near planes and bend alike. The cost of one Euler step from its
point i to its point j is how far the result is from the straight line between noise and image, beyond the
teacher's own distance there. Dynamic programming finds the S steps with the least Σ_m c^m·cost_m, where m
counts the steps from the noise and c = 1.15, as in the authors' code.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion.analysis.inversion import check_trajectories
from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Condition, Denoiser
from diffusion.process.noise import ImageNoise
from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import mixed_condition
from diffusion.sample.generate import check_settings, denoiser_builder
from diffusion.sample.ode_step import data_and_noise, noise_level
from diffusion.sample.sampler import NaNGuard, SamplerDriver, build_sampler, predict
from diffusion.system.devices import to_device
from diffusion.system.errors import UsageError

TEACHER_STEPS, TRAJECTORIES = 60, 256
GROWTH = 1.15  # of the weight of a step's cost, from step to step
MAX_SIGMA = 80.0  # where trajectories begin, EDM's: beyond it they are straight
DIGITS = 6  # significant digits of a noise level


def teacher_settings(
    config: ProcessConfig, guidance: float = 0.0, seed: int = 0, clip: bool = True
) -> SampleSettings:
    """Return the settings of the teacher: iPNDM of order 4, on EDM's noise levels up to 80."""
    return SampleSettings(
        sampler="ipndm",
        spacing="karras",
        spacing_options={"sigma_max": min(build_process(config).sigma_max, MAX_SIGMA)},
        steps=TEACHER_STEPS,
        guidance=guidance,
        seed=seed,
        clip=clip,
    )


def learned_levels(
    loaded: LoadedModel,
    settings: SampleSettings,
    wanted: Sequence[int],
    count: int,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> dict[int, list[float]]:
    """Return for each number of steps the noise levels of the steps, from the noise, of `count` trajectories.

    `settings` are those of the teacher; `progress` receives the finished trajectories and their number.
    UsageError for more steps than the teacher has, NonFiniteError for NaN or infinity.
    """
    if (most := max(wanted)) > settings.steps:
        raise UsageError(f"{most} steps are more than the {settings.steps} of the teacher: lower --steps")
    if loaded.artefact.network.low_res_size is not None:
        raise UsageError("times are learned for models that enlarge no images, and this one does")
    check_trajectories(loaded.artefact, "learning times")
    grid, spec = check_settings(loaded.artefact, settings), loaded.artefact.network
    device = next(loaded.network.parameters()).device
    build_denoiser, shape = denoiser_builder(loaded, settings), (spec.in_channels, *spec.size)
    total = torch.zeros(len(grid) + 1, len(grid) + 1, dtype=torch.float64)
    for start in range(0, count, batch_size):
        progress(start, count)
        indices = range(start, min(start + batch_size, count))
        condition = mixed_condition(loaded.artefact, settings, indices).to(device)
        noise = ImageNoise(settings.seed, indices, shape, grid.initial_noise_scale).draw()
        points, slopes = teacher_path(build_denoiser(), settings, grid, to_device(noise, device), condition)
        total += step_costs(points, slopes, teacher_nodes(grid)).sum(0)
    progress(count, count)
    low, high = build_process(loaded.artefact.process).sigma_min, settings.spacing_options["sigma_max"]
    levels = [min(max(float(f"{node:.{DIGITS}g}"), low), high) for node in teacher_nodes(grid)]
    costs = (total / count).tolist()
    return {steps: [levels[node] for node in best_path(costs, steps)[:-1]] for steps in wanted}


def teacher_nodes(grid: TimeGrid) -> list[float]:
    """Return the noise levels of the teacher's points: those of its steps, and 0 of the image."""
    return [noise_level(step.log_snr) for step in grid.reverse_steps()] + [0.0]


@torch.no_grad()
def teacher_path(
    denoiser: Denoiser, settings: SampleSettings, grid: TimeGrid, x: Tensor, condition: Condition
) -> tuple[Tensor, Tensor]:
    """Return x̄ = x/α (N + 1, B, D) at the teacher's N times and the image, and ε̂ (N, B, D), float64."""
    driver, guard = SamplerDriver(build_sampler(settings)(grid, x, lambda: x)), NaNGuard()
    steps = grid.reverse_steps()
    points: list[Tensor] = []
    slopes: list[Tensor] = []
    while driver.call is not None:
        call, step = driver.call, steps[len(slopes)]
        prediction = predict(denoiser, call.x, call.t, condition)
        guard.check(driver.step, call.t, *prediction)
        _, eps = data_and_noise(prediction, call.x, step.alpha, step.sigma, settings.clip)
        points.append(call.x.cpu().double() / step.alpha)  # an Apple GPU has no float64
        slopes.append(eps.cpu().double())
        driver.advance(prediction)
    guard.raise_pending()
    assert driver.x is not None, "a trajectory has steps"
    points.append(driver.x.cpu().double())
    return torch.stack(points).flatten(2), torch.stack(slopes).flatten(2)


def step_costs(points: Tensor, slopes: Tensor, nodes: Sequence[float]) -> Tensor:
    """Return the costs (B, N + 1, N + 1) of an Euler step from point i to the noise level of point j > i.

    That is the distance of x̄_i + (σ̄_j − σ̄_i)·ε̂_i from the line between the first and the last point, minus
    that of x̄_j. Other entries are ∞. With the parts p of x̄_i and e of ε̂_i across the line, the square of the
    distance is |p|² + 2h·p·e + h²·|e|².
    """
    line = torch.nn.functional.normalize(points[-1] - points[0], dim=1)
    across, slope = _across(points - points[-1], line), _across(slopes, line)
    distance, size = across.square().sum(2), slope.square().sum(2)
    product = (across[:-1] * slope).sum(2)
    levels = torch.tensor(nodes, dtype=torch.float64)
    h = (levels[None, :] - levels[:-1, None])[..., None]  # (N, N + 1, 1)
    squared = distance[:-1, None] + 2 * h * product[:, None] + h.square() * size[:, None]
    costs = torch.full((points.shape[1], len(nodes), len(nodes)), math.inf, dtype=torch.float64)
    excess = squared.clamp(min=0).sqrt() - distance.sqrt()[None]
    later = torch.ones(len(nodes), len(nodes)).triu(1).bool()[:-1]
    costs[:, :-1] = torch.where(later, excess.permute(2, 0, 1), math.inf)
    return costs


def best_path(costs: Sequence[Sequence[float]], steps: int, growth: float = GROWTH) -> list[int]:
    """Return the S + 1 nodes from the first to the last with the least Σ_m growth^m·cost of step m."""
    last = len(costs) - 1
    # By node: the least sum of the steps to the end, and their nodes.
    least = [(row[last] if node < last else math.inf, [last]) for node, row in enumerate(costs)]
    for _ in range(steps - 1):
        least = [
            min(
                (row[after] + growth * least[after][0], [after, *least[after][1]])
                for after in range(node + 1, last + 1)
            )
            if node < last
            else (math.inf, [last])
            for node, row in enumerate(costs)
        ]
    return [0, *least[0][1]]


def _across(vectors: Tensor, line: Tensor) -> Tensor:
    """Return the parts of (N, B, D) vectors that are orthogonal to a unit vector (B, D) for each row."""
    return vectors - (vectors * line).sum(2, keepdim=True) * line
