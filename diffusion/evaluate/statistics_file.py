"""Published statistics files: the mean and the covariance of real images' features, read without trust.

OpenAI's evaluator has them in an npz as `mu` and `sigma`, beside `mu_s` and `sigma_s` (of spatial features)
and 10,000 of the images as `arr_0`; EDM in an npz as `mu` and `sigma`; EDM2 in a pickle, a dict by the name
of a score, `fid` or `fd_dinov2`, of dicts with `mu` and `sigma`. The pickle is read by what runs nothing.
"""

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from diffusion.data.file_arrays import FileArray, file_array, npz_keys, open_npz
from diffusion.data.readers.pickles import read_pickle
from diffusion.evaluate.evaluate_config import Space
from diffusion.protocol.extractors import (
    EXTRACTORS,
    INCEPTION,
    INCEPTION_SPATIAL,
    ExtractorSpec,
    extractor_spec,
)
from diffusion.protocol.published_statistics import UNKNOWN, statistics_source
from diffusion.system.errors import DiffctlError, UsageError, printable
from diffusion.system.regular_files import open_regular, read_error

Float = NDArray[np.float64]
T = TypeVar("T")

ZIP, PICKLE = b"PK", b"\x80"  # how an npz and a pickle of protocol 2 or later begin
MEAN, COVARIANCE = "mu", "sigma"
OWN_NAMES = {INCEPTION_SPATIAL.name: ("mu_s", "sigma_s")}  # by which a file has both beside Inception's
ROUNDING = 1e-5  # of the largest value: how far from symmetric, and below zero, float32 makes a covariance


@dataclass(frozen=True)
class PublishedStatistics:
    """The Gaussian of real images' features: `mean` (D,), `covariance` Σ (D, D), `root` with root·rootᵀ = Σ.

    `facts` is what a card says of the file: `name`, `sha256` and `source`.
    """

    path: Path
    spec: ExtractorSpec
    mean: Float
    covariance: Float
    root: Float
    facts: dict[str, str]


def is_statistics(path: Path) -> bool:
    """Whether a file holds statistics: a pickle, or an npz with a `mu`. False for what is no such file."""
    try:
        begins = _beginning(path) if os.path.isfile(path) else b""
        return begins.startswith(PICKLE) or (begins == ZIP and MEAN in npz_keys(path))
    except (OSError, DiffctlError):
        return False  # who opens it says what is wrong


def open_statistics(
    path: Path, extractor: str | None = None, sha256: str | None = None
) -> PublishedStatistics:
    """Read and check a file of statistics for this extractor, None for Inception, as nearly all are.

    With `sha256` nothing of another file is read: UsageError.

    DiffctlError, in one sentence, for a damaged file, for arrays that are no mean and covariance of this
    extractor's features, for NaN, and for a covariance that is none; UsageError for another extractor's.
    """
    spec = INCEPTION if extractor is None else extractor_spec(extractor)
    said, held = printable(path), _sha256(path)
    if sha256 not in (None, held):
        raise UsageError(
            f"evaluate.statistics: {said} is another file than params.yaml says: its SHA-256 is {held}"
        )
    names, (mean, covariance) = _arrays(path, spec)
    if len(mean.shape) != 1 or covariance.shape != 2 * mean.shape or not math.prod(mean.shape):
        raise DiffctlError(
            f"{said} holds no statistics: {names[0]} is {mean.shape} and {names[1]} {covariance.shape}, "
            "want (D,) and (D, D)"
        )
    if mean.shape[0] != spec.features:
        raise UsageError(
            f"{said} holds statistics of {mean.shape[0]:,} features, and {spec.name} gives "
            f"{spec.features:,}: {_others(mean.shape[0])}"
        )
    mu, sigma = _read(mean, names[0], said), _read(covariance, names[1], said)
    facts = {"name": path.name, "sha256": held, "source": statistics_source(path.name)}
    return PublishedStatistics(path, spec, mu, sigma, _root(sigma, names[1], said), facts)


def has_array(path: Path, name: str) -> bool:
    """Whether a file of statistics is an npz that has an array of this name, too."""
    return _beginning(path) == ZIP and name in npz_keys(path)


