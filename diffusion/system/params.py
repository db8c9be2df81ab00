"""params.yaml: its YAML as plain values or as sections, edits that keep its comments, and changed fields.

The YAML is 1.2, also of papers: `010` is ten, `1e-3` a number, `no` a word. Constructs that settings do not
need are refused: duplicate keys, anchors and aliases, tags, several documents, deep nesting.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

from pydantic import create_model
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.tag import Tag

from diffusion.system.errors import UsageError, printable
from diffusion.system.files import read_regular, read_text
from diffusion.system.section import Kind, brief, validate

PARAMS = "params.yaml"
MAX_TEXT = 300  # characters of a path or a reason
MAX_BYTES = 64 * 2**10  # of a params file; the profiles have two thousand
MAX_DEPTH = 16  # levels; the sections of params.yaml need four
MAX_NODES = 5000  # scalars, lists and mappings; the profiles have a hundred
READ: list[str] = []  # the different texts of params.yaml that this process has read
COMMENT = re.compile(r"(?:^|\s)#", re.MULTILINE)
MAX_SHOWN = 24  # characters of a value in a message


class Removed:
    """The new value of a key that `edit_yaml` removes."""

    def __str__(self) -> str:
        return "removed"


REMOVED = Removed()


class YamlRefusal(ValueError):
    """The text is refused. The message has the reason and the line, but not the text itself."""


def read_params(path: Path | str = PARAMS) -> dict[str, Any]:
    """Return the sections of a params file as plain values; UsageError if it is missing or unreadable."""
    shown = brief(path, str, MAX_TEXT)
    try:
        text = read_regular(Path(path), MAX_BYTES).decode()
        values = parse_yaml(text)
    except FileNotFoundError:
        raise UsageError(
            f"{shown} does not exist: run this in the project's folder, or `diffctl use PROFILE` to start one"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a refusal, undecodable text, or an impossible name
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{shown} is not readable as YAML: {brief(why, str, MAX_TEXT)}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{shown} is not a params file: it has no sections")
    if str(path) == PARAMS and text not in READ:
        READ.append(text)
    return values


def load_sections(kind: type[Kind], path: Path | str = PARAMS) -> Kind:
    """Return the sections that are fields of `kind`, and ignore others; UsageError as for all."""
    values = {name: section for name, section in read_params(path).items() if name in kind.model_fields}
    return validate(kind, values, str(path))


def load_section(name: str, kind: type[Kind], path: Path | str = PARAMS) -> Kind:
    """Return one section, as `load_sections`."""
    fields: Any = {name: (kind, ...)}
    alone = create_model("Params", **fields)
    section: Kind = getattr(load_sections(alone, path), name)
    return section


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a small YAML file, empty for an empty file.

    FileNotFoundError without the file, DiffctlError if it is something else.
    """
    try:
        values = parse_yaml(read_text(path))
    except YamlRefusal as refusal:
        raise UsageError(f"{printable(path)} is not readable as YAML: {refusal}") from None
    if not isinstance(values, dict | None):
        raise UsageError(f"{printable(path)} is not readable: it is no mapping of keys to values")
    return values or {}


