"""The stage `sample`: the images of every cell."""

from pathlib import Path

from cli.shared.console import progress
from cli.stages.context import preflight
from diffusion.layout import MODEL, SAMPLES
from diffusion.model.model_file import read_artefact, warn_of_edited_plugins
from diffusion.protocol.grid import grid
from diffusion.protocol.sample_sections import SampleConfig, SweepConfig
from diffusion.sample.cell_images import drop_other_cells
from diffusion.sample.network_files import CellFiles
from diffusion.system.params import load_section
from flows.sweep_cells import run_sweep
from tracking.runs.base_models import fetch_base


def run_stage(_: object) -> None:
    """Sample every cell that is not complete."""
    preflight("sample")
    sample_cells(MODEL, load_section("sample", SampleConfig), load_section("sweep", SweepConfig), SAMPLES)


def sample_cells(model: Path, section: SampleConfig, sweep: SweepConfig, samples: Path) -> None:
    """Sample every cell of the grid into `samples`. Complete cells are reused, others removed."""
    fetch_base(section.base)
    warn_of_edited_plugins(model, read_artefact(model))  # also if every cell is complete
    cells = grid(section, sweep)
    files = CellFiles(model, section, cells)
    drop_other_cells(samples, cells)
    run_sweep(section, cells, files, samples, progress)
