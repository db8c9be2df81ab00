"""Samples of sets of images: which share of one set is in another."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.images.store import DIGITS, SAMPLED, TAG_LENGTH, contained_share, image_sample


@given(st.integers(0, 2**32), st.integers(1, 1000), st.integers(0, 8000), st.floats(0, 1))
def test_share_is_exact_for_subsets_and_near_for_others(seed, count, more, kept):
    """A set of `count` images; other ones have all or the part `kept` of them, and `more` images."""
    pool = np.random.default_rng(seed).integers(0, 256, (count + more, 32), np.uint8)
    tag = image_sample([pool[:count]])[:TAG_LENGTH]
    assert contained_share(tag, image_sample([pool[more:], pool])) in (1, None), "in parts, with copies"
    stay = round(kept * count)
    share = contained_share(tag, image_sample([pool[count - stay :]])) if stay + more else None
    tested = min(TAG_LENGTH / DIGITS, count) * min(1.0, SAMPLED / max(1, stay + more))
    if share is not None:
        assert share == pytest.approx(stay / count, abs=max(0.02, 6 * (0.25 / tested) ** 0.5))
