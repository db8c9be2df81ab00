"""The pages in the repository's root as pages of the site; README.md is the first one."""

import re
from collections.abc import Iterator

from docs.site.tables import ROOT

PAGES = {"index.md": "README.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md",
         "SECURITY.md": "SECURITY.md"}  # fmt: skip
LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path on the site and the text of each page."""
    for place, name in PAGES.items():
        yield place, LINK.sub(_on_site, (ROOT / name).read_text(encoding="utf-8"))


def _on_site(link: re.Match[str]) -> str:
    """Return a link of a page in the repository's root for the root of the site."""
    place = "index.md" if link[2] == "README.md" else link[2].removeprefix("docs/")
    return link[1] + (f"{place}swiss_roll.md" if place == "notebooks/" else place)
