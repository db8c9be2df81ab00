"""Power-function EMA profiles of a training's weights (Karras et al. 2024, 2312.02696, sec. 3 and app. C).

After t steps the weights after step τ count p(τ) = (γ+1)·τ^γ / t^(γ+1). The random start is forgotten, and
the profile always covers the same share of the training. Its width σ_rel is the standard deviation of p in
units of t; it determines γ and is easier to choose. Snapshots of profiles are model files, and profiles of
any other σ_rel are reconstructed from them.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffusion.model.model_file import Artefact, read_artefact, read_verified_artefact
from diffusion.model.weights_header import open_weights
from diffusion.system.errors import UsageError
from diffusion.system.limits import MIN_SIGMA_REL
from diffusion.system.section import brief

HALVINGS = 200  # more than a double has digits


def sigma_rel_of(gamma: float) -> float:
    """Return σ_rel = √(γ+1) / ((γ+2)·√(γ+3)), which falls with γ ≥ 0."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(sigma_rel: float) -> float:
    """Return γ ≥ 0 of a σ_rel from MIN_SIGMA_REL to MAX_SIGMA_REL, by bisection."""
    low, high = 0.0, 1 / MIN_SIGMA_REL
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sigma_rel_of(middle) > sigma_rel else (low, middle)
    return (low + high) / 2


def newest_weight(sigma_rel: float, steps: int) -> float:
    """Return 1 − β, the newest weights' part of the EMA after t = `steps` ≥ 1; β = (1 − 1/t)^(γ+1).

    At t = 1 it is 1. The weights after step i then count the integral of p from i − 1 to i.
    """
    return 1.0 if steps == 1 else -math.expm1((gamma_of(sigma_rel) + 1) * math.log1p(-1 / steps))


SUFFIX = ".safetensors"
SNAPSHOT = re.compile(rf"\d[\d.e-]*-\d{{9,}}{re.escape(SUFFIX)}")  # as `snapshot_path`
SNAPSHOT_FIELDS = {"step", "ema_sigma_rel", "weights_sha256"}  # differ within a training

Times = npt.NDArray[np.float64]


def snapshot_path(folder: Path, sigma_rel: float, step: int) -> Path:
    """Return the path of the snapshot of this sigma_rel and step."""
    return folder / f"{sigma_rel:g}-{step:09d}{SUFFIX}"


def snapshot_files(folder: Path) -> list[Path]:
    """Return all snapshots in a folder, in the order of sigma_rel and step."""
    return sorted(path for path in folder.glob(f"*-*{SUFFIX}") if SNAPSHOT.fullmatch(path.name))


def snapshot_step(path: Path) -> int:
    """Return the step in a snapshot's file name."""
    return int(path.stem.rpartition("-")[2])


class ProfileFit(NamedTuple):
    """Parts of snapshots, summing to 1, and the relative root mean square `error` of their profile."""

    parts: Times
    error: float


@dataclass(frozen=True)
class Snapshots:
    """All snapshots of one training and their metadata."""

    paths: tuple[Path, ...]
    artefacts: tuple[Artefact, ...]

    @classmethod
    def of(cls, folder: Path, *, unverified: bool = False) -> Self:
        """Read snapshots, or `unverified` metadata; UsageError for none or those of two trainings."""
        paths = tuple(snapshot_files(folder))
        if not paths:
            raise UsageError(f"{folder} has no EMA snapshots: train with train.ema_profiles, or `dvc pull`")
        artefacts = tuple(map(read_artefact if unverified else read_verified_artefact, paths))
        first = artefacts[0].model_dump(exclude=SNAPSHOT_FIELDS)
        for path, artefact in zip(paths, artefacts, strict=True):
            if artefact.ema_sigma_rel is None or artefact.step < 1:
                raise UsageError(f"{path} is a model, but no snapshot of an EMA profile")
            if artefact.model_dump(exclude=SNAPSHOT_FIELDS) != first:
                raise UsageError(f"{path} and {paths[0]} are of two trainings: keep a folder for each")
        return cls(paths, artefacts)

    @property
    def sigma_rels(self) -> list[float]:
        """The σ_rel of the tracked profiles, in order."""
        return sorted({artefact.ema_sigma_rel or 0.0 for artefact in self.artefacts})

    @property
    def last(self) -> Artefact:
        """The metadata of the latest snapshot."""
        return max(self.artefacts, key=lambda artefact: artefact.step)

    def until(self, step: int) -> Self:
        """Return the snapshots up to a step; UsageError if there is none of that step."""
        steps = sorted({artefact.step for artefact in self.artefacts})
        if step not in steps:
            known = brief(", ".join(map(str, steps)), str)
            raise UsageError(f"there is no snapshot of step {step}: there are {known}")
        kept = [pair for pair in zip(self.paths, self.artefacts, strict=True) if pair[1].step <= step]
        return type(self)(tuple(path for path, _ in kept), tuple(artefact for _, artefact in kept))

    def fit(self, sigma_rel: float) -> ProfileFit:
        """Return the parts of the snapshots in a profile after the last step."""
        times = [artefact.step for artefact in self.artefacts]
        return fit_profile(times, [artefact.ema_sigma_rel or 0.0 for artefact in self.artefacts], sigma_rel)

    def reconstruct(self, sigma_rel: float) -> tuple[dict[str, Tensor], Artefact]:
        """Return the weights of an EMA profile, on the CPU in the snapshots' types, and its metadata."""
        parts = self.fit(sigma_rel).parts
        sums: dict[str, Tensor] = {}
        kinds: dict[str, torch.dtype] = {}
        for path, part in zip(self.paths, parts.tolist(), strict=True):
            with open_weights(path) as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    tensor = file.get_tensor(name)
                    kinds[name] = tensor.dtype
                    term = part * tensor.double()
                    sums[name] = sums[name].add_(term) if name in sums else term
        weights = {name: tensor.to(kinds[name]) for name, tensor in sums.items()}
        return weights, self.last.model_copy(update={"ema_sigma_rel": sigma_rel})


def fit_profile(steps: Sequence[int], sigma_rels: Sequence[float], sigma_rel: float) -> ProfileFit:
    """Fit profiles after these steps to one after the last step (least squares, app. C.3)."""
    times, gammas = np.array(steps, dtype=float), np.array([gamma_of(one) for one in sigma_rels])
    end, gamma = np.array([max(steps)], dtype=float), np.array([gamma_of(sigma_rel)])
    products = correlation(times[:, None], gammas[:, None], times[None], gammas[None])
    wanted = correlation(times, gammas, end, gamma)
    square = float(correlation(end, gamma, end, gamma)[0])
    scale = 1 / np.sqrt(np.diag(products))  # all of norm 1, or early ones would drown the late
    parts: Times = scale * np.linalg.solve(products * scale[:, None] * scale, wanted * scale)
    parts /= parts.sum()  # all are means of the weights: where these stay, so does the sum
    left = float(square - 2 * parts @ wanted + parts @ products @ parts)
    return ProfileFit(parts, math.sqrt(max(0.0, left) / square))


def correlation(t_a: Times, gamma_a: Times, t_b: Times, gamma_b: Times) -> Times:
    """Return ∫ p_a(τ)·p_b(τ) dτ of two profiles in closed form (app. C.3); the arguments broadcast."""
    power: Times = np.where(t_a < t_b, gamma_b, -gamma_a)
    longest: Times = np.maximum(t_a, t_b)
    scaled: Times = (gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * longest)
    return scaled * (t_a / t_b) ** power
