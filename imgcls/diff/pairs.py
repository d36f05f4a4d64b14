"""The rows of two published runs, image by image.

In: two published runs. Out: one row for each image (and frame) that either run has. Invariant:
nothing is compared that is not of the same bytes: an image that was overwritten between the two
runs counts apart, and so does one that only one run has, or only one could read.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from imgcls.errors import ConfigError
from imgcls.report.read import Night
from imgcls.runs.published import Manifest, read_columns, with_comparable_etags
from imgcls.runs.row_keys import image_keys
from imgcls.runs.run import Run
from imgcls.schema import MEMBER_FIELD, ROW_COLUMNS, Status

_WANTED: Final = (
    *("uri", "etag", "frame", "status", "error", "format", "width_px", "height_px", "run_id"),
    *("class_name", "labels", "confidence", "calibrated_prob", "decision", "threshold_id"),
)
_NO_FRAME: Final = -1
SEPARATOR: Final = "|"

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Side:
    """A published run."""

    run: Run
    folder: str
    manifest: Manifest


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """All pairs; masks are [N]."""

    table: pa.Table
    """Columns of the first run end in _a, of the second in _b."""
    both_N: Bools
    """Both gave an answer on the same bytes."""
    class_flip_N: Bools
    decision_flip_N: Bools
    changed_N: Bools
    """The image was overwritten between the two."""
    lost_N: Bools
    """The second run has it and gave no answer, where the first gave one."""
    gained_N: Bools
    """The other way round."""

    @property
    def flip_N(self) -> Bools:
        """Which answers differ: by class, or by decision."""
        return self.class_flip_N | self.decision_flip_N

    def paths(self) -> list[str]:
        """Return the name of each image as labels have it: of a member, CONTAINER/MEMBER."""
        uris = pc.coalesce(self.table["uri_a"], self.table["uri_b"])
        members = pc.coalesce(self.table["member_a"], self.table["member_b"])
        paths: list[str] = pc.coalesce(
            pc.binary_join_element_wise(uris, members, "/"), uris
        ).to_pylist()
        return paths

    def rows(self, mask_N: Bools) -> list[dict[str, Any]]:
        """Return some pairs as values."""
        rows: list[dict[str, Any]] = self.table.filter(pa.array(mask_N)).to_pylist()
        return rows


def read_pairs(first: Side, second: Side) -> Pairs:
    """Join two runs.

    Raises:
        ConfigError: they have no image in common.
    """
    of_a, of_b = _read(first), _read(second)
    table = of_a.join(of_b, "key", join_type="full outer", left_suffix="_a", right_suffix="_b")
    table = table.sort_by("key")
    in_a, in_b = _is_there(table, "uri_a"), _is_there(table, "uri_b")
    if not (in_a & in_b).any():
        raise ConfigError(
            f"runs {first.run.run_id} and {second.run.run_id} have no image in common: score the "
            "same source with both models"
        )
    ok_a, ok_b = (_equals(table[f"status_{side}"], Status.OK) for side in "ab")
    changed_N = in_a & in_b & ~_same(table, "etag")
    both_N = ok_a & ok_b & ~changed_N
    about = [_about(table[f"threshold_id_{side}"]) for side in "ab"]
    decides_alike = _as_bools(pc.equal(*about))
    return Pairs(
        table,
        both_N=both_N,
        class_flip_N=both_N & ~_same(table, "answer"),
        decision_flip_N=both_N & decides_alike & ~_same(table, "decision"),
        changed_N=changed_N,
        lost_N=in_b & ok_a & ~ok_b & ~changed_N,
        gained_N=in_a & ok_b & ~ok_a & ~changed_N,
    )


def carried_columns(table: pa.Table) -> list[str]:
    """Return the columns of the source that the first run carried along."""
    return [name for name in table.column_names if name.endswith("_a") and
            name.removesuffix("_a") not in (*ROW_COLUMNS, "answer")]  # fmt: skip


def _read(side: Side) -> pa.Table:
    tables = []
    columns = Night(side.run.output, side.folder, side.manifest).columns()
    carried = (name for name in columns if name not in ROW_COLUMNS)
    wanted = [*_WANTED, MEMBER_FIELD.name, *carried]
    for part in side.manifest.parts:
        table = with_comparable_etags(read_columns(side.folder, part, wanted))
        for index, field in enumerate(table.schema):
            if pa.types.is_dictionary(field.type):
                table = table.set_column(index, field.name, table[field.name].cast(pa.string()))
        tables.append(_with_answers(table))
    if not tables:
        raise ConfigError(f"run {side.run.run_id} has no rows")
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def _with_answers(table: pa.Table) -> pa.Table:
    if MEMBER_FIELD.name not in table.column_names:
        table = table.append_column(MEMBER_FIELD, pa.nulls(table.num_rows, pa.string()))
    frames = pc.fill_null(table["frame"], _NO_FRAME).cast(pa.string())
    keys = pc.binary_join_element_wise(image_keys(table), frames, "\0")
    answers = table["class_name"]
    if "labels" in table.column_names:
        lists = table["labels"].to_pylist()
        answers = pa.array(
            [None if found is None else SEPARATOR.join(sorted(found)) for found in lists],
            pa.string(),
        )
        table = table.drop_columns("labels")
    for name in ("decision", "threshold_id", "calibrated_prob"):
        if name not in table.column_names:
            kind = pa.float32() if name == "calibrated_prob" else pa.string()
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
    return table.append_column("answer", answers).append_column("key", keys)


def _about(threshold_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the class that decisions are about: CLASS of CLASS:recall>=0.9."""
    return pc.replace_substring_regex(threshold_ids, r":[^:]*$", "")


def _same(table: pa.Table, name: str) -> Bools:
    return _as_bools(pc.equal(table[f"{name}_a"], table[f"{name}_b"]))


def _equals(column: pa.ChunkedArray, value: str) -> Bools:
    return _as_bools(pc.equal(column, str(value)))


def _is_there(table: pa.Table, name: str) -> Bools:
    return _as_bools(pc.is_valid(table[name]))


def _as_bools(values: pa.ChunkedArray) -> Bools:
    found: Bools = pc.fill_null(values, fill_value=False).to_numpy(zero_copy_only=False)
    return found
