"""Take the screenshots of README.md and docs/: `python -m tests.screenshot [FOLDER [NAME…]]`.

The pages show a project, by default this checkout. Run `make demo` there first. Without names, all
screenshots are taken.
"""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from diffusion.layout import REPORT
from tests.conftest import ROOT, command, environment
from tests.helpers.browser import CHROMIUM
from tests.helpers.mlflow_server import free_port, running_server
from tests.helpers.server_process import ServerProcess

FOLDER = ROOT / "docs"
SIZE = {"width": 1120, "height": 700}
ASSISTANT = 384  # width of MLflow's assistant in pixels
COLOURS = 128  # the pages have few
COMPARED = "steps5-eta0", "steps10-eta0", "steps20-eta0", "steps50-eta0"  # cells of the sweep


def playground(page: Page, project: Path) -> bytes:
    """Return a screenshot of the playground, with images over steps and η."""
    server = ServerProcess(project, name="playground")
    try:
        page.goto(server.url)
        expect(page.locator("#about")).to_contain_text("classes")
        page.wait_for_load_state("networkidle")  # the versions in MLflow are loaded
        page.click("#tab-compare")
        page.fill("#compare [name=steps]", "2, 5, 10, 50")
        page.click("#compare .main")
        expect(page.locator("#compare .status")).to_contain_text("12 of 12 cells", timeout=120_000)
        return page.screenshot(full_page=True)
    finally:
        server.kill()


def report(page: Page, project: Path) -> bytes:
    """Return a screenshot of the start of the report."""
    page.goto((project / REPORT / "index.html").resolve().as_uri())
    return page.screenshot()


def mlflow(page: Page, project: Path) -> bytes:
    """Return a screenshot of MLflow's comparison of cells, without the assistant on the right."""
    from tracking.mlflow_pages import comparison_link
    from tracking.store import connect

    client = connect(f"sqlite:///{project.resolve() / 'mlflow.db'}")
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = {run.info.run_name: run.info for run in client.search_runs(experiments)}
    cells = [runs[name] for name in COMPARED]
    page.set_viewport_size({**SIZE, "width": SIZE["width"] + ASSISTANT})
    with ui(project) as address:
        page.goto(comparison_link(address, [cells[0].experiment_id], [cell.run_id for cell in cells]))
        page.get_by_text("fd_effnet_lite0_64").first.wait_for(timeout=120_000)
        expect(page.locator(".js-plotly-plot, svg.main-svg").first).to_be_visible(timeout=60_000)
        return page.screenshot(clip={"x": 0, "y": 0, "width": SIZE["width"], "height": SIZE["height"]})


@contextmanager
def ui(project: Path) -> Iterator[str]:
    """Run `diffctl ui` for the project and yield its address."""
    port = free_port()
    address, log = f"http://127.0.0.1:{port}", project / "ui.log"
    line = command("ui", "--port", str(port))
    with running_server(line, f"{address}/health", log, cwd=project, env=environment()):
        yield address
    log.unlink()


PICTURES: dict[str, Callable[[Page, Path], bytes]] = {
    function.__name__: function for function in (playground, report, mlflow)
}


def write(name: str, project: Path) -> None:
    """Write the screenshot of a page, as PNG with few colours."""
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shot = PICTURES[name](browser.new_page(viewport=SIZE), project)
        browser.close()
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    folder, *names = sys.argv[1:] or [str(ROOT)]
    for name in names or PICTURES:
        write(name, Path(folder))
