"""What the model says of each tile of a shard's pictures, for --write-tiles.

In: samples as they are predicted. Out: one table of TILES_SCHEMA, a row per tile, in plan order.
Invariant: exactly the tiles of the pictures that have a prediction.
"""

import numpy as np
import pyarrow as pa

from imgcls.inference.stream import Predicted, Sample
from imgcls.schema import MEMBER_FIELD, TILES_SCHEMA


class TileRows:
    """Collects tiles in order of completion and returns them in plan order."""

    def __init__(self, plan_rows: pa.Table) -> None:
        uris, num = plan_rows["uri"].to_pylist(), plan_rows.num_rows
        has_members = MEMBER_FIELD.name in plan_rows.column_names
        members = plan_rows[MEMBER_FIELD.name].to_pylist() if has_members else [None] * num
        self._keys = list(zip(uris, members, strict=True))
        self._samples: list[Sample] = []

    def add(self, predicted: Predicted) -> None:
        """Add the tiles of some samples."""
        errors = predicted.predictions.error_by_row
        self._samples += [s for row, s in enumerate(predicted.samples) if row not in errors]

    def to_table(self) -> pa.Table:
        """Return all of them."""
        self._samples.sort(key=lambda sample: (sample.index, sample.crop.sample))
        tables = [TILES_SCHEMA.empty_table(), *map(self._table, self._samples)]
        return pa.concat_tables(tables).combine_chunks()

    def _table(self, sample: Sample) -> pa.Table:
        assert sample.instances is not None, "the bundle pools"
        crops, probs_IK = sample.instances.crops, sample.instances.probs_IK
        label_I = probs_IK.argmax(axis=1)
        places = [crop.place or (0, 0, crop.width_px, crop.height_px) for crop in crops]
        uri, member = self._keys[sample.index]
        columns = [
            [uri] * len(crops),
            [member] * len(crops),
            [sample.crop.frame] * len(crops),
            *zip(*places, strict=True),
            label_I.astype(np.int32),
            probs_IK[np.arange(len(crops)), label_I],
            probs_IK.tolist(),
        ]
        arrays = [
            pa.array(column, field.type)
            for column, field in zip(columns, TILES_SCHEMA, strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=TILES_SCHEMA)
