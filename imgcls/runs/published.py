"""Published runs as a reader finds them: a folder with a manifest, and the parts that it names.

In: an output prefix. Out: folders and manifests. Invariant: OUT/date=<D>/run=<R>/_manifest.json is
written last and once; parts without it are not there for a reader, nor for the ledger.
"""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imgcls.errors import ObjectMissingError, SourceError
from imgcls.in_order import in_order
from imgcls.runs.plan import RunFacts
from imgcls.runs.run import Run
from imgcls.sources.ranged_file import RangedFile
from imgcls.storage.info import EPOCH, ObjectInfo
from imgcls.storage.objects import list_objects, read
from imgcls.storage.records import parse_record
from imgcls.storage.uri import canonical, join

MANIFEST = "_manifest.json"
FORMAT_VERSION = 1
# A large one takes a few requests, and 30 MB for its keys.
PARTS_AHEAD = 4
_SMALL_BYTES = 1 << 20  # come in the time of a few requests
_INODE = r"^([0-9a-f]+-[0-9a-f]+)-[0-9a-f]+$"
_PLACE = re.compile(rf"date=[^/]+/run=([^/]+)/{re.escape(MANIFEST)}")


@dataclass(frozen=True, slots=True)
class Part:
    """A Parquet file of published rows, sorted by uri."""

    path: str
    sha256: str
    num_rows: int
    size_bytes: int
    num_shards: int
    """Of the plan, one after the other, whose rows it holds."""


@dataclass(frozen=True, slots=True)
class TableFile:
    """A Parquet file of a table beside the rows, in OUT/_<table>/date=D/run=R."""

    path: str
    sha256: str
    num_rows: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest(RunFacts):
    """_manifest.json: what a published run consists of."""

    parts: tuple[Part, ...]
    status_counts: dict[str, int]
    published_at: str
    decoders: dict[str, Any] | None = None
    """What all decoders of the run could read ("reads") and by which "versions" of the decoding
    code; None where some of its rows are of a version that did not record it."""
    moved_formats: tuple[str, ...] = ()
    """Format families whose pixels moved between the training of the model and this run."""
    not_an_image: dict[str, int] = field(default_factory=dict)
    """Of the rows that say so: how many files of which kind."""
    greys: dict[str, int] = field(default_factory=dict)
    """How many images had which greys, see `Commit.greys`."""
    tiles: tuple[TableFile, ...] = ()
    """What the model says of each tile, where that was asked for."""
    groups: tuple[TableFile, ...] = ()
    """One row per unit (a study, a part), where that was asked for."""

    unit: str = ""
    """The key expression that told units apart, "" where no answer per unit was asked for."""
    unit_rule: str = ""
    """By which rule its units were pooled."""
    unit_decisions: dict[str, int] = field(default_factory=dict)
    """How many units were decided how; empty where the model has no threshold per unit."""
    unit_counts: dict[str, int] = field(default_factory=dict)
    """How many units have which status, how many rows took the place of an earlier one (replaced),
    and how many images are of no unit (images_without_unit)."""

    def table(self, name: str) -> tuple[TableFile, ...]:
        """Return the files of one of TABLES."""
        files: tuple[TableFile, ...] = getattr(self, name)
        return files


Night = tuple[str, Manifest]
"""A published run: its folder and its manifest."""


def read_manifest(folder: str) -> Manifest | None:
    """Read the manifest of a published folder, or None when it is not published.

    Raises:
        SourceError: what is there is no manifest of this version of imgcls.
    """
    uri = join(folder, MANIFEST)
    try:
        data = read(uri)
    except ObjectMissingError:
        return None
    what = f"{uri}, which should be a manifest of published predictions,"
    return parse_record(data, what, SourceError, Manifest, format_version=FORMAT_VERSION)


