"""What memory scoring takes, told and refused before anything is computed. No torch here."""

from diffusion.protocol.extractors import ExtractorSpec
from diffusion.system.errors import DiffctlError
from diffusion.system.memory import machine_memory

COPIES = 6  # of the features in float64: those centred, seen through a reference, their leverages, two more
NODES = 250  # of the quadrature in log t, and three arrays of so many numbers an image
SQUARES = 12  # matrices of features by features: covariances, eigenvectors, what eigenvalues are found with
LOGITS = 1100  # numbers an image, at most, of an extractor that has a score
BASE = 600 * 10**6  # networks, blocks of distances, kernels of subsets: none grows with the images


def scoring_memory(spec: ExtractorSpec, sample: int, real: int, heldout: int = 0) -> int:
    """Bytes, about and no less, that scoring so many images by this extractor takes.

    Of the real images there are the features alone, and those held out as many again in float64 as of the
    sample, one after the other.
    """
    features = spec.features
    kept = 4 * (features + LOGITS * (spec.score is not None)) * (sample + heldout) + 4 * features * real
    several = max(sample, heldout)
    wide = min(real, 2 * features)  # images that a reference's own scatter is held of
    computed = 8 * several * (COPIES * features + 3 * NODES) + 8 * 2 * features * wide
    return kept + computed + 8 * SQUARES * features**2 + BASE


def need_memory(spec: ExtractorSpec, sample: int, real: int, heldout: int = 0) -> int:
    """The bytes of `scoring_memory`; DiffctlError where fewer are free."""
    needed, free = scoring_memory(spec, sample, real, heldout), machine_memory()[1]
    if needed > free:
        raise DiffctlError(
            f"scoring {sample:,} images by {spec.name} takes about {needed / 1e9:,.1f} GB of memory, and "
            f"{free / 1e9:,.1f} GB are free: score fewer images, or end what takes the rest"
        )
    return needed
