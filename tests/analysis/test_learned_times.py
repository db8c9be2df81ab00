"""Learned times: dynamic programming against all paths, costs against their geometry, files and settings."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.analysis import learned_times
from diffusion.analysis.mixture import MixtureDenoiser, ring
from diffusion.check.dependency_checks import check_dependencies
from diffusion.check.findings import Project
from diffusion.config import load
from diffusion.layout import GRIDS, MODEL, PARAMS
from diffusion.model.model_file import load_model, read_artefact
from diffusion.process.denoiser import Condition
from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.grid import Cell, cell_settings
from diffusion.protocol.learned_grid import LearnedGrids, read_learned_grids
from diffusion.protocol.resolution import resolve_settings
from diffusion.protocol.sample_sections import SampleConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampler import build_sampler, run_sampler
from diffusion.sample.sampling_steps import sampling_grid
from diffusion.system.errors import UsageError
from tests.conftest import ROOT, write_params
from tests.helpers.invoke import assert_refused
from tests.helpers.networks import small_model
from tests.helpers.scores_document import document
from tests.helpers.trajectories import process_of, randn

RING = ring(5, 0.75, 0.08)


@given(st.integers(2, 8), st.integers(0, 10**6), st.data())
def test_dynamic_programming_finds_the_least_sum_of_all_paths(nodes, seed, data):
    """Costs may be negative, as the authors' are."""
    costs = randn(nodes, nodes, seed=seed).tolist()
    steps = data.draw(st.integers(1, nodes - 1))

    def total(path: tuple[int, ...]) -> float:
        return sum(1.15**m * costs[a][b] for m, (a, b) in enumerate(itertools.pairwise(path)))

    paths = [(0, *middle, nodes - 1) for middle in itertools.combinations(range(1, nodes - 1), steps - 1)]
    found = learned_times.best_path(costs, steps)
    assert total(tuple(found)) == pytest.approx(min(map(total, paths)))
    assert tuple(found) in paths


def test_costs_are_distances_from_the_line_between_both_ends():
    points, slopes, nodes = randn(5, 3, 7), randn(4, 3, 7, seed=1), [8.0, 3.0, 1.0, 0.2, 0.0]
    costs = learned_times.step_costs(points, slopes, nodes).numpy()
    for row, i, j in itertools.product(range(3), range(4), range(5)):
        if j <= i:
            assert costs[row, i, j] == np.inf
            continue
        start, end = points[0, row].numpy(), points[4, row].numpy()
        moved = points[i, row].numpy() + (nodes[j] - nodes[i]) * slopes[i, row].numpy()

        def away(x, a=start, b=end):
            share = (x - b) @ (a - b) / ((a - b) @ (a - b))
            return np.linalg.norm(x - b - share * (a - b))

        assert costs[row, i, j] == pytest.approx(away(moved) - away(points[j, row].numpy()))


@pytest.mark.parametrize("schedule", ["edm", "cosine", "flow"])
def test_learned_times_of_a_mixture_are_nearer_to_its_flow_than_edms(schedule):
    """A teacher of 60 steps, then DDIM in 6 from other noise."""
    process = build_process(ProcessConfig(schedule=schedule))
    denoiser, teacher = MixtureDenoiser(RING, process), learned_times.teacher_settings(process.config)
    options = dict(teacher.spacing_options)

    def ends(seed: int, **changes: object) -> torch.Tensor:
        chosen = SampleSettings(**{"clip": False, **changes})
        grid = sampling_grid(chosen, process)
        x = grid.initial_noise_scale * randn(200, 2, 1, 1, seed=seed)
        return run_sampler(build_sampler(chosen)(grid, x, lambda: x), denoiser, Condition(200)).x

    grid = sampling_grid(teacher, process)
    x = grid.initial_noise_scale * randn(64, 2, 1, 1)
    path = learned_times.teacher_path(denoiser, teacher, grid, x, Condition(64))
    nodes = learned_times.teacher_nodes(grid)
    costs = learned_times.step_costs(*path, nodes).mean(0).tolist()
    levels = [nodes[node] for node in learned_times.best_path(costs, 6)[:-1]]
    exact = ends(1, sampler="unipc", spacing="log-snr", steps=150, spacing_options=options)
    errors = [
        float((ends(1, steps=6, spacing=spacing, spacing_options=own) - exact).norm(dim=1).mean())
        for spacing, own in (("learned", {"levels": levels}), ("karras", options))
    ]
    assert errors[0] < errors[1]


