"""Numbers and tables as text."""

from hypothesis import given
from hypothesis import strategies as st

from diffusion.show.figure import columns, format_quantity, wrapped


@given(st.integers(0, 10**17))
def test_quantity_is_exact_within_half_a_percent(amount: int) -> None:
    value, _, letter = format_quantity(amount).partition(" ")
    assert len(value.replace(".", "").lstrip("0")) <= 3
    read = float(value) * 1000 ** (" kMGTP".index(letter) if letter else 0)
    assert abs(read - amount) <= 0.005 * amount


def test_columns_are_aligned_by_visible_width() -> None:
    assert columns([["a", "n"], ["x̂_0", "12"], ["word", "3"]], 1) == ["a      n", "x̂_0   12", "word   3"]


def test_words_are_wrapped_with_an_indent() -> None:
    assert wrapped(map(str, range(5)), 6, indent=2) == ["  0 1", "  2 3", "  4"]
