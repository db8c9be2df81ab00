"""The docstrings of benchmarks in docs/benchmarks.md."""

import ast
from collections.abc import Iterator
from pathlib import Path

from docs.site.tables import ROOT

MARK = "<!-- promises -->"


def with_promises(markdown: str) -> str:
    """Replace the mark of a page, if it has one, by the docstrings of all benchmarks."""
    return markdown.replace(MARK, "\n".join(_sections())) if MARK in markdown else markdown


def _sections() -> Iterator[str]:
    for file in sorted((ROOT / "benchmarks").glob("*.py")):
        if is_run(file):
            docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            yield f"### benchmarks.{file.stem}\n\n{docstring}\n"


def is_run(file: Path) -> bool:
    """Return whether a module is a benchmark that `python -m` runs."""
    return file.stem != "__main__" and '\nif __name__ == "__main__":' in file.read_text(encoding="utf-8")
