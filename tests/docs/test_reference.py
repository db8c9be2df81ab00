"""The reference is the code's: every field with its meaning, every command, and what the pages name."""

import re

import pytest

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")

from diffusion.check.params_schema import params_schema
from diffusion.config import Config
from diffusion.system.registry import load_reference
from docs.site import benchmarks_page, commands_page, library_page, params_page
from tests.conftest import ROOT
from tests.docs.test_commands import TOP

SCHEMA = params_schema()


def sections() -> list[tuple[str, params_page.Schema]]:
    parts = SCHEMA["properties"].items()
    return [found for part in parts for found in params_page.sections(*part, SCHEMA["$defs"])]


def test_every_field_of_every_section_has_a_meaning_and_what_it_may_be() -> None:
    found = [(path, field) for path, own in sections() for field in params_page.fields(own, SCHEMA["$defs"])]
    assert {path.split(".")[0] for path, _ in found} == set(Config.model_fields)
    assert [f"{path}.{field.name}" for path, field in found if not field.meaning or not field.kind] == []


def test_every_command_is_listed_with_its_options() -> None:
    text = commands_page.text()
    for name, command in commands_page.commands(TOP, "diffctl"):
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert (command.help or "").split("\n")[0] in section, name
        for parameter in command.params:
            if not parameter.hidden and parameter.param_type_name == "option":
                assert max(parameter.opts, key=len) in section, (name, parameter.name)
    assert "search-trial" not in text


def test_what_the_pages_name_of_the_library_is_there() -> None:
    found = set(library_page.named())
    assert ("diffusion.process.noise_process", "NoiseProcess") in found
    for module, name in found:
        assert load_reference(f"{module}:{name}") is not None


def test_benchmarks_page_contains_module_docstrings() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert "| promise" in benchmarks_page.with_promises(page)


@pytest.mark.parametrize(
    "notebook", sorted((ROOT / "docs/notebooks").glob("*.ipynb")), ids=lambda file: file.stem
)
def test_notebook_is_stored_with_reproducible_outputs(notebook) -> None:
    import nbformat

    stored = nbformat.read(notebook, as_version=4)
    assert notebook.stat().st_size < 300_000
    cells = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        pictures = ["image/png" in output.get("data", {}) for output in cell.outputs]
        assert any(pictures) == ("alt" in cell.metadata), cell.source
        assert not all(pictures) or "print(" not in cell.source, cell.source
        for output in cell.outputs:
            assert output.output_type in ("display_data", "execute_result") or output.name == "stdout"
            text = output.get("text") or output.data["text/plain"]
            assert not re.search(r"(^|[\s'\"(=])/\w|\bat 0x", text), text  # a path or an address
