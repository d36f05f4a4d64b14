"""Published results as CSV, as views, as a Delta Lake table: the same rows, whatever is killed."""

import csv
import io
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from deltalake import DeltaTable

from imgcls import read
from imgcls.config.scoring import NightlyConfig, ResultsConfig, RollbackConfig
from imgcls.errors import ConfigError, SourceError
from imgcls.inert import from_csv
from imgcls.nightly import nightly
from imgcls.results import delta
from imgcls.results.driver import results
from imgcls.runs.published import MANIFEST, list_published
from imgcls.scoring.publishing.retention import rollback
from tests.report.nights import publish_night, row_of
from tests.scoring.tiny import image_bytes, published_rows

HOSTILE = '=HYPERLINK("evil"),\u202e-1.png'


@pytest.fixture
def config(tmp_path: Path, model_ref: str) -> NightlyConfig:
    (tmp_path / "in").mkdir()
    return NightlyConfig(
        str(tmp_path / "in"),
        model_ref,
        str(tmp_path / "out"),
        date="2026-11-22",
        executor="local",
        num_decoders=1,
        unit="name:part([0-9]+)",
        delta=True,
    )


def bring(config: NightlyConfig, *names: str) -> None:
    for number, name in enumerate(names):
        (Path(config.source) / name).write_bytes(image_bytes(number))


