"""Signed links for the images of a queue: how long, and for which.

In: rows of a queue. Out: a link by id. Invariant: at most a day, and by request only.
"""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from imgcls.errors import ConfigError
from imgcls.storage.links import sign

_MOST: Final = timedelta(hours=24)
_UNITS: Final = {"m": "minutes", "h": "hours"}


def parse_expires(text: str) -> timedelta:
    """Read "90m" or "4h".

    Raises:
        ConfigError: it is none, or more than a day.
    """
    match = re.fullmatch(r"([0-9]{1,4})([mh])", text.strip())
    expires = timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else timedelta()
    if not timedelta() < expires <= _MOST:
        raise ConfigError(f"--expires {text}: write a number and m or h, such as 4h; at most 24h")
    return expires


def signed(rows: Sequence[dict[str, Any]], expires: timedelta) -> dict[str, str]:
    """Return a link by id of the row; one object each, members of containers have none.

    Raises:
        ConfigError: an image lies where nothing signs links.
    """
    return dict(
        zip(
            (row["id"] for row in rows),
            sign([row["uri"] for row in rows], expires),
            strict=True,
        )
    )
