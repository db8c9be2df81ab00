"""The stage `sample`: the images of every cell."""

from cli.shared.progress import progress
from cli.stages.context import preflight
from diffusion.layout import MODEL, SAMPLES
from diffusion.protocol.grid import grid
from diffusion.protocol.sample_sections import SampleConfig, SweepConfig
from diffusion.sample.cell_images import drop_other_cells
from diffusion.sample.network_files import CellFiles
from diffusion.system.params import load_section
from flows.sweep_cells import run_sweep


def run_stage() -> None:
    """Sample every cell that is not complete."""
    preflight("sample")
    section = load_section("sample", SampleConfig)
    cells = grid(section, load_section("sweep", SweepConfig))
    files = CellFiles(MODEL, section, cells)
    drop_other_cells(SAMPLES, cells)
    run_sweep(section, cells, files, SAMPLES, progress)
