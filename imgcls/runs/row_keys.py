"""The key of a row: which image it is of.

In: rows, planned or predicted. Out: one string per row. Invariant: two rows have the same key where
they are of the same image; frames of one file share it. Where there are containers, an image is
known by its container and its name in it.
"""

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from imgcls.schema import MEMBER_FIELD

# No URI and no name of a member holds it.
_BETWEEN: Final = "\0"


def image_keys(rows: pa.Table) -> pa.ChunkedArray:
    """Return the keys of rows with a uri and, perhaps, a member."""
    if MEMBER_FIELD.name not in rows.column_names:
        return rows["uri"]
    return pc.binary_join_element_wise(rows["uri"], members_of(rows), _BETWEEN)


def members_of(rows: pa.Table) -> pa.ChunkedArray:
    """Return the member of each row, "" where it has none."""
    if MEMBER_FIELD.name not in rows.column_names:
        return pa.chunked_array([pa.repeat(pa.scalar(""), rows.num_rows)])
    return pc.fill_null(rows[MEMBER_FIELD.name], "")


def with_members(rows: pa.Table) -> pa.Table:
    """Return rows with a column member that is never null."""
    members = members_of(rows)
    if MEMBER_FIELD.name not in rows.column_names:
        return rows.append_column(MEMBER_FIELD, members)
    return rows.set_column(rows.column_names.index(MEMBER_FIELD.name), MEMBER_FIELD, members)


def with_paths(rows: pa.Table) -> pa.Table:
    """Return rows whose uri is the path of the image: of a member, CONTAINER/MEMBER.

    So labels name it, exactly, or by the end of its path.
    """
    if MEMBER_FIELD.name not in rows.column_names:
        return rows
    paths = pc.binary_join_element_wise(rows["uri"], rows[MEMBER_FIELD.name], "/")
    position = rows.column_names.index("uri")
    return rows.set_column(position, rows.field(position), pc.coalesce(paths, rows["uri"]))


def path_of(uri: str, member: str | None) -> str:
    """Return the path of an image as labels name it: of a member, CONTAINER/MEMBER."""
    return f"{uri}/{member}" if member else uri


def describe_key(key: str) -> str:
    """Return a key for people."""
    uri, _, member = key.partition(_BETWEEN)
    return f"{member} in {uri}" if member else uri
