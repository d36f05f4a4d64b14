"""The one place that turns a URI's scheme and bucket into clients.

In: a scheme, a bucket or a host, and the environment. Out: a `Bucket`. Invariant: one per process
and bucket, built at first use, never pickled and never carried across a fork.
"""

import os
import threading
from typing import TYPE_CHECKING

from imgcls.config.paths import READ_SCHEMES
from imgcls.errors import ConfigError
from imgcls.storage.bucket import Bucket

if TYPE_CHECKING:
    from imgcls.storage.stores.s3_account import S3Account

_lock = threading.Lock()
_buckets: dict[tuple[int, str, str], Bucket] = {}
_accounts: dict[int, "S3Account"] = {}


def bucket_of(scheme: str, bucket: str) -> Bucket:
    """Return the bucket's clients, the same object at every call in this process.

    The cloud libraries are imported here, at first use: a run on local folders never loads them.
    """
    key = (os.getpid(), scheme, bucket)
    with _lock:
        if key not in _buckets:
            _buckets[key] = _build(scheme, bucket)
        return _buckets[key]


def _build(scheme: str, bucket: str) -> Bucket:
    if scheme == "gs":
        from imgcls.storage.stores.gcs import GcsBucket

        return GcsBucket(bucket)
    if scheme == "az":
        from imgcls.storage.stores.azure import AzureBucket

        return AzureBucket(bucket)
    if scheme in READ_SCHEMES:
        from imgcls.storage.stores.read_only import ReadOnlyBucket

        return ReadOnlyBucket(scheme, bucket)
    if scheme != "s3":
        raise ConfigError(f"{scheme}:// has no client in storage/resolver.py")
    from imgcls.storage.stores.s3 import S3Bucket
    from imgcls.storage.stores.s3_account import S3Account

    account = _accounts.setdefault(os.getpid(), S3Account())
    return S3Bucket(account, bucket)


def reset() -> None:
    """Forget the clients of this process: the next request reads the environment again."""
    with _lock:
        _accounts.pop(os.getpid(), None)
        for key in [key for key in _buckets if key[0] == os.getpid()]:
            del _buckets[key]


def _forget_lock_after_fork() -> None:
    """Replace the lock in a forked child: another thread may have held it in the parent."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock_after_fork)
