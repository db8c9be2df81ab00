"""Errors as a document holds them."""

import math

import numpy as np
import pytest

from diffusion.protocol.float_codec import pack, unpack


def test_packed_errors_come_back_as_float32() -> None:
    errors = np.random.default_rng(0).normal(size=200)
    lines = pack(errors)
    assert max(map(len, lines)) <= 100
    np.testing.assert_array_equal(np.array(unpack(lines), np.float32), errors.astype(np.float32))
    assert unpack(pack([])) == ()


@pytest.mark.parametrize("lines", [["AAAA"], ["?"], ["é"], ["AAA"], pack([math.inf]), pack([math.nan])])
def test_what_are_no_errors_is_refused(lines: list[str]) -> None:
    with pytest.raises(ValueError, match=r"base64|padd|ASCII|float32|finite|multiple of 4"):
        unpack(lines)
