"""Tables of the reference in Markdown."""

import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CODE_OR_BAR = re.compile(r"(`[^`]*`)|\|")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that a phone shows with cells below each other (site.css)."""
    lines = [head, ["---"] * len(head), *rows]
    body = "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)
    return f'<div class="reference" markdown>\n\n{body}\n\n</div>\n'


def with_part(markdown: str, name: str, text: str) -> str:
    """Return the page with this text between its comments `name` and `/name`."""
    before, _, rest = markdown.partition(f"<!-- {name} -->")
    after = rest.partition(f"<!-- /{name} -->")[2]
    return f"{before}<!-- {name} -->\n\n{text}\n\n<!-- /{name} -->{after}"


def cell(text: str) -> str:
    """Return text as a cell: in one line, with bars escaped outside code."""
    return CODE_OR_BAR.sub(lambda found: found[1] or "\\|", " ".join(text.split()))


def literal(text: str) -> str:
    """Return text as inline code."""
    return f"`{text}`" if text else ""
