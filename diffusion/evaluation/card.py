"""The protocol card: everything that a score depends on, so that only equal protocols are compared."""

from collections.abc import Collection, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from diffusion.evaluation.specs import EVALUATION_VERSION, extractor_spec

if TYPE_CHECKING:
    from diffusion.evaluation.reference import Reference

Card = dict[str, Any]


def protocol_card(sampling: Card, num_images: int, reference: "Reference", most: int) -> Card:
    """The whole card of N images against a reference: a flat JSON dict.

    `sampling` is the half that the images bring along (their store's meta["card"]), empty for images of
    unknown origin. `most` images of each set at most are held against each other as neighbours.
    """
    from diffusion.evaluation.kernel import SEED, SUBSETS, subset_size
    from diffusion.evaluation.manifold import NEIGHBOUR  # loads torch
    from diffusion.evaluation.scores import is_splits

    meta = reference.meta
    spec = extractor_spec(meta["extractor"])
    return {
        **sampling,
        "num_images": num_images,
        "data": meta["name"],
        "image_size": meta["image_size"],
        **{key: meta.get(key) for key in _REFERENCE_FIELDS},
        "extractor": spec.name,
        "weights_sha256": meta["weights_sha256"],
        "resize": spec.resize,
        "feature_dtype": meta["dtype"],
        "kid_subset_size": subset_size(num_images, len(reference.features)),
        "kid_subsets": SUBSETS,
        "is_splits": is_splits(num_images),
        "prc_neighbour": NEIGHBOUR,
        "prc_images": min(num_images, most),
        "prc_reference_images": min(len(reference.features), most),
        "subset_seed": SEED,
        "torch": version("torch"),
        "torch_fidelity": version("torch-fidelity"),
        "evaluation": EVALUATION_VERSION,
    }


_REFERENCE_FIELDS = (
    "reference_split",
    "reference_digest",
    "reference_count",
    "heldout_split",
    "heldout_digest",
    "heldout_count",
)


OF_COUNT = ("num_images", "kid_subset_size", "is_splits", "prc_images")  # the number of images, what follows


def differing(cards: Sequence[Card], axes: Collection[str] = ()) -> dict[str, list[Any]]:
    """The fields on which the cards disagree, each with its value in every card (None where it is missing).

    Only the fields named in `axes` may differ unseen. Empty: the numbers may be compared.
    """
    fields = sorted({field for card in cards for field in card} - set(axes))
    values = {field: [card.get(field) for card in cards] for field in fields}
    return {field: seen for field, seen in values.items() if any(value != seen[0] for value in seen)}
