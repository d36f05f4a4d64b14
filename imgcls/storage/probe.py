"""Proof that a store honours conditional writes, once per output and endpoint.

In: a prefix that commits will be made to. Out: nothing, or ConfigError. Invariant: nobody is
accused wrongly by a race or a kill: the object is never deleted, every write of it has bytes of its
own, and whoever finds the proof unfinished begins it again.

Everything a run commits rests on `put_new` having one winner, and the lease on `put_if_match`. Some
stores and gateways take both headers and ignore them: two runs at once both win, and nothing says
so. On a local disk the kernel is the judge, and is not asked.
"""

import json
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from imgcls.errors import ConfigError, ObjectChangedError, ObjectExistsError, ObjectMissingError
from imgcls.storage.json_text import parse_object
from imgcls.storage.objects import put_if_match, put_new, read_with_etag
from imgcls.storage.resolver import bucket_of
from imgcls.storage.uri import is_local, join, split_uri

NAME = "_store_probe.json"
_OTHER_DIGIT = str.maketrans("0123456789abcdefABCDEF", "123456789abcdef0BCDEFA")


def require_conditional_writes(prefix: str) -> None:
    """Refuse a store that ignores If-None-Match or If-Match; later starts read one object.

    Raises:
        ConfigError: it does, and no run there could be trusted.
        AccessDeniedError, StorageError: as for `objects.put_new`.
    """
    if is_local(prefix):
        return
    uri = join(prefix, NAME)
    try:
        proved = _proved(read_with_etag(uri)[0])
    except ObjectMissingError:
        proved = {}
    endpoint = bucket_of(*split_uri(uri)[:2]).endpoint
    if endpoint not in proved:
        _prove(uri, endpoint, proved)


def _prove(uri: str, endpoint: str, proved: dict[str, str]) -> None:
    """Try what must be refused; then write down that it was, by what must be taken."""
    where = f"{uri} at {endpoint}"
    # Another start, or one that was killed here, may have made it.
    with suppress(ObjectExistsError):
        put_new(uri, _record(proved))
    try:
        put_new(uri, _record(proved))
    except ObjectExistsError:
        pass
    else:
        raise ConfigError(_refusal(where, "If-None-Match", "an object that is there"))
    etag = read_with_etag(uri)[1]
    try:
        put_if_match(uri, _record(proved), etag.translate(_OTHER_DIGIT))
    except ObjectChangedError:
        pass
    else:
        raise ConfigError(_refusal(where, "If-Match", "another version than the one it named"))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        put_if_match(uri, _record(proved | {endpoint: now}), etag)
    except ObjectChangedError as error:
        # Another start may have been first to write it down.
        if read_with_etag(uri)[1] == etag:
            raise ConfigError(
                f"{where}: the store refuses a write over the very version (etag {etag}) that it"
                " says is there. A lease could not be held in it. A proxy that rewrites ETags or"
                " compresses replies does this; lead imgcls past it"
            ) from error


def _refusal(where: str, header: str, replaced: str) -> str:
    return (
        f"{where}: the store ignores {header}: a write that it had to refuse replaced {replaced}."
        " Two runs at once would both believe that they were first, and a night could be published"
        " twice or with another's rows. Nothing was planned. Use a store that honours conditional"
        " writes (Amazon S3, Google Cloud Storage, Azure Blob Storage and SeaweedFS do), or a local"
        " folder"
    )


def _record(proved: dict[str, str]) -> bytes:
    """Return the record, different from every other: equal bytes would pass for our own write."""
    return json.dumps({"conditional_writes": proved, "writer": uuid.uuid4().hex}).encode()


def _proved(data: bytes) -> dict[str, str]:
    """Return at which endpoints it was proved, and when; nothing of what cannot be read."""
    try:
        found: Any = parse_object(data, "the record", ConfigError).get("conditional_writes")
    except ConfigError:
        return {}
    return dict(found) if isinstance(found, dict) else {}
