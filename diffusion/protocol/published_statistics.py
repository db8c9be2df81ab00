"""Published statistics of real images' features, and the card of scores against them.

Such a file has a mean and a covariance alone. Which images they are of is in a paper or a README. So a card
has the file's SHA-256, and the address at which a file of its name was published. This module loads no torch.
"""

from collections.abc import Mapping
from importlib.metadata import version

from diffusion.protocol.card import SHARES, STATISTICS_FIELDS, Card
from diffusion.protocol.extractors import EVALUATION_VERSION, ExtractorSpec

_OPENAI = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches"
_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs"
_EDM2 = "https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs"

# By a file's name: github.com/openai/guided-diffusion evaluations/README.md, NVlabs/edm and NVlabs/edm2.
PUBLISHED = {
    "VIRTUAL_imagenet64_labeled.npz": f"{_OPENAI}/imagenet/64/VIRTUAL_imagenet64_labeled.npz",
    **{
        name: f"{_EDM}/{name}"
        for name in (
            "cifar10-32x32.npz",
            "imagenet-64x64.npz",
            "imagenet-64x64-baseline.npz",
            "ffhq-64x64.npz",
            "afhqv2-64x64.npz",
        )
    },
    "img512.pkl": f"{_EDM2}/img512.pkl",
}

UNKNOWN = "unknown"  # the source of a file with another name


def statistics_source(name: str) -> str:
    """Return the address at which a file of this name was published, or `unknown`."""
    return PUBLISHED.get(name, UNKNOWN)


def missing_scores(spec: ExtractorSpec, images: bool = False) -> list[str]:
    """Return the names of scores that need more than a mean and a covariance, and more than `images`."""
    shares = [spec.named(score) for score in SHARES]
    gaussian = [spec.gaussian_distance] if spec.gaussian_distance else []
    of_images = [] if images else [spec.kernel_distance, *gaussian, *shares]
    return [*of_images, "floor", "excess", "memorisation"]


def missing_reason(images: bool = False) -> str:
    """Return the reason for the missing scores, to follow their names."""
    if images:
        return "these need real images that were held out, and the file has none"
    return "the file holds a mean and a covariance, and these need the features of every real image"


def statistics_fields(facts: Mapping[str, str]) -> Card:
    """Return the fields of a card on the file, STATISTICS_FIELDS."""
    return {field: facts[field.removeprefix("statistics_")] for field in STATISTICS_FIELDS}


def statistics_card(
    sampling: Card, num_images: int, reference: Card, spec: ExtractorSpec, weights_sha256: str
) -> Card:
    """Return the complete card of N images against published statistics, described by `reference`."""
    return {
        **sampling,
        "num_images": num_images,
        **statistics_fields(reference),
        "extractor": spec.name,
        "weights_sha256": weights_sha256,
        "resize": spec.resize,
        "feature_dtype": "float32",
        "torch": version("torch"),
        "torch_fidelity": version("torch-fidelity"),
        "evaluation": EVALUATION_VERSION,
    }
