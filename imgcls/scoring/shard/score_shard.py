"""Score one shard: planned rows in, prediction rows out.

In: the plan rows of a shard, a predictor and a decoder pool. Out: one table of PREDICTION_SCHEMA,
in plan order. Invariant: every planned row comes out as exactly one row (one per frame of a
multi-frame file), as it was planned; what goes wrong with one image is its row's status, what goes
wrong with the store is an exception.

Reads, decoding and the model overlap because the stages pull from each other: `get_many` keeps GETs
in flight behind `decode_many`, which keeps its children busy while the batches before run through
the model; rows are made while the next ones do.

Shape legend: B batch, C channel, P image_px, K top-k, N classes, E embedding.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imgcls.image.decoders.pool import Crop, Decoded, DecoderPool
from imgcls.inference.predictor import Predictions, Predictor
from imgcls.scoring.shard.commit import uris_failed_before
from imgcls.scoring.shard.remote_decode import RemoteDecoder, decode_shared
from imgcls.scoring.shard.rows import Provenance, ShardRows
from imgcls.scoring.shard.stage_clock import DECODE_REMOTE, StageClock
from imgcls.storage.access import MAX_REFUSED_IN_A_ROW, Access
from imgcls.storage.bulk_get import GetRequest


def score_shard(
    plan_rows: pa.Table,
    *,
    predictor: Predictor,
    pool: DecoderPool,
    provenance: Provenance,
    write_probs: bool = False,
    write_embedding: bool = False,
    clock: StageClock | None = None,
    remote: RemoteDecoder | None = None,
    access: Access | None = None,
) -> pa.Table:
    """Score the planned rows.

    Args:
        plan_rows: PLAN_SCHEMA, any number of rows.
        predictor: the model; its batch_size is the number of images per forward pass.
        pool: decoder processes with the bundle's decode and preprocess spec.
        provenance: constant columns, and the class names in order of label.
        write_probs: add the column probs.
        write_embedding: add the column embedding (the predictor must have been made with it).
        clock: counts what the stages do, if that is wanted.
        remote: reads and decodes some of the images elsewhere, as many as it is fast enough for.
        access: what the worker knows of the run's images; by default only these rows.

    Raises:
        StorageError: the store failed after all retries. No row is made of that.
    """
    clock = clock or make_clock(predictor, pool)
    rows = ShardRows(plan_rows, provenance, write_probs, write_embedding)
    batches = _Batches(predictor, rows, clock)
    num_decoded = num_here = 0

    access = access or Access(lambda: get_requests(plan_rows.slice(0, MAX_REFUSED_IN_A_ROW)))
    refused_before = uris_failed_before(plan_rows)

    def decode_here(requests: Iterable[GetRequest]) -> Iterator[Decoded]:
        nonlocal num_here
        for decoded in pool.decode_many(clock.reads(access.read(requests, refused_before))):
            num_here += 1
            yield decoded

    try:
        with closing(decode_shared(get_requests(plan_rows), decode_here, remote)) as found:
            for decoded in found:
                num_decoded += 1
                if decoded.error is not None:
                    rows.add_failure(decoded)
                else:
                    rows.add_format(decoded)
                for crop in decoded.crops:
                    batches.add(decoded.index, crop)
        batches.finish()
    finally:
        clock.add("decode", items=num_here)
        clock.add(DECODE_REMOTE, items=num_decoded - num_here)
        batches.cancel()
    with clock.busy("rows", plan_rows.num_rows):
        return rows.to_table()


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Memory for a batch, pinned where the model is on a GPU, and what lies in its first rows."""

    x_BCHW: npt.NDArray[np.uint8]
    crops: list[tuple[int, Crop]]


class _Batches:
    """Batches of one shard on their way: filling, running through the model, becoming rows.

    Their memory is used again and again: to ask for 2 MB each time, and 19 MB for a GPU, costs more
    than to fill them.
    """

    def __init__(self, predictor: Predictor, rows: ShardRows, clock: StageClock) -> None:
        self._predictor, self._rows, self._clock = predictor, rows, clock
        self._filling: _Batch | None = None
        self._running: deque[tuple[_Batch, Future[Predictions]]] = deque()
        self._free: list[npt.NDArray[np.uint8]] = []

    def add(self, index: int, crop: Crop) -> None:
        """Add one crop; a full batch goes to the model, and waits when it has enough to do."""
        if self._filling is None:
            shape_CHW = crop.x_CHW.shape
            x_BCHW = self._free.pop() if self._free else self._predictor.new_batch(shape_CHW)
            self._filling = _Batch(x_BCHW, [])
        x_CHW = self._filling.x_BCHW[len(self._filling.crops)]
        assert crop.x_CHW.shape == x_CHW.shape, f"a crop of {crop.x_CHW.shape}, not {x_CHW.shape}"
        x_CHW[:] = crop.x_CHW
        self._filling.crops.append((index, crop))
        if len(self._filling.crops) < self._predictor.batch_size:
            return
        self._submit()
        while len(self._running) > self._predictor.num_streams or self._is_first_done():
            self._take_first()

    def finish(self) -> None:
        """Predict what is left, and wait for all of it."""
        self._submit()
        while self._running:
            self._take_first()

    def cancel(self) -> None:
        """Let go of what is not predicted yet."""
        for _, predictions in self._running:
            predictions.cancel()

    def _submit(self) -> None:
        batch, self._filling = self._filling, None
        if batch is not None:
            x_BCHW = batch.x_BCHW[: len(batch.crops)]
            self._running.append((batch, self._predictor.submit(x_BCHW)))

    def _is_first_done(self) -> bool:
        return bool(self._running) and self._running[0][1].done()

    def _take_first(self) -> None:
        batch, running = self._running.popleft()
        predictions = running.result()
        self._free.append(batch.x_BCHW)  # the device has read it: its answers are here
        self._clock.add("predict", items=len(batch.crops))
        with self._clock.busy("rows"):
            self._rows.add_batch(batch.crops, predictions)


def make_clock(predictor: Predictor, pool: DecoderPool) -> StageClock:
    """Return a clock for the stages of a worker that scores with these two."""
    return StageClock(
        pool.busy_s,
        predictor.busy_s,
        num_decoders=pool.num_processes,
        num_streams=predictor.num_streams,
        num_on_gpu=pool.num_taken,
    )


def get_requests(plan_rows: pa.Table) -> Iterator[GetRequest]:
    """Yield what to read for each planned row; its index is the row's."""
    columns = (plan_rows[name].to_pylist() for name in ("uri", "etag", "version_id"))
    for index, (uri, etag, version_id) in enumerate(zip(*columns, strict=True)):
        # No etag: a manifest named an object that was not there when the run was planned.
        yield GetRequest(index, uri, etag or None, version_id)
