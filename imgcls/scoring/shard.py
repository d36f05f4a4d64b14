"""Score one shard: planned rows in, prediction rows out.

In: the plan rows of a shard, a predictor and a decoder pool. Out: one table of PREDICTION_SCHEMA,
in plan order. Invariant: every planned row comes out as exactly one row (one per frame of a
multi-frame file), as it was planned; what goes wrong with one image is its row's status, what goes
wrong with the store is an exception.

Reads, decoding and the model overlap because the stages pull from each other: `get_many` keeps GETs
in flight behind `decode_many`, which keeps its children busy while the batch before runs through
the model.

Shape legend: B batch, C channel, P image_px, K top-k, N classes, E embedding.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from imgcls.image.pool import Crop, DecoderPool
from imgcls.model.predict import Predictor
from imgcls.scoring.rows import Provenance, ShardRows
from imgcls.storage.transfer import GetRequest, get_many


def score_shard(
    plan_rows: pa.Table,
    *,
    predictor: Predictor,
    pool: DecoderPool,
    provenance: Provenance,
    write_probs: bool = False,
    write_embedding: bool = False,
) -> pa.Table:
    """Score the planned rows.

    Args:
        plan_rows: PLAN_SCHEMA, any number of rows.
        predictor: the model; its batch_size is the number of images per forward pass.
        pool: decoder processes with the bundle's decode and preprocess spec.
        provenance: constant columns, and the class names in order of label.
        write_probs: add the column probs.
        write_embedding: add the column embedding (the predictor must have been made with it).

    Raises:
        StorageError: the store failed after all retries. No row is made of that.
    """
    rows = ShardRows(plan_rows, provenance, write_probs, write_embedding)
    batch: list[tuple[int, Crop]] = []
    for decoded in pool.decode_many(get_many(_requests(plan_rows))):
        if decoded.error is not None:
            rows.add_failure(decoded)
        for crop in decoded.crops:
            batch.append((decoded.index, crop))
            if len(batch) == predictor.batch_size:
                rows.add_batch(batch, predictor.predict(_stack(batch)))
                batch = []
    if batch:
        rows.add_batch(batch, predictor.predict(_stack(batch)))
    return rows.to_table()


def _requests(plan_rows: pa.Table) -> Iterator[GetRequest]:
    columns = (plan_rows[name].to_pylist() for name in ("uri", "etag", "version_id"))
    for index, (uri, etag, version_id) in enumerate(zip(*columns, strict=True)):
        # No etag: a manifest named an object that was not there when the run was planned.
        yield GetRequest(index, uri, etag or None, version_id)


def _stack(batch: list[tuple[int, Crop]]) -> np.ndarray:
    return np.stack([crop.x_CHW for _, crop in batch])
