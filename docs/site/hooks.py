"""Hooks of mkdocs.yml: they add the generated pages and link names of the library."""

import re
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from docs.site import benchmarks_page, commands_page, library_page, notebook_pages, params_page, root_pages
from docs.site.tables import ROOT


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the files of docs/."""
    for uri, content in _generated(executed=config.extra["execute"]):
        old = files.get_file_from_path(uri)
        if old:
            files.remove(old)
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Insert the docstrings of benchmarks; link notebooks to their pages and names to the reference."""
    markdown = re.sub(r"(\(notebooks/\w+)\.ipynb\)", r"\1.md)", markdown)
    return library_page.with_links(benchmarks_page.with_promises(markdown))


def on_serve(server: object, **_: object) -> object:
    """Rebuild the site when a source outside docs/ changes."""
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "diffusion", "cli"):
        server.watch(str(ROOT / name))  # type: ignore[attr-defined]
    return server


def _generated(executed: bool) -> Iterator[tuple[str, str | bytes]]:
    yield from root_pages.pages()
    yield "reference/params.md", params_page.text()
    yield "reference/commands.md", commands_page.text()
    yield "reference/library.md", library_page.text()
    yield from notebook_pages.pages(executed)
