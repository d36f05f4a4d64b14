"""What a run measured of its images: a file for each shard, named by its commit.

In: a run and a commit. Out: one row per row of the attempt, in its order. Invariant: for people and
for monitoring; no start of a run reads it, and no row depends on it. It holds pictures: on a disk
only its owner may read it.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from imgcls.runs.commits import Commit
from imgcls.runs.run import Run
from imgcls.storage.objects import put, read

FACTS_SCHEMA: Final = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),  # of a container
        pa.field("frame", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
        # Of its greys 0..255, as the model sees them; null where there are no pixels.
        pa.field("brightness", pa.float32()),
        pa.field("contrast", pa.float32()),
        pa.field("sharpness", pa.float32()),
        pa.field("levels", pa.int32()),
        # Of the file: distinct values (deep greys only), bits of a sample, DICOM's modality.
        pa.field("source_levels", pa.int32()),
        pa.field("bits", pa.int32()),
        pa.field("modality", pa.string()),
        pa.field("gray_rule", pa.string()),
        # Of the network's embedding, see inference/sketch.py; null where its backend gives none.
        pa.field("sketch", pa.list_(pa.float16())),
        # A JPEG, where somebody may look at it, and why: flagged, uncertain, extreme, sample, or
        # heatmap, for one to be laid over it.
        pa.field("thumbnail", pa.binary()),
        pa.field("thumbnail_for", pa.string()),
        # That is a PNG: which places speak for an answer, and for which class.
        pa.field("heatmap", pa.binary()),
        pa.field("heatmap_class", pa.string()),
    ]
)

_ROWS_AT_A_TIME: Final = 512
PICTURE_COLUMNS: Final = tuple(f.name for f in FACTS_SCHEMA if pa.types.is_binary(f.type))


def read_facts(run: Run, commit: Commit, *, pictures: bool = True) -> pa.Table:
    """Return the facts of a shard, with its pictures or without; no rows where there are none.

    Raises:
        ObjectMissingError: they were removed.
    """
    if not commit.facts:
        return FACTS_SCHEMA.empty_table()
    file = pq.ParquetFile(io.BytesIO(read(run.file(commit.facts))))
    left_out = () if pictures else PICTURE_COLUMNS
    names = [name for name in file.schema_arrow.names if name not in left_out]
    return file.read(columns=names, use_threads=False)


def iter_facts(run: Run, commit: Commit, columns: Iterable[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield rows of the facts of a shard, some at a time: pictures are large.

    Raises:
        ObjectMissingError: they were removed.
    """
    if not commit.facts:
        return
    file = pq.ParquetFile(io.BytesIO(read(run.file(commit.facts))))
    there = [name for name in columns if name in file.schema_arrow.names]
    for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=there, use_threads=False):
        yield batch.to_pylist()


def remove_pictures(uri: str, *, dry_run: bool = False) -> bool:
    """Take the pictures out of the facts of a shard; return whether there were any."""
    facts = pq.read_table(io.BytesIO(read(uri)))
    names = [name for name in PICTURE_COLUMNS if name in facts.column_names]
    if all(facts[name].null_count == facts.num_rows for name in names):
        return False
    if not dry_run:
        for name in names:
            none = pa.nulls(facts.num_rows, pa.binary())
            facts = facts.set_column(facts.column_names.index(name), name, none)
        buffer = io.BytesIO()
        pq.write_table(facts, buffer)
        put(uri, buffer.getvalue(), is_private=True)
    return True


def sum_greys(commits: Iterable[Commit]) -> dict[str, int]:
    """Return how many images of a run had greys of which kind, see `Commit.greys`."""
    total: dict[str, int] = {}
    for commit in commits:
        for name, count in commit.greys.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


def lot_of(uri: str, member: str | None) -> float:
    """Draw a number in [0, 1) for an image from its name: the lowest are a night's random sample.

    Alike for whoever draws, and again: the pictures that a shard keeps are those that a page shows.
    """
    name = f"{uri}\0{member or ''}"
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
