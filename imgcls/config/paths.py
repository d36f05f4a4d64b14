"""The flags that name a place: made canonical once, where a command begins, or refused.

In: what a person, a script or a Python caller wrote. Out: the same place, spelled so that it means
the same in every folder, process and machine. Invariant: a field that takes a path or URI has one
of the types below, and `Config` makes it canonical when a config is built, by whomever: no stage
sees a relative path.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, get_type_hints

from imgcls.config.choices import value_of, values_of
from imgcls.errors import ConfigError

SCHEMES = ("s3", "gs", "az")
# Where images, manifests and labelled data may lie, but nothing is written.
READ_SCHEMES = ("https", "http", "sftp")
# As messages name the places that are written to.
PLACES = f"{', '.join(f'{scheme}://' for scheme in SCHEMES)} or a path of this machine"
LOCAL_DIR = "local-dir:"  # how timm writes a folder of weights
PUBLISHED = ("timm:", "hf-hub:")  # names of models on a hub
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# "s3:/b/k" is what a path library makes of "s3://b/k"; "C:\scans" is a path of another system.
_ODD_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[/\\]|file:")
_SQLITE = re.compile(r"(sqlite(?:\+[a-z0-9]+)?:///)([^/?][^?]*)(.*)", re.DOTALL)
_SQLITE_ABSOLUTE = re.compile(r"sqlite(?:\+[a-z0-9]+)?:////[^/]")
_TRACKED_ON_DISK = ("file://", "file:")
_CONTROL = re.compile(r"[\x01-\x1f\x7f-\x9f]")  # NUL is refused with words of its own
# Where Ray unpacks the working directory of a job; it goes with the job.
_RAY_WORKING_DIRS = "/runtime_resources/working_dir_files/"
_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True)
class PathFlag:
    """Marks a field that names a place.

    `canonical(text, folder)` gives its one spelling, seen from the working folder `folder`.
    `is_written` tells that the command writes there.
    """

    canonical: Callable[[str, str], str]
    is_written: bool = False


def canonical_uri(text: str, folder: str) -> str:
    """Return an object store's URI without a trailing "/", or an absolute path.

    Raises:
        ConfigError: no place can be called that.
    """
    _refuse_unprintable(text)
    match = _SCHEME.match(text)
    if match is not None and match[1] in SCHEMES:
        return text.rstrip("/") if text.rstrip("/").count("/") > 1 else text
    _refuse_other_scheme(text, match)
    return absolute_path(_expand_home(text), folder)


def canonical_data(text: str, folder: str) -> str:
    """Return what is only read: as `canonical_uri`, or the URI of a web or SFTP server.

    Raises:
        ConfigError: no place can be called that, or the URI holds a secret.
    """
    match = _SCHEME.match(text)
    if match is None or match[1] not in READ_SCHEMES:
        return canonical_uri(text, folder)
    _refuse_unprintable(text)
    refuse_secrets(text)
    return text.rstrip("/") if text.rstrip("/").count("/") > 1 else text


def refuse_secrets(uri: str) -> None:
    """Refuse a URI of a web or SFTP server that opens a door to all who read it.

    Every row, log and record would hold it. The URI stays out of the message.

    Raises:
        ConfigError: a password, or a query, as signed links have.
    """
    scheme, _, rest = uri.partition("://")
    host, _, key = rest.partition("/")
    user, at, _ = host.rpartition("@")
    if at and (scheme != "sftp" or ":" in user):
        raise ConfigError(
            f"a {scheme}:// URI holds credentials: leave them to ~/.ssh for sftp://, to ~/.netrc "
            "for https://"
        )
    if scheme != "sftp" and ("?" in rest or "#" in key):
        raise ConfigError(
            f"a {scheme}:// URI with a query or a fragment, as signed links have, is not taken: it "
            "would stand in every row. Give the server a name for the object without one"
        )


def canonical_glob(text: str, folder: str) -> str:
    """Return a source: as `canonical_data`, and what follows the folders before a "*" as it is."""
    if "*" not in text or _SCHEME.match(text):
        return canonical_data(text, folder)
    # Cut off before the segment with the first "*"; the "/" belongs to neither.
    start, slash, pattern = text[: text.index("*")].rpartition("/")
    pattern = f"{pattern}{text[text.index('*') :]}".rstrip("/")
    if ".." in pattern.split("/"):
        raise ConfigError(f"{text!r} has '..' behind a '*': write the folder that you mean")
    return f"{canonical_uri(start or slash or '.', folder).rstrip('/')}/{pattern}"


def canonical_weights(text: str, folder: str) -> str:
    """Return a name of published weights as it is, and anything else as `canonical_uri`."""
    if text.startswith(LOCAL_DIR):
        return canonical_path(text.removeprefix(LOCAL_DIR), folder)
    is_place = "/" in text or "@" in text or text.lower().endswith(WEIGHTS_SUFFIXES)
    return canonical_uri(text, folder) if is_place else text


def canonical_import(text: str, folder: str) -> str:
    """Return a name on a hub as it is, and anything else as a path of this machine."""
    if text.startswith(PUBLISHED):
        return text
    return canonical_path(text.removeprefix(LOCAL_DIR), folder)


def canonical_path(text: str, folder: str) -> str:
    """Return a path of this machine, absolute.

    Raises:
        ConfigError: it is a URI, or no path.
    """
    path = canonical_uri(text, folder)
    if _SCHEME.match(path):
        raise ConfigError(f"{text!r} is in an object store: this takes a path of this machine")
    return path


def canonical_file(text: str, folder: str) -> str:
    """Return the place of one file.

    Raises:
        ConfigError: it reads as a folder.
    """
    if text.endswith("/"):
        raise ConfigError(f"{text} is a folder: name a file")
    return canonical_uri(text, folder)


def canonical_tracking(text: str, folder: str) -> str:
    """Return MLflow's URI with an absolute path in it, where it is on this machine's disk."""
    _refuse_unprintable(text)
    sqlite = _SQLITE.fullmatch(text)
    if text.startswith("sqlite") and (sqlite is None or sqlite[2] == ":memory:"):
        absolute = _SQLITE_ABSOLUTE.match(text)
        if absolute is None:
            raise ConfigError(f"{text}: a database in memory ends with the run; name a file")
        return text
    if sqlite is not None:
        return f"{sqlite[1]}{absolute_path(_expand_home(sqlite[2]), folder)}{sqlite[3]}"
    for prefix in _TRACKED_ON_DISK:
        if text.startswith(prefix):
            return "file://" + absolute_path(_expand_home(text.removeprefix(prefix)), folder)
    if "://" in text or text == "databricks":
        return text
    return "file://" + absolute_path(_expand_home(text), folder)


Uri = Annotated[str, PathFlag(canonical_uri)]
DataUri = Annotated[str, PathFlag(canonical_data)]
OutputUri = Annotated[str, PathFlag(canonical_uri, is_written=True)]
OutputFile = Annotated[str, PathFlag(canonical_file, is_written=True)]
SourceUri = Annotated[str, PathFlag(canonical_glob)]
SourceUris = Annotated[tuple[str, ...], PathFlag(canonical_glob)]
WeightsUri = Annotated[str, PathFlag(canonical_weights)]
ImportUri = Annotated[str, PathFlag(canonical_import)]
LocalPath = Annotated[str, PathFlag(canonical_path)]
OutputPath = Annotated[str, PathFlag(canonical_path, is_written=True)]
TrackingUri = Annotated[str, PathFlag(canonical_tracking, is_written=True)]


@dataclass(frozen=True)
class Config:
    """A command's flags; those that name a place are canonical from the moment it is built."""

    def __post_init__(self) -> None:
        """Replace each place by its canonical spelling.

        Raises:
            ConfigError: the flag, its value, and what to write instead.
        """
        for name in path_flags(type(self)):
            given: Any = getattr(self, name)  # Any: a caller in Python may pass a pathlib.Path
            if isinstance(given, tuple | list):
                places = tuple(canonical_value(type(self), name, os.fspath(each)) for each in given)
                object.__setattr__(self, name, places)
            elif given:  # an empty one is refused where it is used, and by `refuse_empty`
                canonical = canonical_value(type(self), name, os.fspath(given))
                object.__setattr__(self, name, canonical)


