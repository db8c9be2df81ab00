"""The notebooks as pages, with the outputs of this build or the stored ones."""

import base64
import tempfile
from collections.abc import Iterator
from typing import Any

from docs.site.tables import ROOT

FOLDER = ROOT / "docs/notebooks"
MAX_CELL_SECONDS = 300  # on a busy machine
Node = Any


def pages(executed: bool) -> Iterator[tuple[str, str | bytes]]:
    """Yield the path and content of each notebook's pictures and page."""
    import nbformat

    for file in sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(file, as_version=4)  # type: ignore[no-untyped-call]
        yield from page(file.stem, execute(notebook) if executed else notebook)


def execute(notebook: Node) -> Node:
    """Return the notebook after a run in an empty folder; raise the error of a cell that fails."""
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory(prefix="diffctl-notebook-") as folder:
        options: dict[str, Any] = {"record_timing": False, "coalesce_streams": True}  # reproducible outputs
        options |= {"resources": {"metadata": {"path": folder}}, "extra_arguments": ["--log-level=ERROR"]}
        return NotebookClient(notebook, timeout=MAX_CELL_SECONDS, **options).execute()


def store_outputs() -> None:
    """Execute all notebooks and write them back with their outputs."""
    import nbformat

    for file in sorted(FOLDER.glob("*.ipynb")):
        executed = execute(nbformat.read(file, as_version=4))  # type: ignore[no-untyped-call]
        executed.metadata.language_info = {"name": "python"}  # without the version
        nbformat.write(executed, file)  # type: ignore[no-untyped-call]


def page(name: str, notebook: Node) -> Iterator[tuple[str, str | bytes]]:
    """Yield a notebook's pictures as PNG, then its text as Markdown."""
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
    source = f"*The notebook of this page: [{name}.ipynb]({name}.ipynb).*"
    yield f"notebooks/{name}.md", "\n\n".join([*parts, source]) + "\n"