def uris_by_run(rows: list[dict[str, Any]]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for row in rows:
        found.setdefault(row["run_id"], Counter())[row["uri"]] += 1
    return found


def seen_by_all(output: str) -> list[dict[str, Counter[str]]]:
    """What deltalake, DuckDB and Polars each see of the Delta table."""
    table = DeltaTable(output)
    names = ["uri", "run_id"]
    dataset = table.to_pyarrow_dataset()  # noqa: F841 - DuckDB finds it by its name
    by_duckdb = duckdb.sql("SELECT uri, run_id FROM dataset").to_arrow_table()
    return [
        uris_by_run(table.to_pyarrow_table(columns=names).to_pylist()),
        uris_by_run(by_duckdb.to_pylist()),
        uris_by_run(pl.scan_delta(output).select(names).collect().to_dicts()),
    ]


def published(output: str) -> dict[str, Counter[str]]:
    return uris_by_run(published_rows(output).to_pylist())


def assert_all_see_what_is_published(output: str) -> None:
    expected = published(output)
    assert seen_by_all(output) == [expected] * 3


def test_a_delta_table_names_the_published_parts_through_nights_and_rollback(
    config: NightlyConfig,
) -> None:
    bring(config, "part1-a.png", "part1-b.png", "part2-a.png")
    nightly(replace(config, run_id="one"))
    assert_all_see_what_is_published(config.output)
    # Another night has a column more; without the flag the table is kept up all the same.
    bring(config, "part2-b.png")
    nightly(replace(config, run_id="two", delta=False, write_embedding=True))
    assert_all_see_what_is_published(config.output)
    version = DeltaTable(config.output).version()
    result = nightly(replace(config, run_id="three"))
    assert result["rows"] == 0
    assert DeltaTable(config.output).version() == version, "nothing new, nothing registered"
    units = DeltaTable(f"{config.output}/_groups").to_pyarrow_table().to_pylist()
    assert sorted((row["unit"], row["version"]) for row in units) == [("1", 1), ("2", 1), ("2", 2)]
    # Metadata alone: the parts are where they were, and nothing else is there.
    files = {Path(uri).name for uri in DeltaTable(config.output).file_uris()}
    assert files == {"part-00000.parquet"}
    rollback(RollbackConfig(config.output, "two"))
    assert set(published(config.output)) == {"one"}
    assert_all_see_what_is_published(config.output)


def _killed_night(config: NightlyConfig, place: str, when: str) -> None:
    """Run a night that is killed before or after one call of deltalake's commits."""
    import deltalake.transaction as transaction
    from deltalake.table import TableAlterer

    holder: Any = {
        "create": transaction,
        "commit": DeltaTable,
        "alter": TableAlterer,
    }[place]
    name = {
        "create": "create_table_with_add_actions",
        "commit": "create_write_transaction",
        "alter": "add_columns",
    }[place]
    real = getattr(holder, name)

    def die(*args: Any, **kwargs: Any) -> None:
        if when == "after":
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(holder, name, die)
    nightly(config)


def kill(config: NightlyConfig, place: str, when: str) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=_killed_night, args=(config, place, when)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def campaign(config: NightlyConfig, num_kills: int) -> None:
    """Kill nights between their manifest and their registration; the next start mends each."""
    places = [("create", "before"), ("commit", "after"), ("alter", "before"), ("commit", "before")]
    places += [("alter", "after")]
    for number in range(num_kills):
        place, when = places[number % len(places)] if number else ("create", "before")
        place = "commit" if number and place == "create" else place
        bring(config, f"part{number % 3}-{number}.png")
        # A column more, so that the table gets one before its rows.
        carry = (f"col{number}=folder:-1",) if place == "alter" else ()
        killed = replace(config, run_id=f"n{number}", carry=carry)
        kill(killed, place, when)
        assert f"n{number}" in published(config.output), "the night is there, whatever its table"
        nightly(replace(config, run_id=f"mend{number}"))
        assert_all_see_what_is_published(config.output)
    assert sum(sum(c.values()) for c in published(config.output).values()) == num_kills


@pytest.mark.timeout(900)
def test_killed_between_manifest_and_registration_the_next_start_mends_it(
    config: NightlyConfig,
) -> None:
    campaign(config, 3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_between_manifest_and_registration(config: NightlyConfig) -> None:
    campaign(config, 20)


def test_a_list_of_nights_that_is_too_old_takes_nothing_out_of_the_table(tmp_path: Path) -> None:
    """Of two nights that end together, one has listed what is published before the other is."""
    output = str(tmp_path)
    folders = []
    for day, run_id in enumerate(("one", "two"), 1):
        older = list(list_published(output))
        rows = [row_of(number) for number in range(3)]
        folders.append(publish_night(output, rows, run_id=run_id, day=day)[0])
    delta.keep_delta(output, list(list_published(output)), create=True)
    delta.keep_delta(output, older, create=False)
    assert_all_see_what_is_published(output)
    assert set(published(output)) == {"one", "two"}
    # What is not published any more goes, whoever says so.
    Path(folders[1], MANIFEST).unlink()
    delta.keep_delta(output, older, create=False)
    assert_all_see_what_is_published(output)
    assert set(published(output)) == {"one"}


def test_a_failure_of_delta_never_harms_the_night(
    config: NightlyConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no such table service")

    bring(config, "part1-a.png")
    with monkeypatch.context() as patched:
        patched.setattr(delta, "_create", refuse)
        result = nightly(replace(config, run_id="one"))
    assert (result["rows"], result["verified"], result["delta"]) == (1, True, "")
    assert "imgcls results --output" in caplog.text
    assert results(ResultsConfig(config.output, "delta"))["num_rows"] == 1
    assert_all_see_what_is_published(config.output)


def test_a_run_whose_column_has_another_type_is_named_and_left_out(config: NightlyConfig) -> None:
    manifest = Path(config.output).parent / "list.csv"
    bring(config, "part1-a.png", "part2-a.png")
    for number, value in enumerate(("7", "A7"), 1):
        manifest.write_text(f"uri,dose\n{config.source}/part{number}-a.png,{value}\n")
        nightly(replace(config, source=str(manifest), run_id=f"n{number}", delta=False))
    with pytest.raises(ConfigError, match=r"run n2 is not in the Delta table .* column 'dose'"):
        results(ResultsConfig(config.output, "delta"))
    assert set(seen_by_all(config.output)[0]) == {"n1"}


def cells(path: str, separator: str = ",") -> Iterator[list[str]]:
    data = Path(path).read_bytes()
    assert data.startswith(b"\xef\xbb\xbf"), "by these three bytes Excel knows UTF-8"
    assert data.count(b"\r\n") == data.count(b"\n")
    return csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=separator)


def test_csv_has_inert_cells_and_what_a_person_needs_first(config: NightlyConfig) -> None:
    folder = Path(config.source) / "+cmd|' C calc'!A0"
    folder.mkdir()
    (folder / HOSTILE).write_bytes(image_bytes(1))
    (folder / "part3-ü.png").write_bytes(b"not an image")
    config = replace(config, delta=False, unit="folder:1", carry=("lot=folder:-1",))
    nightly(config)
    result = results(ResultsConfig(config.output, "csv"))
    assert result["num_rows"] == 2
    header, *lines = cells(result["where"])
    assert header[:4] == ["image", "unit", "status", "class_name"]
    assert not {"probs", "topk_prob", "topk_label", "etag"} & set(header)
    for line in (header, *lines):
        for cell in line:
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")), cell
            assert "\u202e" not in cell
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    assert {from_csv(row["image"]) for row in rows} == {HOSTILE, "part3-ü.png"}
    assert {from_csv(row["lot"]) for row in rows} == {folder.name}
    semicolons = results(
        ResultsConfig(config.output, "csv", separator="semicolon", into=f"{config.output}/x.csv")
    )
    again = [dict(zip(header, line, strict=True)) for line in cells(semicolons["where"], ";")][1:]
    ok = next(row for row in again if row["status"] == "ok")
    assert ok["confidence"].startswith("0,")
    units = results(ResultsConfig(config.output, "csv", unit=True))
    unit_header, unit_line = cells(units["where"])
    assert unit_header[:3] == ["image", "unit", "status"]
    assert dict(zip(unit_header, unit_line, strict=True))["num_images"] == "2"


def test_latest_is_one_rule_in_views_in_python_and_in_csv(config: NightlyConfig) -> None:
    bring(config, "part1-a.png", "part1-b.png", "part2-a.png")
    nightly(replace(config, run_id="one", delta=False))
    (Path(config.source) / "part1-a.png").write_bytes(image_bytes(77))
    nightly(replace(config, run_id="two", delta=False, write_embedding=True))
    # A night that was killed before its manifest is not there.
    orphan = Path(config.output) / "date=2026-11-23" / "run=dead"
    orphan.mkdir(parents=True)
    [part] = Path(config.output).glob("date=2026-11-22/run=two/part-*.parquet")
    (orphan / "part-00000.parquet").write_bytes(part.read_bytes())
    expected = {(row["uri"], row["run_id"]) for row in read(config.output).to_pylist()}
    assert len(expected) == 3
    with duckdb.connect() as database:
        database.execute(Path(config.output, "latest.sql").read_text())
        found = database.sql("SELECT uri, run_id FROM latest").fetchall()
        assert sorted(found) == sorted(expected)
        assert database.sql("SELECT count(*) FROM published").fetchall() == [(4,)]
        units = database.sql("SELECT unit, version FROM latest_units ORDER BY unit").fetchall()
        assert units == [("1", 2), ("2", 1)]
    header, *lines = cells(results(ResultsConfig(config.output, "csv", latest=True))["where"])
    of_csv = {(line[header.index("uri")], line[header.index("run_id")]) for line in lines}
    assert of_csv == expected


def test_what_does_not_go_together_is_refused(config: NightlyConfig) -> None:
    with pytest.raises(ConfigError, match="--to delta registers every published row"):
        results(ResultsConfig(config.output, "delta", latest=True))
    with pytest.raises(SourceError, match="no run is published there"):
        results(ResultsConfig(config.output, "csv"))
