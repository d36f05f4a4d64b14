"""The fields of a spec, to JSON and back, strictly.

In: a frozen dataclass, or JSON values of one. Out: the other. Invariant: a spec that comes from a
file is complete, knows no field that we do not, and each value is of the type of its field.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from imgcls.errors import BundleError
from imgcls.image.versions import Versions, from_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def check(name: str, value: object, possible: bool) -> None:
    """Refuse a value that is not possible.

    Raises:
        BundleError: names the field and the value.
    """
    if not possible:
        raise BundleError(f"spec: {name}={value!r} is not possible")


def check_choices(
    spec: "DataclassInstance", choices_by_field: Mapping[str, tuple[str, ...]]
) -> None:
    """Refuse a value that is none of the field's choices.

    Raises:
        BundleError: names the field, the value and the choices.
    """
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        choices = choices_by_field.get(field.name)
        if choices is not None and value not in choices:
            raise BundleError(f"spec: {field.name}={value!r} is none of {', '.join(choices)}")


def to_dict(spec: "DataclassInstance") -> dict[str, Any]:
    """Return the fields as JSON-able values, in their order."""
    values = dataclasses.asdict(spec)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def checked_fields(cls: "type[DataclassInstance]", values: dict[str, Any]) -> dict[str, Any]:
    """Turn JSON values into constructor arguments.

    Raises:
        BundleError: an unknown or missing field, or a value of another type, by name.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - set(fields)):
        raise BundleError(f"{cls.__name__}: unknown fields {', '.join(unknown)}")
    if missing := sorted(set(fields) - set(values)):
        raise BundleError(f"{cls.__name__}: missing fields {', '.join(missing)}")
    return {name: _typed(name, fields[name].type, value) for name, value in values.items()}


def _typed(name: str, kind: object, value: object) -> object:
    """Return `value` as what the field holds; refuse any other type by name."""
    if kind == Versions:
        return from_json(value)
    text = str(kind)
    if kind is bool:
        fits = isinstance(value, bool)
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    elif kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif "tuple" in text:
        number = (int, float) if "float" in text else int
        fits = isinstance(value, list | tuple) and all(
            isinstance(v, number) and not isinstance(v, bool) for v in value
        )
        if fits and isinstance(value, list | tuple):
            value = tuple(float(v) if "float" in text else v for v in value)
            fits = "..." in text or len(value) == text.count(",") + 1
    else:
        fits = isinstance(value, str)
    if not fits:
        raise BundleError(f"spec: {name}={value!r} is not a {text.removeprefix('typing.')}")
    return value
