"""The JSON schema of params.yaml, for completion and validation in an editor.

It describes single values. Constraints between values are checked when the file is read.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from diffusion.config import Config
from diffusion.system.registry import Registry, check_name, load_reference
from diffusion.system.section import RegistrySection


def params_schema(*, plugins: bool = True) -> dict[str, Any]:
    """Return the schema, with the names and options of all registries; of plugins' entries if `plugins`."""
    schema = Config.model_json_schema(schema_generator=_Schema if plugins else _LibrarySchema)
    return {"$schema": _Schema.schema_dialect, **schema, "title": "params.yaml of diffctl"}


def schema_text(*, plugins: bool = True) -> str:
    """Return the schema as text of a file."""
    return json.dumps(params_schema(plugins=plugins), indent=1, ensure_ascii=False) + "\n"


class _Schema(GenerateJsonSchema):
    """Pydantic's schema generator, with registry names and the sections chosen by them."""

    def names(self, registry: Mapping[str, Any]) -> list[str]:
        """Return the described entries of a registry."""
        return list(registry)

    def function_after_schema(self, schema: core_schema.AfterValidatorFunctionSchema) -> JsonSchemaValue:
        """List the allowed names of a registry."""
        made = super().function_after_schema(schema)
        function = schema["function"]["function"]
        if isinstance(function, partial) and function.func is check_name:
            return {**made, "enum": self.names(function.keywords["registry"])}
        return made

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Describe a section with a class chosen by name as one of these classes."""
        kind = schema["cls"]
        if not issubclass(kind, RegistrySection):
            return super().model_schema(schema)
        named: dict[type[RegistrySection], list[str]] = {}
        for name in self.names(kind.ENTRIES):
            other = load_reference(getattr(kind.ENTRIES[name], kind.OF_ENTRY))
            if issubclass(other, kind) or issubclass(kind, other):
                named.setdefault(other, []).append(name)
        if named == {kind: self.names(kind.ENTRIES)}:
            return _with_alternatives(kind, super().model_schema(schema))
        return {"anyOf": [self._entry(kind, other, names, schema) for other, names in named.items()]}

    def _entry(
        self,
        kind: type[RegistrySection],
        other: type[RegistrySection],
        names: list[str],
        schema: core_schema.ModelSchema,
    ) -> JsonSchemaValue:
        """Describe the options of the entries with these names and this class."""
        inner = schema if other is kind else _model_of(other.__pydantic_core_schema__)
        made = _with_alternatives(other, super().model_schema(inner))
        chosen_by = kind.CHOSEN_BY
        made["properties"][chosen_by] = {**made["properties"][chosen_by], "enum": names}
        if kind.model_fields[chosen_by].get_default() not in names:
            made["required"] = sorted({*made.get("required", []), chosen_by})
        return made


class _LibrarySchema(_Schema):
    """The schema without the entries of plugins."""

    def names(self, registry: Mapping[str, Any]) -> list[str]:
        """Return the library's own entries of a registry."""
        return [name for name in registry if not isinstance(registry, Registry) or name in registry.built_in]


def _model_of(schema: Any) -> core_schema.ModelSchema:
    """Return the class's own schema, inside its validators and definitions."""
    while schema["type"] != "model":
        schema = schema["schema"]
    model: core_schema.ModelSchema = schema
    return model


def _with_alternatives(kind: type[RegistrySection], made: JsonSchemaValue) -> JsonSchemaValue:
    """Add keys that replace all required fields."""
    for key, names in sorted(kind.ALSO.items()):
        made["properties"][key] = {"enum": list(names), "title": key.capitalize()}
        if required := made.pop("required", []):
            made["anyOf"] = [{"required": required}, {"required": [key]}]
    return made
