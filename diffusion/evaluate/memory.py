"""What memory scoring takes, told and refused before anything is computed. No torch here."""

from diffusion.protocol.extractors import ExtractorSpec
from diffusion.system.errors import DiffctlError
from diffusion.system.machine_memory import machine_memory

BLOCK = 8192  # images whose features scoring holds in float64 at a time: 84 MB of 1,280
COPIES = 4  # of such a block
NODES = 250  # of the quadrature in log t, and three arrays of so many numbers an image of a block
SQUARES = 12  # matrices of features by features: covariances, what their eigenvalues are found with
EIGEN = 8  # matrices as large as what a spectrum is found of: it, its eigenvectors, the solver's own
LOGITS = 1100  # numbers an image, at most, of an extractor that has a score
BASE = 600 * 10**6  # networks, blocks of distances, kernels of subsets: none grows with the images


def scoring_memory(
    spec: ExtractorSpec, sample: int, real: int, heldout: int = 0, labelled: bool = False
) -> int:
    """Bytes, about and no less, that scoring so many images by this extractor takes.

    The features of all are kept. A target sees one set at a time, the sample or those held out, of which one
    more copy in float32 may be made; classes of `labelled` images, which come after that, have a target each.
    """
    features, logits = spec.features, LOGITS * (spec.score is not None)
    kept = 4 * (features + logits) * (sample + real + heldout)
    several = max(sample, heldout)
    wide = real if real <= 2 * features else features  # a target of few images is held as these themselves
    directions = max(features, wide)  # in which a target sees images
    seen = several * (8 * directions + 4 * features)
    blocks = 8 * min(max(several, real), BLOCK) * (COPIES * directions + 3 * NODES)
    squares = 8 * (SQUARES * features**2 + EIGEN * min(several, directions) ** 2)
    computed = max(seen, 8 * features * real * labelled) + blocks + squares + 8 * 2 * features * wide
    return kept + computed + BASE


def require_memory(
    spec: ExtractorSpec, sample: int, real: int, heldout: int = 0, labelled: bool = False
) -> int:
    """The bytes of `scoring_memory`; DiffctlError where fewer are free."""
    needed, free = scoring_memory(spec, sample, real, heldout, labelled), machine_memory()[1]
    if needed > free:
        raise DiffctlError(
            f"scoring {sample:,} images by {spec.name} takes about {needed / 1e9:,.1f} GB of memory, and "
            f"{free / 1e9:,.1f} GB are free: score fewer images, or end what takes the rest"
        )
    return needed
