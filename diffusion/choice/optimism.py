"""What choosing does to a score: the least of many is too low, since chance helped to choose it."""

from collections.abc import Sequence

import numpy as np

from diffusion.choice.confidence import errors_of, share_noise
from diffusion.protocol.scores import ImageScores

DRAWS = 4000
STEP = 0.5  # how far the scores that choose are moved, in standard deviations of theirs: nearer costs draws
SEED = 2020


def optimism(cells: Sequence[ImageScores], metric: str) -> float | None:
    """How much too low the least score of these cells is on average, ≥ 0; None where one has no errors.

    Scores v of errors with covariance V are split by noise δ ~ N(0, V): v + sδ and v − δ/s are independent
    (Rasines & Young 2023, 2102.02159; for s = 1 they are the scores by two halves of the images). The first
    choose a cell, and of it the second tell without bias, so that v is too low by the mean of −δ/s. It is
    right on average over sweeps; of one it is a rough number.
    """
    errors = [errors_of(cell, metric) for cell in cells]
    known = [one for one in errors if one is not None]
    if len(known) < len(cells):
        return None
    if len(cells) < 2:
        return 0.0
    values = np.array([cell.scores[metric] for cell in cells])
    draw = np.random.default_rng(SEED)
    if all(share_noise(cells[0], cell) for cell in cells[1:]):
        whole = np.stack(known).astype(np.float64)
        moved = draw.normal(size=(DRAWS, whole.shape[1])) @ whole.T
    else:
        moved = draw.normal(size=(DRAWS, len(cells))) * [float(np.linalg.norm(one)) for one in known]
    chosen = (values + STEP * moved).argmin(axis=1)
    return max(0.0, -float(moved[np.arange(DRAWS), chosen].mean()) / STEP)
