"""The registry: names, versions and aliases of bundles, under one prefix.

In: REGISTRY, a name, a bundle. Out: REGISTRY/<name>/v<N>/, REGISTRY/<name>/aliases/<alias>.json.
Invariant: a version is the property of the one writer whose bundle.json came first, and it exists
from the moment that its SHA256SUMS is there; an abandoned one is a gap in the numbers.
"""

import logging
import re
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from imgcls.config.models import PromoteConfig
from imgcls.errors import (
    BundleError,
    ConfigError,
    ObjectExistsError,
    ObjectMissingError,
    StorageError,
)
from imgcls.model import aliases
from imgcls.model.bundle_files import (
    FACTS,
    SUMS,
    parse_facts,
    parse_sums,
    read_digest,
    read_file,
    read_sums,
)
from imgcls.runs.diff_record import Demand
from imgcls.storage import objects
from imgcls.storage.probe import require_conditional_writes
from imgcls.storage.uri import canonical, is_local, join, split_uri

if TYPE_CHECKING:
    from imgcls.model.bundle import Bundle

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"v([1-9][0-9]*)")
_MAX_TRIES = 50

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A complete bundle of the registry."""

    uri: str
    version: int
    digest: str

    @property
    def reference(self) -> str:
        """What commands call it: REGISTRY/NAME@v<N>."""
        return f"{self.uri.removesuffix(f'/v{self.version}')}@v{self.version}"


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
    version = max(known_versions(folder), default=0)
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
    uris = {v: join(folder, f"v{v}") for v, done in known_versions(folder).items() if done}
    return [ModelVersion(uris[v], v, read_digest(uris[v])) for v in sorted(uris)]


def list_names(registry: str) -> list[str]:
    """Return the names in a registry that may have versions, without looking into them."""
    prefix = canonical(registry)
    found = objects.list_folder(prefix)
    uris = found.folders if found is not None else (e.uri for e in objects.list_objects(prefix))
    names = {uri[len(prefix) + 1 :].partition("/")[0] for uri in uris}
    return sorted(name for name in names if _NAME.fullmatch(name))


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
    """Run `imgcls promote`: see `promote` and `undo_promotion`."""
    if config.previous:
        return undo_promotion(config.model, config.alias)
    demand = None
    if config.require_diff:
        demand = Demand(config.require_diff, config.max_flips, config.not_worse)
    elif config.not_worse or config.max_flips < 1:
        raise ConfigError("--max-flips and --not-worse judge by a comparison: add --require-diff")
    return promote(config.model, config.alias, force=config.force, demand=demand)


def promote(
    ref: str, alias: str, *, force: bool = False, demand: Demand | None = None
) -> dict[str, Any]:
    """Point an alias at a version.

    Args:
        ref: REGISTRY/NAME@v3, or REGISTRY/NAME@alias to copy that alias.
        alias: The alias to move or make.
        force: Promote it even if its verdict is that it is not better than guessing.
        demand: What a comparison with what the alias stands for must show.

    Returns:
        model, uri, version, digest, alias, promoted_at, promoted_by, reference, forced, undone, and
        previous_version (None for a new alias); `verdict`: better, not_better, unknown, or none.

    Raises:
        ConfigError: an unusable alias, a bundle's URI, a version that does not exist or is not
            complete, one that is not better than guessing, or a demand that is not met.
    """
    check_name(alias, "alias")
    if _VERSION.fullmatch(alias):
        raise ConfigError(f"alias {alias!r} reads as a version: use a word such as production")
    reference = _parse(ref)
    if reference is None:
        raise ConfigError(f"{ref!r} names no version of a registry: write REGISTRY/NAME@v3")
    found = _find(reference)
    verdict = _read_verdict(found)
    answer = verdict.get("answer", "none")
    if answer == "not_better" and not force:
        raise ConfigError(
            f"{reference.folder}@v{found.version} is not promoted. {verdict['summary']} Train it "
            "on more or other images; or, if you know better, add --force"
        )
    forced = force and answer == "not_better"
    _say_verdict(f"{reference.folder}@v{found.version}", verdict, forced=forced)
    require_conditional_writes(reference.folder.rpartition("/")[0])
    name = f"{reference.folder}@v{found.version}"
    change = aliases.move_alias(
        reference.folder,
        alias,
        found.version,
        found.digest,
        reference=ref,
        forced=forced,
        check=None if demand is None else partial(demand.check, name, found.digest),
    )
    return _promoted(reference.folder, alias, change) | {"verdict": answer}


def _read_verdict(found: ModelVersion) -> dict[str, Any]:
    """Return the verdict that a version carries, {} where none was passed."""
    sums = parse_sums(read_sums(found.uri), found.uri)
    facts = parse_facts(read_file(found.uri, FACTS, sums[FACTS]), join(found.uri, FACTS))
    return facts["verdict"] or {}


def _say_verdict(name: str, verdict: dict[str, Any], *, forced: bool) -> None:
    """Say what is known of a version that is promoted."""
    if forced:
        _log.warning("%s is promoted by --force. %s", name, verdict["summary"])
    elif not verdict:
        _log.warning(
            "%s has no verdict: it was made before there were any, or elsewhere. Whether it is "
            "better than guessing is not known; `imgcls evaluate` measures it",
            name,
        )
    else:
        _log.info("%s: %s", name, verdict["summary"])


def undo_promotion(ref: str, alias: str) -> dict[str, Any]:
    """Take the last promotion of an alias back.

    Args:
        ref: REGISTRY/NAME@alias, or REGISTRY/NAME.
        alias: The alias where `ref` names none.

    Returns:
        As `promote`; `previous_version` is the one that was taken back.

    Raises:
        ConfigError: a version instead of an alias, nothing to go back to, or a change meanwhile.
        BundleError: the version before was replaced or is gone.
    """
    reference = _parse(ref if "@" in ref.rpartition("/")[2] else f"{ref.rstrip('/')}@{alias}")
    assert reference is not None, "it has an @ now"
    if _VERSION.fullmatch(reference.selector):
        raise ConfigError(
            f"--previous goes back from an alias, not from {reference.selector}: write "
            f"--model {reference.folder}@{alias} --previous"
        )
    folder = reference.folder
    require_conditional_writes(folder.rpartition("/")[0])
    before = _read_alias(reference).before()
    if before is not None:  # what cannot be used is not gone back to
        found = _find(_Reference(folder, reference.name, f"v{before.version}"))
        _refuse_replaced(found, before, reference.selector)
    return _promoted(folder, reference.selector, aliases.undo_last(folder, reference.selector))


def _promoted(folder: str, alias: str, change: aliases.Promotion) -> dict[str, Any]:
    facts = asdict(change)
    return {
        "model": f"{folder}@v{change.version}",
        "uri": join(folder, f"v{change.version}"),
        "alias": alias,
        "previous_version": facts.pop("from_version"),
        **facts,
    }


def name_of(ref: str) -> tuple[str, str]:
    """Return registry and name of a reference, for the next version of the same name.

    Raises:
        ConfigError: it is a bundle's URI, which names no registry.
    """
    reference = _parse(ref)
    if reference is None:
        raise ConfigError(
            f"--model {ref}: the result is the next version of the model's name, so write "
            "REGISTRY/NAME@v3 or REGISTRY/NAME@production"
        )
    return reference.folder.rpartition("/")[0], reference.name


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
    alias = None if match else _read_alias(reference)
    version = alias.now.version if alias is not None else int(match[1]) if match else 0
    uri = join(reference.folder, f"v{version}")
    if not objects.exists(join(uri, SUMS)):
        raise ConfigError(
            f"{reference.folder} has no complete version v{version}; {_what_exists(reference)}"
        )
    found = ModelVersion(uri, version, read_digest(uri))
    if alias is not None:
        _refuse_replaced(found, alias.now, reference.selector)
    return found


def _read_alias(reference: _Reference) -> aliases.Alias:
    try:
        return aliases.read_alias(reference.folder, reference.selector)
    except ObjectMissingError as error:
        raise ConfigError(
            f"{reference.folder} has no alias {reference.selector!r}; {_what_exists(reference)}"
        ) from error


def _refuse_replaced(found: ModelVersion, promised: aliases.Promotion, alias: str) -> None:
    if promised.digest != found.digest:
        raise BundleError(
            f"{found.uri} has the digest {found.digest}, but {alias!r} was promoted with "
            f"{promised.digest}: the bundle was replaced; promote again if that was meant"
        )


def _resolve_uri(uri: str) -> str:
    if objects.exists(join(uri, SUMS)):
        return uri
    folder = canonical(uri)
    versions = [v for v, done in known_versions(folder).items() if done]
    if versions:
        raise ConfigError(
            f"{uri} names a model, not a version of it: write {uri.rstrip('/')}@v{max(versions)}"
        )
    read_digest(uri)  # raises what is wrong with it
    return uri


def known_versions(folder: str) -> dict[int, bool]:
    """Return version -> complete, of every version that somebody claimed."""
    known: dict[int, bool] = {}
    for entry in objects.list_objects(folder):
        first, _, rest = entry.uri[len(folder) + 1 :].partition("/")
        match = _VERSION.fullmatch(first)
        if match and rest:
            version = int(match[1])
            known[version] = known.get(version, False) or rest == SUMS
    return known


def _what_exists(reference: _Reference) -> str:
    known = known_versions(reference.folder)
    versions = ", ".join(f"v{v}" for v in sorted(known) if known[v])
    named = ", ".join(aliases.list_names(reference.folder))
    if not versions:
        return f"there is no model {reference.name!r} with a complete version there"
    return f"versions: {versions}; aliases: {named or 'none'}"
