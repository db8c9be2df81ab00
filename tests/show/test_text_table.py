"""Figures in a terminal: where symbols, shades and dots come to lie."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from diffusion.show.text_table import BRAILLE, SHADES, Axis, columns, dots, marks, plot, strip, wrapped

POINTS = np.linspace(0, 1, 50)


def test_a_rising_line_rises_and_its_ends_are_named() -> None:
    lines = plot({"up": (POINTS, 3 * POINTS)}, 60, 10, about="y by x")
    assert lines[0] == "y by x    ● up"
    rows = lines[1:11]
    assert rows[0].startswith("3 │")
    assert rows[0].endswith("●")
    assert rows[-1].startswith("0 │●")
    assert lines[-1].split() == ["0", "1"]
    places = [row.index("●") for row in rows]
    assert places == sorted(places, reverse=True)


def test_what_is_not_finite_is_left_out() -> None:
    y = np.where(POINTS < 0.5, np.nan, 1.0)
    assert sum(line.count("●") for line in plot({"half": (POINTS, y)}, 60)[1:]) <= 30


@given(st.lists(st.floats(0, 99), min_size=1, max_size=30), st.integers(5, 80))
def test_every_value_has_its_mark(values: list[float], width: int) -> None:
    drawn = marks(np.array(values), Axis(0, 99), width)
    assert len(drawn) == width
    assert sum({"·": 0, "│": 1, "┃": 2, "█": 3}[mark] for mark in drawn) <= len(values)
    assert set(drawn) != {"·"}


def test_an_image_is_as_light_as_its_shades() -> None:
    image = np.array([[[0], [255]], [[128], [60]]], dtype=np.uint8)
    lines = strip(image[None], ["one"], 60)
    assert lines == ["one", f"{SHADES[0] * 2}{SHADES[4] * 2}", f"{SHADES[2] * 2}{SHADES[1] * 2}", ""]


@given(st.integers(1, 9), st.integers(1, 40), st.integers(60, 120))
def test_images_are_as_many_a_row_as_fit(count: int, side: int, width: int) -> None:
    images = np.full((count, side, side, 3), 255, np.uint8)
    lines = strip(images, [f"t = {place}" for place in range(count)], width)
    assert max(map(len, lines)) <= width
    assert sum(line.count("t = ") for line in lines) == count


@given(st.floats(-1.9, 1.9), st.floats(-1.9, 1.9))
def test_a_point_is_one_dot_where_it_lies(x: float, y: float) -> None:
    drawn = dots(np.array([[x, y]]), 2.0, 20, 10)
    lit = [(row, column) for row, line in enumerate(drawn) for column, c in enumerate(line) if c != "⠀"]
    assert len(lit) == 1
    (row, column) = lit[0]
    assert abs((column + 0.5) / 20 * 4 - 2 - x) <= 0.11
    assert abs(2 - (row + 0.5) / 10 * 4 - y) <= 0.21
    assert ord(drawn[row][column]) - 0x2800 in {bit for pair in BRAILLE for bit in pair}
    assert dots(np.array([[2.5, 0.0]]), 2.0, 4, 2) == ["⠀⠀⠀⠀"] * 2


def test_columns_are_aligned_by_what_is_seen() -> None:
    assert columns([["a", "n"], ["x̂_0", "12"], ["word", "3"]], 1) == ["a      n", "x̂_0   12", "word   3"]


def test_words_are_wrapped_with_their_indent() -> None:
    assert wrapped(map(str, range(5)), 6, indent=2) == ["  0 1", "  2 3", "  4"]