def test_the_sampler_visits_the_levels_exactly():
    process = process_of("cosine", 100)
    chosen = [3, 20, 50, 99]
    levels = process.noise_level(torch.tensor(chosen)).flip(0).tolist()
    learned = SampleSettings(spacing="learned", steps=4, spacing_options={"levels": levels})
    found = sampling_grid(learned, process)
    listed = sampling_grid(SampleSettings(timesteps=chosen), process)
    assert found.times.tolist() == pytest.approx(chosen, abs=1e-9)
    assert torch.allclose(found.alpha, listed.alpha, rtol=1e-9)
    alone = SampleSettings(spacing="learned", steps=1, spacing_options={"levels": levels[:1]})
    assert sampling_grid(alone, process).times.tolist() == [99]


@pytest.fixture
def learned(project: Path, invoke) -> Path:
    """A project with a model and its learned times for 2 and 3 steps."""
    small_model(MODEL)
    done = invoke("grid", "--steps", "3,2", "--num", "3", "--batch-size", "2")
    assert done.code == 0, done.err
    return GRIDS


@pytest.mark.slow
def test_the_file_of_a_model_is_used_by_commands_and_cells(learned, project, invoke):
    grids = read_learned_grids(learned)
    assert grids.model_sha256 == read_artefact(MODEL).model_sha256
    assert sorted(grids.levels) == [2, 3]
    of_all = learned_times.learned_levels(
        load_model(MODEL), learned_times.teacher_settings(read_artefact(MODEL).process), [3], 3, 3, print
    )
    assert of_all[3] == pytest.approx(grids.levels[3]), "whatever the batch size"
    chosen = ["sample", "--out", "x.npz", "--num", "2", "--spacing", "learned"]
    use = ["--spacing-option", f"file={learned}"]
    made = json.loads(invoke(*chosen, *use, "--steps", "3", "--json").out)
    assert made["spacing_options"] == {"levels": list(grids.levels[3]), "model_sha256": grids.model_sha256}
    section = SampleConfig(num_images=2, spacing="learned", spacing_options={"file": str(learned)})
    settings = cell_settings(section, Cell(steps=3, eta=0.0))
    assert settings.spacing_options["levels"] == grids.levels[3]
    assert_refused(invoke(*chosen, *use, "--steps", "4"), f"{learned} has times for 2, 3 steps, not 4")
    assert_refused(invoke(*chosen, "--steps", "3"), "spacing learned needs the times of a model")
    missing = invoke(*chosen, "--spacing-option", "file=none.json", "--steps", "3")
    assert_refused(missing, "there is no file of learned times none.json: `diffctl grid")
    number = invoke(*chosen, "--spacing-option", "file=5", "--steps", "3")
    assert_refused(number, "spacing_options of learned", "file", "5")
    Path("other.json").write_text("{}")
    assert_refused(
        invoke(*chosen, "--spacing-option", "file=other.json", "--steps", "3"), "other.json: ", "levels"
    )
    small_model(MODEL, seed=1)
    assert_refused(invoke(*chosen, *use, "--steps", "3"), "the learned times are of model")
    assert_refused(invoke("grid", "--steps", "61"), "61 steps are more than the 60 of the teacher")


def test_the_file_must_be_a_dependency_of_the_stage(project, monkeypatch):
    monkeypatch.chdir(project)
    levels = {2: (9.0, 0.5), 3: (9.0, 0.5, 0.1)}
    GRIDS.write_text(LearnedGrids(model_sha256="0" * 64, learned={}, levels=levels).model_dump_json())
    shutil.copy(ROOT / "dvc.yaml", project)
    write_params(
        project,
        sample={"spacing": "learned", "spacing_options": {"file": str(GRIDS)}},
        sweep={"steps": [2, 3]},
    )
    project = Project(load(PARAMS))
    (found,) = check_dependencies(project)
    assert found.message.startswith(f"{GRIDS} is no dependency of the stage sample")


def test_a_served_model_has_the_learned_times_of_its_sweep():
    scores = document({(2, 0.0): 0.2, (3, 0.0): 0.1})
    for cell in scores.cells.values():
        options = {"levels": [9.0, 0.4, 0.1][: cell.steps]}
        cell.card.update(spacing="learned", spacing_options=json.dumps(options), steps=cell.steps)
    for chosen in (
        {"steps": 2},
        {"steps": 2, "spacing": "learned"},
        {"steps": 2, "sampler": "ipndm", "spacing": "learned"},
    ):
        assert resolve_settings("edm", chosen, scores).settings.spacing_options["levels"] == [9.0, 0.4]
    even = {"steps": 50, "spacing": "uniform"}
    assert resolve_settings("edm", even, scores).settings.spacing_options == {}
    with pytest.raises(UsageError, match=r"the sweep has learned times for 2, 3 steps, not 50"):
        resolve_settings("edm", {"steps": 50}, scores)
