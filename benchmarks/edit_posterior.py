"""How far are edits from the posterior? `python -m benchmarks.edit_posterior` prints a table.

Data are Gaussian in 24 dimensions with their exact denoiser, so that all error is the method's. The posterior
p(x_0 | y) is known, and the results of all methods but DPS are Gaussian with a mean and a covariance that
follow exactly. Those of DPS are estimated from 20,000 results. The distance is the 2-Wasserstein distance of
Gaussians for each dimension; docs/editing.md has the table. It takes some minutes of one core.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.helpers.gaussian_edits import SHAPE, Gaussian, Problem, distance, posterior, problem

OPERATORS = ("mask:1,0,3,2", "downsample:2", "gray", "blur:0.8")
STEPS = (10, 50, 100)
SAMPLES = 20_000
METHODS: dict[str, dict[str, Any]] = {
    "ddnm": {"method": "ddnm"},
    "ddnm, η = 0": {"method": "ddnm", "eta": 0.0},
    "projection, η = 0": {"method": "projection"},
    "projection, η = 1": {"method": "projection", "eta": 1.0},
    "dps, ζ = 0.3": {"method": "dps", "zeta": 0.3},
    "dps, ζ = 1": {"method": "dps", "zeta": 1.0},
    "repaint, 1 pass": {"method": "repaint", "travel_length": 1, "travel_repeat": 1},
    "repaint, 5 passes": {"method": "repaint", "travel_length": 2, "travel_repeat": 5},
}


def sampled(given: Problem) -> Gaussian:
    """Return the mean and covariance of many results."""
    source = torch.Generator().manual_seed(0)

    def draws() -> Iterator[Tensor]:
        while True:
            yield torch.randn(SAMPLES, *SHAPE, generator=source, dtype=torch.float64)

    ends = given.run(draws())
    return Gaussian(ends.mean(0), ends.T.cov())


def row(values: dict[str, Any], steps: int) -> list[str]:
    """Return the distance for each operator, empty where the method does not restore it."""
    cells = []
    for operator in OPERATORS:
        if values["method"] == "repaint" and not operator.startswith("mask"):
            cells.append("")
            continue
        own = {key: value for key, value in values.items() if key != "method"}
        given = problem(values["method"], operator, steps=steps, **own)
        result = sampled(given) if values["method"] == "dps" else given.result()
        cells.append(f"{distance(result, posterior(given)):.3f}")
    return cells


def main() -> None:
    """Print the table as Markdown."""
    names = [name.partition(":")[0] for name in OPERATORS]
    print("| method | steps |", " | ".join(names), "|")
    print("| --- | --- |", " | ".join("---" for _ in names), "|")
    for name, values in METHODS.items():
        for steps in STEPS:
            print(f"| {name} | {steps} |", " | ".join(row(values, steps)), "|", flush=True)


if __name__ == "__main__":
    main()
