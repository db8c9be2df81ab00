from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from diffusion.choice.budget import pareto_front, recommended
from diffusion.protocol.scores import CellScores
from diffusion.protocol.settings import SampleSettings


def cells_of(points):
    """Cells with (steps, guidance) and a distance."""
    return {
        str(number): CellScores(
            steps=steps,
            eta=0.0,
            scores={"fid": distance, "kid": distance},
            card={
                "evaluations": SampleSettings(steps=steps, guidance=guidance).evaluations,
                "extractor": "inception-v3-compat",
                "num_images": 10,
                "data": "digits",
            },
        )
        for number, (steps, guidance, distance) in enumerate(points)
    }


POINTS = st.lists(
    st.tuples(st.integers(1, 50), st.sampled_from([0.0, 1.5]), st.integers(0, 20).map(float)), min_size=1
)


def test_the_front_is_what_nothing_beats():
    cells = cells_of([(5, 0.0, 9.0), (10, 0.0, 9.0), (10, 1.5, 4.0), (20, 0.0, 5.0), (50, 0.0, 6.0)])
    assert [(choice.cell, choice.evaluations) for choice in pareto_front(cells)] == [("0", 5), ("2", 20)]


@given(POINTS, st.integers(1, 100))
def test_the_recommended_cell_is_the_best_that_the_budget_buys(points, budget):
    cells = cells_of(points)
    affordable = {name: cell for name, cell in cells.items() if cell.evaluations <= budget}
    choice = recommended(cells, budget)
    if not affordable:
        assert choice is None
        return
    best = min(cell.scores["fid"] for cell in affordable.values())
    assert choice.distance == best
    equal = [cell for cell in affordable.values() if cell.scores["fid"] == best]
    assert choice.evaluations == min(cell.evaluations for cell in equal)


@given(POINTS)
def test_along_the_front_more_evaluations_are_better(points):
    front = pareto_front(cells_of(points))
    assert front
    for before, after in pairwise(front):
        assert before.evaluations < after.evaluations
        assert before.distance > after.distance
