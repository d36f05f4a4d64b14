"""Values that several commands take."""

import re
from typing import Literal

from imgcls.errors import ConfigError

Executor = Literal["auto", "local", "ray"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str, flag: str) -> None:
    """Refuse a name that cannot stand in a path on every store, in every reader."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{flag} {name!r}: use 1 to 100 letters, digits, dots, dashes or underscores, "
            "beginning with a letter or digit"
        )
