"""The registry: names, versions and aliases of bundles, under one prefix.

In: REGISTRY, a name, a bundle. Out: REGISTRY/<name>/v<N>/, REGISTRY/<name>/aliases/<alias>.json.
Invariant: a version is the property of the one writer whose bundle.json came first, and it exists
from the moment that its SHA256SUMS is there; an abandoned one is a gap in the numbers. An alias
changes by compare-and-swap.
"""

import json
import random
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from imgcls.config.models import PromoteConfig
from imgcls.errors import (
    BundleError,
    ConfigError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectMissingError,
    StorageError,
)
from imgcls.model.bundle_files import SUMS, read_digest
from imgcls.storage import objects
from imgcls.storage.json_text import parse_record
from imgcls.storage.probe import require_conditional_writes
from imgcls.storage.uri import canonical, is_local, join, split_uri

if TYPE_CHECKING:
    from imgcls.model.bundle import Bundle

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"v([1-9][0-9]*)")
_MAX_TRIES = 50
_MAX_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A complete bundle of the registry."""

    uri: str
    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class _Reference:
    """REGISTRY/<name>@<selector>, taken apart; `folder` is REGISTRY/<name>."""

    folder: str
    name: str
    selector: str


def check_name(name: str, what: str = "model name") -> None:
    """Refuse a name that could not be part of a reference.

    Raises:
        ConfigError: other characters than letters, digits, dots, dashes and underscores.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name!r}: use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )


def register(registry: str, name: str, bundle: "Bundle") -> ModelVersion:
    """Store a bundle as the next free version of its name.

    Raises:
        ConfigError: an unusable name.
        BundleError: the bundle is not loadable; no version was claimed.
        StorageError: the store failed; the claimed version stays a gap.
    """
    # Only here: to resolve a reference wants no torch.
    from imgcls.model.bundle import write_bundle

    check_name(name)
    folder = _folder(registry, name)
    version = max(_known_versions(folder), default=0)
    for _ in range(_MAX_TRIES):
        version += 1
        uri = join(folder, f"v{version}")
        try:
            digest = write_bundle(bundle, uri)
        except ObjectExistsError:
            continue
        return ModelVersion(uri=uri, version=version, digest=digest)
    raise StorageError(f"{_MAX_TRIES} versions of {folder} up to v{version} were taken by others")


def list_versions(registry: str, name: str) -> list[ModelVersion]:
    """Return the complete versions of a name, oldest first; none for an unknown name."""
    folder = _folder(registry, name)
    uris = {v: join(folder, f"v{v}") for v, done in _known_versions(folder).items() if done}
    return [ModelVersion(uris[v], v, read_digest(uris[v])) for v in sorted(uris)]


def resolve(ref: str) -> str:
    """Return the URI of the bundle that a reference means.

    Args:
        ref: REGISTRY/NAME@v3, REGISTRY/NAME@alias, or a bundle's URI.

    Raises:
        ConfigError: no such version or alias; the message says which there are.
        BundleError: the URI is not a bundle, or the alias names a bundle that was replaced since.
    """
    reference = _parse(ref)
    if reference is None:
        return _resolve_uri(ref)
    return _find(reference).uri


def promote_version(config: PromoteConfig) -> dict[str, Any]:
    """Run `imgcls promote`: see `promote`."""
    return promote(config.model, config.alias)


def promote(ref: str, alias: str) -> dict[str, Any]:
    """Point an alias at a version.

    Args:
        ref: REGISTRY/NAME@v3, or REGISTRY/NAME@alias to copy that alias.
        alias: The alias to move or make.

    Returns:
        model, uri, version, digest, alias, promoted_at and previous_version (None for a new alias).

    Raises:
        ConfigError: an unusable alias, a bundle's URI, or a version that does not exist or is not
            complete.
    """
    check_name(alias, "alias")
    if _VERSION.fullmatch(alias):
        raise ConfigError(f"alias {alias!r} reads as a version: use a word such as production")
    reference = _parse(ref)
    if reference is None:
        raise ConfigError(f"{ref!r} names no version of a registry: write REGISTRY/NAME@v3")
    found = _find(reference)
    require_conditional_writes(reference.folder.rpartition("/")[0])
    uri = _alias_uri(reference.folder, alias)
    for attempt in range(_MAX_TRIES):
        record = {
            "version": found.version,
            "digest": found.digest,
            "promoted_at": datetime.now(UTC).isoformat(),
        }
        try:
            previous = _swap(uri, record)
        except (ObjectChangedError, ObjectExistsError, ObjectMissingError):
            # Another promotion came between reading and writing: read again.
            time.sleep(random.uniform(0, min(_MAX_PAUSE_S, 0.01 * 2**attempt)))  # noqa: S311  (jitter, no secret)
            continue
        return {
            "model": f"{reference.folder}@v{found.version}",
            "uri": found.uri,
            "alias": alias,
            "previous_version": previous,
            **record,
        }
    raise StorageError(f"{uri} changed {_MAX_TRIES} times while it was being written; try again")


