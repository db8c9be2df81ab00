"""One value in a person's YAML set anew; all else in the text, comments included, stays as it is."""

import json
import re
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import yaml

from diffusion.system.plain_yaml import YamlRefusal, parse_yaml

COMMENT = re.compile(r"(^|\s)#", re.MULTILINE)


def with_value(text: str, path: Sequence[str], value: Any) -> str:
    """The text with this plain value at the path of keys; keys that are missing are written, on one line.

    YamlRefusal where the text is none that is read, or where the place cannot be written so that all else,
    comments included, stays.
    """
    wanted = _set(parse_yaml(text), path, value)
    edited = _edited(text, yaml.compose(text, Loader=yaml.SafeLoader), path, value)
    if edited is None or parse_yaml(edited) != wanted:
        raise YamlRefusal(f"{'.'.join(path)} cannot be written into it: write {_flow(path, value)} by hand")
    return edited


def _set(values: Any, path: Sequence[str], value: Any) -> Any:
    changed = deepcopy(values)
    place = changed
    for key in path[:-1]:
        if not isinstance(place, dict):
            return None
        if place.get(key) is None:
            place[key] = {}
        place = place[key]
    if not isinstance(place, dict):
        return None
    place[path[-1]] = value
    return changed


def _edited(text: str, node: yaml.Node | None, path: Sequence[str], value: Any) -> str | None:
    """The text with the value below the node, None where that is no place for it."""
    if not path:
        return _replaced(text, node, json.dumps(value))
    if isinstance(node, yaml.ScalarNode):  # null, to which keys are added
        return _replaced(text, node, f"{{{_flow(path, value)}}}")
    if not isinstance(node, yaml.MappingNode) or not node.value:
        return None
    for key, below in node.value:
        if key.value == path[0]:
            return _edited(text, below, path[1:], value)
    first = node.value[0][0].start_mark
    between = ", " if node.flow_style else "\n" + " " * first.column
    return f"{text[: first.index]}{_flow(path, value)}{between}{text[first.index :]}"


def _replaced(text: str, node: yaml.Node | None, said: str) -> str | None:
    if node is None:
        return None
    start, end = node.start_mark.index, _end(node)
    if not isinstance(node, yaml.ScalarNode) and COMMENT.search(text[start:end]):
        return None
    blank = "" if start == 0 or text[start - 1].isspace() else " "  # `key:` with nothing after it
    return f"{text[:start]}{blank}{said}{text[end:]}"


def _end(node: yaml.Node) -> int:
    """Where the node's text ends: a block's own mark lies behind the comments that follow it."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return _end(node.value[-1][1])
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return _end(node.value[-1])
    return int(node.end_mark.index)


def _flow(path: Sequence[str], value: Any) -> str:
    """`a: {b: "value"}`"""
    if len(path) == 1:
        return f"{path[0]}: {json.dumps(value)}"
    return f"{path[0]}: {{{_flow(path[1:], value)}}}"
