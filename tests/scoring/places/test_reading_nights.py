"""A published night, read by other tools through s3fs, as the page of stores tells."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from imgcls.config.scoring import NightlyConfig
from imgcls.nightly import nightly

PAGE = Path(__file__).parents[3] / "imgcls" / "docs" / "stores.md"


@pytest.mark.s3
def test_pandas_polars_and_dask_read_exactly_the_published_rows(
    night: NightlyConfig, s3_bucket: str
) -> None:
    result = nightly(replace(night, output=f"{s3_bucket}/predictions"))
    text = PAGE.read_text().partition("## Reading nights")[2]
    code = "\n".join(re.findall(r"^    (.*)$", text, re.MULTILINE))
    where = result["output"].removeprefix("s3://")
    code, num_changed = re.subn(r'night = ".*"', f'night = "{where}"', code)
    assert num_changed == 1
    names: dict[str, object] = {}
    exec(code, names)  # noqa: S102 - the page's own lines
    expected = {k: n for k, n in result["status_counts"].items() if n}
    frame, table, lazy = names["frame"], names["table"], names["lazy"]
    assert Counter(frame["status"].astype(str)) == expected  # type: ignore[index]
    assert Counter(table["status"].to_list()) == expected  # type: ignore[index]
    assert Counter(lazy["status"].compute().astype(str)) == expected  # type: ignore[index]
    assert len(frame) == result["rows"]  # type: ignore[arg-type]
