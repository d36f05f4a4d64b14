"""JSON that somebody else may have written: parsed within limits, or refused in words.

In: text or bytes from a store. Out: plain values. Invariant: whatever the bytes are, the caller
gets a value of bounded depth or the error that it names: no RecursionError, no MemoryError.
"""

import json
from collections.abc import Callable
from typing import Any

from imgcls.errors import ImgclsError

MAX_DEPTH = 64
_TOO_DEEP = f"it is nested more than {MAX_DEPTH} deep"


def parse_json(
    data: str | bytes,
    what: str,
    error: type[ImgclsError],
    *,
    pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:  # noqa: ANN401  (any JSON)
    """Parse JSON.

    Args:
        data: The text; bytes are UTF-8.
        what: Names it in the message, which never quotes it.
        error: What to raise.
        pairs_hook: As `object_pairs_hook` of json.loads; may raise ValueError.

    Raises:
        error: no JSON, or nested more than MAX_DEPTH deep.
    """
    try:
        value = json.loads(data, object_pairs_hook=pairs_hook)
    except RecursionError:
        raise error(f"{what} is not JSON that imgcls reads: {_TOO_DEEP}") from None
    except ValueError as reason:
        raise error(f"{what} is not JSON: {reason}") from reason
    if _is_deeper(value, MAX_DEPTH):
        raise error(f"{what} is not JSON that imgcls reads: {_TOO_DEEP}")
    return value


def parse_object(data: str | bytes, what: str, error: type[ImgclsError]) -> dict[str, Any]:
    """Parse JSON that must be an object.

    Raises:
        error: as for `parse_json`, or another kind of value.
    """
    value = parse_json(data, what, error)
    if not isinstance(value, dict):
        raise error(f"{what} is not a JSON object")
    return value


def _is_deeper(value: object, limit: int) -> bool:
    """Tell whether lists and objects are nested deeper than that; needs no stack of its own."""
    level = [value]
    for _ in range(limit + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: object) -> list[object]:
    match value:
        case dict():
            return list(value.values())
        case list():
            return value
    return []
