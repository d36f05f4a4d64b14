"""Commits, as everybody reads them: which attempt is the outcome of which shard.

In: a run. Out: its commits, in order of shard, and the rows of an attempt. Invariant: an attempt is
believed only where its bytes are those that were committed.
"""

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from imgcls.errors import ImgclsError, SourceError
from imgcls.in_order import in_order
from imgcls.runs.run import Run
from imgcls.storage.objects import list_objects, read
from imgcls.storage.records import parse_record

_COMMIT_NAME: Final = re.compile(r"/commits/(\d+)\.json$")


@dataclass(frozen=True, slots=True)
class CommittedFile:
    """A table beside the rows of an attempt."""

    path: str
    sha256: str
    num_rows: int


@dataclass(frozen=True)
class Commit:
    """The record that makes one attempt the outcome of its shard."""

    shard_id: str
    attempt: str
    sha256: str
    num_rows: int
    status_counts: dict[str, int]
    num_failed_again: int = 0
    """Rows of images that failed and had failed in an earlier night already."""
    decoders: dict[str, Any] | None = None
    """What the decoders of this shard could read, and by which versions; see decoders.py."""
    facts: str = ""
    """Path of what was measured of the images, row by row that of the attempt; see facts.py."""
    greys: dict[str, int] = field(default_factory=dict)
    """How many images had samples of other than 8 bits (bits_16 ...), of bits that training never
    saw (new_bits_16 ...), deep greys by which rule (file, declared, measured, pooled ...), and
    greys of which hardly a level is left (few_levels)."""
    tiles: CommittedFile | None = None
    """What the model says of each tile, where that is written."""


def parse_commit(data: bytes, uri: str) -> Commit:
    """Parse a commit.

    Raises:
        SourceError: it is not one.
    """
    return parse_record(data, uri, SourceError, Commit)


def read_commits(run: Run) -> Iterator[Commit]:
    """Yield every commit of a run, in order of shard, several reads in flight."""
    uris = (info.uri for info in list_objects(run.commits))
    named = sorted(uri for uri in uris if _COMMIT_NAME.search(uri))
    for uri, data in zip(named, in_order(read, named), strict=True):
        yield parse_commit(data, uri)


def read_attempt(run: Run, commit: Commit) -> pa.Table:
    """Read the attempt that a commit names.

    Raises:
        ImgclsError: other bytes are there than those committed.
    """
    return pq.read_table(io.BytesIO(_read_committed(run, commit.attempt, commit.sha256)))


def read_tiles(run: Run, file: CommittedFile) -> bytes:
    """Read the table of tiles that a commit names, as Parquet.

    Raises:
        ImgclsError: other bytes are there than those committed.
    """
    return _read_committed(run, file.path, file.sha256)


def _read_committed(run: Run, path: str, committed: str) -> bytes:
    uri = run.file(path)
    data = read(uri)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != committed:
        raise ImgclsError(f"{uri}: sha256 is {sha256}, committed was {committed}")
    return data