def parse_yaml(text: str) -> Any:
    """Return mappings with text keys, lists, text, numbers, booleans and None; raise YamlRefusal."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _PlainConstructor
    try:
        _check_events(yaml.parse(text))
        return yaml.load(text)
    except MarkedYAMLError as error:
        _refuse(error.problem_mark or error.context_mark, str(error.problem or "it is not valid YAML"))
    except ReaderError as error:
        raise YamlRefusal(f"character {error.position + 1} is not allowed in YAML") from None
    except (YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, YamlRefusal):
            raise
        raise YamlRefusal("it is not valid YAML") from None


def edit_yaml(text: str, path: Sequence[str], value: Any) -> str:
    """Return the text with a plain value at a path of keys. Missing keys are added; comments stay.

    REMOVED removes the key, with the comment behind its value.

    YamlRefusal if the text is refused, has something other than a mapping on the path, or has comments within
    the old value.
    """
    if value is REMOVED:
        return _without_key(text, path)
    wanted = parse_yaml(text)
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 2**16
    yaml.representer.add_representer(type(None), lambda dumper, _: dumper.represent_scalar(_NULL, "null"))
    yaml.indent(mapping=2, sequence=4, offset=2)
    document, out = yaml.load(text), io.StringIO()
    refusal = YamlRefusal(f"{'.'.join(path)} cannot be set to {json.dumps(value)} in it: edit the file")
    flow = YAML().load(json.dumps(value)) if isinstance(value, list | dict) else value  # [5, 10] on one line
    try:
        _set_value(wanted, path, value)
        _set_value(document, path, flow)
    except (AttributeError, TypeError):  # something else than a mapping is in the way
        raise refusal from None
    yaml.dump(document, out)
    edited = out.getvalue()
    loses_comments = len(COMMENT.findall(edited)) < len(COMMENT.findall(text))
    if loses_comments or parse_yaml(edited) != wanted:
        raise refusal
    return edited


def _without_key(text: str, path: Sequence[str]) -> str:
    """Return the text without the line of a key, if it is there; YamlRefusal if its value is not one line."""
    wanted = parse_yaml(text)
    place, parent = wanted, YAML().load(text)
    for key in path[:-1]:
        place, parent = place[key], parent[key]
    if path[-1] not in place:
        return text
    del place[path[-1]]
    lines = text.splitlines(keepends=True)
    del lines[parent.lc.key(path[-1])[0]]
    edited = "".join(lines)
    with suppress(YamlRefusal):
        if parse_yaml(edited) == wanted:
            return edited
    raise YamlRefusal(f"{'.'.join(path)} cannot be removed from it: edit the file")


_NULL, _TEXT = "tag:yaml.org,2002:null", Tag(suffix="tag:yaml.org,2002:str")


class _PlainConstructor(SafeConstructor):
    """Builds plain values: no dates and no merge keys."""

    def flatten_mapping(self, node: MappingNode) -> None:
        """Read each key as text, so that `<<` merges nothing; refuse duplicate keys."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode) or not key.value:
                _refuse(key.start_mark, "a key must be a word")
            line = key.start_mark.line + 1
            if key.value in lines:
                raise YamlRefusal(f"{key.value} occurs twice, in lines {lines[key.value]} and {line}")
            lines[key.value], key.ctag = line, _TEXT


for _tag in ("timestamp", "value", "merge"):
    _PlainConstructor.add_constructor(f"tag:yaml.org,2002:{_tag}", SafeConstructor.construct_yaml_str)


def _check_events(events: Any) -> None:
    """Refuse aliases, tags, deep nesting and too many nodes, before anything is built."""
    depth = nodes = 0
    for event in events:
        if isinstance(event, CollectionEndEvent):
            depth -= 1
        if not isinstance(event, NodeEvent):
            continue
        nodes += 1
        depth += isinstance(event, CollectionStartEvent)
        if isinstance(event, AliasEvent) or event.anchor is not None:
            _refuse(event.start_mark, "anchors and aliases (& and *) are not read: write the value out")
        if getattr(event, "tag", None) is not None:
            _refuse(event.start_mark, "tags (!) are not read: write the plain value")
        if nodes > MAX_NODES:
            _refuse(event.start_mark, f"it has more than {MAX_NODES:,} values and keys")
        if depth > MAX_DEPTH:
            _refuse(event.start_mark, f"it is nested more than {MAX_DEPTH} levels deep")


def _set_value(values: Any, path: Sequence[str], value: Any) -> None:
    """Set the value in place; new keys come first in their mapping."""
    key, *below = path
    if below and values.get(key) is not None:
        return _set_value(values[key], below, value)
    for name in reversed(below):
        value = {name: value}
    if key in values or not hasattr(values, "insert"):
        values[key] = value
    else:
        values.insert(0, key, value)


def _refuse(mark: Any, why: str) -> NoReturn:
    raise YamlRefusal(f"line {mark.line + 1}: {why}" if mark else why) from None


def flatten_fields(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted name, as in params.yaml."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flatten_fields(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def with_fields(values: dict[str, Any], changes: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """Return the values of params.yaml with changes by dotted name.

    UsageError, which begins with the `source`, if a field cannot be set.
    """
    changed = deepcopy(values)
    for name, value in changes.items():
        *parents, last = name.split(".")
        section = changed
        for key in parents:
            if section.get(key) is None:
                section[key] = {}
            section = section[key]
            if not isinstance(section, dict):
                raise UsageError(f"{source}{name}: params.yaml has {brief(section)} at {key}, not keys")
        section[last] = deepcopy(value)
    return changed


def changed_fields(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return `name old → new` of every field that differs, sorted by name, with values as in YAML."""
    before, after = flatten_fields(old), flatten_fields(new)

    def shown(values: dict[str, Any], name: str) -> str:
        value = values.get(name, "not set")
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        return brief(text, str, MAX_SHOWN)

    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return [f"{name} {shown(before, name)} → {shown(after, name)}" for name in changed]
