"""Listed objects on local disk: counted, compared with the ledger, sorted.

In: a stream of listed objects, and the rows that are published. Out: counts, and tables in order of
uri. Invariant: no list of all objects is in memory: they are held and sorted on disk, see
on_disk.py.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from imgcls.progress import Progress
from imgcls.runs.published import with_comparable_etags
from imgcls.runs.row_keys import with_members
from imgcls.schema import (
    ASKED_AGAIN,
    FAILED_BEFORE_FIELD,
    MEMBER_FIELD,
    MEMBER_PLACE_FIELD,
    NOTHING_LEARNT,
    PLAN_SCHEMA,
)
from imgcls.scoring.planning.compared import DONE, KNOWN, OK, OLDER, PUBLISHED, compare
from imgcls.scoring.planning.on_disk import open_on_disk, starts_of, whole_groups
from imgcls.scratch import scratch_folder
from imgcls.sources.containers import Entry
from imgcls.sources.members import READ_FROM_START, Member
from imgcls.storage.objects import ObjectInfo, Skipped

log = logging.getLogger(__name__)

NUM_NAMED = 20  # of what could not be listed, in the log and in results; all are in the plan
_STAGE_ROWS = 16_384
_CHANGED_ROWS = 1_000_000  # by one statement, within its memory
_STAGED_SCHEMA = pa.schema([*PLAN_SCHEMA, MEMBER_FIELD, MEMBER_PLACE_FIELD])


class Staging:
    """The listed objects on local disk, to be counted, compared and sorted in bounded memory."""

    def __init__(self, folder: str) -> None:
        self._database = open_on_disk(folder)
        self._database.execute("SET TimeZone = 'UTC'")
        self._database.register("nothing", _STAGED_SCHEMA.empty_table())
        self._database.execute(
            "CREATE TABLE listing AS SELECT *, false AS failed_before, 0::BIGINT AS imgcls_row"
            " FROM nothing"
        )
        self._skipped = Path(folder) / "skipped.jsonl"
        self.num_skipped = self.num_excluded = self.num_not_listed = 0
        self.num_with_older_thresholds = self._num_staged = 0
        self.not_listed: dict[str, str] = {}
        self.planned_again: dict[str, int] = {}
        self._has_members = self._has_failed_before = False
        self._carried = pa.schema([])

    @property
    def plan_schema(self) -> pa.Schema:
        """The columns of the plan: those of containers, of what failed before, and carried ones."""
        fields = [MEMBER_FIELD, MEMBER_PLACE_FIELD] * self._has_members
        fields += [FAILED_BEFORE_FIELD] * self._has_failed_before
        return pa.schema([*PLAN_SCHEMA, *fields, *self._carried])

    def fill(self, entries: Iterable[Entry]) -> None:
        """Stage a listing, showing its count and rate as it goes."""
        batch: list[ObjectInfo | Member] = []
        with Progress("listing", None, "objects") as progress:
            for entry in entries:
                if isinstance(entry, Skipped):
                    self._skip(entry)
                    continue
                batch.append(entry)
                if len(batch) == _STAGE_ROWS:
                    self.insert(_to_table(batch))
                    progress.advance(len(batch))
                    batch = []
            self.insert(_to_table(batch))
            progress.advance(len(batch))
        if self.num_not_listed > NUM_NAMED:
            log.warning("and %d more could not be listed", self.num_not_listed - NUM_NAMED)

    def _skip(self, entry: Skipped) -> None:
        self.num_skipped += 1
        if entry.unseen:
            self._name_unseen(entry)
        line = json.dumps({"uri": entry.uri, "reason": entry.reason})
        with self._skipped.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{line}\n")

    def _name_unseen(self, entry: Skipped) -> None:
        self.num_not_listed += 1
        if self.num_not_listed <= NUM_NAMED:
            self.not_listed[entry.uri] = entry.reason
            log.warning("left out %s: %s", entry.uri, entry.reason)

    def skipped_lines(self) -> bytes:
        """Return the skipped keys with their reasons, one JSON object a line."""
        return self._skipped.read_bytes() if self.num_skipped else b""

    def insert(self, objects: pa.Table) -> None:
        """Stage objects (PLAN_SCHEMA, or with members)."""
        if MEMBER_PLACE_FIELD.name in objects.column_names:
            self._has_members = True
        else:
            objects = objects.append_column(
                MEMBER_PLACE_FIELD, pa.nulls(len(objects), MEMBER_PLACE_FIELD.type)
            )
        self._database.register("staged", with_members(objects).select(_STAGED_SCHEMA.names))
        self._database.execute(
            "INSERT INTO listing SELECT *, false, ? + row_number() OVER () - 1 FROM staged",
            [self._num_staged],
        )
        self._num_staged += objects.num_rows
        self._database.unregister("staged")

    def carry(self, cells: pa.Table) -> None:
        """Give staged objects further columns.

        Args:
            cells: uri, and the columns; an object without a row gets nulls, of several rows of one
                uri the first counts.
        """
        self._carried = pa.schema([each.with_nullable(True) for each in cells.schema][1:])
        numbered = cells.append_column("imgcls_row", pa.array(range(cells.num_rows), pa.int64()))
        self._database.register("staged", numbered)
        self._database.execute(
            "CREATE TABLE carried AS SELECT * EXCLUDE (imgcls_row) FROM staged"
            " QUALIFY row_number() OVER (PARTITION BY uri ORDER BY imgcls_row) = 1"
        )
        self._database.unregister("staged")

    def exclude(self, published: Iterable[pa.Table], *, retry_failed: bool) -> dict[str, int]:
        """Drop what is published already with the same etag; return counts of what was found.

        Of the unchanged, those whose answers are by older thresholds of the same network are
        counted in `num_with_older_thresholds`. What stays although it is published is counted in
        `planned_again`: of images that were ok, as pixels_moved, and of others, as failed_before.

        Args:
            published: tables of uri, etag, status and, where there are some, member, is_current and
                has_older_thresholds (see ledger.py); any number of rows for one object.
            retry_failed: keep objects that are published, but never with status ok.

        Returns:
            new (never published), changed (published with other etags only, or with other pixels),
            failed_before (published, never ok) and unchanged (published, ok).
        """
        self._take_in(published)
        state_N = compare(self._database, self._num_staged)
        is_published_N = (state_N & PUBLISHED) > 0
        is_ok_N, is_done_N = (state_N & OK) > 0, (state_N & DONE) > 0
        has_failed_N = is_published_N & ~is_ok_N
        is_over_N = is_done_N & (is_ok_N | (is_published_N & (not retry_failed)))
        num_published = int(is_published_N.sum())
        num_of_other_version = int(((state_N & KNOWN) > 0).sum()) - num_published
        self._for_each("UPDATE listing SET failed_before = true", has_failed_N & ~is_over_N)
        self._for_each("DELETE FROM listing", is_over_N)
        self._database.execute("DROP TABLE rows")
        num_moved = int((is_ok_N & ~is_done_N).sum())
        self.num_excluded = int(is_over_N.sum())
        self.num_with_older_thresholds = int((is_ok_N & is_done_N & (state_N & OLDER > 0)).sum())
        num_left = int((has_failed_N & ~is_over_N).sum())
        self.planned_again = {"pixels_moved": num_moved, "failed_before": num_left}
        self._has_failed_before = bool(num_left)
        return {
            "new": self._num_staged - num_published - num_of_other_version,
            "changed": num_of_other_version + num_moved,
            "failed_before": int(has_failed_N.sum()),
            "unchanged": int((is_ok_N & is_done_N).sum()),
        }

    def _for_each(self, statement: str, is_meant_N: npt.NDArray[np.bool_]) -> None:
        """Do something with some of the staged objects, by their numbers."""
        for start in range(0, len(is_meant_N), _CHANGED_ROWS):
            rows = np.flatnonzero(is_meant_N[start : start + _CHANGED_ROWS]) + start
            if len(rows):
                self._database.register("meant", pa.table({"row": rows}))
                self._database.execute(
                    f"{statement} WHERE imgcls_row BETWEEN ? AND ? AND imgcls_row IN (FROM meant)",
                    [start, start + _CHANGED_ROWS - 1],
                )
                self._database.unregister("meant")

    def _take_in(self, published: Iterable[pa.Table]) -> None:
        """Keep published rows as the table `rows`."""
        self._database.execute(
            "CREATE TABLE rows (uri VARCHAR, member VARCHAR, etag VARCHAR, ok BOOLEAN,"
            " done BOOLEAN, older BOOLEAN)"
        )
        for table in published:
            for name, usual in (("is_current", True), ("has_older_thresholds", False)):
                if name not in table.column_names:
                    table = table.append_column(name, pa.array([usual] * table.num_rows))
            self._database.register("staged", with_members(table))
            # `missing` and `changed` say nothing of the version that was planned: had it been read,
            # it might well be ok. Only of an object that was never there is `missing` the outcome.
            # What was `unreadable` is asked for again: its owner may have opened it.
            self._database.execute(
                "INSERT INTO rows SELECT uri, member, etag, status = 'ok',"
                " is_current AND NOT list_contains(?, status), has_older_thresholds FROM staged"
                " WHERE etag = '' OR NOT list_contains(?, status)",
                [list(map(str, ASKED_AGAIN)), list(map(str, NOTHING_LEARNT))],
            )
            self._database.unregister("staged")

    def count(self) -> int:
        """Return the number of staged objects."""
        return int(self._database.sql("SELECT count(*) FROM listing").fetchall()[0][0])

    def duplicate(self) -> str:
        """Return a uri that is staged more than once, or ""; a plan must name each once."""
        query = "SELECT uri, member FROM listing ORDER BY uri, member"
        for rows in whole_groups(self._database, query, ("uri", "member")):
            again = rows["uri"].filter(pa.array(~starts_of(rows, ("uri", "member"))))
            if len(again):
                return str(again[0])
        return ""

    def size_bytes(self) -> int:
        """Return the total size of the staged objects."""
        sizes = self._database.sql("SELECT coalesce(sum(size_bytes), 0) FROM listing").fetchall()
        return int(sizes[0][0])

    def sorted_tables(self, sizes: Iterable[int]) -> Iterator[pa.Table]:
        """Yield the objects sorted by uri, in tables of these sizes, as far as there are any.

        Members of one container follow each other as they lie in it. A table is larger where it
        would cut a container that can only be read from its start on.
        """
        left = iter(sizes)
        num_rows = next(left, 0)
        plan_schema = self.plan_schema
        # Without a member, "" stands for it in here.
        selected = {"member": "nullif(member, '') AS member"}
        columns = ", ".join(selected.get(name, _quoted(name)) for name in plan_schema.names)
        relation = self._database.table("listing")
        if self._carried.names:
            carried = self._database.table("carried")
            relation = relation.join(carried, "uri", how="left")
        batches = (
            relation.order("uri, member_place.start, member")
            .project(columns)
            .to_arrow_reader(_STAGE_ROWS)
        )
        held: list[pa.RecordBatch] = []
        held_rows = 0
        for batch in batches:
            held.append(batch)
            held_rows += batch.num_rows
            while held_rows >= num_rows > 0:
                table = pa.Table.from_batches(held)
                end = _end_of_container(table, num_rows)
                if end is None:  # more of it may come
                    break
                yield table.slice(0, end).cast(plan_schema)
                held = table.slice(end).to_batches()
                held_rows -= end
                num_rows = next(left, 0)
        while held_rows:
            table = pa.Table.from_batches(held)
            end = _end_of_container(table, num_rows or held_rows) or held_rows
            yield table.slice(0, end).cast(plan_schema)
            held = table.slice(end).to_batches()
            held_rows -= end
            num_rows = next(left, 0)

    def close(self) -> None:
        """Close the database; its files go with the folder."""
        self._database.close()


def _quoted(name: str) -> str:
    """Return the name of a column as SQL takes it, whatever is in it."""
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _to_table(batch: list[ObjectInfo | Member]) -> pa.Table:
    members = [entry if isinstance(entry, Member) else None for entry in batch]
    infos = [entry.container if isinstance(entry, Member) else entry for entry in batch]
    columns = {name: [getattr(info, name) for info in infos] for name in PLAN_SCHEMA.names}
    if not any(members):
        return pa.table(columns, schema=PLAN_SCHEMA)
    # Of a member it is its own size, and the version and time of its container.
    columns["size_bytes"] = [entry.size_bytes for entry in batch]
    columns[MEMBER_FIELD.name] = [member and member.name for member in members]
    columns[MEMBER_PLACE_FIELD.name] = [member and asdict(member.place) for member in members]
    return pa.table(columns, schema=_STAGED_SCHEMA)


def _end_of_container(table: pa.Table, num_rows: int) -> int | None:
    """Return where to cut a table behind so many rows or more, None where that is not in it yet."""
    if MEMBER_PLACE_FIELD.name not in table.column_names or num_rows > table.num_rows:
        return min(num_rows, int(table.num_rows))
    last = table.slice(num_rows - 1, 1).select(["uri", MEMBER_PLACE_FIELD.name]).to_pylist()[0]
    place = last[MEMBER_PLACE_FIELD.name]
    if not place or place["method"] not in READ_FROM_START:
        return num_rows
    is_other = pc.not_equal(table["uri"].slice(num_rows), last["uri"])
    first_other = int(pc.index(is_other, True).as_py())
    return None if first_other < 0 else num_rows + first_other


@contextmanager
def stage(entries: Iterable[Entry]) -> Iterator[Staging]:
    """Stage a listing in a temporary folder that is gone afterwards."""
    with _empty_staging() as staging:
        staging.fill(entries)
        yield staging


@contextmanager
def stage_again(tables: Iterable[pa.Table]) -> Iterator[Staging]:
    """Stage planned objects (PLAN_SCHEMA and more), to compare them as if listed now."""
    with _empty_staging() as staging:
        for table in tables:
            names = [name for name in _STAGED_SCHEMA.names if name in table.column_names]
            staging.insert(with_comparable_etags(table.select(names)))
        yield staging


@contextmanager
def _empty_staging() -> Iterator[Staging]:
    with scratch_folder("plan") as folder:
        staging = Staging(folder)
        try:
            yield staging
        finally:
            staging.close()
