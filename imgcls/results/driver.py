"""`imgcls results`: what is published, in the form that others take.

In: an output. Out: a CSV file, a Delta Lake table, or DICOM reports. Invariant: only what manifests
name; asked for again, the same is there again.
"""

from collections.abc import Sequence
from typing import Any

from imgcls.config.scoring import ResultsConfig
from imgcls.errors import ConfigError, SourceError
from imgcls.results.csv_file import columns_of, write_csv
from imgcls.results.delta import keep_delta
from imgcls.results.dicom_sr import write_reports
from imgcls.runs.latest import read_latest, read_latest_units
from imgcls.runs.published import (
    Part,
    TableFile,
    files_of,
    list_published,
    open_part,
    pick_published,
    read_columns,
)
from imgcls.storage.objects import put
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
    files = [f for night in nights for _, f in files_of(output, night, of_units=config.unit)]
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
        files = _files(config, output)
        opened = (open_part(folder, file).schema_arrow.names for folder, file in files)
        columns = list(dict.fromkeys(name for names in opened for name in names))
        num_rows = sum(file.num_rows for _, file in files)
        shown = columns_of(columns)
        tables = (read_columns(folder, file, shown) for folder, file in files)
    into = config.into or join(output, "results-units.csv" if config.unit else "results.csv")
    # It may name patients, in paths and in carried columns.
    put(into, write_csv(tables, columns, config.separator), is_private=True)
    return {"to": "csv", "where": into, "num_rows": num_rows}


def _files(config: ResultsConfig, output: str) -> Sequence[tuple[str, Part | TableFile]]:
    """Return the files of published rows, or of units, each with its folder.

    Raises:
        SourceError: there are none.
    """
    nights = pick_published(list(list_published(output)), output, config.run_id)
    files = [pair for night in nights for pair in files_of(output, night, of_units=config.unit)]
    if not files:
        what = "no run with --unit is" if config.unit else "no rows are"
        raise SourceError(f"{output}: {what} published there")
    return files
