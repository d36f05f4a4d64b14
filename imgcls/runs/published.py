"""Published runs as a reader finds them: a folder with a manifest, and the parts that it names.

In: an output prefix. Out: folders and manifests. Invariant: OUT/date=<D>/run=<R>/_manifest.json is
written last and once; parts without it are not there for a reader, nor for the ledger.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from imgcls.errors import ObjectMissingError, SourceError
from imgcls.storage.json_text import build_record, known_fields, parse_object
from imgcls.storage.objects import list_objects, read
from imgcls.storage.uri import canonical, join

MANIFEST = "_manifest.json"
FORMAT_VERSION = 1
_INODE = r"^([0-9a-f]+-[0-9a-f]+)-[0-9a-f]+$"
_PLACE = re.compile(rf"date=[^/]+/run=([^/]+)/{re.escape(MANIFEST)}")


@dataclass(frozen=True, slots=True)
class ModelDigests:
    """What decides the rows of a model: two equal ones make equal rows of equal pixels."""

    model: str
    """Of the whole bundle."""
    spec: str
    """Of its decode and preprocess spec."""
    network: str = ""
    """Of all that decides probabilities; "" where a version of before knew none."""
    calibration: str = ""
    """Of temperature and thresholds; "" where it has none, or `network` is not known."""


@dataclass(frozen=True)
class Manifest:
    """_manifest.json: what a published run consists of."""

    run_id: str
    date: str
    source: str
    model: str
    model_uri: str
    model_digest: str
    spec_digest: str
    parts: tuple[dict[str, Any], ...]
    counts: dict[str, int]
    status_counts: dict[str, int]
    published_at: str
    decoders: dict[str, Any] | None = None
    """What all decoders of the run could read ("reads") and by which "versions" of the decoding
    code; None where some of its rows are of a version that did not record it."""
    moved_formats: tuple[str, ...] = ()
    """Format families whose pixels moved between the training of the model and this run."""
    not_an_image: dict[str, int] = field(default_factory=dict)
    """Of the rows that say so: how many files of which kind."""
    num_not_listed: int = 0
    """How many folders and files of the source could not be looked at: their images are in no
    row."""
    not_listed: dict[str, str] = field(default_factory=dict)
    """The first of them, each with its reason."""
    network_digest: str = ""
    """Of all that decides probabilities; "" in manifests of versions that had no such digest."""
    calibration_digest: str = ""
    """Of temperature and thresholds; "" where the model has none, or as above."""

    @property
    def digests(self) -> ModelDigests:
        """Those of its model."""
        return ModelDigests(
            self.model_digest, self.spec_digest, self.network_digest, self.calibration_digest
        )


def published_uri(output: str, date: str, run_id: str) -> str:
    """Return the folder that a run publishes to: OUT/date=D/run=R."""
    return join(output, f"date={date}", f"run={run_id}")


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
    fields = parse_object(data, what, SourceError)
    # First: what another format calls its fields is not for this one to judge.
    version = build_record(fields, what, SourceError, lambda found: found["format_version"])
    if version != FORMAT_VERSION:
        raise SourceError(
            f"{uri} was written by another version of imgcls (manifest format {version}, this one "
            f"reads {FORMAT_VERSION})"
        )
    return build_record(fields, what, SourceError, _manifest_of)


def _manifest_of(fields: dict[str, Any]) -> Manifest:
    moved = tuple(fields.get("moved_formats", ()))
    tuples = {"parts": tuple(fields["parts"]), "moved_formats": moved}
    return Manifest(**known_fields(Manifest, fields) | tuples)


def with_comparable_etags(table: pa.Table) -> pa.Table:
    """Return a table with its etags as this version writes them, to compare it with others.

    Up to commit 27535e0 that of a local file ended in its inode. A row keeps what its plan said:
    nothing that is written is changed.
    """
    plain = pc.replace_substring_regex(table["etag"], _INODE, r"\1")
    etags = pc.if_else(pc.starts_with(table["uri"], "/"), plain, table["etag"])
    return table.set_column(table.schema.get_field_index("etag"), table.field("etag"), etags)


def list_published(output: str) -> Iterator[tuple[str, Manifest]]:
    """Yield every published run of an output: its folder and its manifest, oldest date first."""
    root = f"{canonical(output)}/"
    # What lies before "date=", such as the attempts of every run, need not be listed.
    for info in list_objects(root, start_after=f"{root}date="):
        if not _PLACE.fullmatch(info.uri.removeprefix(root)):
            continue
        folder = info.uri.rpartition("/")[0]
        manifest = read_manifest(folder)
        # None: rolled back between the listing and this read.
        if manifest is not None:
            yield folder, manifest
