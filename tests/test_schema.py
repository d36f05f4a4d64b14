"""Which columns rows have, and that every reason for one can hold."""

from dataclasses import fields

import numpy as np
import pytest

from imgcls.drift.familiar import Familiar
from imgcls.runs.row_options import RowOptions
from imgcls.schema import (
    OPTIONAL_COLUMNS,
    PREDICTION_SCHEMA,
    ROW_COLUMNS,
    WIDE_COLUMNS,
    WIDEST_SCHEMA,
    OptionalColumn,
    prediction_schema,
)
from imgcls.scoring.shard.rows import Provenance
from tests.scoring.tiny import make_calibration, run_facts

FULL = Provenance(
    run_facts(),
    ("ok", "scratch"),
    multi_label=True,
    calibration=make_calibration(0.4, 0.5, 0.6),
    has_places=True,
    familiar=Familiar.of(np.random.default_rng(0).normal(size=(400, 32))),
)


def test_every_optional_column_has_a_reason_that_can_hold_and_a_place() -> None:
    known = {"members", *FULL.reasons, *(each.name for each in fields(RowOptions))}
    assert {each.when for each in OPTIONAL_COLUMNS} <= known
    assert {each.after for each in OPTIONAL_COLUMNS} <= set(PREDICTION_SCHEMA.names)
    assert len(set(WIDEST_SCHEMA.names)) == len(PREDICTION_SCHEMA) + len(OPTIONAL_COLUMNS)
    assert ROW_COLUMNS >= set(WIDEST_SCHEMA.names) >= set(WIDE_COLUMNS)


def test_the_columns_of_a_run_are_in_the_order_that_its_readers_know() -> None:
    assert " ".join(WIDEST_SCHEMA.names) == (
        "uri member etag size_bytes last_modified frame status error format width_px height_px "
        "x_px y_px w_px h_px peak_x_px peak_y_px label class_name confidence labels "
        "calibrated_prob decision threshold_id unfamiliar unfamiliarity topk_label topk_prob "
        "probs embedding model model_digest spec_digest run_id scored_at"
    )
    assert prediction_schema() == PREDICTION_SCHEMA


@pytest.mark.parametrize("column", OPTIONAL_COLUMNS, ids=lambda each: each.field.name)
def test_a_column_is_there_for_its_reason_alone(column: OptionalColumn) -> None:
    others = {each.when for each in OPTIONAL_COLUMNS} - {column.when}
    assert column.field in prediction_schema({column.when})
    assert column.field not in prediction_schema(others)


def test_only_row_options_that_are_on_are_reasons() -> None:
    assert RowOptions().reasons() == frozenset()
    assert RowOptions(write_probs=True, gpu_decode="on", top_k=1).reasons() == {"write_probs"}
