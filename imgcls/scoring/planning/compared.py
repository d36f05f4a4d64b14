"""What published rows say of each listed object.

In: the tables `listing` and `rows` of a staging. Out: a byte for each listed object, by its number.
Invariant: both tables are sorted as one and read once, never joined (see on_disk.py), so that a
difference of ten million keys needs no more memory than that of one, but for these bytes.

Shape legend: N listed object, B row of a table.
"""

from typing import Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from imgcls.scoring.planning.on_disk import any_of_each, as_bools, starts_of, whole_groups

# Some row of the image is published, of any version. Of the very version that is listed: some row
# is; one is ok; this imgcls would make the same of it; all that are ok have older thresholds.
KNOWN, PUBLISHED, OK, DONE, OLDER = 1, 2, 4, 8, 16

States = npt.NDArray[np.uint8]
_IMAGE: Final = ("uri", "member")
# A row of `rows` has no number.
_SORTED: Final = (
    "SELECT * FROM (SELECT uri, member, etag, imgcls_row AS row, false AS ok, false AS done,"
    " false AS older FROM listing UNION ALL SELECT uri, member, etag, NULL, ok, done, older"
    " FROM rows) ORDER BY uri, member, etag"
)


def compare(database: duckdb.DuckDBPyConnection, num_listed: int) -> States:
    """Return the state of each listed object, [N]."""
    state_N = np.zeros(num_listed, np.uint8)
    if not database.sql("FROM rows LIMIT 1").fetchall():
        return state_N
    for rows in whole_groups(database, _SORTED, _IMAGE):
        is_listed_B = as_bools(pc.is_valid(rows["row"]))
        state_N[rows["row"].drop_null().to_numpy()] = _states(rows)[is_listed_B]
    return state_N


def _states(rows: pa.Table) -> States:
    """Return the state of each row, [B], of sorted rows with all of each image."""
    of_image_B = starts_of(rows, _IMAGE)
    of_version_B = of_image_B | starts_of(rows, ["etag"])
    is_published_B = as_bools(pc.is_null(rows["row"]))
    ok_B, done_B, older_B = (as_bools(rows[name]) for name in ("ok", "done", "older"))
    is_ok_B = any_of_each(of_version_B, ok_B)
    states = (
        (KNOWN, any_of_each(of_image_B, is_published_B)),
        (PUBLISHED, any_of_each(of_version_B, is_published_B)),
        (OK, is_ok_B),
        (DONE, any_of_each(of_version_B, done_B)),
        (OLDER, is_ok_B & ~any_of_each(of_version_B, ok_B & ~older_B)),
    )
    found: States = np.bitwise_or.reduce([np.uint8(bit) * is_so_B for bit, is_so_B in states])
    return found
