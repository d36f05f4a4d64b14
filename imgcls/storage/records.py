"""Records: frozen dataclasses kept as JSON objects in a store, by whichever version of imgcls.

In: bytes from a store and the dataclass that they should be, or one to write. Out: the dataclass,
or bytes. Invariant: fields that a later version added are passed over, one that an earlier version
did not have takes its default, and a value of a wrong type is the caller's error, with its place.
Where a version cannot do without what it added, it raises the format version of its record, by
which the others refuse it.
"""

import json
from dataclasses import asdict
from typing import Any, TypeVar

import msgspec

from imgcls.errors import ImgclsError
from imgcls.storage.json_text import parse_object

T = TypeVar("T")


def parse_record(
    data: str | bytes,
    what: str,
    error: type[ImgclsError],
    kind: type[T],
    *,
    format_version: int = 0,
) -> T:
    """Parse a record.

    Args:
        data: JSON text; bytes are UTF-8.
        what: names it in the message.
        error: what to raise.
        kind: a dataclass.
        format_version: that the record must have; 0: this kind has none.

    Raises:
        error: not a JSON object, of another format version, or not of this kind.
    """
    fields = parse_object(data, what, error)
    if format_version:
        refuse_other_version(fields, what, error, format_version)
    return record_of(fields, what, error, kind)


def refuse_other_version(
    fields: dict[str, Any], what: str, error: type[ImgclsError], format_version: int
) -> None:
    """Refuse a record of another format: what that calls its fields is not for this one to judge.

    Raises:
        error: it has another format version, or none.
    """
    found = fields.get("format_version", "missing")
    if found != format_version:
        raise error(
            f"{what} was written by another version of imgcls (format_version {found!r:.40}, this "
            f"one reads {format_version}): use that version for it"
        )


def record_of(fields: dict[str, Any], what: str, error: type[ImgclsError], kind: type[T]) -> T:
    """Return the record that parsed fields are.

    Raises:
        error: a field is missing or has another type.
    """
    try:
        return msgspec.convert(fields, kind)
    except (msgspec.ValidationError, ValueError, TypeError) as reason:
        raise error(f"{what} is not what imgcls writes there: {reason}") from reason


def record_text(
    record: Any,  # noqa: ANN401 - any dataclass
    *,
    format_version: int = 0,
    indent: int | None = None,
    leave_out: tuple[str, ...] = (),
) -> bytes:
    """Return a record as JSON.

    Args:
        record: a dataclass of values that JSON has.
        format_version: written first; 0: this kind has none.
        indent: for people; None: one line.
        leave_out: fields that are not written.
    """
    version = {"format_version": format_version} if format_version else {}
    fields = {name: value for name, value in asdict(record).items() if name not in leave_out}
    return json.dumps(version | fields, indent=indent).encode()
