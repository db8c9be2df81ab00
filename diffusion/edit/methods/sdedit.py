"""SDEdit (Meng et al. 2021, 2108.01073): the picture with noise of a middle time, sampled from there."""

from collections.abc import Callable

from torch import Tensor

from diffusion.edit.operators import Measurement
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.edits import SDEditOptions
from diffusion.protocol.guidance_rules import GUIDANCE_RULES, ZeroOptions
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampler import Sampler, Trajectory, build_sampler
from diffusion.system.errors import UsageError


def build(
    settings: SampleSettings, options: SDEditOptions, measurement: Measurement, process: NoiseProcess
) -> Sampler:
    """Return the settings' sampler from α·x + σ·ε at the time of the first step that is taken.

    The last steps are taken, about strength·S of S and at least one: 1 + ⌊strength·(S − 1)⌋. UsageError for
    calls without a velocity, which would keep the noise of the middle time.
    """
    of_rule = GUIDANCE_RULES[settings.rule].parse(settings.guidance_rule_options)
    if isinstance(of_rule, ZeroOptions) and of_rule.zero_calls and options.strength < 1:
        raise UsageError(
            "method sdedit begins at a middle noise, which guidance_rule_options.zero_calls "
            f"{of_rule.zero_calls} of {settings.rule} would keep: set zero_calls 0"
        )
    sampler, picture = build_sampler(settings), measurement.y

    def edited(grid: TimeGrid, x: Tensor, noise: Callable[[], Tensor]) -> Trajectory:
        count = 1 + int(options.strength * (len(grid) - 1))
        rest = TimeGrid(grid.times[:count], grid.alpha[:count], grid.sigma[:count], grid.locate, len(grid))
        eps = x / grid.initial_noise_scale
        start = float(rest.alpha[-1]) * picture + float(rest.sigma[-1]) * eps
        return sampler(rest, start, noise)

    return edited
