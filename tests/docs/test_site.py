"""The site is built strictly, and is read without a network, on a phone too; its notebooks are executed."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import ROOT, run_python
from tests.helpers.browser import NEEDS_CHROMIUM, PHONE, WIDE

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
pytestmark = pytest.mark.slow
LOADED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=\"?([^\" >]+)")
PAGES = ("index.html", "tutorial.html", "theory.html", "reference/params.html", "notebooks/card.html")


def build_site(folder: Path, **environ: str) -> Path:
    """Build the site as `make docs` does; a warning is an error."""
    arguments = ("build", "--strict", "--quiet", "--site-dir", str(folder))
    done = run_python(ROOT, "-m", "mkdocs", *arguments, env={"NO_MKDOCS_2_WARNING": "1", **environ})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout + done.stderr == ""
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site; its notebooks are not executed."""
    return build_site(tmp_path_factory.mktemp("site") / "site", DOCS_EXECUTE="false")


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        loaded = LOADED.findall(page.read_text(encoding="utf-8"))
        assert loaded
        assert [url for url in loaded if re.match(r"(https?:)?//", url)] == [], page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", style.read_text(encoding="utf-8"))


@pytest.mark.long
def test_notebooks_show_what_they_printed_and_drew(tmp_path: Path) -> None:
    site = build_site(tmp_path / "site")
    assert "of the roll" in (site / "notebooks/swiss_roll.html").read_text(encoding="utf-8")
    assert "model_sha256" in (site / "notebooks/card.html").read_text(encoding="utf-8")
    for name in ("swiss_roll-1", "finetuning-1", "forward-2", "variance-2"):
        assert (site / f"notebooks/{name}.png").stat().st_size > 5_000


@NEEDS_CHROMIUM
def test_still_of_the_terminal_shows_the_finished_run(browser) -> None:
    page = browser.new_page(viewport=WIDE)
    page.goto((ROOT / "docs/run.svg").as_uri())
    stills = [
        page.evaluate(
            """time => { document.getAnimations().forEach(one => { one.pause(); one.currentTime = time });
            return [...document.querySelectorAll("text")].filter(line => getComputedStyle(line).visibility
                == "visible").map(line => line.textContent) }""",
            time,
        )
        for time in (0, 3_000, 10**6)
    ]
    assert stills[0][-1].startswith("runs:")
    assert stills[0] == stills[2] != stills[1]
    page.close()


@NEEDS_CHROMIUM
@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "light"), (PHONE, "dark")], ids=["wide", "phone"])
def test_pages_fit_in_both_schemes(site: Path, browser, size, scheme) -> None:
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    for name in PAGES:
        page.goto((site / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 300) == (scheme == "dark")
    assert errors == []
    context.close()


@NEEDS_CHROMIUM
def test_the_search_finds_a_field_and_a_command(site: Path, browser) -> None:
    page, requested = browser.new_page(viewport=WIDE), set[str]()
    page.on("request", lambda request: requested.add(urlsplit(request.url).netloc))
    for words, found in (("ema_decay", "reference/params.html"), ("rollback", "registry.html")):
        page.goto((site / "index.html").as_uri())
        page.click("input.md-search__input")
        # Keys pressed before the page's script has its index are lost.
        page.wait_for_function(
            "!document.querySelector('.md-search-result__meta').textContent.includes('Initializing')"
        )
        page.keyboard.type(words)
        page.wait_for_selector(f".md-search-result__link[href*='{found}']", state="attached", timeout=60_000)
    assert requested == {""}
    page.close()
