"""The stage `sample`: the images of every cell."""

from collections.abc import Mapping
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
from tracking.runs.base_models import update_base


def run_stage(_: object) -> None:
    """Sample every cell that is not complete."""
    preflight("sample")
    section, sweep = load_section("sample", SampleConfig), load_section("sweep", SweepConfig)
    sample_cells(MODEL, section, sweep, SAMPLES, update_base(section.base))


def sample_cells(
    model: Path,
    section: SampleConfig,
    sweep: SweepConfig,
    samples: Path,
    base: Path | None,
    known: Mapping[str, Path] = {},
) -> None:
    """Sample every cell of the grid into `samples`, with the files of `CellFiles`.

    Complete cells are reused, others removed.
    """
    warn_of_edited_plugins(model, read_artefact(model))  # also if every cell is complete
    cells = grid(section, sweep)
    files = CellFiles(model, section, cells, base, known)
    drop_other_cells(samples, cells)
    run_sweep(section, cells, files, samples, progress)
