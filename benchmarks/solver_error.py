"""Which sampler for how many calls? Errors on data with an exact score: `python -m benchmarks.solver_error`.

Each sampler and spacing has 4 to 50 network evaluations (NFE) for mixtures of six Gaussians in eight
dimensions, 0.05, 0.15 and 0.3 wide. Their x̂_0 is known in closed form, so all error is the sampler's: a
network's own error adds to it. A sampler with two calls per step takes the largest NFE that is not above.

`flow` is the RMS distance to the end of the exact flow from the same noise, for samplers that add none.
`data` is the sliced 2-Wasserstein distance to the data over 64 directions. Both are geometric means of the
mixtures.
All numbers are in docs/samplers/solver_error.json. docs/samplers.md has the tables and the figure, which
--render draws again. It takes about five minutes of one core.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import ROOT
from diffusion.analysis.mixture import Mixture, MixtureDenoiser
from diffusion.process.denoiser import Condition
from diffusion.process.noise_process import NoiseProcess, build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.report.figure_base import figure_style, line_colour, log_axis, new_figure, svg_file
from diffusion.sample.sampler import build_sampler, run_sampler
from diffusion.sample.sampling_steps import sampling_grid
from diffusion.system.files import write_json, write_text
from docs.site.samplers_page import with_tables

RESULTS, PAGE = ROOT / "docs/samplers/solver_error.json", ROOT / "docs/samplers.md"
FIGURE = ROOT / "docs/samplers/solver-error.svg"

NFES = (4, 5, 6, 8, 10, 15, 20, 35, 50)
POINTS, DIMENSIONS = 1000, 8
FINE_STEPS = 1000  # of the exact flow
HIGHEST = 1e5  # noise level at which the exact flow of an infinite one begins
WIDTHS = (0.05, 0.15, 0.3)

METHODS: dict[str, dict[str, Any]] = {
    "ddim": {"sampler": "ddim"},
    "heun": {"sampler": "heun"},
    "heun, straight": {"sampler": "heun", "sampler_options": {"path": "straight"}},
    "dpm-solver++": {"sampler": "dpm-solver++"},
    "3M, η = 0": {"sampler": "dpm-solver++-3m-sde", "sampler_options": {"eta": 0.0}},
    "unipc, order 2": {"sampler": "unipc", "sampler_options": {"order": 2}},
    "unipc, order 3": {"sampler": "unipc", "sampler_options": {"order": 3}},
    "ipndm, order 2": {"sampler": "ipndm", "sampler_options": {"order": 2}},
    "ipndm, order 3": {"sampler": "ipndm", "sampler_options": {"order": 3}},
    "ipndm, order 4": {"sampler": "ipndm", "sampler_options": {"order": 4}},
    "ddim, η = 1": {"sampler": "ddim", "eta": 1.0},
    "2M SDE": {"sampler": "dpm-solver++-2m-sde"},
    "3M SDE": {"sampler": "dpm-solver++-3m-sde"},
    "heun, churn 20": {"sampler": "heun", "sampler_options": {"s_churn": 20.0}},
}
NOISY = ("ddim, η = 1", "2M SDE", "3M SDE", "heun, churn 20")
UP_TO_80 = {"sigma_max": 80.0}
SPACINGS: dict[str, dict[str, Any]] = {
    "uniform": {"spacing": "uniform"},
    "quadratic": {"spacing": "quadratic"},
    "trailing": {"spacing": "trailing"},
    "karras": {"spacing": "karras", "spacing_options": UP_TO_80},
    "log-snr": {"spacing": "log-snr", "spacing_options": UP_TO_80},
}
FIXED = {"variance": "small", "loss": "simple"}
PROCESSES = {  # along noise levels edm is as flow: with an exact score the process changes nothing else
    "linear": build_process(ProcessConfig(schedule="linear", **FIXED)),
    "cosine": build_process(ProcessConfig(schedule="cosine", **FIXED)),
    "flow": build_process(ProcessConfig(schedule="flow", prediction="flow")),
}
DRAWN = ("ddim", "heun, straight", "dpm-solver++", "unipc, order 2", "unipc, order 3", "ipndm, order 3")
DRAWN_SPACINGS = ("uniform", "quadratic", "trailing", "log-snr")


class Case(NamedTuple):
    """A process, a spacing and a method by name, and the NFE that is not exceeded."""

    process: str
    spacing: str
    method: str
    nfe: int

    def settings(self) -> SampleSettings:
        """Return the settings with as many steps as the NFE allows."""
        chosen = METHODS[self.method] | SPACINGS[self.spacing]
        return SampleSettings(steps=fitting_steps(chosen["sampler"], self.nfe), clip=False, **chosen)


def fitting_steps(sampler: str, nfe: int) -> int:
    """Return the most steps that take at most so many network evaluations."""
    calls = SAMPLERS[sampler].nfe
    return max(count for count in range(1, nfe + 1) if calls(count) <= nfe)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MEANS = 0.8 * draw(6, DIMENSIONS, seed=3).clamp(-1, 1)
MIXTURES = tuple(Mixture(MEANS, width) for width in WIDTHS)
DIRECTIONS = torch.nn.functional.normalize(draw(64, DIMENSIONS, seed=4), dim=1)


def end(mixture: Mixture, process: NoiseProcess, grid: TimeGrid, settings: SampleSettings) -> Tensor:
    """Return where a sampler ends, (N, D), from the same noise each time."""
    source = torch.Generator().manual_seed(2)
    start = grid.initial_noise_scale * draw(POINTS, DIMENSIONS, 1, 1, seed=1)

    def noise() -> Tensor:
        return torch.randn(start.shape, generator=source, dtype=start.dtype)

    trajectory = build_sampler(settings)(grid, start, noise)
    return run_sampler(trajectory, MixtureDenoiser(mixture, process), Condition(POINTS)).x.flatten(1)


@cache
def exact_end(mixture: int, process_name: str, start: float) -> Tensor:
    """Return where the exact flow ends from the noise level `start`: many steps of UniPC."""
    process = PROCESSES[process_name]
    ends = math.log10(process.sigma_min), math.log10(start)
    levels = torch.logspace(*ends, FINE_STEPS, dtype=torch.float64)
    grid = process.grid(process.times_at(levels).tolist())
    return end(MIXTURES[mixture], process, grid, SampleSettings(sampler="unipc", clip=False))


@cache
def data_quantiles(mixture: int) -> Tensor:
    """Return the data's quantiles along each direction, (N, 64)."""
    data = MIXTURES[mixture].draw(100 * POINTS, torch.Generator().manual_seed(5)) @ DIRECTIONS.T
    return data.sort(0).values.reshape(POINTS, 100, -1).mean(1)


