"""The notebooks as pages: executed for this build, with what they print and draw."""

import base64
import tempfile
from collections.abc import Iterator
from typing import Any

from docs.site.tables import ROOT

FOLDER = ROOT / "docs/notebooks"
LONGEST = 300  # s that a cell may take on a busy machine
Node = Any


def pages(executed: bool) -> Iterator[tuple[str, str | bytes]]:
    """Each notebook's place and text, and those of its pictures."""
    import nbformat

    for file in sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(file, as_version=4)  # type: ignore[no-untyped-call]
        yield from page(file.stem, execute(notebook) if executed else notebook)


def execute(notebook: Node) -> Node:
    """The notebook after a run in an empty folder; the error of a cell that fails."""
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory(prefix="diffctl-notebook-") as folder:
        resources = {"metadata": {"path": folder}}
        quiet = ["--log-level=ERROR"]
        return NotebookClient(notebook, timeout=LONGEST, resources=resources, extra_arguments=quiet).execute()


def page(name: str, notebook: Node) -> Iterator[tuple[str, str | bytes]]:
    """A notebook as Markdown, after its pictures as PNG."""
    parts, pictures = [], 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source.replace(".ipynb)", ".md)"))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                pictures += 1
                yield f"notebooks/{name}-{pictures}.png", base64.b64decode(data["image/png"])
                parts.append(f"![{cell.metadata.get('alt', 'What the cell draws')}]({name}-{pictures}.png)")
            elif text := output.get("text") or data.get("text/plain"):
                parts.append(f"```text\n{text.rstrip()}\n```")
    source = f"*Executed when this page was built: [{name}.ipynb]({name}.ipynb) without what it prints.*"
    yield f"notebooks/{name}.md", "\n\n".join([*parts, source]) + "\n"