def refuse_empty(config: Config) -> None:
    """Refuse a required place that is empty, as of a variable of the shell that is not set.

    Raises:
        ConfigError: names the flag.
    """
    required = {field.name for field in fields(config) if field.default is MISSING}
    for name in path_flags(type(config)):
        if name in required and not getattr(config, name):
            flag = flag_of(name)
            raise ConfigError(f"{flag}: an empty path names nothing: write a URI or a folder")


def flag_of(name: str) -> str:
    """Return the flag of a field; `from_` is --from, which Python keeps for itself."""
    return f"--{name.rstrip('_').replace('_', '-')}"


def path_flags(config: type) -> Mapping[str, PathFlag]:
    """Return the fields of a config that name a place, each with its mark."""
    hints = get_type_hints(config, include_extras=True)
    return {
        name: mark
        for name, hint in hints.items()
        for mark in getattr(hint, "__metadata__", ())
        if isinstance(mark, PathFlag)
    }


def canonical_value(config: type, name: str, text: str) -> str:
    """Return the canonical spelling of a value of the field `name`, seen from this folder.

    Raises:
        ConfigError: the flag, its value, and what to write instead.
    """
    mark = path_flags(config)[name]
    flag = flag_of(name)
    try:
        place = mark.canonical(text, _working_folder())
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None
    if mark.is_written and _RAY_WORKING_DIRS in f"{place}/":
        raise ConfigError(
            f"{flag} {text}: lies in the working directory of a Ray job, which is deleted with it; "
            "write s3://bucket/prefix, or the absolute path of a folder that every node mounts"
        )
    return place


