"""OUT/latest.sql: views by which DuckDB reads what is published, and of each image the latest row.

In: an output and its published runs. Out: SQL text. Invariant: the views read what manifests name,
so a night that is being written, or was killed, is not there; "latest" is the rule of
runs/latest.py, word by word.
"""

from collections.abc import Sequence
from typing import Final

from imgcls.errors import ObjectMissingError
from imgcls.runs.latest import latest_of, latest_units_of
from imgcls.runs.published import Night
from imgcls.storage.objects import put, read
from imgcls.storage.uri import join

LATEST_SQL: Final = "latest.sql"
_HEAD: Final = """\
-- Views of what imgcls published under {output}
-- Use: duckdb -init latest.sql, or in DuckDB: .read latest.sql
-- published: every row; latest: of each image the rows of the run that scored it last.
"""
# Parts of a run without a manifest are not published; the empty row gives all outputs a `member`.
_PUBLISHED: Final = """
CREATE OR REPLACE VIEW {name} AS
SELECT rows.* EXCLUDE (filename) FROM (
    SELECT NULL::VARCHAR AS member WHERE false
    UNION ALL BY NAME
    SELECT * FROM read_parquet({files}, union_by_name = true, filename = true,
                               hive_partitioning = false)
) AS rows
SEMI JOIN (
    SELECT replace(regexp_replace(filename, '[^/]*$', ''), {from_}, {to}) || unnest({field}).path
           AS filename
    FROM read_json({manifests}, filename = true, columns = {{{field}: 'STRUCT(path VARCHAR)[]'}})
) AS named USING (filename);
"""


def views_of(output: str, *, has_units: bool) -> str:
    """Return the SQL of the views.

    Args:
        output: The output, as DuckDB reaches it.
        has_units: Some run has units: `published_units` and `latest_units` are there, too.
    """
    manifests = _text(f"{_plain(output)}/date=*/run=*/_manifest.json")
    folders = {"parts": output, "groups": join(output, "_groups")}
    text = _HEAD.format(output=output.replace("\n", " "))
    for field, folder in folders.items():
        if field == "groups" and not has_units:
            continue
        name = "published" if field == "parts" else "published_units"
        text += _PUBLISHED.format(
            name=name,
            field=field,
            manifests=manifests,
            files=_text(f"{_plain(folder)}/date=*/run=*/part-*.parquet"),
            from_=_text(f"{output}/date="),
            to=_text(f"{folder}/date="),
        )
    text += f"\nCREATE OR REPLACE VIEW latest AS\n{latest_of('published')};\n"
    if has_units:
        rule = latest_units_of("published_units")
        text += f"\nCREATE OR REPLACE VIEW latest_units AS\n{rule};\n"
    return text


def write_views(output: str, nights: Sequence[Night]) -> str:
    """Write OUT/latest.sql where it is not what it should be; return where it is, "" for nowhere.

    Args:
        output: The output.
        nights: Its published runs.
    """
    if not nights:
        return ""
    uri = join(output, LATEST_SQL)
    text = views_of(output, has_units=any(manifest.groups for _, manifest in nights)).encode()
    try:
        there = read(uri)
    except ObjectMissingError:
        there = b""
    if there != text:
        put(uri, text)
    return uri


def _text(value: str) -> str:
    """Return a text as SQL has it."""
    quoted = value.replace("'", "''")
    return f"'{quoted}'"


def _plain(path: str) -> str:
    """Return a path in which nothing is a pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)