def open_part(folder: str, part: Part | TableFile) -> pq.ParquetFile:
    """Open a part, to read some columns of it, and no more bytes than they take.

    Wide columns make nearly all of a part: a night must not read them to know what is published. A
    small one comes whole, in one request instead of one a column.

    Raises:
        SourceError: the part is damaged, or not the one that the manifest names.
    """
    uri = join(folder, part.path)
    # A part is written once: its name is its version.
    info = ObjectInfo(uri, "", part.size_bytes, EPOCH, None)
    is_small = part.size_bytes <= _SMALL_BYTES
    file = io.BytesIO(read(uri)) if is_small else RangedFile(info, reads_ahead=False)
    try:
        return pq.ParquetFile(file, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(uri, error) from error


def read_columns(folder: str, part: Part | TableFile, wanted: Iterable[str]) -> pa.Table:
    """Read some columns of a part, those that it has.

    Raises:
        SourceError: as `open_part`.
    """
    file = open_part(folder, part)
    there = set(file.schema_arrow.names)
    try:
        return file.read(columns=[name for name in wanted if name in there], use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(join(folder, part.path), error) from error


def read_in_order(
    files: Iterable[tuple[str, Part | TableFile]], wanted: Iterable[str]
) -> Iterator[pa.Table]:
    """Read some columns of many parts, each with its folder; the next few are read meanwhile.

    Raises:
        SourceError: as `open_part`.
    """
    names = list(wanted)
    return in_order(lambda found: read_columns(*found, names), files, PARTS_AHEAD)


def read_whole(folder: str, part: Part | TableFile) -> pa.Table:
    """Read a part with all of its columns, in one request.

    Raises:
        SourceError: as `open_part`.
    """
    uri = join(folder, part.path)
    try:
        return pq.read_table(io.BytesIO(read(uri)))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(uri, error) from error


def _damaged(uri: str, error: Exception) -> SourceError:
    return SourceError(
        f"{uri} is not the file that its {MANIFEST} names ({error}): `imgcls verify` says more"
    )


def with_comparable_etags(table: pa.Table) -> pa.Table:
    """Return a table with its etags as this version writes them, to compare it with others.

    Up to commit 27535e0 that of a local file ended in its inode. A row keeps what its plan said:
    nothing that is written is changed.
    """
    plain = pc.replace_substring_regex(table["etag"], _INODE, r"\1")
    etags = pc.if_else(pc.starts_with(table["uri"], "/"), plain, table["etag"])
    return table.set_column(table.schema.get_field_index("etag"), table.field("etag"), etags)


def list_published(output: str) -> Iterator[Night]:
    """Yield every published run of an output: its folder and its manifest, oldest date first."""
    root = f"{canonical(output)}/"
    # What lies before "date=", such as the attempts of every run, need not be listed.
    listed = (info.uri for info in list_objects(root, start_after=f"{root}date="))
    named = (uri for uri in listed if _PLACE.fullmatch(uri.removeprefix(root)))
    folders = [uri.rpartition("/")[0] for uri in named]
    for folder, manifest in zip(folders, in_order(read_manifest, folders), strict=True):
        # None: rolled back between the listing and this read.
        if manifest is not None:
            yield folder, manifest


def files_of(
    output: str, night: Night, *, of_units: bool = False
) -> Sequence[tuple[str, Part | TableFile]]:
    """Return the files with the rows of a published run, or of its units, each with its folder."""
    folder, manifest = night
    if of_units:
        folder = Run(output, manifest.run_id).table("groups", manifest.date)
    return [(folder, file) for file in (manifest.groups if of_units else manifest.parts)]


def pick_published(found: Sequence[Night], output: str, run_id: str = "") -> list[Night]:
    """Return all of the published runs of an output, or the one of an id, in their order.

    Raises:
        SourceError: there is none.
    """
    wanted = [pair for pair in found if run_id in ("", pair[1].run_id)]
    if not found:
        raise SourceError(f"{output}: no run is published there")
    if not wanted:
        known = ", ".join(sorted(manifest.run_id for _, manifest in found)[-5:])
        raise SourceError(f"{output}: run {run_id} is not published there; published: {known}")
    return wanted
