"""The aliases of a model: what each stands for, and how it came to that.

In: REGISTRY/<name>, an alias, a change. Out: REGISTRY/<name>/aliases/<alias>.json. Invariant: an
alias changes by compare-and-swap, and its history lies in the same object: no promotion is ever
without its line, and no line without its promotion.
"""

import getpass
import json
import random
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from imgcls.errors import (
    BundleError,
    ConfigError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectMissingError,
    StorageError,
)
from imgcls.storage import objects
from imgcls.storage.records import parse_record
from imgcls.storage.uri import join

_SUFFIX = ".json"
_MAX_TRIES = 50
_MAX_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Promotion:
    """One change of an alias. What an alias of before there was a history does not know is ""."""

    version: int
    digest: str
    promoted_at: str = ""
    """ISO 8601, UTC, by the clock of the machine that promoted."""
    promoted_by: str = ""
    """user@host."""
    reference: str = ""
    """What was promoted, as it was written: REGISTRY/NAME@v3, or another alias."""
    from_version: int | None = None
    """What the alias stood for before; None where it was new."""
    forced: bool = False
    """Whether `--force` promoted a version that would have been refused."""
    undone: bool = False
    """Whether this took the promotion before it back (`--previous`)."""


@dataclass(frozen=True, slots=True)
class Alias:
    """What an alias stands for: its last change, after all before it, the oldest first."""

    now: Promotion
    history: tuple[Promotion, ...] = ()

    def before(self) -> Promotion | None:
        """Return what stood here before the promotion that counts now; None where nothing did."""
        standing: list[Promotion] = []
        for change in (*self.history, self.now):
            if change.undone and standing:
                standing.pop()
            else:
                standing.append(change)
        return standing[-2] if len(standing) > 1 else None

    def to_json(self) -> bytes:
        """Return the object's bytes; versions of imgcls without a history read them, too."""
        return json.dumps(
            asdict(self.now) | {"history": [asdict(change) for change in self.history]}, indent=1
        ).encode()


def alias_uri(folder: str, alias: str) -> str:
    """Return the URI of an alias of the model whose folder is REGISTRY/<name>."""
    return join(folder, "aliases", f"{alias}{_SUFFIX}")


def read_alias(folder: str, alias: str) -> Alias:
    """Return what an alias stands for.

    Raises:
        ObjectMissingError: there is no such alias.
        BundleError: the object is not an alias.
    """
    uri = alias_uri(folder, alias)
    return _parse(objects.read(uri), uri)


def list_aliases(folder: str) -> dict[str, Alias]:
    """Return all aliases of a model, by name.

    Raises:
        BundleError: an object among them is not an alias.
    """
    return {name: read_alias(folder, name) for name in list_names(folder)}


def list_names(folder: str) -> list[str]:
    """Return the names of a model's aliases."""
    return sorted(
        entry.uri.rpartition("/")[2].removesuffix(_SUFFIX)
        for entry in objects.list_objects(join(folder, "aliases"))
        if entry.uri.endswith(_SUFFIX)
    )


def move_alias(
    folder: str,
    alias: str,
    version: int,
    digest: str,
    *,
    reference: str,
    forced: bool,
    check: Callable[[str | None], object] | None = None,
) -> Promotion:
    """Point an alias at a version, whatever it stands for at this moment.

    `check` is told the digest of that (None: the alias is new), and may raise.

    Raises:
        StorageError: it never stopped changing.
    """

    def change(old: Alias | None) -> Promotion:
        if check is not None:
            check(old.now.digest if old is not None else None)
        from_version = old.now.version if old is not None else None
        return _promotion(
            version, digest, reference=reference, from_version=from_version, forced=forced
        )

    for attempt in range(_MAX_TRIES):
        try:
            return _swap(alias_uri(folder, alias), change)
        except (ObjectChangedError, ObjectExistsError, ObjectMissingError):
            # Another promotion came between reading and writing: read again.
            time.sleep(random.uniform(0, min(_MAX_PAUSE_S, 0.01 * 2**attempt)))  # noqa: S311  (jitter, no secret)
    raise StorageError(
        f"{alias_uri(folder, alias)} changed {_MAX_TRIES} times while it was being written; "
        "try again"
    )


def undo_last(folder: str, alias: str) -> Promotion:
    """Point an alias back at what it stood for before its last promotion.

    Called again, it goes back one further. It never follows another operator's change: the second
    of two that undo at a time is refused.

    Raises:
        ConfigError: there is nothing before, or the alias changed meanwhile.
        BundleError: it is not an alias.
    """
    uri = alias_uri(folder, alias)

    def change(old: Alias | None) -> Promotion:
        before = old.before() if old is not None else None
        if old is None or before is None:
            stands = f"it stands for v{old.now.version}" if old is not None else "it is not there"
            raise ConfigError(
                f"--previous: {folder}@{alias} has no promotion before the one that counts "
                f"({stands}): nothing was changed"
            )
        return _promotion(
            before.version,
            before.digest,
            reference=before.reference,
            from_version=old.now.version,
            forced=before.forced,
            undone=True,
        )

    try:
        return _swap(uri, change)
    except (ObjectChangedError, ObjectMissingError) as error:
        raise ConfigError(
            f"--previous: {folder}@{alias} was changed by somebody else at this moment: look at "
            "`imgcls models` and decide again"
        ) from error


def _promotion(version: int, digest: str, **facts: Any) -> Promotion:  # noqa: ANN401  (fields)
    now = datetime.now(UTC).isoformat()
    return Promotion(version, digest, promoted_at=now, promoted_by=_who(), **facts)


def _swap(uri: str, change: Callable[[Alias | None], Promotion]) -> Promotion:
    """Write an alias over what it was a moment ago."""
    try:
        data, etag = objects.read_with_etag(uri)
    except ObjectMissingError:
        new = Alias(change(None))
        objects.put_new(uri, new.to_json())
        return new.now
    old = _parse(data, uri)
    new = Alias(change(old), (*old.history, old.now))
    objects.put_if_match(uri, new.to_json(), etag)
    return new.now


@dataclass(frozen=True, slots=True)
class _History:
    """The changes before, in the same record."""

    history: tuple[Promotion, ...] = ()


def _parse(data: bytes, uri: str) -> Alias:
    try:
        now = parse_record(data, "it", BundleError, Promotion)
        return Alias(now, parse_record(data, "it", BundleError, _History).history)
    except BundleError as error:
        raise BundleError(f"{uri} is not an alias: {error}; promote again") from error


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