def find_relative(config: type, arguments: Sequence[str]) -> list[tuple[str, str, bool]]:
    """Return (flag, value, is written) of the places that depend on where the job will run.

    Args:
        config: The job's config class.
        arguments: The job's flags, as on a command line.

    Raises:
        ConfigError: a value that no place can have.
    """
    found = []
    for name, mark in path_flags(config).items():
        flag = flag_of(name)
        for value in values_of(flag, arguments) if name == "also" else [value_of(flag, arguments)]:
            here, elsewhere = (mark.canonical(value, f) if value else "" for f in ("/a/b", "/c/d"))
            if here != elsewhere or value.startswith("~"):
                found.append((flag, value, mark.is_written))
    return found


def absolute_path(path: str, folder: str | None = None) -> str:
    """Return a path of this machine from the root on, without "." and "..".

    Links stay as they are written, but for one before "..": above it lies the folder above its
    target, as for every other program.

    Args:
        path: As somebody wrote it.
        folder: Where a relative path begins; default the working folder.

    Raises:
        ConfigError: a path that no file can have.
    """
    if not path.strip():
        raise ConfigError("an empty path names nothing: write a URI or a folder")
    if "\0" in path:
        raise ConfigError(f"{path[:_MAX_SHOWN]!r} is not a path: it holds a NUL character")
    if not path.startswith("/"):
        path = f"{folder or _working_folder()}/{path}"
    if ".." in path.split("/"):
        path = _climb(path)
    absolute = os.path.abspath(path)  # noqa: PTH100  (pathlib's resolve() would follow links too)
    # POSIX gives a leading "//" a meaning of its own; Linux does not.
    return f"/{absolute.lstrip('/')}"


def _climb(path: str) -> str:
    kept = "/"
    for part in path.split("/"):
        if part == "..":
            target = os.path.realpath(kept) if os.path.islink(kept) else kept  # noqa: PTH114
            kept = os.path.dirname(target)  # noqa: PTH120  (text in, text out)
        elif part not in ("", "."):
            kept = f"{kept.rstrip('/')}/{part}"
    return kept


def _working_folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109  (text)
    except FileNotFoundError:
        raise ConfigError(
            "the working folder was deleted: change into one that exists, and start again"
        ) from None


def _expand_home(path: str) -> str:
    """Replace a leading "~": a shell leaves it as it is in --flag=~/x and in quotes."""
    if not path.startswith("~"):
        return path
    expanded = os.path.expanduser(path)  # noqa: PTH111  (pathlib raises RuntimeError instead)
    if expanded.startswith("~"):
        raise ConfigError(
            f"{path!r}: there is no such user; a folder of that name is written ./{path}"
        )
    return expanded


def _refuse_unprintable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{text!r} is not UTF-8: rename the folder, or give one above it"
        ) from None
    odd = next(
        (character for character in text if ord(character) < 32 or ord(character) == 127), ""
    )
    if odd and odd != "\0":
        raise ConfigError(
            f"{text!r} holds the control character {odd!r}, which no output can show; remove it, "
            "or give a folder above it"
        )


def _refuse_other_scheme(text: str, match: re.Match[str] | None) -> None:
    if text.startswith("file:"):
        path = "/" + text.removeprefix("file:").lstrip("/")
        raise ConfigError(f"{text!r}: write a path of this machine without file:, such as {path}")
    if match is not None and match[1] in READ_SCHEMES:
        raise ConfigError(
            f"{match[1]}:// holds images and manifests only; what imgcls writes, and models, take "
            f"{PLACES}"
        )
    if match is not None:
        raise ConfigError(f"{match[1]}:// is not a scheme that imgcls reads; use {PLACES}")
    if _ODD_SCHEME.match(text):
        scheme, _, rest = text.partition(":")
        hint = f"write {scheme}://{rest.lstrip('/')}" if scheme in SCHEMES else "write a Linux path"
        raise ConfigError(f"{text!r} is neither a URI nor a path: {hint} (a folder: ./{text})")
