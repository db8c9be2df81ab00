"""Fields that had another name in an earlier version: old keys are refused in params.yaml, read elsewhere.

RENAMED is the only list. `refuse_renamed` names the new key of an old one in params.yaml. `translate` gives a
stored document its new keys, `translate_names` does so for flat names, as MLflow has them.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar

from diffusion.system.errors import UsageError

DocumentKind = Literal["params", "model", "card", "store", "scores", "tags", "metrics", "spool"]
Value = TypeVar("Value")
Table = dict[str, str]

ANY = "*"  # in a path: any key of a mapping, or any entry of a list


def _within(parent: str, table: Table) -> Table:
    """The table of a document that is stored below `parent` in another one."""
    return {f"{parent}.{path}": name for path, name in table.items()}


def _section(section: str, table: Table, new_section: str | None = None) -> Table:
    """The part of `table` for one section of params.yaml, as it is stored under `new_section`."""
    prefix = f"{section}."
    part = {path.removeprefix(prefix): name for path, name in table.items() if path.startswith(prefix)}
    return _within(new_section or section, part)


# Each entry: the old path of a key → its new name. A path consists of old names. In flat names a final `*`
# matches the rest.
PARAMS: Table = {
    "evaluate.also": "extra_extractors",
    "evaluate.intervals": "confidence_intervals",
    "model.attention": "attention_resolutions",
    "train.averages": "ema_profiles",
    "train.averages.widths": "sigma_rel",
    "train.heldout_every": "val_every",
    "train.heldout_images": "val_images",
    "train.lr.course": "schedule",
    "train.start": "init_from",
}
MODEL: Table = {"ema_width": "ema_sigma_rel"}
CARD: Table = {"evaluations": "nfe"}
STORE: Table = {}
SCORES: Table = {"front.*.evaluations": "nfe"}
TAGS: Table = {
    "diffctl.ema_width": "diffctl.ema_sigma_rel",
    "diffctl.goes_on": "diffctl.resumed_from",
    "diffctl.start": "diffctl.init_from",
    "diffctl.start.*": "diffctl.init_from.*",
}
METRICS: Table = {"best/evaluations": "best/nfe", "heldout/*": "val/*"}
SPOOL: Table = {}

RENAMED: dict[DocumentKind, Table] = {
    "params": {
        **PARAMS,
        **_section("model", PARAMS, "classifier.model"),
        **_section("train", PARAMS, "classifier.train"),
    },
    "model": {  # the metadata of a model file
        **MODEL,
        **_section("data", PARAMS),
        **_section("model", PARAMS, "network"),
        **_section("process", PARAMS),
        **_section("train", PARAMS),
    },
    "card": CARD,
    "store": {**STORE, **_within("card", CARD)},  # meta.json of images
    "scores": {**SCORES, **_within("cells.*.card", CARD), **_within("cells.*.spaces.*.card", CARD)},
    "tags": TAGS,
    "metrics": METRICS,
    "spool": SPOOL,
}


def translate(kind: DocumentKind, values: Value) -> Value:
    """Return a stored document with today's names; `values` stay as they are."""
    result: Value = _translated(values, RENAMED[kind], ())
    return result


def translate_names(kind: DocumentKind, values: Mapping[str, Value]) -> dict[str, Value]:
    """Return a flat mapping with today's names; each part of a dotted name is translated."""
    return {_translated_name(kind, name): value for name, value in values.items()}


def refuse_renamed(values: Any, origin: str) -> None:
    """Raise UsageError if the sections of a params file, or its search, use an old key."""
    if found := [*_old_keys(values, ()), *_searched(values)]:
        renames = "; ".join(f"{old} was renamed, write {_translated_name('params', old)}" for old in found)
        raise UsageError(f"{origin}: {renames}")


def _new_name(table: Table, path: tuple[str, ...]) -> str | None:
    """Return the new name of the key at a path of old names; None if it keeps its name."""
    for old, name in table.items():
        parts = old.split(".")
        if len(parts) == len(path) and all(map(fnmatchcase, path, parts)):
            return name
    return None


def _translated(values: Any, table: Table, path: tuple[str, ...]) -> Any:
    if isinstance(values, Mapping) and table:
        places = {key: (*path, str(key)) for key in values}
        return {
            _new_name(table, at) or key: _translated(values[key], table, at) for key, at in places.items()
        }
    if isinstance(values, list | tuple) and table:
        return [_translated(value, table, (*path, ANY)) for value in values]
    return values


def _translated_name(kind: DocumentKind, name: str) -> str:
    table = RENAMED[kind]
    if kind in ("tags", "metrics"):  # their dots are no levels
        old = next((old for old in table if fnmatchcase(name, old)), name)
        before, new = old.removesuffix(ANY), table.get(old, old).removesuffix(ANY)
        return new + name.removeprefix(before)
    parts = name.split(".")
    return ".".join(_new_name(table, tuple(parts[: at + 1])) or part for at, part in enumerate(parts))


def _old_keys(values: Any, path: tuple[str, ...]) -> Iterator[str]:
    for key, value in values.items() if isinstance(values, Mapping) else ():
        here = (*path, str(key))
        if _new_name(RENAMED["params"], here):
            yield ".".join(here)
        yield from _old_keys(value, here)


def _searched(values: Any) -> Iterator[str]:
    """Yield the old names among the fields that a search varies."""
    search = values.get("search") if isinstance(values, Mapping) else None
    fields = search.get("fields") if isinstance(search, Mapping) else None
    for name in fields if isinstance(fields, Mapping) else ():
        if isinstance(name, str) and _translated_name("params", name) != name:
            yield name
