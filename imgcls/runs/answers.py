"""What people were asked about an output's images, and what they said.

In: an output. Out: the images of all queues, and the answers, the latest of an image for all.
Invariants: a file is written once, under a number higher than all that are there, so that what
comes later is known without a clock. A queue that was asked before is no second file, nor are the
answers that came last; answers that others followed are: what is said last counts.

    OUT/_queues/00001.parquet     one row per image that a person was asked about
    OUT/_answers/00001.parquet    one row per answer, with what the queue says of its image
"""

import hashlib
import io
import re
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from imgcls.errors import ObjectExistsError
from imgcls.storage.info import ObjectInfo
from imgcls.storage.objects import list_objects, put_new, read
from imgcls.storage.uri import canonical, join

# Why an image is in a queue that was drawn; all others were chosen for what they are.
RANDOM: Final = "random"
_NUMBER: Final = re.compile(r"/(\d+)\.parquet$")

QUEUE_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # of uri, member and etag, see `id_of`
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("frame", pa.int32()),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("date", pa.string(), nullable=False),
        pa.field("model_digest", pa.string(), nullable=False),
        pa.field("why", pa.string(), nullable=False),
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("decision", pa.string()),
        pa.field("threshold_id", pa.string()),
        pa.field("probability", pa.float32()),
        # What the image stands for: those of its night that were called the same and, if it was
        # drawn, might have been drawn as well.
        pa.field("stratum", pa.string(), nullable=False),
        pa.field("stratum_images", pa.int64(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("carried", pa.map_(pa.string(), pa.string()), nullable=False),
    ]
)
ANSWERS_SCHEMA: Final = QUEUE_SCHEMA.append(pa.field("label", pa.string(), nullable=False))

Row = dict[str, Any]


def id_of(uri: str, member: str | None, etag: str) -> str:
    """Return what names one version of an image in tasks, exports and answers."""
    name = "\0".join((uri, member or "", etag))
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def write_queue(output: str, rows: list[Row]) -> str:
    """Keep what people are asked; return where."""
    return _write(join(canonical(output), "_queues"), rows, QUEUE_SCHEMA, last=False)


def write_answers(output: str, rows: list[Row]) -> str:
    """Keep what people said; return where."""
    return _write(join(canonical(output), "_answers"), rows, ANSWERS_SCHEMA, last=True)


def read_queues(output: str) -> dict[str, Row]:
    """Return all images that were asked about, by id, as they were asked first."""
    found: dict[str, Row] = {}
    for row in _read(join(canonical(output), "_queues")):
        found.setdefault(row["id"], row)
    return found


def read_answers(output: str) -> dict[str, Row]:
    """Return all answers by id; of several for an image the one that came last."""
    return {row["id"]: row for row in _read(join(canonical(output), "_answers"))}


def _write(folder: str, rows: list[Row], schema: pa.Schema, *, last: bool) -> str:
    """Write rows, unless the same are there: in the last file, or in any."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink)
    data = sink.getvalue()
    while True:
        there = _numbered(folder)
        for _, info in there[-1:] if last else there:
            if info.size_bytes == len(data) and read(info.uri) == data:
                return info.uri
        number = there[-1][0] + 1 if there else 1
        uri = join(folder, f"{number:05d}.parquet")
        try:
            put_new(uri, data)
        except ObjectExistsError:
            continue
        return uri


def _read(folder: str) -> Iterator[Row]:
    for _, info in _numbered(folder):
        for row in pq.read_table(io.BytesIO(read(info.uri))).to_pylist():
            yield row | {"carried": dict(row["carried"])}


def _numbered(folder: str) -> list[tuple[int, ObjectInfo]]:
    """Return the files with their numbers, in order; somebody may have removed some."""
    found = ((_NUMBER.search(info.uri), info) for info in list_objects(folder))
    return sorted(((int(name[1]), info) for name, info in found if name), key=lambda pair: pair[0])
