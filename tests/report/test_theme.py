"""The lines' colours for every kind of eye: how far apart they are, computed as a viewer sees them."""

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion.report.theme import DARK, LIGHT, LINES

Floats = NDArray[np.float64]

# What a missing kind of cone makes of linear sRGB: the matrices at severity 1 of Machado, Oliveira and
# Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency".
EYES = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)  # of linear sRGB, for D65
SCHEMES = pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])


def linear(colour: str) -> Floats:
    """The linear sRGB (3,) of a colour such as #0b62a8."""
    values = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: Floats) -> Floats:
    """CIE L*a*b* (3,) of linear sRGB, with D65 as white."""
    scaled = TO_XYZ @ rgb / TO_XYZ.sum(1)
    x, y, z = np.where(scaled > 216 / 24389, np.cbrt(scaled), (24389 / 27 * scaled + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def apart(one: str, other: str, eye: Floats) -> float:
    """ΔE of 1976 between two colours as this eye sees them; about 2.3 is just seen side by side."""
    a, b = (lab(np.clip(eye @ linear(colour), 0, 1)) for colour in (one, other))
    return float(np.linalg.norm(a - b))


def contrast(one: str, other: str) -> float:
    """The contrast of WCAG 2: 1 to 21."""
    low, high = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def test_the_measures_are_those_that_are_known() -> None:
    assert lab(linear("#ff0000")) == pytest.approx([53.24, 80.09, 67.20], abs=0.01)
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    for eye in EYES.values():  # grey is grey to every eye
        assert eye.sum(1) == pytest.approx([1, 1, 1], abs=1e-5)
    red, green = "#a05000", "#5a7800"
    assert apart(red, green, EYES["deuteranopia"]) < 0.4 * apart(red, green, EYES["all cones"])


@SCHEMES
@pytest.mark.parametrize("eye", EYES)
def test_every_eye_tells_any_two_lines_apart(colours: dict[str, str], eye: str) -> None:
    found = {(a, b): apart(colours[a], colours[b], EYES[eye]) for a, b in combinations(LINES, 2)}
    close = {pair: distance for pair, distance in found.items() if distance < 15}
    assert close.keys() <= {("line0", "line2")}, close  # blue and teal, which only tritanopia brings near
    assert min(found.values()) > 10


@SCHEMES
def test_lines_stand_out_from_what_they_are_drawn_on(colours: dict[str, str]) -> None:
    for ground in ("paper", "panel"):
        assert min(contrast(colours[line], colours[ground]) for line in LINES) > 3
