"""What scores and the features of real images say alike of a reference."""

from diffusion.system.section import PositiveInt, Section


class ReferenceFacts(Section):
    """What is said of a reference: its images, what saw them, and those held out where there are any."""

    evaluation: int
    extractor: str
    weights_sha256: str
    dtype: str
    name: str
    image_size: PositiveInt
    reference_split: str
    reference_digest: str
    reference_count: PositiveInt
    heldout_split: str | None = None
    heldout_digest: str | None = None
    heldout_count: PositiveInt | None = None