def configured_statistics(space: Space) -> PublishedStatistics | None:
    """Those of a feature space, None where it names none; errors as `open_statistics`.

    UsageError for a file that is not there or is not the one of its SHA-256.
    """
    if space.statistics is None:
        return None
    path, wanted = space.statistics.file, space.statistics.sha256
    if not path.is_file():
        address = statistics_source(path.name)
        whence = "" if address == UNKNOWN else f": it was published at {address}"
        raise UsageError(f"evaluate.statistics: there is no file {printable(path)}{whence}")
    return open_statistics(path, space.extractor, wanted)


def _arrays(path: Path, spec: ExtractorSpec) -> tuple[tuple[str, str], tuple[FileArray, FileArray]]:
    """The names of mean and covariance, and both, unread where they lie in a file."""
    usual, own = (MEAN, COVARIANCE), OWN_NAMES.get(spec.name, (MEAN, COVARIANCE))
    if _beginning(path) == ZIP:
        names = own if has_array(path, own[0]) else usual
        return names, (open_npz(path, names[0]), open_npz(path, names[1]))
    values = _of_score(path, read_pickle(path), spec)
    names = own if own[0] in values else usual
    try:
        return names, (file_array(values[names[0]]), file_array(values[names[1]]))
    except KeyError as error:
        raise DiffctlError(f"{printable(path)} holds no statistics: it has no {error}") from None
    except TypeError as error:
        raise DiffctlError(f"{printable(path)} holds no statistics: it has {error}") from None


def _of_score(path: Path, values: Any, spec: ExtractorSpec) -> Mapping[str, Any]:
    """The dict with the statistics of this extractor's distance, or the only one that there is."""
    if not isinstance(values, dict):
        raise DiffctlError(f"{printable(path)} holds no statistics: it is no dict of arrays")
    if MEAN in values:
        return values
    held = [str(name) for name, value in values.items() if isinstance(value, dict)]
    if spec.distance not in held:
        raise UsageError(
            f"{printable(path)} holds no statistics for {spec.name}, which are called {spec.distance}: it "
            f"has {printable(', '.join(held[:5])) or 'none'}; give an --extractor that it has"
        )
    found: Mapping[str, Any] = values[spec.distance]
    return found


def _read(array: FileArray, name: str, said: str) -> Float:
    """An array in float64; DiffctlError for what is no number."""
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        raise DiffctlError(f"{said}: {name} is {array.dtype}, want float32 or float64")
    values = array.read(0, array.shape[0]).astype(np.float64)
    if not np.isfinite(values).all():
        raise DiffctlError(f"{said}: {name} has values that are no numbers (NaN or infinite): get it again")
    return values


def _root(covariance: Float, name: str, said: str) -> Float:
    """(D, D) root·rootᵀ = Σ; DiffctlError unless Σ is symmetric and has no negative eigenvalue."""
    size = float(np.abs(covariance).max())
    if not size:
        raise DiffctlError(f"{said}: {name} is 0, so the features of its images do not vary")
    if np.abs(covariance - covariance.T).max() > ROUNDING * size:
        raise DiffctlError(f"{said}: {name} is not symmetric, so it is no covariance: get it again")
    values, vectors = np.linalg.eigh(covariance / size)
    if values[0] < -ROUNDING * values[-1]:
        raise DiffctlError(
            f"{said}: {name} has a negative eigenvalue ({values[0] * size:.3g}), so it is no "
            "covariance: get it again"
        )
    root: Float = vectors * np.sqrt(values.clip(0) * size)
    return root


def _others(count: int) -> str:
    """What to do with statistics of so many features."""
    names = [spec.name for spec in EXTRACTORS.values() if spec.features == count]
    if not names:
        return "they are of another extractor than there is here"
    return f"if they are of {' or '.join(names)}, give that as --extractor"


def _beginning(path: Path) -> bytes:
    return _of_file(path, lambda file: file.read(2))


def _sha256(path: Path) -> str:
    return _of_file(path, lambda file: hashlib.file_digest(file, "sha256").hexdigest())


def _of_file(path: Path, read: Callable[[BufferedReader], T]) -> T:
    """What `read` makes of the file; DiffctlError where it cannot be read."""
    try:
        with open_regular(path) as file:
            return read(file)
    except OSError as error:
        raise read_error(path, error) from None
