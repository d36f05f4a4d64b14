"""A manifest of labelled images: .csv, .parquet or .jsonl with uri,label[,split,group,weight].

In: the manifest's URI. Out: one `LabelRow` per line, in its order. Invariant: labels, splits and
groups are text: the integer 7 and the string "7" are the same label, and "007" is another. A
relative uri is relative to the folder that holds the manifest; an absolute one has a scheme, or
begins with "/" in a local manifest.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imgcls.errors import ObjectMissingError, SourceError
from imgcls.model.labels import enumerate_names
from imgcls.storage import objects
from imgcls.storage.uri import is_local, join, split_uri

SUFFIXES = (".csv", ".parquet", ".jsonl")
_REQUIRED = ("uri", "label")
_OPTIONAL = ("split", "group", "weight", "split_key")


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One image and what DATA says of it; empty strings where it says nothing."""

    uri: str
    key: str  # what the split is drawn from: the uri without the folder of DATA
    label: str
    split: str = ""
    group: str = ""
    weight: float = 1.0
    slice_name: str = ""


def is_manifest(data: str) -> bool:
    """Tell whether DATA names a manifest rather than a folder."""
    return data.lower().endswith(SUFFIXES)


def read_manifest(manifest: str, *, slice_by: str = "") -> list[LabelRow]:
    """Read a manifest of labelled images.

    Args:
        manifest: Its URI.
        slice_by: A further column to keep as `slice_name`.

    Raises:
        SourceError: no such object, no such column, a row without uri or label, a weight that is
            no positive number, or bytes that are not of the format the suffix says.
    """
    required = (*_REQUIRED, slice_by) if slice_by else _REQUIRED
    rows = [
        _row(fields, folder, where, slice_by)
        for fields, folder, where in _read_rows(manifest, required)
    ]
    if not rows:
        raise SourceError(f"{manifest} holds no rows: give one line per image")
    return rows


def write_manifest(rows: Iterable[LabelRow], *, slice_by: str = "") -> bytes:
    """Return a CSV that `read_manifest` reads as these very rows, wherever it lies.

    Args:
        rows: With absolute uris.
        slice_by: Name of the column for `slice_name`; "" leaves it out.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_REQUIRED, *_OPTIONAL, *([slice_by] if slice_by else [])])
    for row in rows:
        given = (row.uri, row.label, row.split, row.group, f"{row.weight!r}", row.key)
        writer.writerow([*given, row.slice_name] if slice_by else given)
    return text.getvalue().encode("utf-8", "surrogatepass")


def read_uris(manifest: str) -> list[str]:
    """Read only the column uri, as `score` does: images without labels.

    Raises:
        SourceError: as for `read_manifest`, but that no label is needed.
    """
    uris = [_uri(fields, folder, where) for fields, folder, where in _read_rows(manifest, ("uri",))]
    if not uris:
        raise SourceError(f"{manifest} holds no rows: give one line per image")
    return uris


def _read_rows(
    manifest: str, required: tuple[str, ...]
) -> Iterator[tuple[Mapping[str, Any], str, str]]:
    """Yield each row's fields, the manifest's folder, and words that name the row."""
    if is_local(manifest):
        manifest = split_uri(manifest)[2]
    try:
        data = objects.read(manifest)
    except ObjectMissingError as error:
        raise SourceError(f"there is no manifest {manifest}") from error
    folder = manifest.rpartition("/")[0] + "/"
    for number, fields in enumerate(_parse(data, manifest, required), start=1):
        yield fields, folder, f"{manifest}, row {number}"


def _parse(data: bytes, manifest: str, required: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    try:
        if manifest.lower().endswith(".parquet"):
            yield from _parse_parquet(data, manifest, required)
        elif manifest.lower().endswith(".csv"):
            yield from _parse_csv(data, manifest, required)
        else:
            yield from _parse_jsonl(data, manifest, required)
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError, pa.ArrowException) as error:
        raise SourceError(f"{manifest} is not what its suffix says: {error}") from error


def _parse_csv(
    data: bytes, manifest: str, required: tuple[str, ...]
) -> Iterator[Mapping[str, Any]]:
    # utf-8-sig: spreadsheets write a byte order mark, which would join the first column's name.
    reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    _check_columns(reader.fieldnames or [], manifest, required)
    yield from reader


def _parse_parquet(
    data: bytes, manifest: str, required: tuple[str, ...]
) -> Iterator[Mapping[str, Any]]:
    file = pq.ParquetFile(pa.BufferReader(data))
    names = file.schema_arrow.names
    _check_columns(names, manifest, required)
    wanted = [name for name in dict.fromkeys((*required, *_REQUIRED, *_OPTIONAL)) if name in names]
    for batch in file.iter_batches(columns=wanted):
        yield from batch.to_pylist()


def _parse_jsonl(
    data: bytes, manifest: str, required: tuple[str, ...]
) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(data.decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise SourceError(f"{manifest}, line {number} is no JSON object: {line[:60]!r}")
        _check_columns(fields, manifest, required)
        yield fields


def _check_columns(names: Iterable[str], manifest: str, required: tuple[str, ...]) -> None:
    names = list(names)
    for column in required:
        if column not in names:
            raise SourceError(
                f"{manifest} has no column {column!r}; its columns are {enumerate_names(names)}. "
                f"This one needs {','.join(required)} and may have {','.join(_OPTIONAL)}"
            )


def _row(fields: Mapping[str, Any], folder: str, where: str, slice_by: str) -> LabelRow:
    uri = _uri(fields, folder, where)
    if fields.get("label") is None:
        raise SourceError(f"{where} has no label: {uri}")
    return LabelRow(
        uri=uri,
        # Of a frozen split, see `write_manifest`: so the same images have the same digest.
        key=_text(fields.get("split_key")) or uri.removeprefix(folder),
        label=_text(fields["label"]),
        split=_text(fields.get("split")),
        group=_text(fields.get("group")),
        weight=_weight(fields.get("weight"), where),
        slice_name=_text(fields.get(slice_by)) if slice_by else "",
    )


def _uri(fields: Mapping[str, Any], folder: str, where: str) -> str:
    given = _text(fields.get("uri"))
    if not given:
        raise SourceError(f"{where} has no uri")
    return _absolute(given, folder)


def _absolute(given: str, folder: str) -> str:
    if not is_local(given):
        return given
    if given.startswith("/") and is_local(folder):
        return split_uri(given)[2]
    return join(folder, given)


def _text(value: Any) -> str:  # noqa: ANN401  (a cell of any type)
    return "" if value is None else str(value)


def _weight(value: Any, where: str) -> float:  # noqa: ANN401  (a cell of any type)
    if value is None or value == "":
        return 1.0
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not (weight > 0 and math.isfinite(weight)):
        raise SourceError(f"{where}: weight {value!r} is no positive number")
    return weight
