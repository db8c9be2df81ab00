"""Edits of Gaussian data with the exact denoiser, and each method's recursion of mean and covariance.

The formulas are those of the papers, with α, σ of a step's time and α', σ' of the next one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.edit.method import build_method, travelled_path
from diffusion.edit.operators import Measurement, build_operator
from diffusion.process.denoiser import Condition, Prediction, time_tensor
from diffusion.process.noise_process import NoiseProcess, build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.process.time_grid import GridStep, TimeGrid
from diffusion.protocol.edits import EditSettings, TravelOptions
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampler import run_sampler
from diffusion.sample.sampling_steps import sampling_grid

SHAPE = (3, 2, 4)
SIZE = 24
SIDE = torch.arange(SIZE, dtype=torch.float64)
MEAN = (0.3 * SIDE).sin() * 0.4
COVARIANCE = 0.3 * torch.exp(-(SIDE[:, None] - SIDE).abs() / 6) + 0.02 * torch.eye(SIZE, dtype=torch.float64)
PROCESSES = {
    "cosine": ProcessConfig(timesteps=100),
    "edm": ProcessConfig(schedule="edm", prediction="edm", sigma_data=0.5),
    "flow": ProcessConfig(schedule="flow", prediction="flow"),
}


class Gaussian(NamedTuple):
    """A mean and a covariance."""

    mean: Tensor
    covariance: Tensor


class Affine(NamedTuple):
    """A map x → matrix·x + offset."""

    matrix: Tensor
    offset: Tensor


def denoised(alpha: float, sigma: float) -> Affine:
    """Return E[x_0 | x_t] of the Gaussian data."""
    eye = torch.eye(SIZE, dtype=torch.float64)
    gain = alpha * torch.linalg.solve(alpha**2 * COVARIANCE + sigma**2 * eye, COVARIANCE).T
    return Affine(gain, MEAN - alpha * gain @ MEAN)


@dataclass(frozen=True)
class Problem:
    """A method with its settings, and a measurement of Gaussian data in a process."""

    edit: EditSettings
    settings: SampleSettings
    process: NoiseProcess
    measurement: Measurement

    @property
    def grid(self) -> TimeGrid:
        return sampling_grid(self.settings, self.process)

    @property
    def matrix(self) -> Tensor:
        """A, or the identity without an operator."""
        eye = torch.eye(SIZE, dtype=torch.float64)
        operator = self.measurement.operator
        return eye if operator is None else operator.apply(eye.reshape(SIZE, *SHAPE)).flatten(1).T

    def denoiser(self, x: Tensor, t: Tensor | float, condition: Condition) -> Prediction:
        alpha, sigma = map(float, self.process.alpha_sigma(time_tensor(t)))
        matrix, offset = denoised(alpha, sigma)
        x0 = (x.flatten(1) @ matrix.T + offset).reshape(x.shape)
        return Prediction(x0, (x - alpha * x0) / sigma)

    def run(self, draws: Iterator[Tensor]) -> Tensor:
        """Return the ends (B, SIZE) from the draws (B, *SHAPE) of the noise."""
        start = next(draws) * self.grid.initial_noise_scale
        rows = self.measurement.rows(torch.zeros(len(start), dtype=torch.int64))
        sampler = build_method(self.edit, self.settings, rows, self.process)
        trajectory = sampler(self.grid, start, lambda: next(draws))
        return run_sampler(trajectory, self.denoiser, Condition(len(start))).x.flatten(1)

    def result(self) -> Gaussian:
        """Return the exact distribution of an affine method's results: one run with all unit noises."""
        count = 0

        def zeros() -> Iterator[Tensor]:
            nonlocal count
            while True:
                count += 1
                yield torch.zeros(1, *SHAPE, dtype=torch.float64)

        mean = self.run(zeros())[0]
        basis = torch.eye(count * SIZE, dtype=torch.float64).reshape(-1, count, *SHAPE).unbind(1)
        columns = self.run(iter(basis)) - mean
        return Gaussian(mean, columns.T @ columns)


def problem(method: str, operator: str | None, process: str = "cosine", steps: int = 6, **options) -> Problem:
    """Return a method without clipping; `options` are its own, sigma_y, or those of the sampler."""
    chosen = {
        name: options.pop(name)
        for name in ("sampler", "eta", "spacing", "spacing_options")
        if name in options
    }
    if method != "projection" and method != "sdedit":
        own = {**options, **({"eta": chosen.pop("eta")} if "eta" in chosen else {})}
    else:
        own = dict(options)
    sigma_y = own.pop("sigma_y", 0.0)
    edit = EditSettings(method=method, operator=operator, sigma_y=sigma_y, method_options=own)
    settings = SampleSettings(steps=steps, clip=False, **chosen)
    truth = (MEAN + 0.5 * (0.8 * SIDE).cos()).reshape(1, *SHAPE)
    found = None if operator is None else build_operator(operator, SHAPE)
    y = truth if found is None else found.apply(truth)
    return Problem(edit, settings, build_process(PROCESSES[process]), Measurement(found, y, sigma_y))


def posterior(given: Problem) -> Gaussian:
    """Return the distribution of x_0 given y."""
    matrix, y = given.matrix, given.measurement.y.flatten()
    variance = given.edit.sigma_y**2 * torch.eye(len(matrix), dtype=torch.float64)
    gain = COVARIANCE @ matrix.T @ torch.linalg.pinv(matrix @ COVARIANCE @ matrix.T + variance, rtol=1e-10)
    return Gaussian(MEAN + gain @ (y - matrix @ MEAN), COVARIANCE - gain @ matrix @ COVARIANCE)


