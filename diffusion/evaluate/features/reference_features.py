"""The reference: features of the real images, stored with everything that they depend on.

A folder with `features.npy` and `labels.npy` of the reference split, `heldout.npy`, `heldout_logits.npy` and
`heldout_labels.npy` of the other split, and `meta.json` with the digests of these arrays. Labels and logits
are optional. Further feature spaces are subfolders named by their extractors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.code_digest import ModuleDigests, code_digest, code_of
from diffusion.evaluate.evaluate_config import OTHER_SPLIT
from diffusion.evaluate.features.extractors import Extractor, FeatureArray, Features
from diffusion.images.image_size import written_size
from diffusion.images.store import ImageStore, Labels, array_digest, open_store, read_array
from diffusion.images.store_meta import PreparedMeta
from diffusion.protocol.extractors import EXTRACTORS, ExtractorSpec
from diffusion.system.checksums import Corrupted, JsonObject, add_checksum, read_checksummed_json
from diffusion.system.errors import DiffctlError, UsageError, reason
from diffusion.system.files import write_json
from diffusion.system.section import brief

ARRAYS = "arrays"  # key of the meta: each array's digest
MAKE_AGAIN = "make it again with `diffctl stage reference`"


@dataclass(frozen=True)
class Reference:
    """Features of real images.

    `meta` has extractor, weights_sha256, dtype, name, image_size, classes and code, and the split, digest and
    count of the reference (`reference_…`) and of the held-out images (`heldout_…`). `heldout` and the labels
    are None if there are none.
    """

    meta: dict[str, Any]
    features: FeatureArray
    heldout: Features | None
    labels: Labels | None = None
    heldout_labels: Labels | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """The part of the meta for a scores document."""
        return {key: value for key, value in self.meta.items() if key not in ("classes", "code")}

    @property
    def train_and_test(self) -> tuple[FeatureArray | None, FeatureArray | None]:
        """The features of both splits, None for a missing one."""
        heldout = None if self.heldout is None else self.heldout.features
        by_split = {self.meta["reference_split"]: self.features, self.meta.get("heldout_split"): heldout}
        return by_split.get("train"), by_split.get("test")


def reference_splits(prepared: Path, split: str, limit: int | None) -> list[ImageStore]:
    """Return the reference split and the held-out split, the first `limit` images of each."""
    stores = [open_store(prepared / one, PreparedMeta) for one in (split, OTHER_SPLIT[split])]
    return [
        replace(one, images=one.images[:limit], labels=None if one.labels is None else one.labels[:limit])
        for one in stores
    ]


def make_reference_of(
    extractor: Extractor, stores: Sequence[ImageStore], features: Sequence[Features]
) -> Reference:
    """Return the reference of open stores, real and perhaps held-out images, with these features."""
    real, *heldout = stores
    meta = {
        **extraction(extractor),
        "dtype": "float32",
        "name": real.meta.get("name", real.path.name),
        "image_size": written_size(real.images.shape[1:3]),
        "classes": list(real.meta.get("classes", [])),
    }
    for role, store in zip(("reference", "heldout"), stores, strict=False):
        meta |= {
            f"{role}_split": store.meta.get("split", "all"),
            f"{role}_digest": store.digest,
            f"{role}_count": len(store),
        }
    if not heldout:
        return Reference(meta, features[0].features, None, real.labels)
    return Reference(meta, features[0].features, features[1], real.labels, heldout[0].labels)


def extraction(extractor: Extractor) -> dict[str, Any]:
    """Return what decides the features of given images."""
    return {
        "code": code_digest(extraction_code(extractor.spec)),
        "evaluation": extractor.spec.evaluation,
        "extractor": extractor.spec.name,
        "weights_sha256": extractor.weights_sha256,
    }


def extraction_code(spec: ExtractorSpec) -> ModuleDigests:
    """Return the digests of the code that decides this extractor's features."""
    return code_of(["diffusion.evaluate.features.reference_features"], [(EXTRACTORS, spec.name)])


def write_reference(folder: Path, reference: Reference) -> None:
    """Write the files of a reference. Equal features give equal bytes."""
    arrays: dict[str, Any] = {"features": reference.features, "labels": reference.labels}
    if (heldout := reference.heldout) is not None:
        labels = reference.heldout_labels
        arrays |= {"heldout": heldout.features, "heldout_logits": heldout.logits, "heldout_labels": labels}
    folder.mkdir(exist_ok=True)
    digests = {}
    for name, array in arrays.items():
        if array is not None:
            digests[name] = array_digest(array)
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
    write_json(folder / "meta.json", add_checksum({**reference.meta, ARRAYS: digests}))


def open_references(
    path: Path, extractors: Sequence[Extractor], split: str, prepared: Path | None, limit: int | None
) -> list[Reference]:
    """Open the references of several spaces; errors as `open_reference`."""
    places = [path, *(path / extractor.spec.name for extractor in extractors[1:])]
    pairs = zip(places, extractors, strict=True)
    return [open_reference(*pair, split, prepared, limit) for pair in pairs]


def open_reference(
    path: Path, extractor: Extractor, split: str, prepared: Path | None = None, limit: int | None = None
) -> Reference:
    """Open a reference of at most `limit` images of each split.

    DiffctlError if it is stale: of another extractor, code or split, or of other images than in `prepared`.
    """
    reference = _read(path)
    expected = {**extraction(extractor), "reference_split": split}
    if prepared is not None:
        stores = reference_splits(prepared, split, limit)
        for role, store in zip(("reference", "heldout"), stores, strict=True):
            expected |= {f"{role}_digest": store.digest, f"{role}_count": len(store)}
    for field, value in expected.items():
        if (found := reference.meta.get(field)) != value:
            why = f"its {field} is {str(found)[:24]} and must be {str(value)[:24]}"
            raise DiffctlError(f"the reference in {path} is stale: {why}; {MAKE_AGAIN}")
    return reference


def matching_reference(
    path: Path, extractor: Extractor, split: str, prepared: Path, limit: int | None = None
) -> Reference | None:
    """Return the reference in `path` if it fits these images and this extractor, else None."""
    try:
        return open_reference(path, extractor, split, prepared, limit)
    except DiffctlError:
        return None


def _read(path: Path) -> Reference:
    """Return a reference after a check of its checksum and digests, which `write_reference` writes."""
    try:
        meta = read_checksummed_json(path / "meta.json", JsonObject)
        arrays: dict[str, Any] = {}
        for name, digest in meta.pop(ARRAYS).items():
            arrays[name] = read_array(path / f"{name}.npy")
            if array_digest(arrays[name]) != digest:
                raise Corrupted(f"{name}.npy changed after it was written")
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise UsageError(f"no reference in {path} ({name} is missing): {MAKE_AGAIN}") from None
    except (Corrupted, DiffctlError) as error:
        why = brief(error, reason)
        raise DiffctlError(f"the reference in {path} is damaged ({why}): {MAKE_AGAIN}") from None
    heldout = Features(arrays["heldout"], arrays.get("heldout_logits")) if "heldout" in arrays else None
    labels = arrays.get("labels"), arrays.get("heldout_labels")
    return Reference(meta, arrays["features"], heldout, *labels)
