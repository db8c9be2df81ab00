"""A report's page: its inputs, and what a page refers to and shows."""

import contextlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from diffusion.config import Config
from diffusion.report.page_content import ReportInputs
from diffusion.report.write import read_inputs, write_report
from diffusion.train.train_config import BAND_NAMES

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a page refers to and shows; fails on tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.feed(text)
        self.images = [attributes for tag, attributes in self.tags if tag == "img"]
        self.ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        names = ("src", "href", "xlink:href")
        self.links = [found[name] for _, found in self.tags for name in names if name in found]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the tag and its attributes."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect a tag that closes itself."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        """Close the tag that was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect the text."""
        self.text.append(data)


def inputs_of(config: Config, root: Path) -> ReportInputs:
    """Return the inputs of a report from the files of the project in that folder."""
    with contextlib.chdir(root):
        return read_inputs(config)


def report(sweep: tuple[Config, Path], out: Path) -> Path:
    """Write the report of a sweep; return its page."""
    return write_report(inputs_of(*sweep), out)


def write_validation_losses(path: Path) -> None:
    """Write the curve of a training with losses of the EMA and of the raw weights."""
    names = ["val_loss", "val_mse", "val_vlb", "val_raw_loss", f"val_{BAND_NAMES[0]}", f"val_{BAND_NAMES[3]}"]
    rows = [",".join(["step", "loss", *names])]
    rows += ["10,0.5,nan,nan,nan,nan,nan,nan", "15,nan,0.4,0.3,0.1,0.45,0.9,0.1"]
    rows += ["20,0.3,nan,nan,nan,nan,nan,nan", "30,0.2,0.42,0.31,0.11,0.46,0.8,0.2"]
    path.write_text("\n".join(rows) + "\n")