def distance(first: Gaussian, second: Gaussian) -> float:
    """Return the 2-Wasserstein distance of two Gaussians, divided by the square root of the dimension."""

    def root(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T

    half = root(first.covariance)
    cross = root(half @ second.covariance @ half)
    spread = (first.covariance + second.covariance - 2 * cross).trace().clamp(min=0)
    return float((((first.mean - second.mean).square().sum() + spread) / SIZE).sqrt())


def recursion(given: Problem) -> Gaussian:
    """Return the mean and covariance of a method's results by its recursion."""
    step_of = {"ddnm": ddnm, "projection": projection, "repaint": repaint, "sdedit": reverse}[
        given.edit.method
    ]
    eye, grid = torch.eye(SIZE, dtype=torch.float64), given.grid
    now = Gaussian(0 * MEAN, grid.initial_noise_scale**2 * eye)
    options = given.edit.options
    path = travelled_path(grid, options if isinstance(options, TravelOptions) else TravelOptions())
    if given.edit.method == "sdedit":
        path = path[-1 - int(options.strength * (len(path) - 1)) :]
        start = path[0].step
        now = Gaussian(start.alpha * given.measurement.y.flatten(), start.sigma**2 * eye)
    for step, back in path:
        if back:
            ratio = step.alpha / step.alpha_prev
            beta = step.sigma**2 - ratio**2 * step.sigma_prev**2
            now = Gaussian(ratio * now.mean, ratio**2 * now.covariance + beta * eye)
            continue
        move, noise = step_of(given, step)
        covariance = move.matrix @ now.covariance @ move.matrix.T + noise @ noise.T
        now = Gaussian(move.matrix @ now.mean + move.offset, covariance)
    return now


def ddnm(given: Problem, step: GridStep) -> tuple[Affine, Tensor]:
    """Alg. 3 of 2212.00490 with eq. 17, 19 and app. I in the basis of A's SVD; without σ_y alg. 1."""
    eta, sigma_y, matrix = given.edit.options.eta, given.edit.sigma_y, given.matrix
    _, values, right = np.linalg.svd(matrix.numpy())
    s = np.zeros(SIZE)
    s[: len(values)] = np.where(values > 1e-9, values, 0)
    scale, new, old = np.ones(SIZE), np.full(SIZE, eta * step.sigma_prev), np.ones(SIZE)
    old = old * step.sigma_prev * np.sqrt(1 - eta**2)
    for i in np.flatnonzero(s) if sigma_y else ():
        old[i] = 0
        if step.sigma_prev >= step.alpha_prev * sigma_y / s[i]:
            new[i] = np.sqrt(step.sigma_prev**2 - (step.alpha_prev * sigma_y / s[i]) ** 2)
        else:
            scale[i] = s[i] * step.sigma_prev * np.sqrt(1 - eta**2) / (step.alpha_prev * sigma_y)
    correct, noise, kept = (torch.from_numpy(right.T @ np.diag(d) @ right) for d in (scale, new, old))
    data = denoised(step.alpha, step.sigma)
    inverse = torch.linalg.pinv(matrix, rtol=1e-9)
    project = torch.eye(SIZE, dtype=torch.float64) - correct @ inverse @ matrix
    target = correct @ inverse @ given.measurement.y.flatten()
    eps = Affine(
        (torch.eye(SIZE) - step.alpha * data.matrix) / step.sigma, -step.alpha * data.offset / step.sigma
    )
    move = Affine(
        step.alpha_prev * project @ data.matrix + kept @ eps.matrix,
        step.alpha_prev * (project @ data.offset + target) + kept @ eps.offset,
    )
    return move, noise


def projected(given: Problem, data: Affine) -> Affine:
    inverse = torch.linalg.pinv(given.matrix, rtol=1e-9)
    project = torch.eye(SIZE, dtype=torch.float64) - inverse @ given.matrix
    return Affine(project @ data.matrix, project @ data.offset + inverse @ given.measurement.y.flatten())


def ddpm(step: GridStep, data: Affine, eta: float = 1.0) -> tuple[Affine, Tensor]:
    """DDIM's eq. 12 with its σ: η times that of DDPM's posterior (eq. 7)."""
    beta = step.sigma**2 - (step.alpha / step.alpha_prev * step.sigma_prev) ** 2
    deviation = eta * np.sqrt(beta) * step.sigma_prev / step.sigma
    ahead = np.sqrt(step.sigma_prev**2 - deviation**2) / step.sigma
    eye = torch.eye(SIZE, dtype=torch.float64)
    of_data = step.alpha_prev - ahead * step.alpha
    return Affine(of_data * data.matrix + ahead * eye, of_data * data.offset), deviation * eye


def projection(given: Problem, step: GridStep) -> tuple[Affine, Tensor]:
    """DDIM's step with x̂_0 as in eq. 10 of 2212.00490 and the ε that belongs to it."""
    return ddpm(step, projected(given, denoised(step.alpha, step.sigma)), given.settings.eta)


def reverse(given: Problem, step: GridStep) -> tuple[Affine, Tensor]:
    """DDIM's step."""
    return ddpm(step, denoised(step.alpha, step.sigma), given.settings.eta)


def repaint(given: Problem, step: GridStep) -> tuple[Affine, Tensor]:
    """Eq. 8 of 2201.09865."""
    kept = given.matrix
    hidden = torch.eye(SIZE, dtype=torch.float64) - kept
    move, noise = ddpm(step, denoised(step.alpha, step.sigma))
    known = step.alpha_prev * kept @ given.measurement.y.flatten()
    return Affine(hidden @ move.matrix, hidden @ move.offset + known), hidden @ noise + step.sigma_prev * kept
