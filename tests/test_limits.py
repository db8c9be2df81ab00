"""Every number in params.yaml and in commands has bounds, and every list a maximum length."""

import inspect
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest
import typer
from pydantic import BaseModel

from cli import main
from tests.helpers.broken_params import bounds, numbers, parts, section_classes


@pytest.mark.parametrize("kind", section_classes(), ids=lambda kind: kind.__name__)
def test_numbers_of_a_section_have_both_bounds_and_lists_a_maximum_length(kind: type[BaseModel]) -> None:
    unbounded = [part.path for part in numbers(kind) if None in bounds(part.schema)]
    assert not unbounded, (
        "give it `ge` or `gt`, and `le` or `lt`: diffusion/system/section.py has types for most"
    )
    lists = [part for part in parts(kind) if part.schema.get("type") == "array"]
    assert [part.path for part in lists if "maxItems" not in part.schema] == []


def numeric_options(app: typer.Typer, name: str = "diffctl") -> Iterator[tuple[str, Any]]:
    """Yield every numeric parameter of the commands as `command parameter`, with its typer option."""
    for command in app.registered_commands:
        assert command.callback is not None
        called = f"{name} {command.name or command.callback.__name__}"
        for parameter, declared in inspect.signature(command.callback).parameters.items():
            hint = declared.annotation
            if get_origin(hint) is Annotated and {int, float} & {hint.__origin__, *get_args(hint.__origin__)}:
                yield f"{called} {parameter}", hint.__metadata__[0]
            else:
                assert hint not in (int, float), f"{called}: give {parameter} bounds"
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from numeric_options(group.typer_instance, f"{name} {group.name}")


def test_every_number_of_a_command_has_both_bounds() -> None:
    options = dict(numeric_options(main.app))
    assert {"diffctl sample num", "diffctl sample eta", "diffctl ui port"} <= options.keys()
    assert [name for name, one in options.items() if None in (one.min, one.max)] == []
