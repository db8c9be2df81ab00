"""Published statistics: the mean and covariance of real images' features, read from untrusted files.

OpenAI's evaluator stores them in an npz file as `mu` and `sigma`, with `mu_s` and `sigma_s` of spatial
features and 10,000 images as `arr_0`. EDM stores `mu` and `sigma` in an npz file. EDM2 stores a pickle: a
dict with a `mu` and a `sigma` for each score, such as `fid` and `fd_dinov2`.
"""

import os
from pathlib import Path

import numpy as np

from diffusion.data.readers.archives import Array, npz_keys, open_npz
from diffusion.data.readers.pickles import entry, plain_array, read_pickle
from diffusion.evaluate.evaluate_config import Space
from diffusion.evaluate.scores.frechet_scores import PublishedStatistics
from diffusion.evaluate.scores.moments import Float, Statistics
from diffusion.protocol.card import UNKNOWN, statistics_source
from diffusion.protocol.extractors import INCEPTION, INCEPTION_SPATIAL, ExtractorSpec, extractor_spec
from diffusion.system.errors import DiffctlError, UsageError, printable
from diffusion.system.files import open_regular, read_error, sha256_file

ZIP, PICKLE = b"PK", b"\x80"  # first bytes of an npz file, and of a pickle of protocol 2 or later
MEAN = "mu"
NAMES, SPATIAL_NAMES = (MEAN, "sigma"), ("mu_s", "sigma_s")
ROUNDING = 1e-5  # relative tolerance for symmetry and negative eigenvalues, as float32 rounding needs


def is_statistics(path: Path) -> bool:
    """Return whether a file may hold statistics: a pickle, or an npz file with a `mu`."""
    try:
        return os.path.isfile(path) and (_first_bytes(path)[:1] == PICKLE or has_array(path, MEAN))
    except DiffctlError:
        return False  # opening the file reports the error


def has_array(path: Path, name: str) -> bool:
    """Return whether a file is an npz file with an array of this name."""
    return _first_bytes(path) == ZIP and name in npz_keys(path)


def open_statistics(
    path: Path, extractor: str | None = None, sha256: str | None = None
) -> PublishedStatistics:
    """Read and check a file of statistics of an extractor, by default Inception.

    UsageError for statistics of another extractor and for another file than that with this `sha256`,
    DiffctlError for a damaged file, NaN, and arrays that are not a mean and a covariance.
    """
    spec = INCEPTION if extractor is None else extractor_spec(extractor)
    name, is_zip = printable(path), _first_bytes(path) == ZIP
    digest = sha256_file(path)
    if sha256 not in (None, digest):
        raise UsageError(f"evaluate.statistics: {name} is not the configured file: its SHA-256 is {digest}")
    arrays = _npz_arrays(path, spec) if is_zip else _pickled_arrays(path, spec)
    mean, covariance = (array.shape for array in arrays.values())
    if len(mean) != 1 or covariance != 2 * mean or not mean[0]:
        found = " and ".join(f"{key} is {array.shape}" for key, array in arrays.items())
        raise DiffctlError(f"{name} holds no statistics: {found}, want (D,) and (D, D)")
    if mean[0] != spec.features:
        found = f"{mean[0]:,} features, and {spec.name} gives {spec.features:,}"
        raise UsageError(f"{name} holds statistics of {found}: give their extractor as --extractor")
    gaussian = Statistics(*(_read(array, f"{name}: {key}") for key, array in arrays.items()))
    facts = {"name": path.name, "sha256": digest, "source": statistics_source(path.name)}
    return PublishedStatistics(spec, gaussian, _root(gaussian.sigma, f"{name}: {[*arrays][1]}"), facts)


def configured_statistics(space: Space) -> PublishedStatistics | None:
    """Open the statistics of a feature space, None if it has none; errors as `open_statistics`."""
    if space.statistics is None:
        return None
    path = space.statistics.file
    if not path.is_file():
        address = statistics_source(path.name)
        source = "" if address == UNKNOWN else f": it was published at {address}"
        raise UsageError(f"evaluate.statistics: there is no file {printable(path)}{source}")
    return open_statistics(path, space.extractor, space.statistics.sha256)


def _npz_arrays(path: Path, spec: ExtractorSpec) -> dict[str, Array]:
    """Return mean and covariance by their names in the file."""
    is_spatial = spec.name == INCEPTION_SPATIAL.name and SPATIAL_NAMES[0] in npz_keys(path)
    return {name: open_npz(path, name) for name in (SPATIAL_NAMES if is_spatial else NAMES)}


def _pickled_arrays(path: Path, spec: ExtractorSpec) -> dict[str, Array]:
    """Return mean and covariance by their names: of a dict, or of a score's dict in it."""
    values = read_pickle(path)
    if isinstance(values, dict) and MEAN not in values:
        scores = [str(name) for name, value in values.items() if isinstance(value, dict)]
        if spec.distance not in scores:
            has = printable(", ".join(scores[:5])) or "none"
            found = f"no statistics for {spec.distance}, only for {has}"
            raise UsageError(f"{printable(path)} has {found}: give an --extractor that it has")
        values = values[spec.distance]
    return {name: plain_array(entry(values, name, path), f"{printable(path)}: {name}") for name in NAMES}


def _read(array: Array, what: str) -> Float:
    """Return an array as float64; DiffctlError for other types and for NaN or infinity."""
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        raise DiffctlError(f"{what} is {array.dtype}, want float32 or float64")
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        raise DiffctlError(f"{what} has NaN or infinite values: download the file again")
    return values


def _root(covariance: Float, what: str) -> Float:
    """Return root (D, D) with root·rootᵀ = Σ; DiffctlError unless Σ is positive semidefinite."""
    scale = float(np.abs(covariance).max())
    is_symmetric = scale and np.abs(covariance - covariance.T).max() <= ROUNDING * scale
    values, vectors = np.linalg.eigh(covariance / (scale or 1))
    if not is_symmetric or values[0] < -ROUNDING * values[-1]:
        raise DiffctlError(f"{what} is no covariance matrix: download the file again")
    return np.asarray(vectors * np.sqrt(values.clip(0) * scale))


def _first_bytes(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(2)
    except OSError as error:
        raise read_error(path, error) from None
