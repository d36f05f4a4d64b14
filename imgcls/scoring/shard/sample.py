"""Images from all over a run, to calibrate or compare with.

In: a plan. Out: what to read, spread over its shards. Invariant: it depends on the plan alone.
"""

from collections.abc import Iterator
from typing import Final

from imgcls.runs.plan import PlannedRows
from imgcls.sources.requests import requests_of
from imgcls.storage.bulk_get import GetRequest

# Shards that give images: a few from all over the source, for neighbours are alike.
_MAX_SHARDS: Final = 16


def spread_requests(planned: PlannedRows, num_images: int) -> Iterator[list[GetRequest]]:
    """Yield what to read of one shard after the other, in order of the plan.

    In all about `num_images`, or as many as there are; the indices are those of each shard's rows.
    """
    shards = list(planned.plan.shards())
    shards = shards[:: -(-len(shards) // _MAX_SHARDS)]
    num_per_shard = -(-num_images // len(shards))
    for shard in shards:
        rows = planned.of(shard)
        taken = rows.take(list(range(0, rows.num_rows, -(-rows.num_rows // num_per_shard))))
        yield list(requests_of(taken))
