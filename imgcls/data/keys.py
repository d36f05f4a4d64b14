r"""Key expressions: where a value of an image comes from, in one way for every flag that wants one.

    scanner          a column of the manifest, or a key in the path, as in .../scanner=3/x.png
    dicom:PatientID  an element of the DICOM header, by keyword or number (0010,0020)
    folder:2         the second folder below the root of the data; folder:-1 holds the image
    name:LOT(\d+)     what a regular expression finds in the file's name; with a "/" in it, in the
                     path below the root. The first group counts, else all that matches
    lot=name:...     the same, called lot

In: the text of a flag; images with their uri, their path below the root and the cells of their row.
Out: one value per image: typed as its column is, text of a path, None where there is none.
Invariant: a value belongs to its image alone, and depends on nothing but the image and its row.

Of a DICOM file the first kilobytes are read, more only where its header is longer.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from importlib.util import find_spec
from typing import Any, Final, Literal, Protocol
from urllib.parse import unquote

from imgcls.errors import ConfigError, SourceError
from imgcls.identity import PLAIN
from imgcls.sources.located import Located, access_to, in_reading_order, request_for
from imgcls.sources.members import Member
from imgcls.storage.uri import split_uri

Value = str | int | float | bool | date | datetime | Decimal | bytes | None
Kind = Literal["column", "dicom", "folder", "name"]

# Where a header ends is not known before; most are shorter than the first.
_HEADER_BYTES: Final = (8 << 10, 256 << 10)
_NAMED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.+)", re.DOTALL)
_HIVE = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)=(.*)", re.DOTALL)
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
WAYS = "a column, a key in the path (KEY=...), dicom:TAG, folder:N or name:REGEX"

_log = logging.getLogger(__name__)


class Keyed(Protocol):
    """An image that values are asked of."""

    @property
    def uri(self) -> str:
        """Its name."""
        ...

    @property
    def key(self) -> str:
        """Its path below the root of the data; of one outside of it, its whole name."""
        ...

    @property
    def cells(self) -> Mapping[str, Any]:
        """Its row of the manifest; empty where there is none."""
        ...

    @property
    def member(self) -> Member | None:
        """Of an image in a container: what is read of it."""
        ...


@dataclass(frozen=True, slots=True)
class Key:
    """One key expression.

    `detail` is the column, the number of the element, that of the folder, or the pattern.
    """

    kind: Kind
    text: str  # as it was written
    column: str  # what its values are called
    detail: str | int
    flag: str
    is_required: bool = True

    @staticmethod
    def parse(text: str, flag: str, *, is_required: bool = True, is_written: bool = False) -> "Key":
        """Read a key expression.

        Args:
            text: What somebody wrote.
            flag: Its flag, for messages.
            is_required: Images none of which has a value are refused.
            is_written: Its values are written as they are: of DICOM, only elements that say nothing
                of a patient.

        Raises:
            ConfigError: it is none, with what to write.
        """
        named = _NAMED.fullmatch(text)
        name, rest = (named[1], named[2]) if named else ("", text)
        kind, colon, detail = rest.partition(":")
        if not rest.strip() or (colon and kind in ("dicom", "folder", "name") and not detail):
            raise ConfigError(f"{flag} {text!r}: write {WAYS}")
        if colon and kind == "dicom":
            keyword, number = _find_tag(detail, flag)
            if is_written and keyword not in PLAIN:
                raise ConfigError(
                    f"{flag} {text}: its values would be written, and may tell who a patient is; "
                    f"that takes one of {', '.join(PLAIN)}"
                )
            return Key("dicom", text, name or _snake(keyword), number, flag, is_required)
        if colon and kind == "folder":
            if not re.fullmatch(r"-?[1-9][0-9]?", detail):
                raise ConfigError(
                    f"{flag} {text!r}: folder:1 is the first folder below the root of the data, "
                    "folder:-1 the one that holds the image"
                )
            return Key(
                "folder",
                text,
                name or f"folder_{detail.replace('-', 'last_')}",
                int(detail),
                flag,
                is_required,
            )
        if colon and kind == "name":
            pattern = _compile(detail, text, flag)
            name = name or next(iter(pattern.groupindex), "")
            return Key("name", text, name, detail, flag, is_required)
        return Key("column", text, name or rest, rest, flag, is_required)

    def values(self, items: Sequence[Keyed]) -> list[Value]:
        """Return the value of each image; see `values_of`."""
        return values_of([self], items)[0]

    def of_path(self, item: Keyed) -> str | None:
        """Return what the path of an image says; see `in_path`."""
        return self.in_path(item.key)

    def in_path(self, key: str) -> str | None:
        """Return what the path of an image says, None where it says nothing (or of DICOM)."""
        # Of an image outside of the root the whole name is given: begin behind its bucket.
        path = split_uri(key)[2] if key.startswith("/") or "://" in key else key
        *folders, name = path.lstrip("/").split("/")
        if self.kind == "folder":
            number = int(self.detail)
            index = number - 1 if number > 0 else number
            return folders[index] if -len(folders) <= index < len(folders) else None
        if self.kind == "name":
            pattern = re.compile(str(self.detail))
            match = pattern.search(path if "/" in pattern.pattern else name)
            return None if match is None else _found(match)
        return hive_keys(key).get(str(self.detail)) if self.kind == "column" else None


def values_of(keys: Sequence[Key], items: Sequence[Keyed]) -> list[list[Value]]:
    """Return the values of several keys, a list of each; a DICOM header is read once for all.

    Raises:
        SourceError: a column that no row has and no path names; or no image has a value.
        AccessDeniedError, StorageError: as for reading the images.
    """
    tags = {key.column: int(key.detail) for key in keys if key.kind == "dicom"}
    headers = read_headers(items, tags) if tags else []
    found = list[list[Value]]()
    for key in keys:
        if key.kind == "dicom":
            values: list[Value] = [header.get(key.column) for header in headers]
        else:
            values = [_value(key, item) for item in items]
        _tell(key, values, items)
        found.append(values)
    return found


def read_headers(images: Sequence[Located], tags: Mapping[str, int]) -> list[dict[str, Value]]:
    """Return elements of the DICOM headers of images, by the names in `tags`.

    One that is not DICOM, is damaged or is missing has none.
    """
    from imgcls.image.formats.dicom.header import NeedsMoreError

    found: list[dict[str, Value]] = [{} for _ in images]
    asked = list(range(len(images)))
    access = access_to(images)
    for num_bytes in (*_HEADER_BYTES, None):
        longer = list[int]()
        requests = in_reading_order(request_for(i, images[i], num_bytes) for i in asked)
        for index, data in access.read(requests):
            if not isinstance(data, bytes):
                continue
            try:
                is_whole = num_bytes is None or len(data) < num_bytes
                found[index] = elements_of(data, tags, is_whole=is_whole)
            except NeedsMoreError:
                longer.append(index)
        asked = sorted(longer)
    return found


def elements_of(data: bytes, tags: Mapping[str, int], *, is_whole: bool) -> dict[str, Value]:
    """Return elements of one header, none of what is not DICOM or is damaged.

    Raises:
        NeedsMoreError: these are the first bytes, and more are needed.
    """
    from imgcls.image.formats.dicom.header import is_dicom, read_elements

    if not is_dicom(data):
        return {}
    try:
        return dict(read_elements(data, tags, is_whole=is_whole))
    except ValueError as error:
        _log.debug("a DICOM header is left out: %s", error)
        return {}


def hive_keys(path: str) -> dict[str, str | None]:
    """Return the keys of folders such as camera=3; of one that is there twice, the inner one."""
    found = dict[str, str | None]()
    for folder in path.split("/")[:-1]:
        if match := _HIVE.fullmatch(folder):
            found[match[1]] = None if match[2] in ("", _HIVE_NULL) else unquote(match[2])
    return found


def as_name(value: Value) -> str:
    """Return a value as a name, of a group or a slice: 3.0 is "3", None is "".

    Raises:
        SourceError: it is a list or an object.
    """
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if value != value else str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape").strip()
    if isinstance(value, list | dict):
        kind = "a list" if isinstance(value, list) else "an object"
        raise SourceError(f"a cell holds {kind}, not one name: choose texts or numbers")
    return str(value).strip()


def columns_of(keys: Iterable[Key]) -> tuple[str, ...]:
    """Return the columns that keys may want of a manifest."""
    return tuple(dict.fromkeys(str(key.detail) for key in keys if key.kind == "column"))


def _value(key: Key, item: Keyed) -> Value:
    if key.kind == "column" and key.detail in item.cells:
        value: Value = item.cells[str(key.detail)]
        return None if value == "" else value
    return key.in_path(item.key)


def _tell(key: Key, values: Sequence[Value], items: Sequence[Keyed]) -> None:
    """Say how many images have no value.

    Raises:
        SourceError: none has one.
    """
    missing = [item.uri for item, value in zip(items, values, strict=True) if value is None]
    if items and len(missing) == len(items) and key.is_required:
        has_column = any(key.detail in item.cells for item in items[:1])
        where = "its cells are all empty" if has_column else f"write {WAYS}"
        raise SourceError(
            f"{key.flag} {key.text}: none of {len(items)} images has it, such as {missing[0]}; "
            f"{where}"
        )
    if missing:
        _log.warning(
            "%s %s: %d of %d images have none, such as %s",
            key.flag, key.text, len(missing), len(items), missing[0],
        )  # fmt: skip


def _found(match: re.Match[str]) -> str | None:
    groups = list(_groups(match))
    return next((group for group in groups if group), None) if match.re.groups else match[0] or None


def _groups(match: re.Match[str]) -> Iterator[str | None]:
    # A group with a name is meant before one that only holds together.
    yield from match.groupdict().values()
    yield from match.groups()


def _compile(pattern: str, text: str, flag: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{flag} {text!r}: not a regular expression: {error}") from None


def _find_tag(text: str, flag: str) -> tuple[str, int]:
    if find_spec("pydicom") is None:
        raise ConfigError(f"{flag} dicom:{text} needs pydicom: pip install 'imgcls[dicom]'")
    from imgcls.image.formats.dicom.header import find_tag

    try:
        return find_tag(text)
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None


def _snake(keyword: str) -> str:
    return _WORDS.sub("_", keyword).lower()
