"""Links that open one object for whoever has them, for a while.

In: URIs of object stores. Out: https links. Invariant: a link is made when somebody asks for it and
is given to the caller alone: nothing here logs or keeps one.
"""

from collections.abc import Sequence
from datetime import timedelta

from imgcls.config.paths import SCHEMES
from imgcls.errors import ConfigError
from imgcls.storage.requests.background_loop import run
from imgcls.storage.resolver import bucket_of
from imgcls.storage.uri import split_uri


def sign(uris: Sequence[str], expires: timedelta) -> list[str]:
    """Return a link for each object, in order.

    Args:
        uris: Of s3://, gs:// or az://.
        expires: How long they work.

    Raises:
        ConfigError: another place than an object store, or credentials that cannot sign.
    """
    links = []
    for uri in uris:
        scheme, bucket, key = split_uri(uri)
        if scheme not in SCHEMES:
            raise ConfigError(f"{uri}: only an object store ({', '.join(SCHEMES)}) signs links")
        links.append(run(bucket_of(scheme, bucket).sign(key, expires)))
    return links