def wasserstein(points: Tensor, mixture: int) -> float:
    """Return the sliced 2-Wasserstein distance between points (N, D) and the data."""
    along = (points @ DIRECTIONS.T).sort(0).values
    return float((along - data_quantiles(mixture)).square().mean().sqrt())


def geometric_mean(logs: Sequence[float]) -> float:
    """Return the geometric mean of numbers with these logarithms, to three digits."""
    return float(f"{math.exp(statistics.fmean(logs)):.3g}")


def measure(case: Case) -> dict[str, float]:
    """Return the errors of a case: `data`, and `flow` for a sampler that adds no noise."""
    process, settings = PROCESSES[case.process], case.settings()
    grid = sampling_grid(settings, process)
    start = min(HIGHEST, math.exp(-float(grid.log_snr[-1])))
    logs: dict[str, list[float]] = {"flow": [], "data": []}
    for number, mixture in enumerate(MIXTURES):
        found = end(mixture, process, grid, settings)
        logs["data"].append(math.log(wasserstein(found, number)))
        if case.method not in NOISY:
            gap = found - exact_end(number, case.process, start)
            logs["flow"].append(math.log(float(gap.square().sum(1).mean().sqrt())))
    return {name: geometric_mean(values) for name, values in logs.items() if values}


def measure_all() -> dict[str, Any]:
    """Return the errors by process, spacing and method, one per NFE, and the `floor` of `data`.

    That is the distance of the exact flow's ends, which is due to their number.
    """
    errors: dict[str, Any] = {}
    for process, spacing, method in product(PROCESSES, SPACINGS, METHODS):
        found = [measure(Case(process, spacing, method, nfe)) for nfe in NFES]
        series = {name: [one[name] for one in found] for name in found[0]}
        errors.setdefault(process, {}).setdefault(spacing, {})[method] = series
    ends = [math.log(wasserstein(exact_end(number, "flow", 80.0), number)) for number in range(len(WIDTHS))]
    return {"nfe": NFES, "floor": geometric_mean(ends), "errors": errors}


@figure_style()
def figure(results: dict[str, Any]) -> bytes:
    """Draw the distance to the exact flow by NFE: the cosine process along four spacings."""
    drawn = new_figure(6.4)
    panels = drawn.subplots(2, 2, sharex=True, sharey=True)
    for axes, spacing in zip(panels.flat, DRAWN_SPACINGS, strict=True):
        for number, method in enumerate(DRAWN):
            errors = results["errors"]["cosine"][spacing][method]["flow"]
            style: dict[str, Any] = {"color": line_colour(number), "linewidth": 1.6}
            axes.plot(results["nfe"], errors, label=method, marker="o", markersize=3, **style)
        log_axis(axes, "x")
        log_axis(axes, "y")
        axes.set(xticks=NFES, ylim=(1e-4, 2))
        axes.set_title(spacing, loc="left", fontsize=10)
    for axes in panels[1]:
        axes.set_xlabel("NFE")
    for axes in panels[:, 0]:
        axes.set_ylabel("distance to the exact flow")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside upper left", ncols=3, fontsize=9)
    return svg_file(drawn, "Distance to the exact flow by NFE for each sampler and spacing")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solver_error")
    parser.add_argument("--render", action="store_true", help="draw the tables and the figure only")
    if not parser.parse_args().render:
        torch.set_num_threads(1)
        RESULTS.parent.mkdir(exist_ok=True)
        write_json(RESULTS, measure_all())
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    FIGURE.write_bytes(figure(results))
    write_text(PAGE, with_tables(PAGE.read_text(encoding="utf-8"), results))


if __name__ == "__main__":
    main()
