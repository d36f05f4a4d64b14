"""Planned rows as requests for their images.

In: rows of a plan. Out: what to read for each. Invariant: the index of a request is that of its
row; a row of a container asks for its member under the etag of the container.
"""

from collections.abc import Iterator
from itertools import repeat

import pyarrow as pa

from imgcls.schema import MEMBER_FIELD, MEMBER_PLACE_FIELD
from imgcls.sources.members import MemberRequest, Place
from imgcls.storage.bulk_get import GetRequest


def requests_of(plan_rows: pa.Table) -> Iterator[GetRequest]:
    """Yield what to read for each planned row."""
    names = ("uri", "etag", "version_id", "size_bytes", MEMBER_FIELD.name, MEMBER_PLACE_FIELD.name)
    there = plan_rows.column_names
    columns = (plan_rows[name].to_pylist() if name in there else repeat(None) for name in names)
    rows = zip(range(plan_rows.num_rows), *columns, strict=False)
    for index, uri, etag, version_id, size_bytes, member, place in rows:
        # No etag: a manifest named an object that was not there when the run was planned.
        if place is None:
            yield GetRequest(index, uri, etag or None, version_id)
        else:
            yield MemberRequest(
                index,
                uri,
                etag or None,
                version_id,
                member=member,
                size_bytes=size_bytes,
                place=Place(**place),
            )
