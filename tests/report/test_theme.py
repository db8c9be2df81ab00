"""The line colours: how different they appear to each kind of colour vision."""

from itertools import combinations

import pytest

from diffusion.report.theme import DARK, LIGHT, LINES
from tests.helpers.browser import EYES, apart, contrast, lab, linear

SCHEMES = pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])


def test_colour_measures_have_known_values() -> None:
    assert lab(linear("#ff0000")) == pytest.approx([53.24, 80.09, 67.20], abs=0.01)
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    for eye in EYES.values():  # grey is grey to every eye
        assert eye.sum(1) == pytest.approx([1, 1, 1], abs=1e-5)
    red, green = "#a05000", "#5a7800"
    assert apart(red, green, EYES["deuteranopia"]) < 0.4 * apart(red, green, EYES["all cones"])


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
