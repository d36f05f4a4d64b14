"""`imgcls results`: what is published, in the form that others take.

In: an output. Out: a CSV file, a Delta Lake table, or DICOM reports. Invariant: only what manifests
name; asked for again, the same is there again.
"""

import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imgcls.config.scoring import ResultsConfig
from imgcls.errors import ConfigError, SourceError
from imgcls.results.csv_file import write_csv
from imgcls.results.delta import keep_delta
from imgcls.results.dicom_sr import write_reports
from imgcls.runs.latest import read_latest, read_latest_units
from imgcls.runs.published import list_published, pick_published
from imgcls.runs.run import Run
from imgcls.storage.objects import put, read
from imgcls.storage.uri import canonical, join


def results(config: ResultsConfig) -> dict[str, Any]:
    """Give what is published in another form.

    Returns:
        to, where, num_rows, and what the form adds.

    Raises:
        ConfigError: flags that do not go together, or a library that is not installed.
        SourceError: nothing is published there.
    """
    output = canonical(config.output)
    _check(config)
    if config.to == "csv":
        return _to_csv(config, output)
    if config.to == "dicom-sr":
        return write_reports(config, output)
    nights = pick_published(list(list_published(output)), output)
    where = join(keep_delta(output, nights, create=True), "_groups" if config.unit else "")
    files = [f for _, m in nights for f in (m.groups if config.unit else m.parts)]
    return {"to": "delta", "where": where.rstrip("/"), "num_rows": sum(f.num_rows for f in files)}


def _check(config: ResultsConfig) -> None:
    if config.to == "delta" and (config.latest or config.run_id or config.into):
        raise ConfigError(
            "--to delta registers every published row where it lies: no --latest, --run-id or "
            "--into; the latest row of an image is a query, see OUTPUT/latest.sql"
        )
    if config.to == "dicom-sr" and config.unit:
        raise ConfigError("--to dicom-sr: a report is of a study anyway: leave --unit away")
    if config.latest and config.run_id:
        raise ConfigError("--latest is of all runs: leave --run-id away")


def _to_csv(config: ResultsConfig, output: str) -> dict[str, Any]:
    if config.latest:
        found = read_latest_units(output) if config.unit else read_latest(output)
        tables, columns, num_rows = iter([found]), found.column_names, found.num_rows
    else:
        uris = _files(config, output)
        columns, num_rows = _columns_of(uris)
        tables = (pq.read_table(io.BytesIO(read(uri)), partitioning=None) for uri in uris)
    into = config.into or join(output, "results-units.csv" if config.unit else "results.csv")
    # It may name patients, in paths and in carried columns.
    put(into, write_csv(_plain(tables), columns, config.separator), is_private=True)
    return {"to": "csv", "where": into, "num_rows": num_rows}


def _files(config: ResultsConfig, output: str) -> list[str]:
    """Return the files of published rows, or of units.

    Raises:
        SourceError: there are none.
    """
    uris = []
    for folder, manifest in pick_published(list(list_published(output)), output, config.run_id):
        place = Run(output, manifest.run_id).table("groups", manifest.date)
        files = manifest.groups if config.unit else manifest.parts
        uris += [join(place if config.unit else folder, file.path) for file in files]
    if not uris:
        what = "no run with --unit is" if config.unit else "no rows are"
        raise SourceError(f"{output}: {what} published there")
    return uris


def _columns_of(uris: list[str]) -> tuple[list[str], int]:
    names, num_rows = dict[str, None](), 0
    for uri in uris:
        file = pq.ParquetFile(io.BytesIO(read(uri)))
        names |= dict.fromkeys(file.schema_arrow.names)
        num_rows += file.metadata.num_rows
    return list(names), num_rows


def _plain(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield tables whose codes are texts."""
    for table in tables:
        for at, field in enumerate(table.schema):
            if pa.types.is_dictionary(field.type):
                table = table.set_column(at, field.name, table[field.name].cast(pa.string()))
        yield table
