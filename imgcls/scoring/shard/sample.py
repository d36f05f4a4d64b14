"""Images from all over a run, to calibrate or compare with.

In: a plan. Out: what to read, spread over its shards. Invariant: it depends on the plan alone.
"""

from collections.abc import Iterator
from typing import Final

from imgcls.scoring.planning.plan import Plan, read_shard_rows
from imgcls.scoring.shard.score_shard import get_requests
from imgcls.storage.bulk_get import GetRequest

# Shards that give images: a few from all over the source, for neighbours are alike.
_MAX_SHARDS: Final = 16


def spread_requests(output: str, plan: Plan, num_images: int) -> Iterator[list[GetRequest]]:
    """Yield what to read of one shard after the other, in order of the plan.

    In all about `num_images`, or as many as there are; the indices are those of each shard's rows.
    """
    shards = list(plan.shards())
    shards = shards[:: -(-len(shards) // _MAX_SHARDS)]
    num_per_shard = -(-num_images // len(shards))
    for shard in shards:
        rows = read_shard_rows(output, plan, shard)
        taken = rows.take(list(range(0, rows.num_rows, -(-rows.num_rows // num_per_shard))))
        yield list(get_requests(taken))
