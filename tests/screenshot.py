"""The pictures of pages in README.md and docs/: `python -m tests.screenshot [FOLDER [NAME…]]`.

The pages are those of a project, by default of this folder, in which `make demo` has been run; without names
they are all made.
"""

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from diffusion.layout import REPORT
from tests.conftest import ROOT, command, environment
from tests.helpers.browser import CHROMIUM
from tests.helpers.mlflow_server import free_port, wait_for
from tests.helpers.server_process import ServerProcess

FOLDER = ROOT / "docs"
SIZE = {"width": 1120, "height": 700}
ASSISTANT = 384  # pixels of MLflow's page
COLOURS = 128  # the pages have few
COMPARED = "steps5-eta0", "steps10-eta0", "steps20-eta0", "steps50-eta0"  # cells of the sweep


def playground(page: Page, project: Path) -> bytes:
    """The page to try a model by, with images over steps and η."""
    server = ServerProcess(project, name="playground")
    try:
        page.goto(server.url)
        expect(page.locator("#about")).to_contain_text("classes")
        page.wait_for_load_state("networkidle")  # MLflow has said which versions there are
        page.click("#tab-compare")
        page.fill("#compare [name=steps]", "2, 5, 10, 50")
        page.click("#compare .main")
        expect(page.locator("#compare .said")).to_contain_text("12 of 12 cells", timeout=120_000)
        return page.screenshot(full_page=True)
    finally:
        server.kill()


def report(page: Page, project: Path) -> bytes:
    """The report's first screen."""
    page.goto((project / REPORT / "index.html").resolve().as_uri())
    return page.screenshot()


def mlflow(page: Page, project: Path) -> bytes:
    """MLflow's page that compares cells of the sweep, without the assistant that it shows on the right."""
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
    """The address of `diffctl ui` over the project while the block runs."""
    port = free_port()
    address, log = f"http://127.0.0.1:{port}", project / "ui.log"
    with open(log, "wb") as said:
        server = subprocess.Popen(
            command("ui", "--port", str(port)), cwd=project, env=environment(), stdout=said, stderr=said
        )
    try:
        wait_for(f"{address}/health", server, log)
        yield address
    finally:
        server.terminate()
        server.wait()
        log.unlink()


PICTURES: dict[str, Callable[[Page, Path], bytes]] = {
    made.__name__: made for made in (playground, report, mlflow)
}


def write(name: str, project: Path) -> None:
    """Write a page of the project, as PNG of few colours."""
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
