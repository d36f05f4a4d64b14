"""One GET by obstore, the fast client, for every store it knows, and links for others to GET by.

In: an obstore store and a key that it can name. Out: the whole object, or a span of
it. Invariant: fewer bytes than promised are an error, never data.
"""

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import BaseError

from imgcls.errors import ConfigError
from imgcls.storage.bucket import Fetched, Span, quoted, unquoted
from imgcls.storage.requests.failures import from_obstore
from imgcls.storage.requests.retry import TransientError

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, RetryConfig

CONNECT_TIMEOUT_S = 5
STALL_TIMEOUT_S = 20
# A whole object, however large; a connection that moves is ended by nothing else.
TRANSFER_TIMEOUT_S = 600

CLIENT_OPTIONS: "ClientConfig" = {
    "allow_http": True,
    "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
    "read_timeout": timedelta(seconds=STALL_TIMEOUT_S),
    "timeout": timedelta(seconds=TRANSFER_TIMEOUT_S),
}
# Ours are above: they see a SlowDown and lower the concurrency, and they keep one budget.
NO_RETRIES: "RetryConfig" = {"max_retries": 0}

# What obstore raises: its own, and two built-in errors (missing object, refused path).
ERRORS = (BaseError, FileNotFoundError, ValueError)

_was_used = False
_lost_to_fork = False

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def can_name(key: str) -> bool:
    """Tell whether obstore passes this key on as it is.

    It refuses control characters and empty, "." and ".." segments, and drops a leading or trailing
    "/" in silence (object_store's `Path::parse`, obstore 0.12.1).
    """
    if _CONTROL.search(key):
        return False
    return all(segment not in ("", ".", "..") for segment in key.split("/"))


def is_alive() -> bool:
    """Tell whether obstore works in this process.

    Its threads do not survive a fork and cannot be started again: in a forked child of a process
    that has used it, a request would wait for ever.
    """
    return not _lost_to_fork


def _note_fork() -> None:
    global _lost_to_fork
    _lost_to_fork = _lost_to_fork or _was_used


os.register_at_fork(after_in_child=_note_fork)


async def get(
    store: Any,  # noqa: ANN401  (any of obstore's stores)
    key: str,
    what: str,
    etag: str | None,
    version_id: str | None,
    span: Span | None = None,
) -> Fetched:
    """Read one object whole, or a span of it.

    Raises:
        ObjectMissingError, ObjectChangedError, AccessDeniedError, ConfigError, StorageError: final.
        TransientError: another attempt may succeed.
    """
    global _was_used
    _was_used = True
    options: GetOptions = {}
    if etag is not None:
        options["if_match"] = quoted(etag)
    if version_id is not None:
        options["version"] = version_id
    if span is not None:
        options["range"] = (span.start, span.start + span.num_bytes)
    try:
        result = await obstore.get_async(store, key, options=options)
        data = (await result.bytes_async()).to_bytes()
    except ERRORS as error:
        raise from_obstore(error, what) from error
    meta = result.meta
    expected = meta["size"] if span is None else span.length_in(meta["size"])
    if len(data) != expected:
        raise TransientError(f"truncated body: {len(data)} of {expected} bytes")
    return Fetched(data, unquoted(meta["e_tag"]))


async def sign(store: Any, key: str, what: str, expires: timedelta) -> str:  # noqa: ANN401  (as above)
    """Return a link that opens one object for whoever has it.

    Raises:
        ConfigError: the key has a name that no link carries, or the credentials cannot sign.
    """
    global _was_used
    _was_used = True
    if not can_name(key):
        raise ConfigError(f"{what}: no link carries this name")
    try:
        return await obstore.sign_async(store, "GET", key, expires)
    except ERRORS as error:
        raise from_obstore(error, what) from error