def _swap(uri: str, record: dict[str, Any]) -> int | None:
    """Write an alias over what it was a moment ago; return the version that it had."""
    data = json.dumps(record).encode()
    try:
        old, etag = objects.read_with_etag(uri)
    except ObjectMissingError:
        objects.put_new(uri, data)
        return None
    objects.put_if_match(uri, data, etag)
    version: int = _parse_alias(old, uri)["version"]
    return version


def _parse(ref: str) -> _Reference | None:
    """Take a reference apart; None for a bundle's URI, whose last segment has no "@"."""
    if not is_local(ref):
        # Refuses credentials in a URI, before any part of it could be quoted.
        split_uri(ref)
    registry, _, last = ref.rpartition("/")
    name, at, selector = last.partition("@")
    if not at:
        return None
    check_name(name)
    check_name(selector, "version or alias")
    return _Reference(_folder(registry or ".", name), name, selector)


def _folder(registry: str, name: str) -> str:
    """Return REGISTRY/<name>, spelled as a listing spells it."""
    return join(canonical(registry), name)


def _find(reference: _Reference) -> ModelVersion:
    """Return the complete version that a reference selects."""
    match = _VERSION.fullmatch(reference.selector)
    if match:
        version, promised = int(match[1]), ""
    else:
        alias_uri = _alias_uri(reference.folder, reference.selector)
        try:
            alias = _parse_alias(objects.read(alias_uri), alias_uri)
        except ObjectMissingError as error:
            raise ConfigError(
                f"{reference.folder} has no alias {reference.selector!r}; {_what_exists(reference)}"
            ) from error
        version, promised = alias["version"], alias["digest"]
    uri = join(reference.folder, f"v{version}")
    if not objects.exists(join(uri, SUMS)):
        raise ConfigError(
            f"{reference.folder} has no complete version v{version}; {_what_exists(reference)}"
        )
    digest = read_digest(uri)
    if promised and promised != digest:
        raise BundleError(
            f"{uri} has the digest {digest}, but {reference.selector!r} was promoted with "
            f"{promised}: the bundle was replaced; promote again if that was meant"
        )
    return ModelVersion(uri, version, digest)


def _resolve_uri(uri: str) -> str:
    if objects.exists(join(uri, SUMS)):
        return uri
    folder = canonical(uri)
    versions = [v for v, done in _known_versions(folder).items() if done]
    if versions:
        raise ConfigError(
            f"{uri} names a model, not a version of it: write {uri.rstrip('/')}@v{max(versions)}"
        )
    read_digest(uri)  # raises what is wrong with it
    return uri


def _known_versions(folder: str) -> dict[int, bool]:
    """Return version -> complete, of every version that somebody claimed."""
    known: dict[int, bool] = {}
    for entry in objects.list_objects(folder):
        first, _, rest = entry.uri[len(folder) + 1 :].partition("/")
        match = _VERSION.fullmatch(first)
        if match and rest:
            version = int(match[1])
            known[version] = known.get(version, False) or rest == SUMS
    return known


def _alias_uri(folder: str, alias: str) -> str:
    return join(folder, "aliases", f"{alias}.json")


def _parse_alias(data: bytes, uri: str) -> dict[str, Any]:
    try:
        return parse_record(
            data,
            "it",
            BundleError,
            lambda alias: {"version": int(alias["version"]), "digest": str(alias["digest"])},
        )
    except BundleError as error:
        raise BundleError(f"{uri} is not an alias: {error}; promote again") from error


def _what_exists(reference: _Reference) -> str:
    known = _known_versions(reference.folder)
    versions = ", ".join(f"v{v}" for v in sorted(known) if known[v])
    suffix = ".json"
    aliases = ", ".join(
        entry.uri.rpartition("/")[2].removesuffix(suffix)
        for entry in objects.list_objects(join(reference.folder, "aliases"))
    )
    if not versions:
        return f"there is no model {reference.name!r} with a complete version there"
    return f"versions: {versions}; aliases: {aliases or 'none'}"
