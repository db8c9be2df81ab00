"""YAML of a person's settings as plain values: nothing is built, guessed or read twice.

Scalars without quotes mean what YAML 1.2 says, so that `010` is ten, `1e-3` a number and `no` a word.
What settings do not need and what only misleads is refused: a key that stands twice, anchors and aliases
(which can stand for more than any memory holds), tags, several documents, and nesting without end.
"""

import re
from typing import Any, NoReturn

import yaml

DEEPEST = 16  # levels; the sections of params.yaml need four
MAX_NODES = 5000  # words, lists and mappings; the profiles have a hundred, and PyYAML reads 10,000 a second
LONGEST = 100  # characters of a number: a longer one stays text
NONE = re.compile(r"~|null|Null|NULL|")
TRUTH = re.compile(r"true|True|TRUE|false|False|FALSE")
WHOLE = re.compile(r"[-+]?[0-9]+")
REAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
NO_NUMBER = re.compile(r"([-+]?\.(inf|Inf|INF))|\.(nan|NaN|NAN)")


class YamlRefusal(ValueError):
    """Text that is not read; the message says why, and in which line, without the text itself."""


def parse_yaml(text: str) -> Any:
    """Mappings with words as keys, lists, words, numbers, true, false and None; YamlRefusal for all else."""
    try:
        node = _Composer(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        _refuse(error.problem_mark or error.context_mark, error.problem or "it makes no sense")
    except yaml.reader.ReaderError as error:
        where = f"character {error.position + 1}"
        raise YamlRefusal(f"{where} is U+{error.character:04X}, which has no place in it") from None
    return None if node is None else _values(node, "")


class _Composer(yaml.SafeLoader):
    """Composes nodes up to a depth and a number, and only those that stand for themselves."""

    depth = nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stub
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            _refuse(event.start_mark, "anchors and aliases (& and *) are not read: write the value out")
        if getattr(event, "tag", None) is not None:
            _refuse(event.start_mark, "tags (!) are not read: write the plain value")
        if self.depth == DEEPEST:
            _refuse(event.start_mark, f"it is nested more than {DEEPEST} levels deep")
        self.nodes += 1
        if self.nodes > MAX_NODES:
            _refuse(event.start_mark, f"it has more than {MAX_NODES:,} values and keys")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _values(node: yaml.Node, path: str) -> Any:
    """What a node says; `path` is its dotted name."""
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path)
    if isinstance(node, yaml.SequenceNode):
        return [_values(one, f"{path}.{at}") for at, one in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode), "there are three kinds of nodes"
    return _scalar(node)


def _mapping(node: yaml.MappingNode, path: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or not key_node.value:
            _refuse(key_node.start_mark, "a key is a word")
        key = _checked(key_node)
        name = f"{path}.{key}" if path else key
        if key in values:
            raise YamlRefusal(f"{name} stands twice, in lines {lines[key]} and {line}: keep one of them")
        values[key], lines[key] = _values(value_node, name), line
    return values


def _scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    text = _checked(node)
    if node.style is not None:  # in quotes, or a block of text
        return text
    if NONE.fullmatch(text):
        return None
    if TRUTH.fullmatch(text):
        return text.lower() == "true"
    if len(text) > LONGEST:
        return text
    if WHOLE.fullmatch(text):
        return int(text)
    if REAL.fullmatch(text):
        return float(text)
    return float(text.replace(".", "", 1)) if NO_NUMBER.fullmatch(text) else text


def _checked(node: yaml.ScalarNode) -> str:
    """The node's text, which can be written down: an escape in quotes may stand for half a character."""
    text: str = node.value
    if any("\ud800" <= character <= "\udfff" for character in text):
        _refuse(node.start_mark, "an escape in it stands for no character")
    return text


def _refuse(mark: yaml.Mark | None, why: str) -> NoReturn:
    raise YamlRefusal(f"line {mark.line + 1}: {why}" if mark else why) from None
