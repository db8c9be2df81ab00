"""What is known of each feature extractor without loading it: input, layers, weights, names of its scores.

`fid`, `kid` and `is` belong to Inception alone; the scores of other extractors carry the extractor's name,
since their magnitudes mean something else.
"""

from dataclasses import dataclass

from diffusion.errors import UsageError

EVALUATION_VERSION = 2  # raise it when the same images would no longer give the same numbers


@dataclass(frozen=True)
class ExtractorSpec:
    """A registered extractor.

    `size` is the side in pixels that images are resized to; `feature_layer`, of `features` numbers an image,
    and `logits_layer` are its outputs by torch-fidelity's names; `sha256` is that of the weights' file. The
    last three fields name its Fréchet distance, its kernel distance and its Inception-style score.
    """

    name: str
    size: int
    resize: str
    feature_layer: str
    logits_layer: str
    features: int
    sha256: str
    distance: str
    kernel_distance: str
    score: str

    @property
    def is_inception(self) -> bool:
        """Whether its numbers are the field's FID, KID and IS."""
        return self.distance == "fid"

    @property
    def limit(self) -> str:
        """The name of the distance extrapolated to N → ∞."""
        return f"{self.distance}_inf"

    @property
    def precision(self) -> str:
        """The name of the precision."""
        return "precision" + self._suffix

    @property
    def recall(self) -> str:
        """The name of the recall."""
        return "recall" + self._suffix

    @property
    def _suffix(self) -> str:
        return "" if self.is_inception else "_" + self.name.replace("-", "_")


def _efficientnet(size: int) -> ExtractorSpec:
    return ExtractorSpec(
        name=f"effnet-lite0-{size}",
        size=size,
        resize=f"bilinear, antialiased, to {size}",
        feature_layer="pool",
        logits_layer="logits",
        features=1280,
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        distance=f"fd_effnet_lite0_{size}",
        kernel_distance=f"kd_effnet_lite0_{size}",
        score=f"is_effnet_lite0_{size}",
    )


# The FID of Heusel et al. 2017 (1706.08500): TensorFlow's network of 2015-12-05 and its own bilinear resize.
INCEPTION = ExtractorSpec(
    name="inception-v3-compat",
    size=299,
    resize="bilinear as in TensorFlow 1, to 299",
    feature_layer="2048",
    logits_layer="logits_unbiased",
    features=2048,
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    distance="fid",
    kernel_distance="kid",
    score="is",
)

EXTRACTORS: dict[str, ExtractorSpec] = {
    spec.name: spec for spec in (_efficientnet(64), _efficientnet(96), INCEPTION)
}


def default_extractor(image_size: int) -> str:
    """The embedded extractor for images of this side in pixels: 64 up to 32, else 96."""
    return "effnet-lite0-64" if image_size <= 32 else "effnet-lite0-96"


def extractor_spec(name: str) -> ExtractorSpec:
    """The spec of a registered name; UsageError lists the names there are."""
    if name not in EXTRACTORS:
        raise UsageError(f"there is no extractor {name!r}: give one of {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name]
