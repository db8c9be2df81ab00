"""The pictures of README.md and docs/: `python -m tests.pictures [--project FOLDER] NAME…`.

They show a project, by default this checkout: run `make demo` there first. `figures` are those of
docs/theory.md, `samples` is in docs/sweep.md, `terminal` in the README; the others are screenshots.
`notebooks` needs no project: it executes docs/notebooks and stores the outputs in them.
"""

import argparse
import io
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion.layout import MODEL, REPORT
from docs.site import notebook_pages
from tests.conftest import ROOT, command, environment
from tests.helpers.browser import CHROMIUM
from tests.helpers.mlflow_server import free_port, running_server
from tests.helpers.server_process import ServerProcess

DOCS = ROOT / "docs"
FOLDER = DOCS / "figures"
PICTURE = FOLDER / "samples.png"  # steps × η
STEPS, ETAS = (2, 5, 10, 50), (0.0, 0.5, 1.0)
COLUMNS = 100  # of the terminal
SIZE = {"width": 1120, "height": 700}  # of a page
ASSISTANT = 384  # width of MLflow's assistant in pixels
COLOURS = 128  # the pages have few
NOTEBOOKS = {"forward-1.png", "forward-2.png", "variance-1.png", "variance-2.png"}  # pictures of notebooks
COMPARED = "steps5-eta0", "steps10-eta0", "steps20-eta0", "steps50-eta0"  # cells of the sweep

FIGURES = {
    "model": ["model", "--profile", "digits"],
    "reverse-ancestral": ["reverse", "--index", "3", "--steps", "1000", "--eta", "1", "--noise", "learned"],
    "reverse-10-steps": ["reverse", "--index", "3", "--steps", "10"],
    "steps": ["steps", "--steps", "10", "--profile", "digits"],
    "samplers": ["samplers", "--steps", "10", "--spacing", "quadratic", "--profile", "digits"],
    "guided": ["reverse", "--index", "3", "--class", "8", "--steps", "10", "--guidance", "2"],
    "unguided": ["reverse", "--index", "3", "--class", "8", "--steps", "10"],
}


def figures(project: Path) -> None:
    """Draw the figures of docs/theory.md that `diffctl show` draws."""
    for name in FIGURES:
        make(name, project, FOLDER)


def notebooks(_: Path) -> None:
    """Store the outputs of the notebooks in them, and their figures of docs/theory.md."""
    notebook_pages.store_outputs()
    for path, content in notebook_pages.pages(executed=False):
        if (name := Path(path).name) in NOTEBOOKS:
            (FOLDER / name).write_bytes(content)


def make(name: str, project: Path, folder: Path) -> None:
    """Write a figure of a project's data and model into the folder."""
    arguments = ["show", *FIGURES[name], "--out", str(folder / f"{name}.svg")]
    subprocess.run(command(*arguments), cwd=project, env=environment({"PYTHONPATH": str(ROOT)}), check=True)


