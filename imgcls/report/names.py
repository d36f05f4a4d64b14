"""How names of objects and carried values are shown: as they are, or as codes."""

import hashlib
import hmac
import secrets
from collections.abc import Callable

Name = Callable[[str], str]


def plain_names(text: str) -> str:
    """Show a name as it is."""
    return text


def hashed_names() -> Name:
    """Return what replaces names by codes, of a key that nobody keeps: equal ones stay equal."""
    key = secrets.token_bytes(16)
    return lambda text: hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:12]
