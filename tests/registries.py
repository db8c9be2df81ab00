"""The contents of the registries, as docs/registries.md lists them.

`python -m tests.registries --write` updates the list; without the option it fails if the list is outdated.
"""

import inspect
import re
import sys
from importlib import import_module
from typing import Any

from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.system.registry import Registry, load_reference
from tests.conftest import ROOT

DOCS = ROOT / "docs/registries.md"
CODE = ("config", "whole", "real", "combination")  # fields of entries without a builder that name their code
BEGIN, END = "<!-- registries -->\n", "<!-- /registries -->\n"


def listing() -> str:
    """Return the library's own entries as Markdown, with one list for each registry, by package and name."""
    lines = []
    for path in sorted((ROOT / "diffusion").rglob("*.py")):
        text, file = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
        names = re.findall(r"^(\w+): Registry\[.*\] = Registry\(", text, re.MULTILINE)
        for name in names:
            registry = getattr(import_module(".".join(file.with_suffix("").parts)), name)
            lines += [f"### {name}: `{registry.key}`\n", f"`{file}`: {registry.contract}.\n"]
            lines += [f"- `{key}`: {describe(registry, key)}" for key in registry if key in registry.built_in]
            lines.append("")
    return "\n".join(lines)


def describe(registry: Registry[Any], name: str) -> str:
    """Return the docstring of an entry's code, its source, and the options that only it has."""
    entry = registry[name]
    if hasattr(entry, "parameters"):
        return f"{entry.parameters:,} parameters. {entry.source}"
    if registry is PROTOCOLS:
        return str(entry.paper)
    texts = [_docstring(registry, entry)]
    if registry is EXTRACTORS:
        texts.append(f"{entry.features:,} features; resizes {entry.resize}; gives `{entry.distance}`.")
    if (source := getattr(entry, "source", "")) and source not in texts[0]:
        texts.append(f"Source: {source}.")
    if options := _options(entry):
        texts.append(f"Options: {', '.join(f'`{name}`' for name in options)}.")
    return " ".join(texts)


def _docstring(registry: Registry[Any], entry: Any) -> str:
    """Return the docstring of an entry's module, with the builder's if it has two; of more the builder's."""
    if not hasattr(entry, "builder"):
        code = next((value for name in CODE if (value := getattr(entry, name, None))), entry)
        return _first(load_reference(code) if isinstance(code, str) else code)
    built = load_reference(entry.builder)
    builders = {other.builder for other in registry.values() if other.module == entry.module}
    if len(builders) > 2 or (len(builders) > 1 and getattr(entry, "source", "")):
        return _first(built)
    return " ".join(_first(one) for one in [sys.modules[built.__module__], built][: min(2, len(builders))])


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
