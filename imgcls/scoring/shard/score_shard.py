"""Score one shard: planned rows in, prediction rows out.

In: the plan rows of a shard, a predictor and a decoder pool. Out: one table of PREDICTION_SCHEMA,
in plan order, and what was seen of the images. Invariant: every planned row comes out as exactly
one row (one per frame of a multi-frame file), as it was planned; what goes wrong with one image is
its row's status, what goes wrong with the store is an exception.

Reads, decoding and the model overlap because the stages pull from each other: `get_many` keeps GETs
in flight behind `decode_many`, which keeps its children busy while the batches before run through
the model (`predict_stream`); rows are made while the next ones do.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa

from imgcls.image.decoders.pool import Decoded, DecoderPool
from imgcls.inference.heatmaps.picked import NUM_TILES, ShardHeatmaps
from imgcls.inference.predictor import Predictor
from imgcls.inference.stream import predict_stream
from imgcls.runs.row_options import ALL_DEFAULT, RowOptions
from imgcls.scoring.shard.commit import uris_failed_before
from imgcls.scoring.shard.facts import ShardFacts
from imgcls.scoring.shard.remote_decode import RemoteDecoder, decode_shared
from imgcls.scoring.shard.rows import Provenance, ShardRows
from imgcls.scoring.shard.stage_clock import DECODE_REMOTE, StageClock
from imgcls.scoring.shard.tile_rows import TileRows
from imgcls.sources.read import get_images
from imgcls.sources.requests import requests_of
from imgcls.storage.access import MAX_REFUSED_IN_A_ROW, Access
from imgcls.storage.bulk_get import GetRequest


@dataclass(frozen=True, slots=True, eq=False)
class ScoredShard:
    """What scoring a shard gives."""

    rows: pa.Table
    """Of `prediction_schema`, in plan order."""
    facts: pa.Table
    """Of FACTS_SCHEMA, in the order of the rows."""
    greys: dict[str, int]
    """As in the commit."""


def score_shard(
    plan_rows: pa.Table,
    *,
    predictor: Predictor,
    pool: DecoderPool,
    provenance: Provenance,
    row_options: RowOptions = ALL_DEFAULT,
    tile_rows: TileRows | None = None,
    clock: StageClock | None = None,
    remote: RemoteDecoder | None = None,
    access: Access | None = None,
    facts: ShardFacts | None = None,
    heatmaps: ShardHeatmaps | None = None,
) -> ScoredShard:
    """Score the planned rows.

    Args:
        plan_rows: PLAN_SCHEMA, any number of rows.
        predictor: the model; its batch_size is the number of images per forward pass.
        pool: decoder processes with the bundle's decode and preprocess spec.
        provenance: constant columns, and the class names in order of label.
        row_options: of the run; what they ask of the model, the predictor must have been made for.
        tile_rows: takes what the model says of each tile, if that is wanted.
        clock: counts what the stages do, if that is wanted.
        remote: reads and decodes some of the images elsewhere, as many as it is fast enough for.
        access: what the worker knows of the run's images; by default only these rows.
        facts: where what is seen of the images is collected; by default as of a run of these rows.
        heatmaps: picks and makes them, if they are wanted.

    Raises:
        StorageError: the store failed after all retries. No row is made of that.
    """
    clock = clock or make_clock(predictor, pool)
    num_rows = plan_rows.num_rows
    facts = facts or ShardFacts(predictor.bundle.preprocess_spec, num_rows, num_rows)
    rows = ShardRows(plan_rows, provenance, row_options, facts, heatmaps)
    num_decoded = num_here = 0

    access = access or Access(
        lambda: requests_of(plan_rows.slice(0, MAX_REFUSED_IN_A_ROW)), get_images
    )
    refused_before = uris_failed_before(plan_rows)

    def decode_here(requests: Iterable[GetRequest]) -> Iterator[Decoded]:
        nonlocal num_here
        for decoded in pool.decode_many(clock.reads(access.read(requests, refused_before))):
            num_here += 1
            yield decoded

    def decode() -> Generator[Decoded]:
        nonlocal num_decoded
        with closing(decode_shared(requests_of(plan_rows), decode_here, remote)) as found:
            for decoded in found:
                num_decoded += 1
                yield decoded

    try:
        with (
            closing(decode()) as found,
            closing(
                predict_stream(found, predictor, num_kept=NUM_TILES if heatmaps is not None else 0)
            ) as stream,
        ):
            for done in stream:
                if isinstance(done, Decoded):
                    rows.add_failure(done)
                else:
                    clock.add("predict", items=done.num_crops)
                    with clock.busy("rows"):
                        rows.add(done)
                        if tile_rows is not None:
                            tile_rows.add(done)
    finally:
        clock.add("decode", items=num_here)
        clock.add(DECODE_REMOTE, items=num_decoded - num_here)
    with clock.busy("rows", plan_rows.num_rows):
        return ScoredShard(*rows.to_tables(), facts.greys)


def make_clock(predictor: Predictor, pool: DecoderPool) -> StageClock:
    """Return a clock for the stages of a worker that scores with these two."""
    return StageClock(
        pool.busy_s,
        predictor.busy_s,
        num_decoders=pool.num_processes,
        num_streams=predictor.num_streams,
        num_on_gpu=pool.num_taken,
    )