def samples(project: Path) -> None:
    """Draw the first images by steps and η, from the same noise, at 3/5 of the size in a report."""
    from diffusion.images.pictures import sheet
    from diffusion.model.model_file import load_model
    from diffusion.protocol.settings import SampleSettings
    from diffusion.report.figure_base import as_png
    from diffusion.report.figures import montage
    from diffusion.report.sample_pictures import TILE, TILE_COLUMNS
    from diffusion.sample.conditions import mixed_condition
    from diffusion.sample.generate import generate
    from diffusion.system.devices import default_device

    device = default_device()
    loaded = load_model(project / MODEL, device)
    tiles = {}
    for eta in ETAS:
        for steps in STEPS:
            settings = SampleSettings(steps=steps, eta=eta)
            condition = mixed_condition(loaded.artefact, settings, range(TILE))
            images = generate(loaded, settings, range(TILE), condition, device)
            tiles[steps, f"η = {eta:g}"] = sheet(images.numpy().transpose(0, 2, 3, 1), TILE_COLUMNS)
    with Image.open(io.BytesIO(as_png(montage(tiles)))) as drawn:
        size = (drawn.width * 3 // 5, drawn.height * 3 // 5)
        drawn.convert("L").resize(size, Image.Resampling.LANCZOS).quantize(32).save(PICTURE, optimize=True)


def terminal(project: Path) -> None:
    """Draw the output of `diffctl run` in a fresh clone of this checkout."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print("$ diffctl run")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "diffctl"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        env, both = environment({"PYTHONPATH": str(folder)}), subprocess.STDOUT
        done = subprocess.run(
            command("run"), cwd=folder, env=env, stdout=subprocess.PIPE, stderr=both, check=True
        )
    console.print(Text.from_ansi(done.stdout.decode()))
    console.save_svg(str(DOCS / "run.svg"), title="diffctl run")


def playground(page: Any, project: Path) -> bytes:
    """Return a screenshot of the playground, with images over steps and η."""
    from playwright.sync_api import expect

    with ServerProcess(project, name="playground") as server:
        page.goto(server.url)
        expect(page.locator("#about")).to_contain_text("classes")
        page.wait_for_load_state("networkidle")  # the versions in MLflow are loaded
        page.click("#tab-compare")
        page.fill("#compare [name=steps]", "2, 5, 10, 50")
        page.click("#compare .main")
        expect(page.locator("#compare .status")).to_contain_text("12 of 12 cells", timeout=120_000)
        return page.screenshot(full_page=True)


def report(page: Any, project: Path) -> bytes:
    """Return a screenshot of the start of the report."""
    page.goto((project / REPORT / "index.html").resolve().as_uri())
    return page.screenshot()


def mlflow(page: Any, project: Path) -> bytes:
    """Return a screenshot of MLflow's comparison of cells, without the assistant on the right."""
    from playwright.sync_api import expect

    from tracking.mlflow_pages import comparison_link
    from tracking.store import connect

    client = connect(f"sqlite:///{project.resolve() / 'mlflow.db'}")
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = {run.info.run_name: run.info for run in client.search_runs(experiments)}
    cells = [runs[name] for name in COMPARED]
    page.set_viewport_size({**SIZE, "width": SIZE["width"] + ASSISTANT})
    port, log = free_port(), project / "ui.log"
    address, line = f"http://127.0.0.1:{port}", command("ui", "--port", str(port))
    with running_server(line, f"{address}/health", log, cwd=project, env=environment()):
        page.goto(comparison_link(address, [cells[0].experiment_id], [cell.run_id for cell in cells]))
        page.get_by_text("fd_effnet_lite0_64").first.wait_for(timeout=120_000)
        expect(page.locator(".js-plotly-plot, svg.main-svg").first).to_be_visible(timeout=60_000)
        shot = page.screenshot(clip={"x": 0, "y": 0, **SIZE})
    log.unlink()
    return shot


def take_screenshot(shoot: Callable[[Any, Path], bytes], project: Path) -> None:
    """Write the screenshot of a page, as PNG with few colours."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shot = shoot(browser.new_page(viewport=SIZE), project)
        browser.close()
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(DOCS / f"{shoot.__name__}.png", optimize=True)


DRAWN = {function.__name__: function for function in (figures, notebooks, samples, terminal)}
PAGES = {function.__name__: function for function in (playground, report, mlflow)}


def main() -> None:
    """Draw the named pictures."""
    parser = argparse.ArgumentParser(description="Draw pictures of README.md and docs/.")
    parser.add_argument("names", metavar="NAME", nargs="+", choices=[*DRAWN, *PAGES])
    parser.add_argument("--project", type=Path, default=ROOT)
    given = parser.parse_args()
    for name in given.names:
        if name in DRAWN:
            DRAWN[name](given.project.resolve())
        else:
            take_screenshot(PAGES[name], given.project)


if __name__ == "__main__":
    main()
