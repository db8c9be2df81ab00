"""docs/theory.md: every formula names its code; `diffctl show` or a notebook creates every figure."""

import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from diffusion.system.registry import load_reference
from tests.conftest import ROOT
from tests.pictures import FIGURES, FOLDER, NOTEBOOKS, PICTURE, make

PAGE = (ROOT / "docs/theory.md").read_text(encoding="utf-8")
BLOCKS = PAGE.split("\n\n")
FORMULAS = [
    (block, after)
    for block, after in itertools.pairwise(BLOCKS)
    if block.startswith("    ") and "diffctl" not in block
]
REFERENCE = re.compile(r"`(diffusion(?:\.\w+)+:[\w.]+)`")
WITHOUT_MODEL = ("model", "steps")  # created in seconds from only a profile


@pytest.mark.parametrize(("formula", "after"), FORMULAS)
def test_every_formula_names_its_code(formula: str, after: str) -> None:
    assert after.startswith("→ ")
    assert REFERENCE.search(after)


@pytest.mark.parametrize("reference", sorted(set(REFERENCE.findall(PAGE))))
def test_named_code_exists_and_has_a_docstring(reference: str) -> None:
    named = load_reference(reference)
    assert isinstance(named, dict) or named.__doc__


def test_figures_match_the_commands_in_the_page() -> None:
    files = {*(f"{name}.svg" for name in FIGURES), *NOTEBOOKS}
    assert set(re.findall(r"\(figures/([\w.-]+)\)", PAGE)) == files
    assert {file.name for file in FOLDER.glob("*")} == {*files, PICTURE.name}
    for name, arguments in FIGURES.items():
        assert f"`diffctl show {' '.join(arguments)}`" in PAGE, name


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_MODEL)
def test_command_reproduces_the_figure(name: str, tmp_path: Path) -> None:
    make(name, ROOT, tmp_path)
    made, kept = (ET.parse(folder / f"{name}.svg").getroot() for folder in (tmp_path, FOLDER))
    assert made.get("aria-label") == kept.get("aria-label")
    texts = [[text.text for text in root.iter("{http://www.w3.org/2000/svg}text")] for root in (made, kept)]
    assert texts[0] == texts[1]
