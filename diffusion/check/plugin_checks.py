"""Checks of the project's plugins: their code can be imported, and the stages depend on it."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from diffusion.check.findings import Finding, Project
from diffusion.check.stage_dependencies import StageDependencies, stage_dependencies
from diffusion.code_digest import module_digests
from diffusion.system.errors import UsageError
from diffusion.system.plugins import ENTRIES, SLOW_IMPORTS, is_plugin
from diffusion.system.references import load_reference
from diffusion.system.registry import PLUGINS, REGISTRIES, Registry
from diffusion.system.repository import GRAPH

REFERENCE = re.compile(r"[\w.]+:[\w.]+")


def check_plugins(project: Project) -> Iterator[Finding]:
    """List the entries of plugins, with what is wrong with each."""
    for library in SLOW_IMPORTS:
        message = f"{ENTRIES} loads {library}, and every command loads {ENTRIES}"
        yield Finding("warning", PLUGINS, message, "import it only in modules that entries name")
    deps = stage_dependencies(project.root)
    for registry in REGISTRIES:
        for name in registry.plugins:
            yield from _check_entry(registry, name, deps)


def _check_entry(registry: Registry[Any], name: str, deps: StageDependencies) -> Iterator[Finding]:
    """Yield problems of an entry, or that it is one."""
    entry, subject = registry[name], f"{registry.key} {name}"
    values = [getattr(entry, one.name) for one in fields(entry)] if is_dataclass(entry) else []
    try:
        for value in values:
            if isinstance(value, str) and REFERENCE.fullmatch(value):
                load_reference(value)
        modules = module_digests(registry.module(name))
    except UsageError as error:
        yield Finding("error", PLUGINS, f"{subject}: {error}")
        return
    yield Finding("ok", PLUGINS, f"{subject}: {registry.module(name)}")
    folder = f"{PLUGINS}/{registry.key.partition('.')[0]}"
    needed = {"/".join(module.split(".")[:2]) for module in modules if is_plugin(module)}
    for stage, listed in deps.items():
        if folder in listed and (missing := sorted(needed - listed)):
            message = f"{subject} imports {', '.join(missing)}, on which the stage {stage} does not depend"
            remedy = f"move the code to {folder}, or add it to the deps of {stage} in {GRAPH}"
            yield Finding("warning", PLUGINS, message, remedy)
    if deps and needed and not any(folder in listed for listed in deps.values()):
        message = f"{subject} is in {folder}, on which no stage depends"
        yield Finding("warning", PLUGINS, message, f"add {folder} to deps in {GRAPH}")
