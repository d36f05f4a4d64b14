"""URIs: where a store, a bucket and a key begin and end.

In: what a user, a listing or a manifest wrote. Out: (scheme, bucket, key), or a longer URI.
Invariant: a key is opaque. It is cut off after the bucket and appended to with "/", and nothing
here or elsewhere unquotes, normalises or otherwise understands it. Only local paths are normalised,
once, to absolute ones.
"""

import os
import re

from imgcls.config.paths import PLACES, READ_SCHEMES, SCHEMES, absolute_path, refuse_secrets
from imgcls.errors import ConfigError
from imgcls.storage.requests.advice import ADVICE

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+@)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?")
_MAX_SHOWN = 60


def is_local(uri: str) -> bool:
    """Tell whether `uri` is a path of this machine rather than an object of a store."""
    return _SCHEME.match(uri) is None


def split_uri(uri: str) -> tuple[str, str, str]:
    """Split a URI into scheme, bucket and key.

    Returns:
        (one of SCHEMES, bucket, key) with the key as it is, (one of READ_SCHEMES, host, path), or
        ("", "", absolute path) for a local path.

    Raises:
        ConfigError: unknown scheme, no bucket, credentials in the URI, or a path that no file can
            have.
    """
    match = _SCHEME.match(uri)
    if match is None:
        return "", "", absolute_path(uri)
    scheme = match[1]
    if scheme in READ_SCHEMES:
        refuse_secrets(uri)
        host, _, key = uri[match.end() :].partition("/")
        if not _HOST.fullmatch(host):
            raise ConfigError(f"{uri[:_MAX_SHOWN]!r} names no host: write {scheme}://HOST/PATH")
        return scheme, host, key
    if scheme not in SCHEMES:
        raise ConfigError(f"{scheme}:// is not a scheme that imgcls reads; use {PLACES}")
    bucket, _, key = uri[match.end() :].partition("/")
    if "@" in bucket or ":" in bucket:
        # The URI itself stays out of the message: it may hold a secret.
        raise ConfigError(
            f"a {scheme}:// URI holds credentials or a port; for credentials"
            f" {ADVICE[scheme].credentials}; an endpoint is given by {ADVICE[scheme].endpoint}"
        )
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"{uri[:_MAX_SHOWN]!r} names no bucket: write {scheme}://BUCKET/KEY")
    return scheme, bucket, key


def join(uri: str, *parts: str) -> str:
    """Append parts to a URI or a local path, with exactly one "/" added or found before each.

    Parts are opaque: on an object store `join("s3://b/p", "../x")` is the key "p/../x", an ordinary
    name. On a local disk ".." would leave the folder, so a part with such a segment is refused.

    Raises:
        ConfigError: a part for a local path has a ".." segment, or `uri` is empty.
    """
    if not uri:
        raise ConfigError("an empty path names nothing: write a URI or a folder")
    local = is_local(uri)
    for part in parts:
        if local and ".." in part.split("/"):
            raise ConfigError(
                f"{part!r} would lead out of {uri!r}: '..' is not allowed in a local name"
            )
        uri = f"{uri}{part}" if uri.endswith("/") else f"{uri}/{part}"
    return uri


def canonical(uri: str) -> str:
    """Return the one spelling of a prefix: a local path absolute, a trailing "/" dropped.

    Listings give objects below it as `canonical(uri) + "/" + rest`.

    Raises:
        ConfigError: as for `split_uri`.
    """
    scheme, bucket, key = split_uri(uri)
    return f"{scheme}://{bucket}/{key}".rstrip("/") if scheme else key.rstrip("/") or "/"


def is_inside(uri: str, folder: str) -> bool:
    """Tell whether `uri` is `folder` or lies in it; on a disk, wherever links lead.

    Raises:
        ConfigError: as for `split_uri`.
    """
    if is_local(uri) != is_local(folder):
        return False
    inner, outer = canonical(uri), canonical(folder)
    if is_local(uri):
        inner, outer = os.path.realpath(inner), os.path.realpath(outer)
    return f"{inner}/".startswith(f"{outer.rstrip('/')}/")
