"""Texts in Markdown: escaping, tables, and a model in one sentence. It loads no torch."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from diffusion.images.image_size import format_size
from diffusion.system.section import brief

if TYPE_CHECKING:
    from diffusion.model.model_file import Artefact

MAX_NAME_LENGTH = 200


def escape_markdown(text: str) -> str:
    """Return a user's text without Markdown markup."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!" else c for c in brief(text, str, MAX_NAME_LENGTH))


def describe_model(artefact: "Artefact") -> str:
    """Return data, shape, network, steps and process of a model as Markdown."""
    spec, process, width = artefact.network, artefact.process, artefact.ema_sigma_rel
    classes = f"{spec.num_classes} classes" if spec.num_classes else "no classes"
    profile = f", EMA profile of σ_rel = {width:g}" if width else ""
    return (
        f"**{escape_markdown(artefact.data.name)}**, {format_size(spec.pixel_shape)}, "
        f"{classes}: network {escape_markdown(spec.name)}, {artefact.step:,} steps of training, process "
        f"{escape_markdown(process.schedule)}, {escape_markdown(process.prediction)}{profile}."
    )


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], gap: str = "") -> str:
    """Return a table of texts; all columns but the first are right-aligned and begin with `gap`."""
    lines = [[first, *(f"{gap}{text}" for text in others)] for first, *others in (head, *rows)]
    lines.insert(1, ["---", *["---:"] * (len(head) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
