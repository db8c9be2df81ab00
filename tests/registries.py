"""The contents of the registries, as docs/extending.md lists them.

`python -m tests.registries --write` updates the list; without the option it fails if the list is outdated.
"""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusion.data.data_config import SOURCES
from diffusion.model.network_registry import MODELS
from diffusion.model.presets import PRESETS
from diffusion.process.parameterization import PREDICTIONS
from diffusion.process.process_registry import PROCESSES
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.spacing import SPACINGS
from diffusion.system.references import load_reference
from diffusion.train.lr_schedule import LR_SCHEDULES
from tests.conftest import ROOT

DOCS = ROOT / "docs/extending.md"
BEGIN, END = "<!-- registries -->\n", "<!-- /registries -->\n"


@dataclass(frozen=True)
class Registry:
    """A registry: its name and file, the key that selects an entry, and the type of a builder or entry."""

    name: str
    entries: Mapping[str, Any]
    place: str
    chosen_by: str
    builder: str


REGISTRIES = (
    Registry("SOURCES", SOURCES, "diffusion/data/data_config.py", "data.name",
             "a `DataConfig` → `Source` (`diffusion/data/source.py`)"),
    Registry("MODELS", MODELS, "diffusion/model/network_registry.py", "model.name",
             "a `NetworkSpec` → `nn.Module`"),
    Registry("PROCESSES", PROCESSES, "diffusion/process/process_registry.py", "process.schedule",
             "a `ProcessConfig` → `Process` (`diffusion/process/noise_process.py`)"),
    Registry("PREDICTIONS", PREDICTIONS, "diffusion/process/parameterization.py", "process.prediction",
             "(α, σ) → (a, b) of what is predicted, a·x_0 + b·ε"),
    Registry("LR_SCHEDULES", LR_SCHEDULES, "diffusion/train/lr_schedule.py", "train.lr.schedule",
             "a subclass of `LRSchedule`: step → rate"),
    Registry("SAMPLERS", SAMPLERS, "diffusion/protocol/samplers.py", "sample.sampler",
             "`SampleSettings` → `Sampler` (`diffusion/sample/sampler.py`)"),
    Registry("SPACINGS", SPACINGS, "diffusion/protocol/spacing.py", "sample.spacing",
             "(S, T) → S increasing times that end at T − 1"),
    Registry("EXTRACTORS", EXTRACTORS, "diffusion/protocol/extractors.py", "evaluate.extractor",
             "(`ExtractorSpec`, its weights or None) → `nn.Module`"),
    Registry("PROTOCOLS", PROTOCOLS, "diffusion/protocol/paper_protocols.py", "evaluate.protocol",
             "what a paper states of a run, field by field"),
    Registry("PRESETS", PRESETS, "diffusion/model/presets.py", "model.preset",
             "a published shape of the `unet`, with its recipe"),
)  # fmt: skip


def listing() -> str:
    """Return the list as Markdown, with one table for each registry."""
    return "\n".join(_table(registry) for registry in REGISTRIES)


def _table(registry: Registry) -> str:
    lines = [
        f"### {registry.name}: `{registry.chosen_by}`\n",
        f"In `{registry.place}`. A builder is {registry.builder}.\n"
        if hasattr(next(iter(registry.entries.values())), "builder")
        else f"In `{registry.place}`. An entry is {registry.builder}.\n",
        "| name | what it is |\n| --- | --- |",
        *(f"| `{name}` | {_describe(entry, registry)} |" for name, entry in registry.entries.items()),
    ]
    return "\n".join(lines) + "\n"


def _describe(entry: Any, registry: Registry) -> str:
    """Return the docstring of an entry or its builder's module, and the options that only it has."""
    if registry.entries is LR_SCHEDULES:
        own = load_reference(entry.config)
        return f"{_first(own)} Options: {', '.join(f'`{name}`' for name in _options(entry))}."
    if not hasattr(entry, "builder"):
        known = f"{entry.parameters:,} parameters. {entry.source}" if registry.entries is PRESETS else ""
        return known or (entry.paper if registry.entries is PROTOCOLS else _first(entry))
    texts = [_first(sys.modules[load_reference(entry.builder).__module__])]
    builders = {other.builder for other in registry.entries.values() if other.module == entry.module}
    if len(builders) > 1:
        texts.append(_first(load_reference(entry.builder)))
    if registry.entries is EXTRACTORS:
        texts.append(f"{entry.features:,} features; resizes {entry.resize}; gives `{entry.distance}`.")
    if options := _options(entry):
        texts.append(f"Options: {', '.join(f'`{name}`' for name in options)}.")
    return " ".join(texts)


def _options(entry: Any) -> list[str]:
    """Return the fields of the entry's section that not all entries have."""
    if hasattr(entry, "options"):
        return list(load_reference(entry.options).model_fields)
    if not hasattr(entry, "config"):
        return []
    own = load_reference(entry.config)
    shared = next(kind for kind in own.__mro__ if "ENTRIES" in vars(kind))
    return [name for name in own.model_fields if name not in shared.model_fields]


def _first(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def with_listing(text: str) -> str:
    """Return the text of the docs with the current list."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + listing() + "\n" + END + rest.split(END)[1]


def main() -> None:
    """Compare the docs with the registries, or rewrite them."""
    text = DOCS.read_text(encoding="utf-8")
    wanted = with_listing(text)
    if "--write" in sys.argv[1:]:
        DOCS.write_text(wanted, encoding="utf-8")
    elif wanted != text:
        sys.exit(f"{DOCS.name} has an outdated list: run `python -m tests.registries --write`")


if __name__ == "__main__":
    main()
