"""The line colours: how different they appear to each kind of colour vision."""

from itertools import combinations

import pytest

from diffusion.report.theme import DARK, LIGHT, LINES
from tests.helpers.browser import EYES, apart, contrast

SCHEMES = pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])


@SCHEMES
@pytest.mark.parametrize("eye", EYES)
def test_any_two_lines_differ_for_every_colour_vision(colours: dict[str, str], eye: str) -> None:
    found = {(a, b): apart(colours[a], colours[b], EYES[eye]) for a, b in combinations(LINES, 2)}
    close = {pair: distance for pair, distance in found.items() if distance < 15}
    assert close.keys() <= {("line0", "line2")}, close  # blue and teal, which only tritanopia brings near
    assert min(found.values()) > 10


@SCHEMES
def test_lines_have_contrast_with_the_background(colours: dict[str, str]) -> None:
    for ground in ("paper", "panel"):
        assert min(contrast(colours[line], colours[ground]) for line in LINES) > 3
