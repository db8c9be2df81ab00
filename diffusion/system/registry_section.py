"""A section of params.yaml that gets its class from a registry entry, selected by one of its fields."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self, cast

from pydantic import ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from diffusion.system.references import is_entry, load_reference
from diffusion.system.section import UNKNOWN_KEY, Section, unknown_key


class RegistrySection(Section):
    """Common fields of all entries; values become an instance of the selected entry's class.

    `CHOSEN_BY` is the field with the entry's name. `OF_ENTRY` is the entry's attribute with the class, a
    subclass of this one as a torch-free "module:name". `ALSO` are keys that replace fields, each with the
    entries that it names. An option of other entries is refused with their names.
    """

    CHOSEN_BY: ClassVar[str]
    ENTRIES: ClassVar[Mapping[str, Any]]
    OF_ENTRY: ClassVar[str] = "config"
    ALSO: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    def __new__(cls, /, **values: Any) -> Self:
        """Create an instance of the entry's class, which Python then initialises."""
        name = cls._named(values)
        wanted = cls if name is None else _class_of(cls.ENTRIES[name], cls.OF_ENTRY)
        return super().__new__(wanted if issubclass(wanted, cls) else cls)

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_entry(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        name = cls._named(values)
        if name is None:  # no other field is known without an entry
            named = isinstance(values, dict) and cls.CHOSEN_BY in values
            return handler({cls.CHOSEN_BY: values[cls.CHOSEN_BY]} if named else values)
        wanted = _class_of(cls.ENTRIES[name], cls.OF_ENTRY)
        if not issubclass(cls, wanted) and not issubclass(wanted, cls):  # a section for one kind of entry
            raise ValidationError.from_exception_data(cls.__name__, [cls._other_entry(name)])
        if unknown := [key for key in values if key not in _keys(wanted)]:
            raise ValidationError.from_exception_data(
                cls.__name__, [cls._refusal(key, values[key], name, wanted) for key in unknown]
            )
        return handler(values) if issubclass(cls, wanted) else cast(Self, wanted.model_validate(values))

    @classmethod
    def _named(cls, values: Any) -> str | None:
        """Return the selected entry; None if the values name none."""
        if not isinstance(values, dict):
            return None
        name = values.get(cls.CHOSEN_BY, cls.model_fields[cls.CHOSEN_BY].default)
        return name if is_entry(name, cls.ENTRIES) else None

    @classmethod
    def _other_entry(cls, name: str) -> InitErrorDetails:
        """Return why an entry of another class is refused."""
        kinds = {other: _class_of(entry, cls.OF_ENTRY) for other, entry in cls.ENTRIES.items()}
        fitting = [other for other, kind in kinds.items() if issubclass(cls, kind) or issubclass(kind, cls)]
        why = {"message": f"it must be {' or '.join(fitting)} here (got {name})"}
        error = PydanticCustomError("value_error", "{message}", why)
        return InitErrorDetails(type=error, loc=(cls.CHOSEN_BY,), input=name)

    @classmethod
    def _refusal(cls, key: str, value: Any, name: str, wanted: "type[RegistrySection]") -> InitErrorDetails:
        """Return why a key is refused: the entries that have it, else the allowed keys."""
        others = [
            other for other, entry in cls.ENTRIES.items() if key in _keys(_class_of(entry, cls.OF_ENTRY))
        ]
        message = (
            f"{name} has no such option; it belongs to {' and '.join(others)}"
            if others
            else unknown_key(key, _keys(wanted))
        )
        why = PydanticCustomError(UNKNOWN_KEY, "{message}", {"message": message})
        return InitErrorDetails(type=why, loc=(key,), input=value)


def _keys(kind: type[RegistrySection]) -> list[str]:
    return [*kind.model_fields, *sorted(kind.ALSO)]


def _class_of(entry: Any, attribute: str) -> type[RegistrySection]:
    kind: type[RegistrySection] = load_reference(getattr(entry, attribute))
    return kind
