"""The spacing has its closed form."""

from diffusion.protocol.spacing import SPACINGS
from diffusion.system.section import NoOptions


def test_times_are_cubes_of_even_numbers() -> None:
    assert SPACINGS["cubic"].between(5, 0, 64, NoOptions()) == [0, 1, 8, 27, 64]
