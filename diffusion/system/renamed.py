"""Fields that had another name in an earlier version: old keys are refused in params.yaml, read elsewhere.

`refuse_renamed` names the new key of an old one in params.yaml, `rename_keys` writes it there. `translate`
gives a stored document its new keys, `translate_names` does so for flat names, as MLflow has them.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any, Literal, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from diffusion.system.errors import UsageError, first_line

DocumentKind = Literal["params", "model", "store", "scores", "tags", "metrics"]
Value = TypeVar("Value")
FIELDS = ["search", "fields"]  # its keys are dotted names

# Its old parent key and a key → the key's new name. The parent of a document's own keys is its kind, that of
# the entries of a list is the list's key.
KEYS = {
    ("averages", "widths"): "sigma_rel",
    ("card", "evaluations"): "nfe",
    ("evaluate", "also"): "extra_extractors",
    ("evaluate", "intervals"): "confidence_intervals",
    ("front", "evaluations"): "nfe",  # of scores
    ("lr", "course"): "schedule",
    ("model", "attention"): "attention_resolutions",
    ("model", "ema_width"): "ema_sigma_rel",  # of a model file
    ("network", "attention"): "attention_resolutions",  # of a model file
    ("train", "averages"): "ema_profiles",
    ("train", "heldout_every"): "val_every",
    ("train", "heldout_images"): "val_images",
    ("train", "start"): "init_from",
}
# In these names dots are no levels. A final `*` matches the rest.
NAMES: dict[DocumentKind, dict[str, str]] = {
    "tags": {
        "diffctl.ema_width": "diffctl.ema_sigma_rel",
        "diffctl.goes_on": "diffctl.resumed_from",
        "diffctl.start": "diffctl.init_from",
        "diffctl.start.*": "diffctl.init_from.*",
    },
    "metrics": {"best/evaluations": "best/nfe", "heldout/*": "val/*"},
}


def translate(parent: str, values: Any) -> Any:
    """Return what has this parent key, or a document of this kind, with today's names, as a copy."""
    if isinstance(values, Mapping):
        return {KEYS.get((parent, key), key): translate(key, value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [translate(parent, value) for value in values]
    return values


def translate_names(kind: DocumentKind, values: Mapping[str, Value]) -> dict[str, Value]:
    """Return a flat mapping with today's names; each part of a dotted name is translated."""
    return {_translated_name(kind, name): value for name, value in values.items()}


def refuse_renamed(values: Any, origin: str) -> None:
    """Raise UsageError if the sections of a params file, or its search, use an old key."""
    names = [path[-1] if list(path[:-1]) == FIELDS else ".".join(path) for path in _old_keys(values)]
    renames = [f"{old} was renamed, write {_translated_name('params', old)}" for old in names]
    if renames:
        raise UsageError(f"{origin}: {'; '.join(renames)}")


def rename_keys(text: str) -> str:
    """Return the YAML of a params file with today's keys, the rest unchanged; UsageError for no YAML."""
    try:
        values, lines = YAML().load(text), text.splitlines(keepends=True)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        why = getattr(error, "problem", None) or first_line(error)
        raise UsageError(f"params.yaml is not readable as YAML: {place}{why}") from None
    places = []
    for *path, old in _old_keys(values):
        mapping = values
        for key in path:
            mapping = mapping[key]
        new = _translated_name("params", old if path == FIELDS else ".".join([*path, old]))
        places.append((*mapping.lc.key(old), old, new if path == FIELDS else new.rpartition(".")[2]))
    for line, column, old, new in sorted(places, reverse=True):  # so that columns stay valid
        lines[line] = lines[line][:column] + lines[line][column:].replace(old, new, 1)
    return "".join(lines)


def _translated_name(kind: DocumentKind, name: str) -> str:
    if kind in NAMES:
        old = next((old for old in NAMES[kind] if fnmatchcase(name, old)), name)
        return NAMES[kind].get(old, old).removesuffix("*") + name.removeprefix(old.removesuffix("*"))
    return ".".join(KEYS.get(pair, pair[1]) for pair in pairwise([kind, *name.split(".")]))


def _old_keys(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of old keys, and of old names among the fields that a search varies."""
    for key, value in values.items() if isinstance(values, Mapping) else ():
        here = (*path, str(key))
        is_field = list(path) == FIELDS
        if here[-2:] in KEYS or (is_field and _translated_name("params", str(key)) != str(key)):
            yield here
        yield from _old_keys(value, here)
