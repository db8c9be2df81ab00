"""The protocol card: everything that a score depends on. Only scores of equal protocols are compared."""

from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from diffusion.images.image_size import format_size, written_size
from diffusion.protocol.extractors import COMMON, ExtractorSpec

Card = dict[str, Any]

SEED = 2020  # torch-fidelity's own default: which images a subset or a split gets
SUBSETS = 100  # of a kernel distance
SUBSET_SIZE = 500  # at most, by default
GROUPS = 100  # random groups of images that estimate a score's errors
IS_SPLITS = 10  # at most
NEIGHBOUR = 3  # the k of precision and recall (Kynkäänniemi et al. 2019)
SHARES = ("precision", "recall", "density", "coverage")  # of neighbours, in an extractor's features
WIDE_NEIGHBOUR = 5  # that of density and coverage (Naeem et al. 2020)
NETWORKS = ("model", "guide", "classifier", "base")
NETWORK_DIGESTS = tuple(f"{name}_sha256" for name in NETWORKS)


class Limits(NamedTuple):
    """The largest numbers of images: of both sets for neighbours, and of a kernel distance's subsets."""

    samples: int
    real: int
    kid_subset: int = SUBSET_SIZE


def protocol_card(
    sampling: Card, num_images: int, reference: Mapping[str, Any], spec: ExtractorSpec, limits: Limits
) -> Card:
    """Return the complete card of N images against a reference, a flat JSON dict.

    `sampling` is the images' part (their store's meta["card"]), empty for images of unknown origin.
    `reference` is the meta of the reference, `spec` its extractor.
    """
    count, size = reference["reference_count"], written_size(reference["image_size"])
    return {
        **sampling,
        "num_images": num_images,
        "data": reference["name"],
        "image_size": size if isinstance(size, int) else format_size(size),
        **{key: reference.get(key) for key in SPLIT_FIELDS},
        **_extractor_card(spec, reference["weights_sha256"]),
        **neighbour_card(num_images, count, limits),
    }


def _extractor_card(spec: ExtractorSpec, weights_sha256: str) -> Card:
    return {
        "extractor": spec.name,
        "weights_sha256": weights_sha256,
        "resize": spec.resize,
        "feature_dtype": "float32",
        "torch": version("torch"),
        "torch_fidelity": version("torch-fidelity"),
        "evaluation": spec.evaluation,
    }


def neighbour_card(num_images: int, count: int, limits: Limits) -> Card:
    """Return the fields on subsets, splits and neighbours of N images and `count` real ones."""
    return {
        "kid_subset_size": subset_size(num_images, count, limits.kid_subset),
        "kid_subsets": SUBSETS,
        "is_splits": is_splits(num_images),
        "prc_neighbour": NEIGHBOUR,
        "coverage_neighbour": WIDE_NEIGHBOUR,
        "prc_images": min(num_images, limits.samples),
        "prc_reference_images": min(count, limits.real),
        "subset_seed": SEED,
    }


def network_digests(card: Mapping[str, object]) -> list[object]:
    """Return the digests of all networks that sampled a cell, None for those that it lacks."""
    return [card.get(field) for field in NETWORK_DIGESTS]


PLUGIN_FIELDS = ("sampling_plugins", "extractor_plugins")  # digests of code, where plugins are used
EXTRACTOR_FIELDS = (
    "extractor", "weights_sha256", "resize", "feature_dtype", "evaluation", "extractor_plugins"
)  # fmt: skip
# What `…_published` is against.
STATISTICS_FIELDS = ("statistics_name", "statistics_sha256", "statistics_source")
COUNT_FIELDS = ("num_images", "kid_subset_size", "is_splits", "prc_images")  # N, and what follows from it
REAL_ROLES = ("reference", "heldout")
SPLIT_FIELDS = [f"{role}_{key}" for role in REAL_ROLES for key in ("split", "digest", "count")]
REAL_IMAGE_FIELDS = (  # the images of both splits, those that are enlarged, and what follows from the numbers
    *(f"{role}_{key}" for role in REAL_ROLES for key in ("digest", "count")),
    "real_sha256",
    "kid_subset_size",
    "prc_reference_images",
)


def differing_fields(cards: Sequence[Card], axes: Collection[str] = ()) -> dict[str, list[Any]]:
    """Return the fields in which the cards differ, each with its value in every card, None if missing.

    The fields named in `axes` may differ. If the result is empty, the scores can be compared.
    """
    fields = sorted({field for card in cards for field in card} - set(axes))
    values = {field: [card.get(field) for card in cards] for field in fields}
    return {field: seen for field, seen in values.items() if any(value != seen[0] for value in seen)}


def describe_difference(fields: Mapping[str, Sequence[Any]]) -> str:
    """Return differing fields of two cards as text: each with both values, digests abbreviated."""
    return ", ".join(f"{name} ({short_text(a)} against {short_text(b)})" for name, (a, b) in fields.items())


def short_text(value: Any) -> str:
    """Return a field's value as text, a SHA-256 abbreviated."""
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text


def subset_size(count: int, reference_count: int, most: int = SUBSET_SIZE) -> int:
    """Return the images per subset: half of the smaller set, at least 2 and at most `most`."""
    return max(2, min(most, count // 2, reference_count // 2))


def is_splits(count: int) -> int:
    """Return the splits of an Inception score: 10, or the number of images if that is smaller."""
    return min(IS_SPLITS, count)


_OPENAI = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches"
_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs"
_EDM2 = "https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs"

# By a file's name: github.com/openai/guided-diffusion evaluations/README.md, NVlabs/edm and NVlabs/edm2.
PUBLISHED = {
    address.rpartition("/")[2]: address
    for address in (
        f"{_OPENAI}/imagenet/64/VIRTUAL_imagenet64_labeled.npz",
        f"{_EDM}/cifar10-32x32.npz",
        f"{_EDM}/imagenet-64x64.npz",
        f"{_EDM}/imagenet-64x64-baseline.npz",
        f"{_EDM}/ffhq-64x64.npz",
        f"{_EDM}/afhqv2-64x64.npz",
        f"{_EDM2}/img512.pkl",
    )
}

UNKNOWN = "unknown"  # the source of a file with another name


def statistics_source(name: str) -> str:
    """Return the address at which a file of this name was published, or `unknown`."""
    return PUBLISHED.get(name, UNKNOWN)


def missing_scores(spec: ExtractorSpec, images: bool) -> dict[str, Any]:
    """Return the `scores` that published statistics cannot give, with or without `images`, and `why`."""
    if images:
        return {
            "scores": [*COMMON],
            "why": "these need real images that were held out, and the file has none",
        }
    why = "the file holds a mean and a covariance, and these need the features of every real image"
    return {"scores": [*spec.distances[1:], *map(spec.named, SHARES), *COMMON], "why": why}


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
        **_extractor_card(spec, weights_sha256),
    }
