"""One answer per unit: the rows of a run, and those of earlier nights of the same units.

In: the rows that a run publishes, the published runs. Out: OUT/_groups/date=D/run=R/part-*.parquet.
Invariants: a unit that the run has an image of gets one row, over all of its images, each by its
latest row; it names the row that it takes the place of. An image of no unit answers for itself.
Only committed and published rows count: what a kill leaves of them, no manifest names.

Memory: rows are held and sorted on local disk by DuckDB, see on_disk.py.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import groupby
from typing import Any, Final

import pyarrow as pa

from imgcls.closing import Closing
from imgcls.errors import BundleError
from imgcls.identity import KEY_VARIABLE
from imgcls.inference.decision_rule import unit_rule_of
from imgcls.model.bundle import read_facts
from imgcls.model.bundle_files import read_digest
from imgcls.runs.latest import latest_of
from imgcls.runs.ledger import is_same_network
from imgcls.runs.plan import Plan
from imgcls.runs.published import Night, TableFile, files_of, list_published, read_in_order
from imgcls.runs.row_keys import with_members
from imgcls.schema import GROUPS_SCHEMA, PLACE_FIELDS, UnitStatus
from imgcls.scoring.planning.on_disk import open_on_disk
from imgcls.scoring.publishing.tables import put_table
from imgcls.scoring.publishing.unit_rows import Before, Row, UnitRows
from imgcls.scoring.shard.commit import to_parquet
from imgcls.scratch import scratch_folder

log = logging.getLogger(__name__)

_COUNTS: Final = (*map(str, UnitStatus), "images_without_unit", "replaced")
ROWS_PER_PART: Final = 65_536
_ROWS_AT_A_TIME: Final = 4096
_KEYS: Final = ("unit", "uri", "member", "run_id", "scored_at")
_ROW: Final = (*_KEYS, "frame", "status", "probs", *(field.name for field in PLACE_FIELDS))
_BEFORE: Final = ("unit", "uri", "member", "version", "run_id")
# No name of a unit holds a NUL: an image of no unit is its own.
_TABLES: Final = """
SET TimeZone = 'UTC';
CREATE MACRO unit_key(unit, uri, member) AS coalesce(unit, chr(0) || uri || chr(0) || member);
CREATE TABLE keys (
    unit VARCHAR, uri VARCHAR, member VARCHAR, run_id VARCHAR, scored_at TIMESTAMPTZ
);
CREATE TABLE own_keys AS FROM keys;
CREATE TABLE chosen AS SELECT *, unit AS unit_key FROM keys;
CREATE TABLE images (
    unit VARCHAR, uri VARCHAR, member VARCHAR, run_id VARCHAR, scored_at TIMESTAMPTZ,
    frame INTEGER, status VARCHAR, probs FLOAT[],
    x_px INTEGER, y_px INTEGER, w_px INTEGER, h_px INTEGER
);
CREATE TABLE before (unit_key VARCHAR, version INTEGER, run_id VARCHAR);
"""
_UNITS: Final = """
SELECT touched.unit_key, image.*, earlier.version AS before_version, earlier.run_id AS before_run
FROM touched
LEFT JOIN (
    SELECT images.* EXCLUDE (unit), chosen.unit_key AS of_unit
    FROM images JOIN chosen USING (uri, member, run_id)
) AS image ON image.of_unit = touched.unit_key
LEFT JOIN (
    FROM before
    QUALIFY row_number() OVER (PARTITION BY unit_key ORDER BY version DESC, run_id DESC) = 1
) AS earlier ON earlier.unit_key = touched.unit_key
ORDER BY touched.unit_key, uri, member, frame
"""


class Units(Closing):
    """The units of one run, collected on local disk."""

    def __init__(self, plan: Plan) -> None:
        facts = read_facts(plan.model_uri)
        if (digest := read_digest(plan.model_uri)) != plan.model_digest:
            raise BundleError(
                f"{plan.model_uri}: digest is {digest}, run {plan.run_id} was planned with "
                f"{plan.model_digest}: its units cannot be decided"
            )
        self._rule = unit_rule_of(facts, plan.row_options.unit_rule)
        self._plan = plan
        self._rows = UnitRows(plan, self._rule, facts.class_names.names)
        self._counts: Counter[str] = Counter()
        self._decisions: Counter[str] = Counter()
        self._scratch = ExitStack()
        self._database = open_on_disk(self._scratch.enter_context(scratch_folder("units")))
        self._database.execute(_TABLES)

    def add(self, rows: pa.Table) -> None:
        """Take in rows that the run publishes."""
        self._insert(rows, _KEYS, "INSERT INTO own_keys SELECT DISTINCT * FROM part")
        self._insert(rows, _ROW, "INSERT INTO images FROM part")

    def publish(self) -> dict[str, Any]:
        """Write the tables; return the fields of the manifest that tell of units."""
        earlier = self._earlier()
        parts = [(folder, part) for folder, manifest in earlier for part in manifest.parts]
        for keys in read_in_order(parts, _KEYS):
            self._insert(keys, _KEYS, "INSERT INTO keys SELECT DISTINCT * FROM part")
        self._note_before(earlier)
        self._choose()
        found = self._database.sql("SELECT DISTINCT run_id FROM chosen").fetchall()
        wanted = {run_id for (run_id,) in found}
        parts = [(f, part) for f, m in earlier if m.run_id in wanted for part in m.parts]
        for rows in read_in_order(parts, _ROW):
            self._insert(
                rows,
                _ROW,
                "INSERT INTO images FROM part SEMI JOIN chosen USING (uri, member, run_id)",
            )
        return {
            "groups": tuple(self._write()),
            "unit": self._plan.row_options.unit,
            "unit_rule": self._rule.rule,
            "unit_counts": {name: self._counts[name] for name in _COUNTS if self._counts[name]},
            "unit_decisions": dict(sorted(self._decisions.items())),
        }

    def close(self) -> None:
        """Let go of the local disk."""
        self._database.close()
        self._scratch.close()

    def _earlier(self) -> list[Night]:
        """Return the published runs of the same network with units by the same key."""
        plan, alike, num_others, num_of_other_keys = self._plan, list[Night](), 0, 0
        for folder, manifest in list_published(plan.output):
            is_alike = is_same_network(manifest.digests, plan.digests)
            if manifest.run_id == plan.run_id or not is_alike:
                continue
            marks = {manifest.identity_mark, plan.identity_mark} - {""}
            if manifest.unit == plan.row_options.unit and len(marks) > 1:
                num_of_other_keys += 1
            elif manifest.unit == plan.row_options.unit:
                alike.append((folder, manifest))
            else:
                num_others += 1
        if num_others:
            log.warning(
                "%d earlier runs of this output have no units, or units by another key than "
                "--unit %s: their images are in no unit of this run. To have them in, roll those "
                "runs back; the next night scores their images again",
                num_others,
                plan.row_options.unit,
            )
        if num_of_other_keys:
            log.warning(
                "%d earlier runs of this output have names of units that another secret key hashed "
                "(%s): a study of theirs is another one here, so one that goes on has two rows. "
                "Put the earlier key back, or begin a new output",
                num_of_other_keys,
                KEY_VARIABLE,
            )
        return alike

    def _insert(self, rows: pa.Table, names: tuple[str, ...], statement: str) -> None:
        """Hand rows to the database as the relation `part`, with these columns."""
        rows = with_members(rows)
        columns = []
        for name in names:
            if name in rows.column_names:
                is_coded = pa.types.is_dictionary(rows[name].type)
                columns.append(rows[name].cast(pa.string()) if is_coded else rows[name])
            else:
                columns.append(pa.nulls(rows.num_rows, GROUPS_SCHEMA.field(name).type))
        self._database.register("part", pa.table(dict(zip(names, columns, strict=True))))
        self._database.execute(statement)
        self._database.unregister("part")

    def _note_before(self, earlier: list[Night]) -> None:
        """Note the rows of units that earlier runs published."""
        output = self._plan.output
        files = [file for night in earlier for file in files_of(output, night, of_units=True)]
        for rows in read_in_order(files, _BEFORE):
            self._insert(
                rows,
                _BEFORE,
                "INSERT INTO before SELECT unit_key(unit, uri, member), version, run_id FROM part",
            )

    def _choose(self) -> None:
        """Choose the rows that units are made of.

        The units are those that the run has an image of, and those that such an image was of
        before; their images are those whose latest row says so.
        """
        self._database.execute(
            "INSERT INTO keys FROM own_keys;"
            "CREATE TABLE touched AS SELECT DISTINCT unit_key(unit, uri, member) AS unit_key"
            " FROM keys SEMI JOIN own_keys USING (uri, member)"
        )
        self._database.execute("CREATE VIEW latest AS " + latest_of("keys"))
        self._database.execute(
            "INSERT INTO chosen SELECT *, unit_key(unit, uri, member) AS unit_key FROM latest"
            " WHERE unit_key(unit, uri, member) IN (FROM touched)"
        )

    def _units(self) -> Iterator[tuple[str, list[Row], Before | None]]:
        """Yield the units in order: key, rows of the images, the row before."""
        batches = self._database.sql(_UNITS).to_arrow_reader(_ROWS_AT_A_TIME)
        rows = (row for batch in batches for row in batch.to_pylist())
        for key, group in groupby(rows, key=lambda row: str(row["unit_key"])):
            images = list(group)
            version, run_id = images[0]["before_version"], images[0]["before_run"]
            before = Before(version, run_id) if version is not None else None
            yield key, [r | {"member": r["member"] or None} for r in images if r["uri"]], before

    def _write(self) -> Iterator[TableFile]:
        held, number = list[Row](), 0
        for key, images, before in self._units():
            row = self._rows.row(None if key.startswith("\0") else key, images, before)
            if row["unit"] is None:
                _, row["uri"], member = key.split("\0")
                row["member"] = member or None
                if row["status"] == UnitStatus.NOT_AN_IMAGE and before is None:
                    continue  # nothing that an answer could be of
                self._counts["images_without_unit"] += row["num_images"]
            self._counts[row["status"]] += 1
            self._counts["replaced"] += before is not None
            self._decisions.update(filter(None, [row.get("decision")]))
            held.append(row)
            if len(held) == ROWS_PER_PART:
                yield self._put(held, number)
                held, number = [], number + 1
        if held:
            yield self._put(held, number)

    def _put(self, rows: list[Row], number: int) -> TableFile:
        """Write some rows, under a name that tells them: another start may find other nights."""
        table = pa.Table.from_pylist(rows, schema=GROUPS_SCHEMA)
        data = to_parquet(table)
        sha256 = hashlib.sha256(data).hexdigest()
        path = f"part-{number:05d}-{sha256[:8]}.parquet"
        put_table(self._plan.run.table("groups", self._plan.date), path, data)
        return TableFile(path, sha256, table.num_rows, len(data))
