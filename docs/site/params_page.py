"""The reference of params.yaml: every field, from the JSON schema and its classes' docstrings."""

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from docs.site.tables import literal, table

HEAD = """# params.yaml

Every section and field. Sections are the stages' parameters; `classifier` and `search` may be left out. A
field without a default is required. Unknown keys and values out of their bounds are refused before anything
runs. An editor completes all of this by `profiles/params.schema.json` (`diffctl schema` prints it).

"""
Schema = dict[str, Any]
NONE = re.compile(r"\bNone\b(?! of)")  # null in YAML
SENTENCE = re.compile(r"(?<=\.)\s+(?=[A-Z`])")
BOUNDS = (("exclusiveMinimum", ">"), ("minimum", "≥"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


@dataclass(frozen=True)
class Field:
    """One row of the table."""

    name: str
    kind: str
    bounds: str
    default: str
    meaning: str


def text() -> str:
    """Return the page."""
    from diffusion.check.params_schema import params_schema

    schema = params_schema()
    definitions = schema["$defs"]
    found: dict[str, tuple[str, Schema]] = {}  # a class is described at its first path
    for name, part in schema["properties"].items():
        for path, own in sections(name, part, definitions):
            found.setdefault(own["title"], (path, own))
    return HEAD + "\n".join(_block(path, own, definitions) for path, own in found.values())


def sections(path: str, part: Schema, definitions: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield the objects allowed at a path of params.yaml and their nested objects, with their paths."""
    for own in _objects(part, definitions):
        yield path, own
        for name, value in own["properties"].items():
            yield from sections(f"{path}.{name}", value, definitions)


def fields(own: Schema, definitions: Schema) -> list[Field]:
    """Return the fields of a section's class in order."""
    sentences = _sentences(own["title"])
    required = {
        *own.get("required", []),
        *(name for any_ in own.get("anyOf", []) for name in any_["required"]),
    }
    return [
        Field(
            name,
            _kind(value, definitions),
            _bounds(value),
            "" if name in required or "default" not in value else literal(_written(value["default"])),
            " ".join(NONE.sub("null", one) for one in sentences if re.search(rf"`{re.escape(name)}`", one))
            or value.get("description", ""),
        )
        for name, value in own["properties"].items()
    ]


def _block(path: str, own: Schema, definitions: Schema) -> str:
    depth = "#" * min(2 + path.count("."), 4)
    chosen = [
        f"{name}: {' or '.join(map(str, value['enum']))}"
        for name, value in own["properties"].items()
        if (name == "name" or (name == "schedule" and path in ("process", "train.lr"))) and "enum" in value
    ]
    title = f"{depth} {path}" + (f" ({chosen[0]})" if chosen else "")
    rows = [
        (
            literal(field.name),
            ", ".join(filter(None, (field.kind, field.bounds))),
            field.default,
            field.meaning,
        )
        for field in fields(own, definitions)
    ]
    about = (own.get("description") or "").split("\n\n")[0].replace("\n", " ")
    return f"{title}\n\n{about}\n\n" + table(("field", "value", "default", "meaning"), rows)


def _objects(part: Schema, definitions: Schema) -> list[Schema]:
    """Return the objects that are allowed as a value, or as an item of a list."""
    if "$ref" in part:
        return _objects(definitions[part["$ref"].rsplit("/", 1)[1]], definitions)
    if "properties" in part:
        return [part]
    values = [part[key] for key in ("items", "additionalProperties") if isinstance(part.get(key), dict)]
    inner: list[Schema] = [*part.get("anyOf", []), *values]
    return [found for one in inner for found in _objects(one, definitions)]


def _kind(value: Schema, definitions: Schema) -> str:
    """Describe the type of a value."""
    if "$ref" in value:
        return "section"
    if "enum" in value or "const" in value:
        return " or ".join(literal(_written(one)) for one in value.get("enum", [value.get("const")]))
    if "anyOf" in value:
        if "properties" in value or all("properties" in one for one in value["anyOf"]):
            return "section"
        kinds = [_kind(one, definitions) for one in _alternatives(value)]
        return " or ".join(dict.fromkeys(kinds))
    if value.get("type") == "array":
        items = value.get("items", {})
        return f"list of {_kind(items, definitions)}" if items else "list"
    names = {"integer": "whole number", "null": "`null`", "boolean": "`true` or `false`", "string": "text",
             "object": "section" if "properties" in value else "mapping"}  # fmt: skip
    if value.get("format") == "path":
        return "path"
    return names.get(value.get("type", ""), str(value.get("type", "any value")))


def _alternatives(value: Schema) -> list[Schema]:
    """Return the alternatives of a value: nested choices are flattened."""
    inner = [*value.get("anyOf", []), *value.get("oneOf", [])]
    return [leaf for one in inner for leaf in _alternatives(one) or [one]]


def _bounds(value: Schema) -> str:
    """Return the bounds of a value, or of a list's items."""
    values = [value, *_alternatives(value)]
    parts = [*values, *(one.get("items", {}) for one in values)]
    bounds = [
        f"{sign}\N{NO-BREAK SPACE}{_number(part[key])}"
        for part in parts
        for key, sign in BOUNDS
        if key in part
    ]
    for one in values:
        if "maxItems" in one:
            least, most = one.get("minItems", 0), one["maxItems"]
            bounds.append(f"{least} to {most} of them" if least < most else f"{most} of them")
    return ", ".join(dict.fromkeys(bounds))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) or abs(value) < 1e4 else f"{value:,.0f}"


def _written(value: Any) -> str:
    """Return a value in YAML."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sentences(title: str) -> list[str]:
    """Return the docstrings of a section's class and its base classes, the class first."""
    kind = next(kind for kind in _below(_section()) if kind.__name__ == title)
    docs = [own.__doc__ for own in kind.__mro__ if issubclass(own, _section()) and own.__doc__]
    return [
        " ".join(sentence.split())
        for doc in docs
        for paragraph in inspect.cleandoc(doc).split("\n\n")
        for sentence in SENTENCE.split(paragraph)
    ]


def _section() -> Any:
    from diffusion.system.section import Section

    return Section


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    yield kind
    for inner in kind.__subclasses__():
        yield from _below(inner)
